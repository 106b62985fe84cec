//! The command service is ready when an append could succeed, and only then. The query service is, whatever is invented.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use daybook_devstack::{NatsUser, PostgresOptions};
use daybook_event_bus::signal::{self, Applied};
use daybook_event_bus::{Bus, Deployment};
use daybook_event_store::{EventStore, NotAppendable};
use daybook_tests::log::PARTITION;
use daybook_tests::stack::{Role, Running, Servers};
use daybook_tests::{metrics, wait};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgPool};
use uuid::Uuid;

/// A pool with a login role, as a service has it.
async fn store(options: PgConnectOptions) -> anyhow::Result<EventStore> {
    let pool = PgPoolOptions::new().max_connections(1);
    Ok(EventStore::new(pool.connect_with(options).await?))
}

async fn refusal(store: &EventStore) -> anyhow::Result<String> {
    match store.check_append().await {
        Err(NotAppendable::Refused(reason)) => Ok(reason),
        other => anyhow::bail!("{other:?}"),
    }
}

#[tokio::test]
async fn commands_are_durable_whatever_the_database_has_as_its_default() -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let superuser = servers.database.superuser().await?;
    let name: String = sqlx::query_scalar("SELECT current_database()::text")
        .fetch_one(&superuser)
        .await?;
    let lax = format!("ALTER DATABASE {name} SET synchronous_commit = off");
    superuser.execute(AssertSqlSafe(lax)).await?;
    let options: PgConnectOptions = servers.database.url("daybook_command").parse()?;
    let pool = PgPool::connect_with(options.clone()).await?;
    let pinned: String = sqlx::query_scalar("SHOW synchronous_commit")
        .fetch_one(&pool)
        .await?;
    ensure!(pinned == "on", "{pinned}");
    store(options.clone()).await?.check_append().await?;
    let loosened = store(options.options([("synchronous_commit", "off")])).await?;
    ensure!(refusal(&loosened).await? == "synchronous_commit is off");
    Ok(())
}

#[tokio::test]
async fn a_role_that_may_not_append_is_told_so() -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let superuser = servers.database.superuser().await?;
    superuser
        .execute("GRANT EXECUTE ON FUNCTION event_store.check_append() TO daybook_query")
        .await?;
    let reader = store(servers.database.url("daybook_query").parse()?).await?;
    ensure!(refusal(&reader).await? == "the role may not append");
    Ok(())
}

#[tokio::test]
async fn a_partition_that_is_busy_is_ready() -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let superuser = servers.database.superuser().await?;
    let mut connection = superuser.acquire().await?;
    let mut holder = connection.begin().await?;
    holder
        .execute("SELECT FROM event_store.log WHERE partition = 0 FOR UPDATE")
        .await?;
    let command = store(servers.database.url("daybook_command").parse()?).await?;
    command.check_append().await?;
    holder.rollback().await?;
    Ok(())
}

#[tokio::test]
async fn a_server_that_takes_no_writes_makes_the_service_unready_until_it_does() -> anyhow::Result<()> {
    let mut servers = Servers::start_own(PostgresOptions::for_tests).await?;
    let command = servers.run(Role::Command, &[]).await?;
    let mut superuser = PgConnection::connect(&servers.database.superuser_url()).await?;

    superuser
        .execute("ALTER SYSTEM SET default_transaction_read_only = on")
        .await?;
    superuser.execute("SELECT pg_reload_conf()").await?;
    becomes(&command, 503, "takes no writes").await?;
    superuser
        .execute("ALTER SYSTEM RESET default_transaction_read_only")
        .await?;
    superuser.execute("SELECT pg_reload_conf()").await?;
    becomes(&command, 200, "ready").await?;

    let data: String = sqlx::query_scalar("SHOW data_directory")
        .fetch_one(&mut superuser)
        .await?;
    superuser.close().await?;
    let postgres = servers.own_postgres.as_mut();
    let postgres = postgres.context("this test has a server of its own")?;
    postgres.stop().await?;
    std::fs::write(format!("{data}/standby.signal"), "")?;
    postgres.restart().await?;
    becomes(&command, 503, "standby").await?;
    let mut superuser = PgConnection::connect(&servers.database.superuser_url()).await?;
    superuser.execute("SELECT pg_promote()").await?;
    becomes(&command, 200, "ready").await
}

/// Waits until `/readyz` answers so, in these words.
async fn becomes(service: &Running, status: u16, words: &str) -> anyhow::Result<()> {
    wait::until(&format!("the service is {status}: {words}"), async || {
        let (answered, text) = metrics::get(service.admin, "/readyz").await?;
        Ok(answered == status && text.contains(words))
    })
    .await
}

/// The sessions of the query service.
async fn sessions(superuser: &PgPool) -> anyhow::Result<BTreeSet<i32>> {
    let sessions =
        "SELECT pid FROM pg_stat_activity WHERE usename = 'daybook_query' AND datname = current_database()
                      AND application_name IN ('daybook-freshness', 'daybook-orders', 'daybook-query-svc')";
    let sessions: Vec<i32> = sqlx::query_scalar(sessions).fetch_all(superuser).await?;
    Ok(sessions.into_iter().collect())
}

#[tokio::test]
async fn epochs_that_somebody_invents_make_the_query_service_not_ready_for_a_while_and_cost_it_no_session()
-> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let query = servers.run(Role::Query, &[]).await?;
    let superuser = servers.database.superuser().await?;
    let head = EventStore::new(superuser.clone()).head(PARTITION).await?;
    let bus = Bus::connect(
        &servers.nats.url_of(NatsUser::Projector),
        &Deployment::default(),
        "tests",
    )
    .await?;
    let forge = async |log_epoch| {
        let applied = Applied {
            projection: "invented".to_owned(),
            partition: PARTITION,
            log_epoch,
            log_generation: Uuid::now_v7(),
            position: 1,
        };
        signal::announce(&bus, &applied).await;
        metrics::ready(query.admin).await.is_ok()
    };
    let before = sessions(&superuser).await?;
    ensure!(!before.is_empty());
    wait::until(
        "it is not ready",
        async || Ok(!forge(head.epoch.number + 1).await),
    )
    .await?;
    wait::until("it is ready again", async || {
        Ok(forge(head.epoch.number + 1).await)
    })
    .await?;
    for _ in 0..100 {
        ensure!(forge(head.epoch.number + 1).await, "it stays so");
    }
    let after = sessions(&superuser).await?;
    ensure!(before.is_subset(&after), "{before:?} {after:?}");
    Ok(())
}
