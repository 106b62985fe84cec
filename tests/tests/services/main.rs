//! What the services have in common.

mod anonymous;
mod keys;
mod pool;
mod processes;
mod request_log;
mod rolling;
mod stopping;

use daybook_service::config::Secret;
use daybook_service::database::connect;
use daybook_tests::database::Database;
use sqlx::PgPool;

/// A service's pool of one connection.
async fn pool_of(database: &Database) -> PgPool {
    let url = Secret::from(database.url("daybook_query"));
    let connected = connect(&url, "daybook-test", 1).await;
    connected.expect("it lets us in")
}
