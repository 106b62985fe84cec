//! Loading and storing.

use std::collections::HashMap;

use daybook_read_model::{
    CustomerTotals, Generation, OrderDetails, OrderList, ReadModel, customer_totals, each_read_model,
    statements,
};
use sqlx::Executor as _;

use super::history::{OTHER_TENANT, TENANT, confirmed, history, placed, whole_history};
use super::{Database, fold_all, loaded, refs};

async fn what_is_stored_is_loaded<M: ReadModel>(database: &mut Database) {
    let events = whole_history(TENANT, 0..9);
    let rows = database.project::<M>(&events).await;
    let keys: Vec<_> = rows.iter().map(M::key).collect();
    let expected: HashMap<_, _> = rows.into_iter().map(|row| (M::key(&row), row)).collect();
    assert_eq!(loaded::<M>(database, &keys).await, expected);
    assert_eq!(loaded::<M>(database, &keys[..1]).await.len(), 1);
}

async fn inserted_is_stored<M: ReadModel>(database: &mut Database) {
    let rows = fold_all::<M>(&whole_history(OTHER_TENANT, 20..40));
    M::insert(&mut database.projector, Generation::FIRST, &refs(&rows), None)
        .await
        .expect("the rows are new");
    let keys: Vec<_> = rows.iter().map(M::key).collect();
    let expected: HashMap<_, _> = keys.iter().cloned().zip(rows.iter().cloned()).collect();
    assert_eq!(loaded::<M>(database, &keys).await, expected);
    let again = M::insert(&mut database.projector, Generation::FIRST, &refs(&rows), None).await;
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
async fn orders_are_loaded_up_to_a_number_of_bytes_but_one_at_least() {
    let mut database = Database::create().await;
    let rows = database.project::<OrderDetails>(&history(TENANT, 0..9)).await;
    let mut keys: Vec<_> = rows.iter().map(OrderDetails::key).collect();
    let mut nobodys = keys[0].clone();
    nobodys.stream_id.push('x');
    keys.insert(0, nobodys);
    let mut load = async |bytes_max| {
        let loaded = OrderDetails::load(&mut database.projector, Generation::FIRST, &keys, bytes_max).await;
        let loaded = loaded.expect("rows");
        (loaded.keys, loaded.rows.len())
    };
    assert_eq!(load(usize::MAX).await, (10, 9));
    assert_eq!(load(1).await, (2, 1));
    let (keys, rows) = load(2_000).await;
    assert!(
        rows > 1 && rows < 9 && keys == rows + 1,
        "{keys} keys, {rows} rows"
    );
}

#[tokio::test]
async fn rows_are_stored_and_loaded() {
    let mut database = Database::create().await;
    each_read_model!(M => what_is_stored_is_loaded::<M>(&mut database).await);
}

#[tokio::test]
async fn new_rows_are_inserted_once() {
    let mut database = Database::create().await;
    each_read_model!(M => inserted_is_stored::<M>(&mut database).await);
}

#[tokio::test]
async fn a_stored_row_never_goes_back_to_an_earlier_position() {
    let mut database = Database::create().await;
    a_row_never_goes_back::<OrderList>(&mut database).await;
    a_row_never_goes_back::<OrderDetails>(&mut database).await;
}

/// The same customer's totals in one currency, at a position.
fn totals(currency: &str, position: u64) -> customer_totals::Row<customer_totals::Sum> {
    let of_this_customer = fold_all::<CustomerTotals>(&[placed(TENANT, 7)]);
    let mut row = of_this_customer
        .into_iter()
        .next()
        .expect("a customer has ordered");
    row.key.currency = currency.parse().expect("a currency");
    row.position = position;
    row.orders_placed = position;
    row
}

#[tokio::test]
async fn a_row_that_replaces_another_leaves_one_of_each_key_and_the_newest_is_read() {
    let mut database = Database::create().await;
    for position in [10, 20, 20, 30] {
        for currency in ["EUR", "JPY", "USD"] {
            let row = totals(currency, position);
            CustomerTotals::store(&mut database.projector, Generation::FIRST, &[&row], None)
                .await
                .expect("rows can be stored");
        }
    }
    let count = "SELECT count(*) FROM read_model.customer_totals_g1";
    let rows: i64 = sqlx::query_scalar(count)
        .fetch_one(&mut database.superuser().await)
        .await
        .expect("a number");
    assert_eq!(rows, 3);

    // A row that is older than what there is, stored by mistake, is never what is read.
    let old = totals("JPY", 5);
    CustomerTotals::insert(&mut database.projector, Generation::FIRST, &[&old], None)
        .await
        .expect("nothing has this position");
    let found = customer_totals::find(&database.query, TENANT, &["c7".parse().expect("a valid id")])
        .await
        .expect("totals");
    let seen: Vec<_> = found
        .iter()
        .flat_map(|customer| &customer.totals)
        .map(|row| (row.key.currency.as_str(), row.orders_placed))
        .collect();
    assert_eq!(seen, [("EUR", 30), ("JPY", 30), ("USD", 30)]);
    let loaded = loaded::<CustomerTotals>(&mut database, std::slice::from_ref(&old.key)).await;
    assert_eq!(loaded[&old.key].position, 30);
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
