//! The read model `order_details`: each order in full, as one JSON document.
//!
//! Owns the tables `read_model.order_details_g<generation>` and the reads of the view `read_model.order_details`. The
//! document is the contract's `Order`, so answering with it costs one look-up. Its fold also answers what an order
//! looked like at an earlier version ([`ReadModel::replay`]).

mod document;
#[cfg(test)]
mod tests;
mod view;

use std::collections::HashMap;

use daybook_domain::aggregate::Aggregate as _;
use daybook_domain::event::Event as _;
use daybook_domain::order::{Event as OrderEvent, State};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, PgExecutor, Row as _};
use uuid::Uuid;

pub use self::document::{Document, find_documents};
pub use self::view::{LineView, OrderView, ReturnView, ShipmentView};

use crate::model::{check_next_version, column};
use crate::{
    Body, Categories, Event, FoldError, Generation, Key as _, Loaded, ReadModel, RowsQuery, StreamKey, row,
};

/// The read model.
#[derive(Debug)]
pub enum OrderDetails {}

/// An order in full, and whose and how new it is. Id and version are in the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Whose order it is.
    pub tenant_id: Uuid,
    /// The position of the event that last changed it.
    pub position: u64,
    /// The order.
    pub document: OrderView,
}

const FIND: &str = "
    SELECT tenant_id, position, document::text AS document FROM read_model.find_orders($1, $2)
";

/// Finds orders of the tenant by id; others are left out.
///
/// One round trip; row-level security holds it to the tenant.
pub async fn find_many(
    database: impl PgExecutor<'_>,
    tenant_id: Uuid,
    order_ids: &[String],
) -> Result<HashMap<String, Row>, sqlx::Error> {
    let rows: Vec<Row> = sqlx::query_as(FIND)
        .bind(tenant_id)
        .bind(order_ids)
        .fetch_all(database)
        .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.document.order_id.clone(), row))
        .collect())
}

/// A document is loaded while those before it have less than $3 bytes. None is fetched in order to count it.
const LOAD: &str = "
    SELECT o.number, o.tenant_id, o.position, o.document::text AS document
    FROM (
        SELECT k.number, o.tenant_id, o.position, o.document,
               sum(event_store.size_bytes(o.document))
                   OVER (ORDER BY k.number ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
        FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS k (tenant_id, order_id, number)
        JOIN read_model.order_details_g{generation} AS o ON o.tenant_id = k.tenant_id AND o.order_id = k.order_id
    ) AS o
    WHERE coalesce(o.bytes_before, 0) < $3
    ORDER BY o.number
";

const INSERT: &str = "
    INSERT INTO read_model.order_details_g{generation} AS o (tenant_id, order_id, version, position, document)
    SELECT unnest($1::uuid[]), unnest($2::text[]), unnest($3::bigint[]), unnest($4::bigint[]), unnest($5::text[])::json
";

const OVERWRITE: &str = "
    ON CONFLICT (tenant_id, order_id) DO UPDATE
    SET version = excluded.version, position = excluded.position, document = excluded.document
    WHERE o.position < excluded.position
";

impl ReadModel for OrderDetails {
    const NAME: &'static str = "order_details";
    const CATEGORIES: Categories = Categories::Named(&[State::CATEGORY]);
    type Key = StreamKey;
    type Row = Row;
    const LOAD: &'static str = LOAD;
    const INSERT: &'static str = INSERT;
    const OVERWRITE: &'static str = OVERWRITE;
    const DOCUMENT: Option<fn(&Row) -> String> = Some(|row| encode(&row.document));
    const STATEMENTS: &'static [(&'static str, &'static str)] = &[
        ("order_details.find_many", FIND),
        ("order_details.find_documents", document::FIND),
    ];

    fn keys(event: &Event) -> impl IntoIterator<Item = StreamKey> {
        matches!(event.body, Ok(Body::Order(_))).then(|| StreamKey::of(event))
    }

    fn opens(event: &Event) -> bool {
        event.stream_version == 1
    }

    fn key(row: &Row) -> StreamKey {
        StreamKey {
            tenant_id: row.tenant_id,
            stream_id: row.document.order_id.clone(),
        }
    }

    fn position(row: &Row) -> u64 {
        row.position
    }

    fn size_bytes(row: &Row) -> usize {
        size_of::<Row>() + row.document.size_bytes()
    }

    async fn load(
        connection: &mut PgConnection,
        tables: Generation,
        keys: &[StreamKey],
        bytes_max: usize,
    ) -> Result<Loaded<StreamKey, Row>, sqlx::Error> {
        let limit = i64::try_from(bytes_max).unwrap_or(i64::MAX).max(1);
        let query = StreamKey::bind(sqlx::query(tables.fill(LOAD)), keys).bind(limit);
        let mut loaded = Loaded {
            rows: HashMap::new(),
            keys: keys.len(),
        };
        let mut bytes = 0;
        for record in query.fetch_all(connection).await? {
            bytes += record.try_get::<&str, _>("document")?.len();
            let row = Row::from_row(&record)?;
            loaded.rows.insert(Self::key(&row), row);
            if bytes >= bytes_max {
                // The last one: of the keys behind it nothing is known.
                let number = row::number(&record, "number")?;
                loaded.keys = usize::try_from(number).unwrap_or(keys.len());
            }
        }
        Ok(loaded)
    }

    fn change(key: &StreamKey, row: Option<&Row>, event: &Event) -> Result<Option<Row>, FoldError> {
        match &event.body {
            Ok(Body::Order(_)) => Self::change_owned(key, row.cloned(), event),
            _ => Ok(None),
        }
    }

    fn change_owned(key: &StreamKey, row: Option<Row>, event: &Event) -> Result<Option<Row>, FoldError> {
        let Ok(Body::Order(body)) = &event.body else {
            return Ok(row);
        };
        check_next_version(row.as_ref().map_or(0, |row| row.document.version), event)?;
        let mut document = match (row, body) {
            (Some(row), _) => row.document,
            (None, OrderEvent::Placed(placed)) => {
                OrderView::placed(&key.stream_id, placed, event.occurred_at)?
            }
            (None, other) => {
                let event_type = other.event_type();
                return Err(FoldError::NotBegun { event_type });
            }
        };
        document.note(body, event.occurred_at)?;
        document.version = event.stream_version;
        document.updated_at = document.updated_at.max(event.occurred_at);
        Ok(Some(Row {
            tenant_id: key.tenant_id,
            position: event.position,
            document,
        }))
    }

    fn bind<'q>(query: RowsQuery<'q>, rows: &[&'q Row]) -> RowsQuery<'q> {
        query
            .bind(column(rows, |row| row.tenant_id))
            .bind(column(rows, |row| row.document.order_id.as_str()))
            .bind(column(rows, |row| row.document.version.cast_signed()))
            .bind(column(rows, |row| row.position.cast_signed()))
            .bind(column(rows, |row| encode(&row.document)))
    }
}

fn encode(document: &OrderView) -> String {
    serde_json::to_string(document)
        .expect("its times are in the years 0 to 9999, and all its keys are strings")
}

impl<'r> FromRow<'r, PgRow> for Row {
    fn from_row(record: &'r PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            tenant_id: record.try_get("tenant_id")?,
            position: row::number(record, "position")?,
            document: row::parse(record, "document", |json| serde_json::from_str(json))?,
        })
    }
}
