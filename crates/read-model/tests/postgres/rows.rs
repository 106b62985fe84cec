//! Loading, storing, removing.

use std::collections::HashMap;

use daybook_read_model::{CustomerTotals, Generation, OrderDetails, OrderList, ReadModel, statements};
use sqlx::Executor as _;

use crate::database::{Database, fold_all, loaded, refs};
use crate::history::{STRANGER, TENANT, confirmed, history, placed};

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
