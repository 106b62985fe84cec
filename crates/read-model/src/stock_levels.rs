//! The read model `stock_levels`: how much there is of each article, one short row per stock item.
//!
//! Owns the tables `read_model.stock_levels_g<generation>` and the reads of the view `read_model.stock_levels`. Events
//! carry the levels that hold after them, so nothing is added up here.

#[cfg(test)]
mod tests;

use daybook_domain::aggregate::Aggregate as _;
use daybook_domain::event::Event as _;
use daybook_domain::ids::Sku;
use daybook_domain::stock::{Event as StockEvent, State};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgExecutor, Row as _};
use time::OffsetDateTime;
use time::serde::rfc3339;
use uuid::Uuid;

use crate::model::{check_next_version, column};
use crate::{Body, Categories, Event, FoldError, ReadModel, RowsQuery, StreamKey, row};

/// The read model.
#[derive(Debug)]
pub enum StockLevels {}

/// How much there is of an article.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Whose stock it is.
    pub tenant_id: Uuid,
    /// The stock item's TypeID.
    pub stock_item_id: String,
    /// The article.
    pub sku: Sku,
    /// The number of the stock item's events so far.
    pub version: u64,
    /// The position of the event that last changed it.
    pub position: u64,
    /// How many there are, reserved ones included.
    pub on_hand: u64,
    /// How many of them are reserved.
    pub reserved: u64,
    /// When it last changed, by the business's time.
    pub updated_at: OffsetDateTime,
}

// As JSON it is the contract's `StockItem`. The comments are its description in OpenAPI.
/// How much there is of an article.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StockItem<'a> {
    /// The stock item's TypeID.
    pub stock_item_id: &'a str,
    /// The article.
    pub sku: &'a str,
    /// The number of the stock item's events so far.
    pub version: u64,
    /// How many there are, reserved ones included.
    pub on_hand: u64,
    /// How many of them are kept back for orders.
    pub reserved: u64,
    /// How many can still be reserved: on hand without the reserved ones.
    pub available: u64,
    /// When it last changed, by the business's time.
    #[serde(with = "rfc3339")]
    pub updated_at: OffsetDateTime,
}

impl<'a> From<&'a Row> for StockItem<'a> {
    fn from(row: &'a Row) -> Self {
        Self {
            stock_item_id: &row.stock_item_id,
            sku: row.sku.as_str(),
            version: row.version,
            on_hand: row.on_hand,
            reserved: row.reserved,
            available: row.available(),
            updated_at: row.updated_at,
        }
    }
}

impl Row {
    /// How many can still be reserved.
    pub fn available(&self) -> u64 {
        self.on_hand.saturating_sub(self.reserved)
    }
}

const FIND: &str = "
    SELECT tenant_id, stock_item_id, sku, version, position, on_hand, reserved, updated_at
    FROM read_model.find_stock_level($1, $2)
";

/// The stock item of this id, if the tenant has it.
///
/// One round trip; row-level security holds it to the tenant.
pub async fn find(
    database: impl PgExecutor<'_>,
    tenant_id: Uuid,
    stock_item_id: &str,
) -> Result<Option<Row>, sqlx::Error> {
    sqlx::query_as(FIND)
        .bind(tenant_id)
        .bind(stock_item_id)
        .fetch_optional(database)
        .await
}

const LIST: &str = "
    SELECT tenant_id, stock_item_id, sku, version, position, on_hand, reserved, updated_at
    FROM read_model.list_stock_levels($1, $2, $3)
";

/// The tenant's stock items by article, after the given one (the first with \"\"), at most `limit` of them.
///
/// One round trip; row-level security holds it to the tenant.
pub async fn list(
    database: impl PgExecutor<'_>,
    tenant_id: Uuid,
    after_sku: &str,
    limit: u32,
) -> Result<Vec<Row>, sqlx::Error> {
    sqlx::query_as(LIST)
        .bind(tenant_id)
        .bind(after_sku)
        .bind(i64::from(limit))
        .fetch_all(database)
        .await
}

const LOAD: &str = "
    SELECT s.tenant_id, s.stock_item_id, s.sku, s.version, s.position, s.on_hand, s.reserved, s.updated_at
    FROM unnest($1::uuid[], $2::text[]) AS k (tenant_id, stock_item_id)
    CROSS JOIN LATERAL (
        SELECT * FROM read_model.stock_levels_g{generation} AS r
        WHERE r.tenant_id = k.tenant_id AND r.stock_item_id = k.stock_item_id
        ORDER BY r.position DESC LIMIT 1
    ) AS s
";

/// Deletes the rows that those to be inserted replace, as in `customer_totals`.
const REPLACE: &str = "
    WITH replaced AS (
        DELETE FROM read_model.stock_levels_g{generation} AS t
        USING unnest($1::uuid[], $2::text[], $5::bigint[]) AS k (tenant_id, stock_item_id, position)
        CROSS JOIN LATERAL (
            SELECT r.ctid FROM read_model.stock_levels_g{generation} AS r
            WHERE r.tenant_id = k.tenant_id AND r.stock_item_id = k.stock_item_id AND r.position < k.position
            ORDER BY r.position DESC LIMIT 1
        ) AS newest
        WHERE t.ctid = newest.ctid
    )
";

const INSERT: &str = "
    INSERT INTO read_model.stock_levels_g{generation} AS s
        (tenant_id, stock_item_id, sku, version, position, on_hand, reserved, updated_at)
    SELECT unnest($1::uuid[]), unnest($2::text[]), unnest($3::text[]), unnest($4::bigint[]), unnest($5::bigint[]),
           unnest($6::bigint[]), unnest($7::bigint[]), unnest($8::timestamptz[])
";

/// A row of the same position is the same row.
const OVERWRITE: &str = "ON CONFLICT DO NOTHING";

impl ReadModel for StockLevels {
    const NAME: &'static str = "stock_levels";
    const CATEGORIES: Categories = Categories::Named(&[State::CATEGORY]);
    type Key = StreamKey;
    type Row = Row;
    const LOAD: &'static str = LOAD;
    const INSERT: &'static str = INSERT;
    const REPLACE: &'static str = REPLACE;
    const OVERWRITE: &'static str = OVERWRITE;
    const DOCUMENT: Option<fn(&Row) -> String> =
        Some(|row| serde_json::to_string(&StockItem::from(row)).expect("its time is in the years 0 to 9999"));
    const STATEMENTS: &'static [(&'static str, &'static str)] =
        &[("stock_levels.find", FIND), ("stock_levels.list", LIST)];

    fn keys(event: &Event) -> impl IntoIterator<Item = StreamKey> {
        matches!(event.body, Ok(Body::Stock(_))).then(|| StreamKey::of(event))
    }

    /// Positions end the key, so a row of an event that is delivered again would not be refused but stand beside the newer one.
    fn opens(_: &Event) -> bool {
        false
    }

    fn key(row: &Row) -> StreamKey {
        StreamKey {
            tenant_id: row.tenant_id,
            stream_id: row.stock_item_id.clone(),
        }
    }

    fn position(row: &Row) -> u64 {
        row.position
    }

    fn change(key: &StreamKey, row: Option<&Row>, event: &Event) -> Result<Option<Row>, FoldError> {
        let Ok(Body::Stock(body)) = &event.body else {
            return Ok(None);
        };
        check_next_version(row.map_or(0, |row| row.version), event)?;
        let (sku, on_hand, reserved) = match (row, body) {
            (None, StockEvent::Registered(registered)) => (registered.sku.clone(), 0, 0),
            (None, other) => {
                let event_type = other.event_type();
                return Err(FoldError::NotBegun { event_type });
            }
            (Some(row), body) => {
                let (on_hand, reserved) = levels(body);
                (
                    row.sku.clone(),
                    on_hand.unwrap_or(row.on_hand),
                    reserved.unwrap_or(row.reserved),
                )
            }
        };
        Ok(Some(Row {
            tenant_id: key.tenant_id,
            stock_item_id: key.stream_id.clone(),
            sku,
            version: event.stream_version,
            position: event.position,
            on_hand,
            reserved,
            updated_at: row.map_or(event.occurred_at, |row| row.updated_at.max(event.occurred_at)),
        }))
    }

    fn bind<'q>(query: RowsQuery<'q>, rows: &[&'q Row]) -> RowsQuery<'q> {
        query
            .bind(column(rows, |row| row.tenant_id))
            .bind(column(rows, |row| row.stock_item_id.as_str()))
            .bind(column(rows, |row| row.sku.as_str()))
            .bind(column(rows, |row| row.version.cast_signed()))
            .bind(column(rows, |row| row.position.cast_signed()))
            .bind(column(rows, |row| row.on_hand.cast_signed()))
            .bind(column(rows, |row| row.reserved.cast_signed()))
            .bind(column(rows, |row| row.updated_at))
    }
}

/// The quantities on hand and reserved after an event, where the event has them.
fn levels(body: &StockEvent) -> (Option<u64>, Option<u64>) {
    match body {
        StockEvent::Registered(_) => (None, None),
        StockEvent::Received(event) => (Some(event.on_hand), None),
        StockEvent::Reserved(event) => (None, Some(event.reserved)),
        StockEvent::Released(event) => (None, Some(event.reserved)),
        StockEvent::Dispatched(event) => (Some(event.on_hand), Some(event.reserved)),
        StockEvent::Adjusted(event) => (Some(event.on_hand), None),
    }
}

impl<'r> FromRow<'r, PgRow> for Row {
    fn from_row(record: &'r PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            tenant_id: record.try_get("tenant_id")?,
            stock_item_id: record.try_get("stock_item_id")?,
            sku: row::parse(record, "sku", Sku::parse)?,
            version: row::number(record, "version")?,
            position: row::number(record, "position")?,
            on_hand: row::number(record, "on_hand")?,
            reserved: row::number(record, "reserved")?,
            updated_at: record.try_get("updated_at")?,
        })
    }
}
