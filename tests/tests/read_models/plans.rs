//! That a statement which loads rows takes the index. What lists read is tested on a long list, in the tests of queries.

use daybook_read_model::{Generation, OrderList, ReadModel, StreamKey};
use sqlx::{Connection as _, Executor as _};

use super::history::{TENANT, history, order_id};
use super::{Database, loaded};

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
    let rows = OrderList::load(&mut transaction, Generation::FIRST, &keys, usize::MAX)
        .await
        .expect("rows can be loaded")
        .rows;
    let sequential_scans: i64 = sqlx::query_scalar(statement)
        .fetch_one(&mut *transaction)
        .await
        .expect("statistics");
    assert_eq!((rows.len(), sequential_scans), (2, 0));
}
