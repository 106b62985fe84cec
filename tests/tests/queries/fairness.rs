//! What tenants share: the slow reads of one, or of several, take nothing from the others that they need.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use daybook_proto::stock::v1::ListStockItemsRequest;
use daybook_tests::client::Caller;
use daybook_tests::orders::new_order_id;
use daybook_tests::stack::{Role, Stack};
use daybook_tests::{metrics, wait};
use sqlx::{AssertSqlSafe, Executor as _, PgPool, Postgres, Transaction};
use tokio::task::JoinSet;

/// How many connections the query service has for what tenants share.
const CONNECTIONS: &str = "4";

/// How long a caller waits who is in a hurry.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long the query service lets a statement run that nobody else ends.
const STATEMENT_TIMEOUT: Duration = Duration::from_millis(1_900);

/// The whole system, with few connections for reads.
async fn stack() -> anyhow::Result<Stack> {
    let mut stack = Stack::start().await?;
    stack.query = stack
        .servers
        .run(Role::Query, &[("DAYBOOK_DATABASE_CONNECTIONS", CONNECTIONS)])
        .await?;
    Ok(stack)
}

/// Makes lists of stock items wait, until the transaction is dropped.
#[expect(clippy::disallowed_methods, reason = "it is to stay open")]
async fn hold_lists(superuser: &PgPool) -> anyhow::Result<Transaction<'static, Postgres>> {
    let live = "SELECT max(live_generation) FROM read_model.projection WHERE name = 'stock_levels'";
    let generation: i32 = sqlx::query_scalar(live).fetch_one(superuser).await?;
    let mut holder = superuser.begin().await?;
    let lock = format!(
        "SET LOCAL idle_in_transaction_session_timeout = 0; LOCK TABLE read_model.stock_levels_g{generation}"
    );
    holder.execute(AssertSqlSafe(lock)).await?;
    Ok(holder)
}

/// Asks for lists again and again, three at a time.
fn keep_listing(asking: &mut JoinSet<()>, caller: &Caller) {
    for _ in 0..3 {
        let caller = caller.clone();
        asking.spawn(async move { while caller.get("/v1/stock-items").await.is_ok() {} });
    }
}

/// Waits until so many reads wait for the lock.
async fn reads_wait(superuser: &PgPool, count: i64) -> anyhow::Result<()> {
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name = 'daybook-query-svc'
                     AND wait_event_type = 'Lock'";
    wait::until(&format!("{count} reads wait"), async || {
        let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(superuser).await?;
        Ok(waiting == count)
    })
    .await
}

#[tokio::test]
async fn the_slow_reads_of_one_tenant_leave_connections_for_the_others() -> anyhow::Result<()> {
    let stack = stack().await?;
    let (slow, other) = (stack.caller()?, stack.other_caller().await?);
    let order_id = new_order_id();
    let receipt = other.place(&order_id, "ada").await?;
    let path = format!("/v1/orders/{order_id}");
    other.get_after(&receipt.consistency_token, &path).await?;

    let _holder = hold_lists(&stack.superuser).await?;
    let mut asking = JoinSet::new();
    keep_listing(&mut asking, &slow);
    reads_wait(&stack.superuser, 2).await?;
    for path in [
        "/v1/orders",
        &format!("{path}/events"),
        &format!("{path}?as_of=1"),
        &path,
    ] {
        let answer = other.get(path).await?;
        ensure!(answer.status == 200, "{path}: {}", answer.json());
    }
    reads_wait(&stack.superuser, 2).await
}

#[tokio::test]
async fn with_every_shared_connection_taken_single_orders_are_read_fresh_and_readiness_is_looked_at()
-> anyhow::Result<()> {
    let stack = stack().await?;
    let caller = stack.caller()?;
    let _holder = hold_lists(&stack.superuser).await?;
    let mut asking = JoinSet::new();
    // Each has one at least. Of fewer tenants none would take the last one again, once its read was ended by the server.
    for _ in 0..6 {
        keep_listing(&mut asking, &stack.other_caller().await?);
    }
    reads_wait(&stack.superuser, 4).await?;

    let order_id = new_order_id();
    let receipt = caller.place(&order_id, "ada").await?;
    let path = format!("/v1/orders/{order_id}");
    let answer = caller.get_after(&receipt.consistency_token, &path).await?;
    ensure!(answer.status == 200, "{}", answer.json());

    for _ in 0..3 {
        let looked_at = readiness_looked_at(&stack.superuser).await?;
        wait::until("readiness is looked at", async || {
            let again = readiness_looked_at(&stack.superuser).await?;
            Ok(again > looked_at)
        })
        .await?;
        metrics::ready(stack.query.admin).await?;
        reads_wait(&stack.superuser, 4).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_read_whose_caller_has_gone_away_counts_until_it_has_ended() -> anyhow::Result<()> {
    let stack = stack().await?;
    let caller = stack.caller()?;
    let holder = hold_lists(&stack.superuser).await?;
    let asking = tokio::spawn(async move { caller.get("/v1/stock-items").await });
    reads_wait(&stack.superuser, 1).await?;
    asking.abort();
    let becomes_zero = async |name: &str| {
        wait::until(name, async || {
            let sum = metrics::sum(stack.query.admin, name).await?;
            Ok(sum == 0.0)
        })
        .await
    };
    becomes_zero("daybook_requests_in_flight").await?;
    let bytes = metrics::sum(stack.query.admin, "daybook_request_bytes_in_flight").await?;
    ensure!(bytes > 0.0, "the read goes on, and nothing counts it");
    reads_wait(&stack.superuser, 1).await?;
    holder.rollback().await?;
    becomes_zero("daybook_request_bytes_in_flight").await
}

#[tokio::test]
async fn a_list_that_takes_too_long_is_ended_by_the_server_and_keeps_its_connection() -> anyhow::Result<()> {
    let stack = stack().await?;
    let caller = stack.caller()?;
    caller.get("/v1/stock-items").await?;
    let sessions = sessions_of_reads(&stack.superuser).await?;
    let _holder = hold_lists(&stack.superuser).await?;
    let answer = caller.get("/v1/stock-items").await?;
    ensure!(answer.status == 504, "{}", answer.json());
    ensure!(answer.json()["code"] == "DEADLINE_EXCEEDED", "{}", answer.json());
    let now = sessions_of_reads(&stack.superuser).await?;
    ensure!(now == sessions, "{sessions:?} became {now:?}");
    Ok(())
}

#[tokio::test]
async fn a_list_is_ended_by_the_server_when_its_caller_stops_waiting_and_keeps_its_connection()
-> anyhow::Result<()> {
    let mut stack = stack().await?;
    let caller = stack.caller()?;
    caller.get("/v1/stock-items").await?;
    let sessions = sessions_of_reads(&stack.superuser).await?;
    let holder = hold_lists(&stack.superuser).await?;
    let mut hurried = tonic::Request::new(ListStockItemsRequest::default());
    hurried.set_timeout(PATIENCE);
    let asked_at = Instant::now();
    let refused = caller.stock_queries().list_stock_items(hurried).await;
    ensure!(refused.is_err(), "the list was read");
    reads_end(&stack.superuser, asked_at).await?;
    holder.rollback().await?;
    ensure!(caller.get("/v1/stock-items").await?.status == 200);
    let now = sessions_of_reads(&stack.superuser).await?;
    ensure!(now == sessions, "{sessions:?} became {now:?}");

    // The service's own limit is a caller's, too.
    let limit = format!("{}ms", PATIENCE.as_millis());
    let settings = [("DAYBOOK_REQUEST_TIMEOUT", limit.as_str())];
    stack.query = stack.servers.run(Role::Query, &settings).await?;
    let caller = stack.caller()?;
    let _holder = hold_lists(&stack.superuser).await?;
    let asked_at = Instant::now();
    let answer = caller.get("/v1/stock-items").await?;
    ensure!(answer.status == 504, "{}", answer.json());
    reads_end(&stack.superuser, asked_at).await
}

/// Waits until no read waits for the lock, which is before the server ends what takes longer than any read may.
async fn reads_end(superuser: &PgPool, asked_at: Instant) -> anyhow::Result<()> {
    reads_wait(superuser, 0).await?;
    let taken = asked_at.elapsed();
    ensure!(taken < STATEMENT_TIMEOUT, "the read went on for {taken:?}");
    Ok(())
}

/// The server's processes that lists are read by.
async fn sessions_of_reads(superuser: &PgPool) -> anyhow::Result<Vec<i32>> {
    let sessions = "SELECT pid FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = 'daybook-query-svc' ORDER BY pid";
    Ok(sqlx::query_scalar(sessions).fetch_all(superuser).await?)
}

/// When readiness was last looked at on a connection of its own: by the newest of the services.
async fn readiness_looked_at(superuser: &PgPool) -> anyhow::Result<f64> {
    let newest = "SELECT extract(epoch FROM query_start)::float8 FROM pg_stat_activity
                  WHERE datname = current_database() AND application_name = 'daybook-readiness'
                    AND usename = 'daybook_query'
                  ORDER BY backend_start DESC LIMIT 1";
    let looked_at = sqlx::query_scalar(newest).fetch_optional(superuser).await?;
    looked_at.context("readiness has a connection of its own")
}
