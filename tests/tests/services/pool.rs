//! A service's pool on a real Postgres.

use daybook_service::config::Secret;
use daybook_service::database::{DatabaseError, check_schema, connect};
use daybook_service::{ApiError, Code};
use daybook_tests::database::Database;
use sqlx::{Executor as _, Row as _};

use super::pool_of;

async fn created() -> Database {
    Database::create().await.expect("a database")
}

#[tokio::test]
async fn a_transaction_that_was_left_open_does_not_reach_the_next_borrower() {
    let database = created().await;
    let pool = pool_of(&database).await;
    let mut connection = pool.acquire().await.expect("a connection");
    // What a dropped `pool.begin()` leaves behind: a transaction that sqlx knows nothing of.
    let left_open = "BEGIN; SET LOCAL daybook.tenant_id = 'somebody else'";
    connection.execute(left_open).await.expect("it begins");
    drop(connection);
    let tenant: String = sqlx::query_scalar("SELECT current_setting('daybook.tenant_id', true)")
        .fetch_one(&pool)
        .await
        .expect("the same connection, for there is but one");
    assert_eq!(tenant, "");
}

#[tokio::test]
async fn the_schema_has_to_be_there_and_new_enough() {
    let database = created().await;
    let pool = pool_of(&database).await;
    let version = daybook_event_store::schema_version();
    check_schema(&pool, "event_store", version)
        .await
        .expect("it is the version of this build");
    check_schema(&pool, "event_store", version - 1)
        .await
        .expect("a newer one is fine");
    let older = check_schema(&pool, "event_store", version + 1).await;
    assert!(matches!(older, Err(DatabaseError::Outdated { .. })), "{older:?}");
    let empty = Database::create_empty().await.expect("a database");
    let missing = check_schema(&pool_of(&empty).await, "event_store", 1).await;
    assert!(
        matches!(missing, Err(DatabaseError::Version { .. })),
        "{missing:?}"
    );
}

#[tokio::test]
async fn a_statement_cannot_run_for_ever() {
    let database = created().await;
    let pool = pool_of(&database).await;
    let timeouts =
        "SELECT current_setting('statement_timeout'), current_setting('idle_in_transaction_session_timeout')";
    let row = pool.fetch_one(timeouts).await.expect("settings");
    assert_eq!((row.get::<&str, _>(0), row.get::<&str, _>(1)), ("4s", "5s"));
    // The server of these tests compiles nothing anyway; a user's does.
    let jit = pool
        .fetch_one("SELECT setting, source FROM pg_settings WHERE name = 'jit'")
        .await
        .expect("a setting");
    assert_eq!((jit.get::<&str, _>(0), jit.get::<&str, _>(1)), ("off", "client"));
    let mut connection = pool.acquire().await.expect("a connection");
    connection
        .execute("SET statement_timeout = 10")
        .await
        .expect("a shorter one, for the test");
    let error = connection
        .execute("SELECT pg_sleep(5)")
        .await
        .expect_err("it takes too long");
    assert_eq!(ApiError::from(error).code(), &Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_role_that_is_not_let_in_is_an_error_that_hides_the_password() {
    let database = created().await;
    let url = database.url("daybook_nobody");
    let error = connect(&Secret::from(url), "daybook-test", 1)
        .await
        .expect_err("there is no such role");
    assert_eq!(error.to_string(), "cannot connect to the database");
    let error = connect(&Secret::from("mysql://root:hunter2@db"), "daybook-test", 1)
        .await
        .expect_err("not Postgres");
    assert!(!format!("{error:?} {error}").contains("hunter2"));
}
