//! That the indexes are used, by the rows that statements really read.

use std::collections::BTreeMap;

use daybook_domain::order::Status;
use daybook_read_model::order_list::{self, Filter, Sort, SortBy};
use daybook_read_model::{Generation, OrderList, ReadModel, StreamKey};
use sqlx::{Connection as _, Executor as _, PgConnection};

use super::history::{TENANT, history, order_id};
use super::lists::{every_sort, sorted};
use super::{Database, loaded};

const PAGE: u32 = 20;

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
    let keys = [1, 4_999].map(|number| StreamKey {
        tenant_id: TENANT,
        stream_id: order_id(number),
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
