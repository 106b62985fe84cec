//! The statements of the read models on a real Postgres with the real schema: what is stored is loaded, lists are paged
//! without hole or repetition from indexes, and no tenant sees another's rows.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use daybook_devstack::testing::{TestCluster, test_cluster};
use daybook_domain::ids::OrderId;
use daybook_domain::order::{self, Confirmed, Line, Placed, Status};
use daybook_read_model::order_list::{self, Filter, Sort, SortBy};
use daybook_read_model::{
    Body, Change, CustomerTotals, Event, Generation, OrderDetails, OrderKey, OrderList, ReadModel,
    checkpoint, connect_options, customer_totals, migrator, order_details, schema_version, statements,
};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection, PgPool};
use time::{Duration, OffsetDateTime, macros::datetime};
use uuid::Uuid;

const TENANT: Uuid = Uuid::from_u128(1);
const STRANGER: Uuid = Uuid::from_u128(2);

/// A migrated database. The server goes when this goes.
struct Database {
    name: String,
    query: PgPool,
    projector: PgConnection,
    cluster: TestCluster,
}

impl Database {
    async fn create() -> Self {
        let cluster = test_cluster().await.expect("a server for tests");
        let template = format!("daybook_read_model_{}", schema_version());
        cluster
            .ensure_template(&template, async |url| migrate(&cluster, url).await)
            .await
            .expect("a migrated template");
        let name = format!("read_model_{}", Uuid::now_v7().simple());
        cluster
            .create_database(&name, Some(&template))
            .await
            .expect("a database");
        let options: PgConnectOptions = cluster
            .url("daybook_projector", &name)
            .parse()
            .expect("an address");
        Self {
            query: PgPoolOptions::new()
                .max_connections(1)
                .connect(&cluster.url("daybook_query", &name))
                .await
                .expect("it lets us in"),
            projector: connect_options(options).connect().await.expect("it lets us in"),
            name,
            cluster,
        }
    }

    async fn superuser(&self) -> PgConnection {
        self.cluster.connect(&self.name).await.expect("it lets us in")
    }

    /// Folds events from nothing and stores the rows in the live tables.
    async fn project<M: ReadModel>(&mut self, events: &[Event]) -> Vec<M::Row> {
        let rows = fold_all::<M>(events);
        M::store(&mut self.projector, Generation::FIRST, &refs(&rows))
            .await
            .expect("rows can be stored");
        rows
    }
}

async fn migrate(cluster: &TestCluster, url: String) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(&url).await?;
    daybook_event_store::migrator().run(&mut connection).await?;
    migrator().run(&mut connection).await?;
    connection.close().await?;
    cluster
        .enable_login(&["daybook_query", "daybook_projector"])
        .await?;
    Ok(())
}

fn refs<R>(rows: &[R]) -> Vec<&R> {
    rows.iter().collect()
}

fn fold_all<M: ReadModel>(events: &[Event]) -> Vec<M::Row> {
    let mut rows: HashMap<M::Key, M::Row> = HashMap::new();
    for event in events {
        for key in M::keys(event) {
            if let Change::Put(row) = M::fold(&key, rows.get(&key), event).expect("a valid history") {
                rows.insert(key, row);
            }
        }
    }
    rows.into_values().collect()
}

fn order_id(number: u32) -> String {
    OrderId::from_uuid(Uuid::from_u128(number.into())).to_string()
}

/// When an order is placed: several at the same moment, so that their ids decide.
fn placed_at(number: u32) -> OffsetDateTime {
    datetime!(2024-05-01 12:00:00.000001 UTC) + Duration::seconds(i64::from(number / 7))
}

fn event(tenant_id: Uuid, number: u32, version: u64, body: order::Event) -> Event {
    let occurred_at = placed_at(number) + Duration::minutes(i64::from(number % 11) * (version as i64 - 1));
    Event {
        partition: 0,
        position: u64::from(number) * 10 + version,
        tenant_id,
        stream_id: order_id(number),
        stream_version: version,
        event_id: Uuid::nil(),
        recorded_at: occurred_at,
        occurred_at,
        metadata: "{}".into(),
        body: Body::Order(body),
    }
}

/// One of 50 customers places an order; one of 100 totals.
fn placed(tenant_id: Uuid, number: u32) -> Event {
    let unit_price_minor = i64::from(number.wrapping_mul(7_919) % 100);
    let placed = Placed {
        order_id: order_id(number).parse().expect("an order's id"),
        customer_id: format!("c{}", number % 50).parse().expect("a valid id"),
        reference: number
            .is_multiple_of(2)
            .then(|| "web-1".parse().expect("a valid reference")),
        currency: "EUR".parse().expect("a currency"),
        lines: vec![Line {
            line_number: 1,
            sku: "TEA".parse().expect("a valid article"),
            quantity: 1,
            unit_price_minor,
        }],
        shipping_address: None,
        total_minor: unit_price_minor,
        item_count: 1,
    };
    event(tenant_id, number, 1, placed.into())
}

fn confirmed(tenant_id: Uuid, number: u32) -> Event {
    let Body::Order(order::Event::Placed(placed)) = placed(tenant_id, number).body else {
        unreachable!("it is placed")
    };
    let confirmed = Confirmed {
        customer_id: placed.customer_id,
        currency: placed.currency,
        total_minor: placed.total_minor,
        item_count: placed.item_count,
    };
    event(tenant_id, number, 2, confirmed.into())
}

/// So many orders, of which every third is confirmed.
fn history(tenant_id: Uuid, numbers: std::ops::Range<u32>) -> Vec<Event> {
    numbers
        .flat_map(|number| {
            let confirmed = number.is_multiple_of(3).then(|| confirmed(tenant_id, number));
            [Some(placed(tenant_id, number)), confirmed]
        })
        .flatten()
        .collect()
}

async fn loaded<M: ReadModel>(database: &mut Database, keys: &[M::Key]) -> HashMap<M::Key, M::Row> {
    M::load(&mut database.projector, Generation::FIRST, keys)
        .await
        .expect("rows can be loaded")
}

async fn what_is_stored_is_loaded<M: ReadModel>(database: &mut Database) {
    let events = history(TENANT, 0..9);
    let rows = database.project::<M>(&events).await;
    let keys: Vec<_> = rows.iter().map(M::key).collect();
    let expected: HashMap<_, _> = rows.into_iter().map(|row| (M::key(&row), row)).collect();
    assert_eq!(loaded::<M>(database, &keys).await, expected);
    assert_eq!(loaded::<M>(database, &keys[..1]).await.len(), 1);

    M::delete(&mut database.projector, Generation::FIRST, &keys[..1])
        .await
        .expect("rows can be removed");
    let left = loaded::<M>(database, &keys).await;
    assert!(left.len() + 1 == expected.len() && !left.contains_key(&keys[0]));
}

async fn inserted_is_stored<M: ReadModel>(database: &mut Database) {
    let rows = fold_all::<M>(&history(STRANGER, 20..40));
    M::insert(&mut database.projector, Generation::FIRST, &refs(&rows))
        .await
        .expect("the rows are new");
    let keys: Vec<_> = rows.iter().map(M::key).collect();
    let expected: HashMap<_, _> = keys.iter().cloned().zip(rows.iter().cloned()).collect();
    assert_eq!(loaded::<M>(database, &keys).await, expected);
    let again = M::insert(&mut database.projector, Generation::FIRST, &refs(&rows)).await;
    let error = again.expect_err("there are rows already");
    assert!(
        error
            .as_database_error()
            .is_some_and(|error| error.is_unique_violation())
    );
}

async fn a_row_never_goes_back<M: ReadModel>(database: &mut Database) {
    let events = [placed(TENANT, 3), confirmed(TENANT, 3)];
    let old = fold_all::<M>(&events[..1]);
    let new = database.project::<M>(&events).await;
    database.project::<M>(&events[..1]).await;
    let key = M::key(&old[0]);
    assert_eq!(
        loaded::<M>(database, std::slice::from_ref(&key)).await,
        HashMap::from([(key, new[0].clone())])
    );
}

#[tokio::test]
async fn rows_are_stored_loaded_and_removed() {
    let mut database = Database::create().await;
    what_is_stored_is_loaded::<OrderList>(&mut database).await;
    what_is_stored_is_loaded::<OrderDetails>(&mut database).await;
    what_is_stored_is_loaded::<CustomerTotals>(&mut database).await;
}

#[tokio::test]
async fn new_rows_are_inserted_once() {
    let mut database = Database::create().await;
    inserted_is_stored::<OrderList>(&mut database).await;
    inserted_is_stored::<OrderDetails>(&mut database).await;
    inserted_is_stored::<CustomerTotals>(&mut database).await;
}

#[tokio::test]
async fn a_stored_row_never_goes_back_to_an_earlier_position() {
    let mut database = Database::create().await;
    a_row_never_goes_back::<OrderList>(&mut database).await;
    a_row_never_goes_back::<OrderDetails>(&mut database).await;
}

#[tokio::test]
async fn every_statement_fits_the_migrated_schema() {
    let database = Database::create().await;
    let mut superuser = database.superuser().await;
    for (name, statement) in statements() {
        let prepared = superuser.prepare(sqlx::SqlSafeStr::into_sql_str(statement)).await;
        assert!(prepared.is_ok(), "{name}: {:?}", prepared.err());
    }
}

async fn page_through(database: &Database, filter: &Filter, sort: Sort, limit: u32) -> Vec<order_list::Row> {
    let mut rows: Vec<order_list::Row> = Vec::new();
    loop {
        let after = rows.last().map(|last| sort.keyset(last));
        let page = order_list::list(&database.query, TENANT, filter, sort, after.as_ref(), limit)
            .await
            .expect("a page");
        let is_last = page.len() < limit as usize;
        rows.extend(page);
        if is_last {
            return rows;
        }
    }
}

fn every_sort() -> impl Iterator<Item = Sort> {
    SortBy::ALL
        .into_iter()
        .flat_map(|by| [false, true].map(|descending| Sort { by, descending }))
}

fn sorted(mut rows: Vec<order_list::Row>, sort: Sort) -> Vec<order_list::Row> {
    rows.sort_by_key(|row| {
        let place = sort.keyset(row);
        (place.value, place.order_id)
    });
    if sort.descending {
        rows.reverse();
    }
    rows
}

#[tokio::test]
async fn paging_in_any_order_gives_each_order_once_and_in_order() {
    let mut database = Database::create().await;
    let rows = database.project::<OrderList>(&history(TENANT, 0..10_000)).await;
    database
        .project::<OrderList>(&history(STRANGER, 20_000..20_100))
        .await;
    for sort in every_sort() {
        let listed = page_through(&database, &Filter::default(), sort, 997).await;
        assert!(
            listed == sorted(rows.clone(), sort),
            "{sort:?}: {} rows",
            listed.len()
        );
    }
}

#[tokio::test]
async fn filters_let_through_what_meets_all_of_them() {
    let mut database = Database::create().await;
    let rows = database.project::<OrderList>(&history(TENANT, 0..1_000)).await;
    let filters = [
        Filter {
            statuses: vec![Status::Confirmed],
            ..Filter::default()
        },
        Filter {
            statuses: vec![Status::Cancelled, Status::Confirmed, Status::Confirmed],
            ..Filter::default()
        },
        Filter {
            statuses: vec![Status::Placed, Status::Confirmed],
            ..Filter::default()
        },
        Filter {
            customer_id: Some("c7".parse().expect("a valid id")),
            ..Filter::default()
        },
        Filter {
            placed_after: Some(placed_at(70)),
            placed_before: Some(placed_at(700)),
            ..Filter::default()
        },
        Filter {
            statuses: vec![Status::Placed],
            customer_id: Some("c7".parse().expect("a valid id")),
            placed_after: Some(placed_at(70)),
            placed_before: Some(placed_at(700)),
        },
    ];
    for (filter, sort) in filters
        .iter()
        .flat_map(|filter| every_sort().map(move |sort| (filter, sort)))
    {
        let meets = |row: &order_list::Row| {
            (filter.statuses.is_empty() || filter.statuses.contains(&row.status))
                && filter
                    .customer_id
                    .as_ref()
                    .is_none_or(|id| row.customer_id == *id)
                && filter.placed_after.is_none_or(|moment| row.placed_at >= moment)
                && filter.placed_before.is_none_or(|moment| row.placed_at < moment)
        };
        let expected = sorted(rows.iter().filter(|row| meets(row)).cloned().collect(), sort);
        assert!(!expected.is_empty(), "{filter:?} lets something through");
        assert_eq!(
            page_through(&database, filter, sort, 40).await,
            expected,
            "{filter:?} {sort:?}"
        );
    }
}

#[tokio::test]
async fn a_tenant_sees_its_own_rows_and_without_a_tenant_there_are_none() {
    let mut database = Database::create().await;
    let events = history(TENANT, 0..10);
    database.project::<OrderList>(&events).await;
    database.project::<OrderDetails>(&events).await;
    database.project::<CustomerTotals>(&events).await;
    let newest = Sort {
        by: SortBy::PlacedAt,
        descending: true,
    };
    let ids: Vec<_> = (0..10).map(order_id).collect();

    for (tenant, expected) in [
        (STRANGER, [0, 0, 0]),
        (TENANT, [10, 10, 1]),
        (STRANGER, [0, 0, 0]),
    ] {
        let listed = order_list::list(&database.query, tenant, &Filter::default(), newest, None, 100).await;
        let found = order_details::find_many(&database.query, tenant, &ids).await;
        let totals = customer_totals::find(&database.query, tenant, "c7").await;
        let seen = [
            listed.expect("a page").len(),
            found.expect("orders").len(),
            totals.expect("totals").len(),
        ];
        assert_eq!(seen, expected, "{tenant}");

        for view in ["order_list", "order_details", "customer_totals"] {
            let statement = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM read_model.{view}"));
            let rows: i64 = sqlx::query_scalar(statement)
                .fetch_one(&database.query)
                .await
                .expect("it may be read");
            assert_eq!(rows, 0, "{view} without a tenant, after a read of {tenant}");
        }
    }
}

#[tokio::test]
async fn the_query_role_can_change_nothing() {
    let database = Database::create().await;
    for table in ["order_list_g1", "order_details_g1", "customer_totals_g1"] {
        for statement in [
            "DELETE FROM read_model.",
            "TRUNCATE read_model.",
            "DROP TABLE read_model.",
        ] {
            let statement = sqlx::AssertSqlSafe(format!("{statement}{table}"));
            let refused = database
                .query
                .execute(statement)
                .await
                .expect_err("it may only read");
            let code = refused
                .as_database_error()
                .and_then(|error| error.code().map(|code| code.into_owned()));
            assert_eq!(code.as_deref(), Some("42501"), "{table}");
        }
    }
}

#[tokio::test]
async fn details_and_totals_are_found_as_they_were_folded() {
    let mut database = Database::create().await;
    let events = history(TENANT, 0..100);
    let details = database.project::<OrderDetails>(&events).await;
    let totals = database.project::<CustomerTotals>(&events).await;

    let wanted = [order_id(3), order_id(4), "ord_unknown".to_owned()];
    let found = order_details::find_many(&database.query, TENANT, &wanted)
        .await
        .expect("orders");
    let expected: HashMap<_, _> = details
        .into_iter()
        .map(|row| (row.document.order_id.clone(), row))
        .filter(|(id, _)| wanted.contains(id))
        .collect();
    assert_eq!(found, expected);

    let found = customer_totals::find(&database.query, TENANT, "c3")
        .await
        .expect("totals");
    let kept = totals
        .iter()
        .find(|row| row.key.customer_id.as_str() == "c3")
        .expect("c3 ordered");
    assert_eq!(found.len(), 1);
    assert_eq!(
        (&found[0].key, found[0].orders_placed, found[0].position),
        (&kept.key, 2, kept.position)
    );
    assert_eq!(i128::from(found[0].ordered_minor), kept.ordered_minor);
}

#[tokio::test]
async fn every_projection_has_a_checkpoint_in_every_partition() {
    let database = Database::create().await;
    let live = checkpoint::live(&database.query).await.expect("checkpoints");
    let names: BTreeSet<_> = live
        .iter()
        .map(|checkpoint| checkpoint.projection.as_str())
        .collect();
    assert_eq!(
        names,
        BTreeSet::from([CustomerTotals::NAME, OrderDetails::NAME, OrderList::NAME])
    );
    for checkpoint in &live {
        assert_eq!(
            (checkpoint.partition, checkpoint.position, checkpoint.generation),
            (0, 0, Generation::FIRST)
        );
    }
}

/// What has been read of the order list and its indexes: scans and rows, by name.
async fn reads(superuser: &mut PgConnection) -> BTreeMap<String, (i64, i64)> {
    let statement = "
        SELECT relname::text, seq_scan, seq_tup_read FROM pg_stat_user_tables WHERE relname = 'order_list_g1'
        UNION ALL
        SELECT indexrelname::text, idx_scan, idx_tup_read FROM pg_stat_user_indexes WHERE relname = 'order_list_g1'
    ";
    let rows: Vec<(String, i64, i64)> = sqlx::query_as(statement)
        .fetch_all(superuser)
        .await
        .expect("statistics");
    rows.into_iter()
        .map(|(name, scans, rows)| (name, (scans, rows)))
        .collect()
}

/// What a page read, and nothing else.
async fn reads_of_page(
    database: &Database,
    superuser: &mut PgConnection,
    filter: &Filter,
    sort: Sort,
    after: Option<&order_list::Row>,
) -> BTreeMap<String, (i64, i64)> {
    let before = reads(superuser).await;
    let after = after.map(|row| sort.keyset(row));
    let page = order_list::list(&database.query, TENANT, filter, sort, after.as_ref(), PAGE)
        .await
        .expect("a page");
    assert_eq!(page.len(), PAGE as usize);
    // A session reports what it has read now and then, and at once when it is told to.
    database
        .query
        .execute("SELECT pg_stat_force_next_flush()")
        .await
        .expect("the function is there");
    let now = reads(superuser).await;
    now.into_iter()
        .map(|(name, (scans, rows))| (name.clone(), (scans - before[&name].0, rows - before[&name].1)))
        .filter(|(_, (scans, _))| *scans > 0)
        .collect()
}

const PAGE: u32 = 20;

#[tokio::test]
async fn a_page_deep_in_the_list_reads_its_own_rows_from_the_index_of_its_order() {
    let mut database = Database::create().await;
    let rows = database.project::<OrderList>(&history(TENANT, 0..10_000)).await;
    let mut superuser = database.superuser().await;
    for is_analyzed in [false, true] {
        if is_analyzed {
            superuser
                .execute("ANALYZE read_model.order_list_g1")
                .await
                .expect("the table is there");
        }
        for sort in every_sort() {
            let deep = &sorted(rows.clone(), sort)[8_999];
            let read = reads_of_page(&database, &mut superuser, &Filter::default(), sort, Some(deep)).await;
            let index = format!("order_list_g1_{}", sort.by.column());
            assert_eq!(
                read,
                BTreeMap::from([(index, (1, PAGE.into()))]),
                "{sort:?}, {is_analyzed}"
            );
        }
    }
}

#[tokio::test]
async fn the_usual_filters_read_no_more_than_a_page_either() {
    let mut database = Database::create().await;
    database.project::<OrderList>(&history(TENANT, 0..10_000)).await;
    let mut superuser = database.superuser().await;
    superuser
        .execute("ANALYZE read_model.order_list_g1")
        .await
        .expect("the table is there");
    let oldest = Sort {
        by: SortBy::PlacedAt,
        descending: false,
    };
    let page = i64::from(PAGE);

    let customer = Filter {
        customer_id: Some("c7".parse().expect("a valid id")),
        ..Filter::default()
    };
    let read = reads_of_page(&database, &mut superuser, &customer, oldest, None).await;
    assert_eq!(
        read,
        BTreeMap::from([("order_list_g1_customer_id".to_owned(), (1, page))])
    );

    let statuses = Filter {
        statuses: vec![Status::Confirmed, Status::Rejected],
        ..Filter::default()
    };
    let read = reads_of_page(&database, &mut superuser, &statuses, oldest, None).await;
    assert_eq!(
        read,
        BTreeMap::from([("order_list_g1_status".to_owned(), (2, page))])
    );
}

#[tokio::test]
async fn a_load_takes_the_primary_key_although_its_plan_is_older_than_the_rows() {
    let mut database = Database::create().await;
    let keys = [1, 4_999].map(|number| OrderKey {
        tenant_id: TENANT,
        order_id: order_id(number),
    });
    let few = history(TENANT, 0..3);
    database.project::<OrderList>(&few).await;
    let mut superuser = database.superuser().await;
    superuser
        .execute("ANALYZE read_model.order_list_g1")
        .await
        .expect("the table is there");
    // A prepared statement is planned for good after a few times.
    for _ in 0..10 {
        loaded::<OrderList>(&mut database, &keys).await;
    }
    database.project::<OrderList>(&history(TENANT, 3..5_000)).await;

    let statement = "SELECT pg_stat_get_xact_numscans('read_model.order_list_g1'::regclass)";
    let mut transaction = database.projector.begin().await.expect("a transaction");
    let rows = OrderList::load(&mut transaction, Generation::FIRST, &keys)
        .await
        .expect("rows can be loaded");
    let sequential_scans: i64 = sqlx::query_scalar(statement)
        .fetch_one(&mut *transaction)
        .await
        .expect("statistics");
    assert_eq!((rows.len(), sequential_scans), (2, 0));
}
