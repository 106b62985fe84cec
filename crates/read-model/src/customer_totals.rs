//! The read model `customer_totals`: what a customer has bought, paid and got back, in each currency.
//!
//! Owns the tables `read_model.customer_totals_g<generation>` and the reads of the view `read_model.customer_totals`.
//! Events carry the differences that they make, so the totals are sums over single events, and no order is looked at.
//! All events of a batch for one customer are summed in memory and stored as one row, which replaces the one before: a busy
//! customer costs no more than a quiet one, whoever holds a snapshot.

#[cfg(test)]
mod tests;

use daybook_domain::aggregate::Aggregate as _;
use daybook_domain::ids::CustomerId;
use daybook_domain::money::Currency;
use daybook_domain::order::{Event as OrderEvent, State};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgExecutor, Row as _};
use uuid::Uuid;

use crate::access_path::{self, AccessPath, Bounds, Keyset, NotServed, Ordered, Scan, Sort, bind_page};
use crate::model::column;
use crate::{Body, Categories, Event, FoldError, ReadModel, RowsQuery, row};

/// The read model.
#[derive(Debug)]
pub enum CustomerTotals {}

/// A customer's totals are kept for each currency.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Whose customer it is.
    pub tenant_id: Uuid,
    /// The customer.
    pub customer_id: CustomerId,
    /// The currency of the amounts.
    pub currency: Currency,
}

/// A customer's totals in one currency.
///
/// Single amounts fit 64 bits, but sums of them need not, and no caller may bring the projection to a halt with two
/// orders of the highest amount: sums are kept as [`Sum`] and shown as `i64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<Amount = i64> {
    /// Whose totals these are.
    pub key: Key,
    /// The position of the event that last changed them.
    pub position: u64,
    /// How many orders were placed, cancelled and rejected ones included.
    pub orders_placed: u64,
    /// How many of them were cancelled or rejected.
    pub orders_closed: u64,
    /// How many articles are ordered, cancelled and rejected orders left out.
    pub items_ordered: u64,
    /// What they cost, in minor units, cancelled and rejected orders left out.
    pub ordered_minor: Amount,
    /// What was paid, in minor units.
    pub paid_minor: Amount,
    /// What was refunded, in minor units.
    pub refunded_minor: Amount,
}

/// Wide enough for more amounts than the log has positions.
pub type Sum = i128;

impl crate::Key for Key {
    fn bind<'q>(query: RowsQuery<'q>, keys: &'q [Self]) -> RowsQuery<'q> {
        query
            .bind(column(keys, |key| key.tenant_id))
            .bind(column(keys, |key| key.customer_id.as_str()))
            .bind(column(keys, |key| key.currency.as_str()))
    }
}

/// A customer with its totals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Customer {
    /// The customer.
    pub customer_id: CustomerId,
    /// Its totals, by currency; at least one.
    pub totals: Vec<Row>,
}

/// Which customers are listed: those that meet every condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only customers who ordered in this currency, with the totals in it alone.
    pub currency: Option<Currency>,
    /// Whose id begins like this. It is the customers' system's own id, and no personal data: its alphabet has neither names
    /// nor addresses.
    pub search: Option<String>,
}

const CURRENCY: &str = "currency";
const Q: &str = "q=… for what the id begins with";

const CUSTOMER_ID: Ordered<Customer> = Ordered {
    name: "customer_id",
    column: "customer_id",
    is_mirrored: false,
    value: |customer| customer.customer_id.to_string(),
};
const ORDERED_MINOR: Ordered<Customer> = Ordered {
    name: "ordered_minor",
    column: "shown_ordered_minor",
    is_mirrored: false,
    value: |customer| {
        customer
            .totals
            .first()
            .map_or(0, |total| total.ordered_minor)
            .to_string()
    },
};

/// Every combination of filters and sort that is served, and by which index.
pub static ACCESS_PATHS: [AccessPath<Customer>; 2] = [
    // Backwards the dead rows of a customer would come before its newest.
    AccessPath {
        index: "customer_id",
        equal: &[],
        each: None,
        range: &[Q],
        needs_range: false,
        order: &[CUSTOMER_ID],
        both_ways: false,
    },
    AccessPath {
        index: "ordered_minor",
        equal: &[CURRENCY],
        each: None,
        range: &[],
        needs_range: false,
        order: &[ORDERED_MINOR, CUSTOMER_ID],
        both_ways: true,
    },
];

impl Filter {
    /// The scan that answers this filter and sort. Without a sort it is by customer; in a currency, who ordered most comes first.
    ///
    /// # Errors
    /// When no index serves them together.
    pub fn scan(&self, sort: Option<&Sort>) -> Result<Scan<Customer>, NotServed> {
        let usual = || match self.currency {
            Some(_) => Sort::parse("-ordered_minor"),
            None => Sort::parse("customer_id"),
        };
        let sort = sort.cloned().unwrap_or_else(usual);
        let given = [self.currency.map(|_| CURRENCY), self.search.as_ref().map(|_| Q)];
        let given: Vec<_> = given.into_iter().flatten().collect();
        access_path::scan(&ACCESS_PATHS, &given, &sort)
    }
}

const FIND: &str = "
    SELECT t.tenant_id, t.customer_id, t.currency, t.position, t.orders_placed, t.orders_closed, t.items_ordered,
           t.ordered_minor::text AS ordered_minor, t.paid_minor::text AS paid_minor,
           t.refunded_minor::text AS refunded_minor
    FROM unnest($2::text[]) AS c (customer_id)
    CROSS JOIN LATERAL read_model.find_customer_totals($1, c.customer_id) AS t
    ORDER BY t.customer_id, t.currency
";

/// Finds customers of the tenant by id; others are left out. A sum beyond 64 bits is shown as the highest (or lowest)
/// number that they hold.
///
/// One round trip; row-level security holds it to the tenant.
pub async fn find(
    database: impl PgExecutor<'_>,
    tenant_id: Uuid,
    customer_ids: &[CustomerId],
) -> Result<Vec<Customer>, sqlx::Error> {
    let ids = column(customer_ids, |id| id.as_str());
    let rows: Vec<Row<Sum>> = sqlx::query_as(FIND)
        .bind(tenant_id)
        .bind(ids)
        .fetch_all(database)
        .await?;
    Ok(by_customer(rows))
}

const LIST_BY_ID: &str = "
    SELECT t.tenant_id, t.customer_id, t.currency, t.position, t.orders_placed, t.orders_closed, t.items_ordered,
           t.ordered_minor::text AS ordered_minor, t.paid_minor::text AS paid_minor,
           t.refunded_minor::text AS refunded_minor
    FROM read_model.list_customer_ids($1, $2, $3, $4) AS c (customer_id)
    CROSS JOIN LATERAL read_model.find_customer_totals($1, c.customer_id) AS t
    ORDER BY t.customer_id, t.currency
";

const LIST_BY_AMOUNT: &str = "
    SELECT tenant_id, customer_id, currency, position, orders_placed, orders_closed, items_ordered,
           ordered_minor::text AS ordered_minor, paid_minor::text AS paid_minor,
           refunded_minor::text AS refunded_minor
    FROM read_model.page(NULL::read_model.customer_totals, $1, $2, $3, $4, $5, $6, $7, $8, $9)
";

/// The tenant's customers that pass the filter, in the order of its scan, after the given place, at most `limit` of them.
///
/// One round trip; row-level security holds it to the tenant.
pub async fn list(
    database: impl PgExecutor<'_>,
    tenant_id: Uuid,
    filter: &Filter,
    scan: Scan<Customer>,
    after: Option<&Keyset>,
    limit: u32,
) -> Result<Vec<Customer>, sqlx::Error> {
    let rows: Vec<Row<Sum>> = if let Some(currency) = &filter.currency {
        let bounds = Bounds {
            equal: vec![currency.as_str()],
            ..Bounds::default()
        };
        bind_page(
            sqlx::query_as(LIST_BY_AMOUNT),
            tenant_id,
            scan,
            &bounds,
            after,
            limit,
        )
        .fetch_all(database)
        .await?
    } else {
        let Bounds { from, before, .. } = Bounds::starting_with(filter.search.as_deref().unwrap_or_default());
        // Behind an id come those that are longer, and \u{1} is in none.
        let from = after.map_or(from, |place| Some(format!("{}\u{1}", place.0.concat())));
        sqlx::query_as(LIST_BY_ID)
            .bind(tenant_id)
            .bind(from.unwrap_or_default())
            .bind(before.unwrap_or_else(|| char::MAX.to_string()))
            .bind(i64::from(limit))
            .fetch_all(database)
            .await?
    };
    Ok(by_customer(rows))
}

/// Gathers totals that come customer by customer.
fn by_customer(rows: Vec<Row<Sum>>) -> Vec<Customer> {
    let mut customers: Vec<Customer> = Vec::new();
    for row in rows.into_iter().map(Row::shown) {
        match customers.last_mut() {
            Some(last) if last.customer_id == row.key.customer_id => last.totals.push(row),
            _ => customers.push(Customer {
                customer_id: row.key.customer_id.clone(),
                totals: vec![row],
            }),
        }
    }
    customers
}

const LOAD: &str = "
    SELECT t.tenant_id, t.customer_id, t.currency, t.position, t.orders_placed, t.orders_closed, t.items_ordered,
           t.ordered_minor::text AS ordered_minor, t.paid_minor::text AS paid_minor,
           t.refunded_minor::text AS refunded_minor
    FROM unnest($1::uuid[], $2::text[], $3::text[]) AS k (tenant_id, customer_id, currency)
    CROSS JOIN LATERAL (
        SELECT * FROM read_model.customer_totals_g{generation} AS r
        WHERE r.tenant_id = k.tenant_id AND r.customer_id = k.customer_id AND r.currency = k.currency
        ORDER BY r.position DESC LIMIT 1
    ) AS t
";

/// Deletes the rows that those to be inserted replace. The newest row of a key is found by a probe of the key and
/// deleted by its place, because in any other plan a hot key's dead rows are gone through as well.
const REPLACE: &str = "
    WITH replaced AS (
        DELETE FROM read_model.customer_totals_g{generation} AS t
        USING unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[]) AS k (tenant_id, customer_id, currency, position)
        CROSS JOIN LATERAL (
            SELECT r.ctid FROM read_model.customer_totals_g{generation} AS r
            WHERE r.tenant_id = k.tenant_id AND r.customer_id = k.customer_id AND r.currency = k.currency
              AND r.position < k.position
            ORDER BY r.position DESC LIMIT 1
        ) AS newest
        WHERE t.ctid = newest.ctid
    )
";

const INSERT: &str = "
    INSERT INTO read_model.customer_totals_g{generation} AS t
        (tenant_id, customer_id, currency, position, orders_placed, orders_closed, items_ordered, ordered_minor,
         paid_minor, refunded_minor)
    SELECT unnest($1::uuid[]), unnest($2::text[]), unnest($3::text[]), unnest($4::bigint[]), unnest($5::bigint[]),
           unnest($6::bigint[]), unnest($7::bigint[]), unnest($8::text[])::numeric, unnest($9::text[])::numeric,
           unnest($10::text[])::numeric
";

/// A row of the same position is the same row.
const OVERWRITE: &str = "ON CONFLICT DO NOTHING";

impl ReadModel for CustomerTotals {
    const NAME: &'static str = "customer_totals";
    const CATEGORIES: Categories = Categories::Named(&[State::CATEGORY]);
    type Key = Key;
    type Row = Row<Sum>;
    const LOAD: &'static str = LOAD;
    const INSERT: &'static str = INSERT;
    const REPLACE: &'static str = REPLACE;
    const OVERWRITE: &'static str = OVERWRITE;
    const STATEMENTS: &'static [(&'static str, &'static str)] = &[
        ("customer_totals.find", FIND),
        ("customer_totals.list_by_id", LIST_BY_ID),
        ("customer_totals.list_by_amount", LIST_BY_AMOUNT),
    ];

    fn keys(event: &Event) -> impl IntoIterator<Item = Key> {
        Difference::in_event(event).map(|difference| Key {
            tenant_id: event.tenant_id,
            customer_id: difference.customer_id.clone(),
            currency: difference.currency,
        })
    }

    /// No event says that it is its customer's first.
    fn opens(_: &Event) -> bool {
        false
    }

    fn key(row: &Row<Sum>) -> Key {
        row.key.clone()
    }

    fn position(row: &Row<Sum>) -> u64 {
        row.position
    }

    fn change(key: &Key, row: Option<&Row<Sum>>, event: &Event) -> Result<Option<Row<Sum>>, FoldError> {
        let Some(difference) = Difference::in_event(event) else {
            return Ok(None);
        };
        let row = row.cloned().unwrap_or_else(|| Row::empty(key.clone()));
        let changed = row.plus(&difference, event.position).ok_or(FoldError::Overflow)?;
        Ok(Some(changed))
    }

    fn bind<'q>(query: RowsQuery<'q>, rows: &[&'q Row<Sum>]) -> RowsQuery<'q> {
        query
            .bind(column(rows, |row| row.key.tenant_id))
            .bind(column(rows, |row| row.key.customer_id.as_str()))
            .bind(column(rows, |row| row.key.currency.as_str()))
            .bind(column(rows, |row| row.position.cast_signed()))
            .bind(column(rows, |row| row.orders_placed.cast_signed()))
            .bind(column(rows, |row| row.orders_closed.cast_signed()))
            .bind(column(rows, |row| row.items_ordered.cast_signed()))
            .bind(column(rows, |row| row.ordered_minor.to_string()))
            .bind(column(rows, |row| row.paid_minor.to_string()))
            .bind(column(rows, |row| row.refunded_minor.to_string()))
    }
}

/// One event's addition to a customer's totals.
struct Difference<'a> {
    customer_id: &'a CustomerId,
    currency: Currency,
    orders_placed: u64,
    orders_closed: u64,
    items_ordered: i64,
    ordered_minor: i64,
    paid_minor: i64,
    refunded_minor: i64,
}

impl<'a> Difference<'a> {
    /// The addition of an event; `None` when it changes no total.
    fn in_event(event: &'a Event) -> Option<Self> {
        let Ok(Body::Order(body)) = &event.body else {
            return None;
        };
        Self::of(body)
    }

    fn of(body: &'a OrderEvent) -> Option<Self> {
        let difference = match body {
            OrderEvent::Placed(event) => Self {
                orders_placed: 1,
                items_ordered: event.item_count.cast_signed(),
                ordered_minor: event.total_minor,
                ..Self::nothing(&event.customer_id, event.currency)
            },
            OrderEvent::LineAdded(event) => Self {
                items_ordered: event.item_count_change,
                ordered_minor: event.total_change_minor,
                ..Self::nothing(&event.customer_id, event.currency)
            },
            OrderEvent::LineRemoved(event) => Self {
                items_ordered: event.item_count_change,
                ordered_minor: event.total_change_minor,
                ..Self::nothing(&event.customer_id, event.currency)
            },
            OrderEvent::QuantityChanged(event) => Self {
                items_ordered: event.item_count_change,
                ordered_minor: event.total_change_minor,
                ..Self::nothing(&event.customer_id, event.currency)
            },
            OrderEvent::Rejected(event) => Self {
                orders_closed: 1,
                items_ordered: -event.item_count.cast_signed(),
                ordered_minor: -event.total_minor,
                ..Self::nothing(&event.customer_id, event.currency)
            },
            OrderEvent::Cancelled(event) => Self {
                orders_closed: 1,
                items_ordered: -event.item_count.cast_signed(),
                ordered_minor: -event.total_minor,
                ..Self::nothing(&event.customer_id, event.currency)
            },
            OrderEvent::PaymentRecorded(event) => Self {
                paid_minor: event.amount_minor,
                ..Self::nothing(&event.customer_id, event.currency)
            },
            OrderEvent::Refunded(event) => Self {
                refunded_minor: event.amount_minor,
                ..Self::nothing(&event.customer_id, event.currency)
            },
            OrderEvent::ShippingAddressChanged(_)
            | OrderEvent::Confirmed(_)
            | OrderEvent::Shipped(_)
            | OrderEvent::DeliveryRecorded(_)
            | OrderEvent::ReturnRequested(_)
            | OrderEvent::ReturnReceived(_) => return None,
        };
        Some(difference)
    }

    fn nothing(customer_id: &'a CustomerId, currency: Currency) -> Self {
        Self {
            customer_id,
            currency,
            orders_placed: 0,
            orders_closed: 0,
            items_ordered: 0,
            ordered_minor: 0,
            paid_minor: 0,
            refunded_minor: 0,
        }
    }
}

impl Row<Sum> {
    fn shown(self) -> Row {
        Row {
            key: self.key,
            position: self.position,
            orders_placed: self.orders_placed,
            orders_closed: self.orders_closed,
            items_ordered: self.items_ordered,
            ordered_minor: shown(self.ordered_minor),
            paid_minor: shown(self.paid_minor),
            refunded_minor: shown(self.refunded_minor),
        }
    }

    fn empty(key: Key) -> Self {
        Self {
            key,
            position: 0,
            orders_placed: 0,
            orders_closed: 0,
            items_ordered: 0,
            ordered_minor: 0,
            paid_minor: 0,
            refunded_minor: 0,
        }
    }

    /// `None` when a sum does not fit.
    fn plus(self, difference: &Difference<'_>, position: u64) -> Option<Self> {
        Some(Self {
            position,
            orders_placed: self.orders_placed.checked_add(difference.orders_placed)?,
            orders_closed: self.orders_closed.checked_add(difference.orders_closed)?,
            items_ordered: self.items_ordered.checked_add_signed(difference.items_ordered)?,
            ordered_minor: self
                .ordered_minor
                .checked_add(Sum::from(difference.ordered_minor))?,
            paid_minor: self.paid_minor.checked_add(Sum::from(difference.paid_minor))?,
            refunded_minor: self
                .refunded_minor
                .checked_add(Sum::from(difference.refunded_minor))?,
            key: self.key,
        })
    }
}

fn shown(sum: Sum) -> i64 {
    sum.clamp(i64::MIN.into(), i64::MAX.into())
        .try_into()
        .expect("it was just clamped")
}

impl<'r> FromRow<'r, PgRow> for Row<Sum> {
    fn from_row(record: &'r PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            key: Key {
                tenant_id: record.try_get("tenant_id")?,
                customer_id: row::parse(record, "customer_id", CustomerId::parse)?,
                currency: row::parse(record, "currency", Currency::parse)?,
            },
            position: row::number(record, "position")?,
            orders_placed: row::number(record, "orders_placed")?,
            orders_closed: row::number(record, "orders_closed")?,
            items_ordered: row::number(record, "items_ordered")?,
            ordered_minor: row::parse(record, "ordered_minor", str::parse)?,
            paid_minor: row::parse(record, "paid_minor", str::parse)?,
            refunded_minor: row::parse(record, "refunded_minor", str::parse)?,
        })
    }
}
