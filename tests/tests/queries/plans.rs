//! That no list that the contract allows goes through more than a page of rows, wherever it begins: by what Postgres counts, and
//! not by the names in a plan.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use daybook_read_model::access_path::{Keyset, Scan};
use daybook_read_model::customer_totals::{self, ACCESS_PATHS as CUSTOMERS};
use daybook_read_model::event_index::{self, ACCESS_PATHS as EVENTS, Period};
use daybook_read_model::order_list::{ACCESS_PATHS as ORDERS, Filter, Row};
use daybook_tests::database::Database;
use daybook_tests::skewed::{self, Orders};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use time::macros::datetime;
use uuid::Uuid;

const LIST: Orders = Orders {
    tenant_id: Uuid::from_u128(1),
    count: 200_000,
};

/// Long enough to tell a page from everything.
const SHORTER_LIST: Orders = Orders {
    count: 20_000,
    ..LIST
};

const PAGE: u32 = 20;

const ORDER_LIST: &str = "read_model.order_list_g1";
const CUSTOMER_TOTALS: &str = "read_model.customer_totals_g1";
const EVENT_INDEX: &str = "read_model.event_index_g1";

/// How many scans there are at the most: one for each status.
const SCANS_MAX: i64 = 7;

/// The way down an index, and what the planner reads of all of them.
const WAY_DOWN: i64 = 6;

/// What this session has read of a table and of its indexes: scans, rows or entries, and blocks. Earlier transactions count until
/// the session has reported them, which it does between two transactions.
const COUNTED: &str = "
    SELECT c.relname::text, pg_stat_get_xact_numscans(c.oid), pg_stat_get_xact_tuples_returned(c.oid),
           pg_stat_get_xact_blocks_fetched(c.oid)
    FROM pg_class AS c LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
    WHERE coalesce(i.indrelid, c.oid) = $1::regclass";

/// What was read.
#[derive(Debug, Default)]
struct Read {
    entries: i64,
    blocks: i64,
    scanned: Vec<String>,
}

type Counted = BTreeMap<String, (i64, i64, i64)>;

async fn counted(connection: &mut PgConnection, table: &str) -> anyhow::Result<Counted> {
    let counted: Vec<(String, i64, i64, i64)> =
        sqlx::query_as(COUNTED).bind(table).fetch_all(connection).await?;
    let by_name = counted
        .into_iter()
        .map(|(relation, scans, entries, blocks)| (relation, (scans, entries, blocks)));
    Ok(by_name.collect())
}

impl Read {
    /// What was read of a table in this transaction since it was counted.
    async fn since(before: &Counted, connection: &mut PgConnection, table: &str) -> anyhow::Result<Self> {
        let mut read = Self::default();
        for (relation, (scans, entries, blocks)) in counted(connection, table).await? {
            let (scans_before, entries_before, blocks_before) = before[&relation];
            read.entries += entries - entries_before;
            read.blocks += blocks - blocks_before;
            if scans > scans_before {
                read.scanned.push(relation);
            }
        }
        Ok(read)
    }

    /// Whether each scan has read a page and no more.
    fn is_little(&self) -> bool {
        self.entries <= SCANS_MAX * i64::from(PAGE)
            && self.blocks <= SCANS_MAX * (i64::from(PAGE) + WAY_DOWN) + WAY_DOWN
    }
}

/// A database with the list in it.
struct Filled {
    database: Database,
    superuser: PgConnection,
}

impl Filled {
    async fn create(orders: Orders) -> anyhow::Result<Self> {
        let database = Database::create().await?;
        database.add_tenants(&[orders.tenant_id]).await?;
        let mut superuser = PgConnection::connect(&database.superuser_url()).await?;
        orders.fill(&mut superuser).await?;
        Ok(Self { database, superuser })
    }
}

/// What a page reads that begins here; not what the planner looked up for it, which is remembered.
async fn read_of_page(
    connection: &mut PgConnection,
    list: &(Filter, Scan<Row>),
    after: Option<&Keyset>,
) -> anyhow::Result<(usize, Read)> {
    let mut transaction = connection.begin().await?;
    let before = counted(&mut transaction, ORDER_LIST).await?;
    let page = skewed::page(&mut *transaction, LIST, list, after, PAGE).await?;
    let read = Read::since(&before, &mut transaction, ORDER_LIST).await?;
    transaction.rollback().await?;
    Ok((page.len(), read))
}

#[tokio::test]
async fn every_list_of_orders_that_is_allowed_reads_a_page_and_no_more_wherever_it_begins()
-> anyhow::Result<()> {
    let filled = Filled::create(LIST).await?;
    let mut connection = PgConnection::connect(&filled.database.url("daybook_query")).await?;
    let mut places = Vec::new();
    for number in LIST.places() {
        places.push(LIST.order(&mut connection, number).await?);
    }
    let mut full = BTreeSet::new();
    for list in LIST.lists() {
        let scan = list.1;
        let begins = places.iter().map(|place| Some(scan.keyset(place)));
        for after in begins.chain([None]) {
            let (rows, read) = read_of_page(&mut connection, &list, after.as_ref()).await?;
            ensure!(read.is_little(), "{list:?} after {after:?}: {read:?}");
            assert_eq!(
                read.scanned,
                [format!("order_list_g1_{}", scan.index())],
                "{list:?}"
            );
            if rows == PAGE as usize {
                full.insert(scan.index());
            }
        }
    }
    let indexes: BTreeSet<_> = ORDERS.iter().map(|path| path.index).collect();
    assert_eq!(full, indexes, "some lists have nothing in them");
    Ok(())
}

#[tokio::test]
async fn a_list_whose_index_is_missing_is_seen() -> anyhow::Result<()> {
    let mut filled = Filled::create(SHORTER_LIST).await?;
    let lists = SHORTER_LIST.lists();
    for index in ORDERS
        .iter()
        .map(|path| path.index)
        .filter(|index| *index != "pkey")
    {
        let mut transaction = filled.superuser.begin().await?;
        let drop_index = format!("DROP INDEX read_model.order_list_g1_{index}; SET ROLE daybook_query");
        sqlx::raw_sql(AssertSqlSafe(drop_index))
            .execute(&mut *transaction)
            .await?;
        let of_it = lists.iter().filter(|(_, scan)| scan.index() == index);
        for list in of_it.take(2) {
            let (_, read) = read_of_page(&mut transaction, list, None).await?;
            assert!(!read.is_little(), "{list:?}: {read:?}");
        }
        transaction.rollback().await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_list_of_customers_that_is_allowed_reads_a_page_and_no_more() -> anyhow::Result<()> {
    let filled = Filled::create(SHORTER_LIST).await?;
    let mut connection = PgConnection::connect(&filled.database.url("daybook_query")).await?;
    let page = async |connection: &mut PgConnection,
                      filter: &customer_totals::Filter,
                      scan: Scan<customer_totals::Customer>,
                      after: Option<&Keyset>| {
        customer_totals::list(connection, LIST.tenant_id, filter, scan, after, PAGE).await
    };
    for filter in [
        customer_totals::Filter::default(),
        customer_totals::Filter {
            search: Some("c5".to_owned()),
            ..Default::default()
        },
        customer_totals::Filter {
            currency: Some("EUR".parse()?),
            ..Default::default()
        },
    ] {
        let path = &CUSTOMERS[usize::from(filter.currency.is_some())];
        for scan in path.scans() {
            let mut after = None;
            for _ in 0..10 {
                let mut transaction = connection.begin().await?;
                let before = counted(&mut transaction, CUSTOMER_TOTALS).await?;
                let found = page(&mut transaction, &filter, scan, after.as_ref()).await?;
                assert_eq!(found.len(), PAGE as usize, "{filter:?}");
                let read = Read::since(&before, &mut transaction, CUSTOMER_TOTALS).await?;
                transaction.rollback().await?;
                // A customer is found by one probe, and each of its two currencies by one more.
                ensure!(read.entries <= 4 * i64::from(PAGE), "{filter:?}: {read:?}");
                assert_eq!(read.scanned, [format!("customer_totals_g1_{}", path.index)]);
                after = found.last().map(|last| scan.keyset(last));
            }
        }
    }
    Ok(())
}

/// Events of two tenants in turn, an event a second. Nearly all are of one type; what the planner knows is from before the newest
/// hundredth, among which are a rare type, a new actor and a new stream.
async fn index_events(superuser: &mut PgConnection, count: i64) -> anyhow::Result<()> {
    for (first, last) in [(1, count - count / 100), (count - count / 100 + 1, count)] {
        let is_new = first > 1;
        let insert = format!(
            "ALTER TABLE {EVENT_INDEX} SET (autovacuum_enabled = false);
             INSERT INTO {EVENT_INDEX}
                 (tenant_id, position, event_id, recorded_at, stream_id, event_type, actor, correlation_id)
             SELECT CASE WHEN n % 2 = 0 THEN '{}' ELSE '{}' END::uuid, n, gen_random_uuid(),
                    timestamptz '2024-01-01 00:00:00Z' + n * interval '1 second',
                    CASE WHEN {is_new} THEN 'ord_new' WHEN n % 3 = 0 THEN 'ord_busy' ELSE 'ord_' || n / 10 END,
                    CASE WHEN {is_new} AND n % 5 = 0 THEN 'order.refunded' ELSE 'order.placed' END,
                    CASE WHEN {is_new} THEN 'agent:new' WHEN n % 4 = 0 THEN 'agent:jane' END,
                    CASE WHEN n % 7 = 0 THEN 'import-1' ELSE 'request-' || n END
             FROM generate_series({first}::bigint, {last}) AS n",
            LIST.tenant_id,
            Uuid::from_u128(2),
        );
        sqlx::raw_sql(AssertSqlSafe(insert))
            .execute(&mut *superuser)
            .await?;
        if !is_new {
            let analyze = format!("ANALYZE {EVENT_INDEX}");
            sqlx::raw_sql(AssertSqlSafe(analyze))
                .execute(&mut *superuser)
                .await?;
        }
    }
    Ok(())
}

/// A filter of each access path, with a common value and with one that the planner does not know.
fn feeds() -> Vec<event_index::Filter> {
    let filter = |change: fn(&mut event_index::Filter, String), value: &str| {
        let mut filter = event_index::Filter::default();
        change(&mut filter, value.to_owned());
        filter
    };
    let mut filters = vec![event_index::Filter::default()];
    for value in ["order.placed", "order.refunded"] {
        filters.push(filter(|filter, value| filter.event_type = Some(value), value));
    }
    for value in ["ord_busy", "ord_new"] {
        filters.push(filter(|filter, value| filter.stream_id = Some(value), value));
    }
    for value in ["agent:jane", "agent:new"] {
        filters.push(filter(|filter, value| filter.actor = Some(value), value));
    }
    filters.push(filter(
        |filter, value| filter.correlation_id = Some(value),
        "import-1",
    ));
    filters
}

#[tokio::test]
async fn every_feed_that_is_allowed_reads_a_page_and_no_more_wherever_it_begins() -> anyhow::Result<()> {
    const COUNT: i64 = 100_000;

    let database = Database::create().await?;
    database.add_tenants(&[LIST.tenant_id]).await?;
    let mut superuser = PgConnection::connect(&database.superuser_url()).await?;
    index_events(&mut superuser, COUNT).await?;
    let mut connection = PgConnection::connect(&database.url("daybook_query")).await?;
    let count = COUNT.cast_unsigned();
    let mut full = BTreeSet::new();
    for filter in feeds() {
        let path = EVENTS.iter().find(|path| {
            path.equal
                .iter()
                .copied()
                .eq(filter.given().map(|(name, _)| name))
        });
        for scan in path.expect("it is served").scans() {
            for after in [None, Some(count / 2), Some(count - count / 200)] {
                let mut transaction = connection.begin().await?;
                let before = counted(&mut transaction, EVENT_INDEX).await?;
                let period = Period::default();
                let list = (&filter, period);
                let page =
                    event_index::list(&mut transaction, LIST.tenant_id, list, scan, after, PAGE).await?;
                let read = Read::since(&before, &mut transaction, EVENT_INDEX).await?;
                transaction.rollback().await?;
                ensure!(
                    read.entries <= i64::from(PAGE) && read.blocks <= i64::from(PAGE) + 2 * WAY_DOWN,
                    "{filter:?} after {after:?}: {read:?}"
                );
                assert_eq!(
                    read.scanned,
                    [format!("event_index_g1_{}", scan.index())],
                    "{filter:?}"
                );
                if page.len() == PAGE as usize {
                    full.insert(scan.index());
                }
            }
        }
    }
    assert_eq!(full.len(), EVENTS.len(), "some lists have nothing in them");

    // A moment is found by halves.
    let mut transaction = connection.begin().await?;
    let before = counted(&mut transaction, EVENT_INDEX).await?;
    let period = Period {
        after: Some(datetime!(2024-01-01 10:00 UTC)),
        before: None,
    };
    let every = event_index::Filter::default();
    let scan = every.scan(None)?;
    let page = event_index::list(&mut transaction, LIST.tenant_id, (&every, period), scan, None, 1).await?;
    let read = Read::since(&before, &mut transaction, EVENT_INDEX).await?;
    assert_eq!(page[0].position, 36_000);
    ensure!(read.entries <= 20, "{read:?}");
    Ok(())
}

#[tokio::test]
async fn the_tables_have_the_indexes_that_lists_need_and_no_other() -> anyhow::Result<()> {
    let database = Database::create().await?;
    let superuser = database.superuser().await?;
    let columns = "
        SELECT c.relname::text, array_agg(a.attname::text ORDER BY a.attnum)
        FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
        JOIN pg_attribute AS a ON a.attrelid = i.indexrelid
        WHERE i.indrelid = $1::regclass GROUP BY c.relname";
    let of = |table: &'static str| {
        let superuser = superuser.clone();
        async move {
            let found: Vec<(String, Vec<String>)> = sqlx::query_as(columns)
                .bind(format!("read_model.{table}"))
                .fetch_all(&superuser)
                .await?;
            anyhow::Ok(found.into_iter().collect::<BTreeSet<_>>())
        }
    };
    let wanted = |table: &str, index: &str, columns: Vec<&str>, more: &[&str]| {
        let columns = ["tenant_id"]
            .into_iter()
            .chain(columns)
            .chain(more.iter().copied());
        (
            format!("{table}_{index}"),
            columns.map(str::to_owned).collect::<Vec<_>>(),
        )
    };
    let orders = ORDERS
        .iter()
        .map(|path| wanted("order_list_g1", path.index, path.columns(), &[]));
    assert_eq!(of("order_list_g1").await?, orders.collect());
    // The key of the totals is longer than the list that it serves.
    let customers = CUSTOMERS.iter().map(|path| {
        let more: &[&str] = if path.index == "customer_id" {
            &["currency", "position"]
        } else {
            &[]
        };
        wanted("customer_totals_g1", path.index, path.columns(), more)
    });
    assert_eq!(of("customer_totals_g1").await?, customers.collect());
    let events = EVENTS
        .iter()
        .map(|path| wanted("event_index_g1", path.index, path.columns(), &[]));
    assert_eq!(of("event_index_g1").await?, events.collect());
    Ok(())
}
