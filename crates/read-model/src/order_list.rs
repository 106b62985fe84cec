//! The read model `order_list`: one short row per order, for lists with filters and sorting.
//!
//! Owns the tables `read_model.order_list_g<generation>` and the reads of the view `read_model.order_list`. Which filters and
//! sorts there are is in one table, [`ACCESS_PATHS`].

#[cfg(test)]
mod tests;

use daybook_domain::aggregate::Aggregate as _;
use daybook_domain::event::Event as _;
use daybook_domain::ids::{CustomerId, Reference};
use daybook_domain::money::Currency;
use daybook_domain::order::{Event as OrderEvent, Placed, State, Status};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgExecutor, Row as _};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::access_path::{self, AccessPath, Bounds, Keyset, NotServed, Ordered, Scan, Sort, bind_page};
use crate::model::{check_next_version, column};
use crate::{Body, Categories, Event, FoldError, ReadModel, RowsQuery, StreamKey, row, status};

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
    /// Only orders of this customer.
    pub customer_id: Option<CustomerId>,
    /// In this currency.
    pub currency: Option<Currency>,
    /// Placed then or later.
    pub placed_after: Option<OffsetDateTime>,
    /// Placed before then.
    pub placed_before: Option<OffsetDateTime>,
    /// Found by what they begin with.
    pub search: Option<Search>,
}

/// The searched column: never a personal one, which in an order is its address. Ids and references stay readable, so
/// nobody should put a name into a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Search {
    /// The beginning of an order's TypeID.
    OrderId(String),
    /// The beginning of the caller's own reference.
    Reference(String),
}

impl Search {
    /// A text that begins like an order's TypeID is an id, any other a reference.
    pub fn parse(text: &str) -> Self {
        if text.starts_with("ord_") {
            Self::OrderId(text.to_owned())
        } else {
            Self::Reference(text.to_owned())
        }
    }

    /// The text that was searched for.
    pub fn text(&self) -> &str {
        let (Self::OrderId(text) | Self::Reference(text)) = self;
        text
    }
}

const STATUS: &str = "status";
const CUSTOMER_ID: &str = "customer_id";
const CURRENCY: &str = "currency";
const PLACED_AFTER: &str = "placed_after";
const PLACED_BEFORE: &str = "placed_before";
const Q_ORDER_ID: &str = "q=ord_… for what the id begins with";
const Q_REFERENCE: &str = "q=… for what the reference begins with";

const PLACED_AT: Ordered<Row> = Ordered {
    name: "placed_at",
    column: "placed_at",
    is_mirrored: false,
    value: |row| moment(row.placed_at),
};
const PLACED_AT_WITHIN: Ordered<Row> = Ordered {
    column: "placed_at_within",
    ..PLACED_AT
};
const TOTAL_MINOR: Ordered<Row> = Ordered {
    name: "total_minor",
    column: "total_minor",
    is_mirrored: false,
    value: |row| row.total_minor.to_string(),
};
const MIRRORED_TOTAL_MINOR: Ordered<Row> = Ordered {
    name: "total_minor",
    column: "mirrored_total_minor",
    is_mirrored: true,
    value: |row| (-i128::from(row.total_minor)).to_string(),
};
const REFERENCE: Ordered<Row> = Ordered {
    name: "reference",
    column: "reference",
    is_mirrored: false,
    value: |row| {
        row.reference
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default()
    },
};
const ORDER_ID: Ordered<Row> = Ordered {
    name: "order_id",
    column: "order_id",
    is_mirrored: false,
    value: |row| row.order_id.clone(),
};

/// Every combination of filters and sort that is served, and by which index.
///
/// A list without a filter on the status is one scan for each status, of the same index: an index without the status would be one
/// more to write for every event that changes it. (So a status that this program does not know is in none of its lists.)
/// Totals are compared within a currency only.
pub static ACCESS_PATHS: [AccessPath<Row>; 7] = [
    AccessPath {
        index: "status",
        equal: &[],
        each: Some(STATUS),
        range: &[PLACED_AFTER, PLACED_BEFORE],
        needs_range: false,
        order: &[PLACED_AT, ORDER_ID],
        both_ways: true,
    },
    AccessPath {
        index: "customer_id",
        equal: &[CUSTOMER_ID],
        each: Some(STATUS),
        range: &[PLACED_AFTER, PLACED_BEFORE],
        needs_range: false,
        order: &[PLACED_AT_WITHIN, ORDER_ID],
        both_ways: true,
    },
    AccessPath {
        index: "currency",
        equal: &[CURRENCY],
        each: Some(STATUS),
        range: &[PLACED_AFTER, PLACED_BEFORE],
        needs_range: false,
        order: &[PLACED_AT_WITHIN, ORDER_ID],
        both_ways: true,
    },
    AccessPath {
        index: "placed_at",
        equal: &[],
        each: Some(STATUS),
        range: &[PLACED_AFTER, PLACED_BEFORE],
        needs_range: false,
        order: &[PLACED_AT, MIRRORED_TOTAL_MINOR, ORDER_ID],
        both_ways: true,
    },
    AccessPath {
        index: "total_minor",
        equal: &[CURRENCY],
        each: Some(STATUS),
        range: &[],
        needs_range: false,
        order: &[TOTAL_MINOR, PLACED_AT, ORDER_ID],
        both_ways: true,
    },
    AccessPath {
        index: "reference",
        equal: &[],
        each: None,
        range: &[Q_REFERENCE],
        needs_range: true,
        order: &[REFERENCE, ORDER_ID],
        both_ways: true,
    },
    AccessPath {
        index: "pkey",
        equal: &[],
        each: None,
        range: &[Q_ORDER_ID],
        needs_range: false,
        order: &[ORDER_ID],
        both_ways: true,
    },
];

impl Filter {
    /// The scan that answers this filter and sort. Without a sort the newest orders come first, and those that were searched for
    /// by what they were found by.
    ///
    /// # Errors
    /// When no index serves them together.
    pub fn scan(&self, sort: Option<&Sort>) -> Result<Scan<Row>, NotServed> {
        let usual = || {
            Sort::parse(match self.search {
                Some(Search::OrderId(_)) => "order_id",
                Some(Search::Reference(_)) => "reference",
                None => "-placed_at",
            })
        };
        let sort = sort.cloned().unwrap_or_else(usual);
        access_path::scan(&ACCESS_PATHS, &self.given(), &sort)
    }

    /// The filters that are given.
    fn given(&self) -> Vec<&'static str> {
        let search = self.search.as_ref().map(|search| match search {
            Search::OrderId(_) => Q_ORDER_ID,
            Search::Reference(_) => Q_REFERENCE,
        });
        let filters = [
            (!self.statuses.is_empty()).then_some(STATUS),
            self.customer_id.as_ref().map(|_| CUSTOMER_ID),
            self.currency.map(|_| CURRENCY),
            self.placed_after.map(|_| PLACED_AFTER),
            self.placed_before.map(|_| PLACED_BEFORE),
            search,
        ];
        filters.into_iter().flatten().collect()
    }

    fn bounds(&self, scan: Scan<Row>) -> Bounds<'_> {
        if let Some(search) = &self.search {
            return Bounds::starting_with(search.text());
        }
        let statuses = if self.statuses.is_empty() {
            &Status::ALL[..]
        } else {
            &self.statuses
        };
        let mut each: Vec<_> = statuses.iter().map(|status| status::name(*status)).collect();
        each.sort_unstable();
        each.dedup();
        let equal = [
            self.customer_id.as_ref().map(CustomerId::as_str),
            self.currency.as_ref().map(Currency::as_str),
        ];
        Bounds {
            equal: equal.into_iter().flatten().collect(),
            each: if scan.has_each() { each } else { Vec::new() },
            from: self.placed_after.map(moment),
            before: self.placed_before.map(moment),
        }
    }
}

/// A time as Postgres reads it.
fn moment(moment: OffsetDateTime) -> String {
    moment
        .format(&Rfc3339)
        .expect("business times are in the years 1 to 9999")
}

const LIST: &str = "
    SELECT tenant_id, order_id, version, position, status, reference, customer_id, currency, total_minor, item_count,
           placed_at, updated_at
    FROM read_model.page(NULL::read_model.order_list, $1, $2, $3, $4, $5, $6, $7, $8, $9)
";

/// The tenant's orders that pass the filter, in the order of its scan, after the given place, at most `limit` of them.
///
/// One round trip; row-level security holds it to the tenant.
pub async fn list(
    database: impl PgExecutor<'_>,
    tenant_id: Uuid,
    filter: &Filter,
    scan: Scan<Row>,
    after: Option<&Keyset>,
    limit: u32,
) -> Result<Vec<Row>, sqlx::Error> {
    let bounds = filter.bounds(scan);
    bind_page(sqlx::query_as(LIST), tenant_id, scan, &bounds, after, limit)
        .fetch_all(database)
        .await
}

const FIND: &str = "
    SELECT tenant_id, order_id, version, position, status, reference, customer_id, currency, total_minor, item_count,
           placed_at, updated_at
    FROM read_model.find_listed_orders($1, $2)
";

/// Finds orders of the tenant, in no particular order; others are left out.
///
/// One round trip; row-level security holds it to the tenant.
pub async fn find(
    database: impl PgExecutor<'_>,
    tenant_id: Uuid,
    order_ids: &[String],
) -> Result<Vec<Row>, sqlx::Error> {
    sqlx::query_as(FIND)
        .bind(tenant_id)
        .bind(order_ids)
        .fetch_all(database)
        .await
}

const FIND_OF: &str = "
    SELECT tenant_id, order_id, version, position, status, reference, customer_id, currency, total_minor, item_count,
           placed_at, updated_at
    FROM read_model.find_listed_orders_of($1, $2)
";

/// Those of the orders that their tenants have, by tenant and id, in no particular order: each with its tenant, and what reading
/// it fails with.
///
/// One round trip; row-level security holds it to each of the tenants.
pub async fn find_of(
    database: impl PgExecutor<'_>,
    tenants: &[Uuid],
    order_ids: &[String],
) -> Result<Vec<(Uuid, Result<Row, sqlx::Error>)>, sqlx::Error> {
    let records = sqlx::query(FIND_OF)
        .bind(tenants)
        .bind(order_ids)
        .fetch_all(database)
        .await?;
    let rows = records.iter();
    rows.map(|record| Ok((record.try_get("tenant_id")?, Row::from_row(record))))
        .collect()
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
    const CATEGORIES: Categories = Categories::Named(&[State::CATEGORY]);
    type Key = StreamKey;
    type Row = Row;
    const LOAD: &'static str = LOAD;
    const INSERT: &'static str = INSERT;
    const OVERWRITE: &'static str = OVERWRITE;
    const STATEMENTS: &'static [(&'static str, &'static str)] = &[
        ("order_list.list", LIST),
        ("order_list.find", FIND),
        ("order_list.find_of", FIND_OF),
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
            stream_id: row.order_id.clone(),
        }
    }

    fn position(row: &Row) -> u64 {
        row.position
    }

    fn change(key: &StreamKey, row: Option<&Row>, event: &Event) -> Result<Option<Row>, FoldError> {
        let Ok(Body::Order(body)) = &event.body else {
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
