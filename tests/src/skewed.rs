//! A long list of orders as the planner likes it least: nearly all orders are delivered, the open ones are the newest, and what
//! the planner knows is from before there were any of those.

use daybook_domain::order::Status;
use daybook_read_model::access_path::{Keyset, Scan};
use daybook_read_model::order_list::{self, ACCESS_PATHS, Filter, Row, Search};
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// Of 1,000 orders so many are open: the newest.
const OPEN: u64 = 5;

/// Half of all orders are this customer's; none of those is open.
const BIG_CUSTOMER: &str = "big";

/// Every second open order is this customer's, who is unknown to the statistics, and so is the currency.
const NEW_CUSTOMER: &str = "newcomer";
const NEW_CURRENCY: &str = "CHF";

/// One more condition.
type Change = Box<dyn Fn(&mut Filter)>;

/// The tenant's orders, by their numbers from 1.
#[derive(Debug, Clone, Copy)]
pub struct Orders {
    /// Whose orders they are.
    pub tenant_id: Uuid,
    /// How many there are.
    pub count: u64,
}

impl Orders {
    /// Fills the live tables of the order list and of customers' totals, as a superuser. The planner's statistics are made before
    /// the newest hundredth is there, and are not renewed.
    ///
    /// # Errors
    /// When a statement fails.
    pub async fn fill(self, superuser: &mut PgConnection) -> anyhow::Result<()> {
        let newest = self.count - self.count / 100;
        let indexes: Vec<String> = sqlx::query_scalar("SELECT read_model.further_indexes('order_list', 1)")
            .fetch_all(&mut *superuser)
            .await?;
        let drop_indexes: Vec<String> = ACCESS_PATHS
            .iter()
            .filter(|path| path.index != "pkey")
            .map(|path| format!("DROP INDEX read_model.order_list_g1_{};", path.index))
            .collect();
        run(
            superuser,
            &format!(
                "ALTER TABLE read_model.order_list_g1 SET (autovacuum_enabled = false);
                 ALTER TABLE read_model.customer_totals_g1 SET (autovacuum_enabled = false);
                 SET synchronous_commit = off; SET maintenance_work_mem = '512MB'; {}",
                drop_indexes.concat()
            ),
        )
        .await?;
        self.insert(superuser, 1, newest).await?;
        run(superuser, &indexes.join(";")).await?;
        run(superuser, "ANALYZE read_model.order_list_g1").await?;
        self.insert(superuser, newest + 1, self.count).await?;
        self.total(superuser).await
    }

    async fn insert(self, superuser: &mut PgConnection, first: u64, last: u64) -> anyhow::Result<()> {
        let Self { tenant_id, count } = self;
        let open = self.first_open();
        let statement = format!(
            "INSERT INTO read_model.order_list_g1
                 (tenant_id, order_id, version, position, status, reference, customer_id, currency, total_minor,
                  item_count, placed_at, updated_at)
             SELECT '{tenant_id}', 'ord_' || lpad(n::text, 26, '0'), 1, n,
                    CASE WHEN n >= {open} THEN (ARRAY['PLACED', 'CONFIRMED', 'PARTIALLY_SHIPPED', 'SHIPPED'])[n % 4 + 1]
                         WHEN n % 400 = 0 THEN 'CANCELLED' WHEN n % 400 = 1 THEN 'REJECTED' ELSE 'DELIVERED' END,
                    CASE WHEN n % 2 = 0 THEN 'web-' || lpad(n::text, 10, '0') END,
                    CASE WHEN n >= {open} AND n % 2 = 0 THEN '{NEW_CUSTOMER}' WHEN n % 2 = 0 THEN '{BIG_CUSTOMER}'
                         ELSE 'c' || n % 9973 END,
                    CASE WHEN n >= {open} AND n % 3 = 0 THEN '{NEW_CURRENCY}' WHEN n % 1000 = 7 THEN 'JPY' ELSE 'EUR' END,
                    n * 7919 % 100 * 100, 1, placed.at, placed.at
             FROM generate_series({first}::bigint, {last}) AS n
             CROSS JOIN LATERAL (
                 -- The older half came with an import that knew the day alone.
                 SELECT CASE WHEN n <= {count} / 2 THEN date_trunc('day', exact.at, 'UTC') ELSE exact.at END AS at
                 FROM (SELECT timestamptz '2015-01-01 00:00:00Z' + n * interval '30 seconds' AS at) AS exact
             ) AS placed"
        );
        run(superuser, &statement).await
    }

    async fn total(self, superuser: &mut PgConnection) -> anyhow::Result<()> {
        let statement = "
            INSERT INTO read_model.customer_totals_g1
                (tenant_id, customer_id, currency, position, orders_placed, orders_closed, items_ordered, ordered_minor,
                 paid_minor, refunded_minor)
            SELECT tenant_id, customer_id, currency, max(position), count(*), 0, count(*), sum(total_minor), 0, 0
            FROM read_model.order_list_g1 GROUP BY tenant_id, customer_id, currency";
        run(superuser, statement).await
    }

    fn first_open(self) -> u64 {
        self.count - self.count * OPEN / 1_000
    }

    /// When an order was placed, as long as it is one of the younger half.
    fn placed_at(self, number: u64) -> OffsetDateTime {
        datetime!(2015-01-01 00:00 UTC) + Duration::seconds(30 * number.cast_signed())
    }

    /// Every list that the table of access paths allows, each filter with a common and with a rare value.
    #[must_use]
    pub fn lists(self) -> Vec<(Filter, Scan<Row>)> {
        let mut lists = Vec::new();
        for path in &ACCESS_PATHS {
            let mut filters = vec![Filter::default()];
            for needed in path.needed() {
                filters = self.with(&filters, needed);
            }
            for optional in path.optional() {
                let given = self.with(&filters, optional);
                filters.extend(given);
            }
            for filter in filters {
                lists.extend(path.scans().map(|scan| (filter.clone(), scan)));
            }
        }
        lists
    }

    /// The filters with one more condition, once for each value that is worth trying.
    fn with(self, filters: &[Filter], name: &str) -> Vec<Filter> {
        let changes: Vec<Change> = match name {
            "status" => [
                vec![Status::Placed],
                vec![Status::Delivered],
                vec![Status::Cancelled, Status::Shipped],
            ]
            .into_iter()
            .map(|statuses| -> Change { Box::new(move |filter| filter.statuses.clone_from(&statuses)) })
            .collect(),
            "customer_id" => [BIG_CUSTOMER, NEW_CUSTOMER, "c17"]
                .map(|id| -> Change {
                    Box::new(move |filter| filter.customer_id = Some(id.parse().expect("a valid id")))
                })
                .into(),
            "currency" => ["EUR", NEW_CURRENCY]
                .map(|code| -> Change {
                    Box::new(move |filter| filter.currency = Some(code.parse().expect("a currency")))
                })
                .into(),
            "placed_after" => vec![Box::new(move |filter| {
                filter.placed_after = Some(self.placed_at(self.count / 4 * 3));
            })],
            "placed_before" => vec![Box::new(move |filter| {
                filter.placed_before = Some(self.placed_at(self.count - self.count / 2_000));
            })],
            search if search.starts_with("q=ord_") => {
                vec![Box::new(|filter| {
                    filter.search = Some(Search::parse("ord_0000000000000000000"))
                })]
            }
            search if search.starts_with("q=") => {
                vec![Box::new(|filter| filter.search = Some(Search::parse("web-00")))]
            }
            unknown => panic!("there is no value for {unknown}"),
        };
        let apply = |filter: &Filter, change: &Change| {
            let mut filter = filter.clone();
            change(&mut filter);
            filter
        };
        filters
            .iter()
            .flat_map(|filter| changes.iter().map(move |change| apply(filter, change)))
            .collect()
    }

    /// The order of a number.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn order(self, query: impl PgExecutor<'_>, number: u64) -> anyhow::Result<Row> {
        let filter = Filter {
            search: Some(Search::parse(&format!("ord_{number:026}"))),
            ..Filter::default()
        };
        let found = order_list::list(query, self.tenant_id, &filter, filter.scan(None)?, None, 1).await?;
        found
            .into_iter()
            .next()
            .ok_or_else(|| anyhow::anyhow!("there is no order {number}"))
    }

    /// Numbers of orders whose places are worth beginning at, in the middle and among the open ones. Every filter on the time lets
    /// them pass.
    #[must_use]
    pub fn places(self) -> [u64; 3] {
        let (open, count) = (self.first_open(), self.count);
        [count / 5 * 4, open - count / 50, open + (count - open) / 3 * 2]
    }
}

/// A page of a list that begins anywhere: at its beginning, or behind the place of an order.
///
/// # Errors
/// When it cannot be read.
pub async fn page(
    query: impl PgExecutor<'_>,
    orders: Orders,
    (filter, scan): &(Filter, Scan<Row>),
    after: Option<&Keyset>,
    limit: u32,
) -> anyhow::Result<Vec<Row>> {
    Ok(order_list::list(query, orders.tenant_id, filter, *scan, after, limit).await?)
}

async fn run(superuser: &mut PgConnection, statements: &str) -> anyhow::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned()))
        .execute(superuser)
        .await?;
    Ok(())
}
