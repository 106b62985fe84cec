//! The read model `order_list`: one short row per order, for lists with filters and sorting.
//!
//! Owns the tables `read_model.order_list_g<generation>` and the reads of the view `read_model.order_list`. Every sort
//! has an index, so a page costs the same however deep in the list it is.

#[cfg(test)]
mod tests;

use daybook_domain::aggregate::Aggregate as _;
use daybook_domain::event::Event as _;
use daybook_domain::ids::{CustomerId, Reference};
use daybook_domain::money::Currency;
use daybook_domain::order::{Event as OrderEvent, Placed, State, Status};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgExecutor, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::model::{check_next_version, column};
use crate::{Body, Event, FoldError, ReadModel, RowsQuery, StreamKey, row, status};

/// The read model.
#[derive(Debug)]
pub enum OrderList {}

/// An order in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Whose order it is.
    pub tenant_id: Uuid,
    /// The order's TypeID.
    pub order_id: String,
    /// The number of the order's events so far.
    pub version: u64,
    /// The position of the event that last changed it.
    pub position: u64,
    /// Where it stands.
    pub status: Status,
    /// The caller's own reference.
    pub reference: Option<Reference>,
    /// Who buys.
    pub customer_id: CustomerId,
    /// The currency of the total.
    pub currency: Currency,
    /// What it costs, in minor units.
    pub total_minor: i64,
    /// How many articles it has, over all lines.
    pub item_count: u64,
    /// When it was placed, by the business's time.
    pub placed_at: OffsetDateTime,
    /// When it last changed, by the business's time.
    pub updated_at: OffsetDateTime,
}

/// Which orders are listed: those that meet every condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Any of these; none means every status.
    pub statuses: Vec<Status>,
    /// Of this customer.
    pub customer_id: Option<CustomerId>,
    /// Placed then or later.
    pub placed_after: Option<OffsetDateTime>,
    /// Placed before then.
    pub placed_before: Option<OffsetDateTime>,
}

/// The order of the list. Orders that are equal in it come by their ids, the same way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sort {
    /// What is compared.
    pub by: SortBy,
    /// Whether the largest or newest comes first.
    pub descending: bool,
}

/// What a list is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SortBy {
    /// When it was placed.
    PlacedAt,
    /// When it last changed.
    UpdatedAt,
    /// What it costs, whatever the currency.
    TotalMinor,
}

/// A place in a sorted list: that of one order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyset {
    /// What the list is sorted by: minor units, or microseconds since 1970.
    pub value: i64,
    /// The order's TypeID.
    pub order_id: String,
}

impl SortBy {
    /// Every column that a list can be sorted by.
    pub const ALL: [Self; 3] = [Self::PlacedAt, Self::UpdatedAt, Self::TotalMinor];

    /// The name of the column, in the table as in the contract.
    pub fn column(self) -> &'static str {
        match self {
            Self::PlacedAt => "placed_at",
            Self::UpdatedAt => "updated_at",
            Self::TotalMinor => "total_minor",
        }
    }
}

impl Sort {
    /// Where an order stands in a list that is sorted like this; the next page comes after its last order's place.
    pub fn keyset(self, row: &Row) -> Keyset {
        let value = match self.by {
            SortBy::PlacedAt => microseconds(row.placed_at),
            SortBy::UpdatedAt => microseconds(row.updated_at),
            SortBy::TotalMinor => row.total_minor,
        };
        Keyset {
            value,
            order_id: row.order_id.clone(),
        }
    }
}

impl Keyset {
    fn moment(&self) -> Result<OffsetDateTime, sqlx::Error> {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.value) * 1_000)
            .map_err(|error| sqlx::Error::Encode(error.into()))
    }
}

fn microseconds(moment: OffsetDateTime) -> i64 {
    i64::try_from(moment.unix_timestamp_nanos() / 1_000).expect("years 0 to 9999 fit 64 bits of microseconds")
}

const LIST: &str = "
    SELECT tenant_id, order_id, version, position, status, reference, customer_id, currency, total_minor, item_count,
           placed_at, updated_at
    FROM read_model.list_orders($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
";

/// The tenant's orders that pass the filter, in this order, after the given place, at most `limit` of them.
///
/// One round trip; row-level security holds it to the tenant.
pub async fn list(
    database: impl PgExecutor<'_>,
    tenant_id: Uuid,
    filter: &Filter,
    sort: Sort,
    after: Option<&Keyset>,
    limit: u32,
) -> Result<Vec<Row>, sqlx::Error> {
    let (moment, amount) = match (sort.by, after) {
        (_, None) => (None, None),
        (SortBy::TotalMinor, Some(keyset)) => (None, Some(keyset.value)),
        (SortBy::PlacedAt | SortBy::UpdatedAt, Some(keyset)) => (Some(keyset.moment()?), None),
    };
    let statuses: Vec<&str> = filter
        .statuses
        .iter()
        .map(|status| status::name(*status))
        .collect();
    sqlx::query_as(LIST)
        .bind(tenant_id)
        .bind(statuses)
        .bind(filter.customer_id.as_ref().map(CustomerId::as_str))
        .bind(filter.placed_after)
        .bind(filter.placed_before)
        .bind(sort.by.column())
        .bind(sort.descending)
        .bind(moment)
        .bind(amount)
        .bind(after.map(|keyset| keyset.order_id.as_str()))
        .bind(i64::from(limit))
        .fetch_all(database)
        .await
}

const LOAD: &str = "
    SELECT o.tenant_id, o.order_id, o.version, o.position, o.status, o.reference, o.customer_id, o.currency,
           o.total_minor, o.item_count, o.placed_at, o.updated_at
    FROM unnest($1::uuid[], $2::text[]) AS k (tenant_id, order_id)
    JOIN read_model.order_list_g{generation} AS o ON o.tenant_id = k.tenant_id AND o.order_id = k.order_id
";

const INSERT: &str = "
    INSERT INTO read_model.order_list_g{generation} AS o
        (tenant_id, order_id, version, position, status, reference, customer_id, currency, total_minor, item_count,
         placed_at, updated_at)
    SELECT unnest($1::uuid[]), unnest($2::text[]), unnest($3::bigint[]), unnest($4::bigint[]), unnest($5::text[]),
           unnest($6::text[]), unnest($7::text[]), unnest($8::text[]), unnest($9::bigint[]), unnest($10::bigint[]),
           unnest($11::timestamptz[]), unnest($12::timestamptz[])
";

const OVERWRITE: &str = "
    ON CONFLICT (tenant_id, order_id) DO UPDATE
    SET version = excluded.version, position = excluded.position, status = excluded.status,
        reference = excluded.reference, customer_id = excluded.customer_id, currency = excluded.currency,
        total_minor = excluded.total_minor, item_count = excluded.item_count, placed_at = excluded.placed_at,
        updated_at = excluded.updated_at
    WHERE o.position < excluded.position
";

impl ReadModel for OrderList {
    const NAME: &'static str = "order_list";
    const CATEGORIES: &'static [&'static str] = &[State::CATEGORY];
    type Key = StreamKey;
    type Row = Row;
    const LOAD: &'static str = LOAD;
    const INSERT: &'static str = INSERT;
    const OVERWRITE: &'static str = OVERWRITE;
    const STATEMENTS: &'static [(&'static str, &'static str)] = &[("order_list.list", LIST)];

    fn keys(event: &Event) -> impl IntoIterator<Item = StreamKey> {
        matches!(event.body, Body::Order(_)).then(|| StreamKey::of(event))
    }

    fn opens(event: &Event) -> bool {
        event.stream_version == 1
    }

    fn key(row: &Row) -> StreamKey {
        StreamKey {
            tenant_id: row.tenant_id,
            stream_id: row.order_id.clone(),
        }
    }

    fn position(row: &Row) -> u64 {
        row.position
    }

    fn change(key: &StreamKey, row: Option<&Row>, event: &Event) -> Result<Option<Row>, FoldError> {
        let Body::Order(body) = &event.body else {
            return Ok(None);
        };
        check_next_version(row.map_or(0, |row| row.version), event)?;
        let mut row = match (row, body) {
            (Some(row), _) => row.clone(),
            (None, OrderEvent::Placed(placed)) => Row::placed(key, placed, event),
            (None, other) => {
                let event_type = other.event_type();
                return Err(FoldError::NotBegun { event_type });
            }
        };
        row.note(body);
        row.version = event.stream_version;
        row.position = event.position;
        row.updated_at = row.updated_at.max(event.occurred_at);
        Ok(Some(row))
    }

    fn bind<'q>(query: RowsQuery<'q>, rows: &[&'q Row]) -> RowsQuery<'q> {
        query
            .bind(column(rows, |row| row.tenant_id))
            .bind(column(rows, |row| row.order_id.as_str()))
            .bind(column(rows, |row| row.version.cast_signed()))
            .bind(column(rows, |row| row.position.cast_signed()))
            .bind(column(rows, |row| status::name(row.status)))
            .bind(column(rows, |row| row.reference.as_ref().map(Reference::as_str)))
            .bind(column(rows, |row| row.customer_id.as_str()))
            .bind(column(rows, |row| row.currency.as_str()))
            .bind(column(rows, |row| row.total_minor))
            .bind(column(rows, |row| row.item_count.cast_signed()))
            .bind(column(rows, |row| row.placed_at))
            .bind(column(rows, |row| row.updated_at))
    }
}

impl Row {
    fn placed(key: &StreamKey, placed: &Placed, event: &Event) -> Self {
        Self {
            tenant_id: key.tenant_id,
            order_id: key.stream_id.clone(),
            version: event.stream_version,
            position: event.position,
            status: Status::Placed,
            reference: placed.reference.clone(),
            customer_id: placed.customer_id.clone(),
            currency: placed.currency,
            total_minor: placed.total_minor,
            item_count: placed.item_count,
            placed_at: event.occurred_at,
            updated_at: event.occurred_at,
        }
    }

    /// Takes over what the event says about status and amounts.
    fn note(&mut self, body: &OrderEvent) {
        if let Some(status) = body.status() {
            self.status = status;
        }
        match body {
            OrderEvent::LineAdded(event) => self.amount_to(event.total_minor, event.item_count),
            OrderEvent::LineRemoved(event) => self.amount_to(event.total_minor, event.item_count),
            OrderEvent::QuantityChanged(event) => self.amount_to(event.total_minor, event.item_count),
            OrderEvent::Placed(_)
            | OrderEvent::ShippingAddressChanged(_)
            | OrderEvent::Confirmed(_)
            | OrderEvent::Rejected(_)
            | OrderEvent::PaymentRecorded(_)
            | OrderEvent::Shipped(_)
            | OrderEvent::DeliveryRecorded(_)
            | OrderEvent::Cancelled(_)
            | OrderEvent::ReturnRequested(_)
            | OrderEvent::ReturnReceived(_)
            | OrderEvent::Refunded(_) => {}
        }
    }

    fn amount_to(&mut self, total_minor: i64, item_count: u64) {
        self.total_minor = total_minor;
        self.item_count = item_count;
    }
}

impl<'r> FromRow<'r, PgRow> for Row {
    fn from_row(record: &'r PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            tenant_id: record.try_get("tenant_id")?,
            order_id: record.try_get("order_id")?,
            version: row::number(record, "version")?,
            position: row::number(record, "position")?,
            status: row::status(record, "status")?,
            reference: row::parse_optional(record, "reference", Reference::parse)?,
            customer_id: row::parse(record, "customer_id", CustomerId::parse)?,
            currency: row::parse(record, "currency", Currency::parse)?,
            total_minor: record.try_get("total_minor")?,
            item_count: row::number(record, "item_count")?,
            placed_at: record.try_get("placed_at")?,
            updated_at: record.try_get("updated_at")?,
        })
    }
}
