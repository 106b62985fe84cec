//! Postgres is killed with SIGKILL under load and comes back.

use std::time::Duration;

use anyhow::Context as _;
use daybook_devstack::PostgresOptions;
use daybook_tests::load::Load;
use daybook_tests::stack::{Backend, Servers};
use daybook_tests::{check, metrics};
use tokio::time::Instant;

/// How often it is killed.
const KILLS: usize = 3;

/// How long after Postgres is back the first command is accepted, at the most.
const BACK_WITHIN: Duration = Duration::from_secs(5);

#[tokio::test]
async fn nothing_that_was_acknowledged_is_lost_when_postgres_is_killed() -> anyhow::Result<()> {
    let servers = Servers::start_own(PostgresOptions::for_tests).await?;
    let mut backend = Backend::on(servers, 2).await?.with_projector().await?;
    let load = Load::start(&backend.callers()?, 16);
    for _ in 0..KILLS {
        load.progress(300).await?;
        let postgres = backend.servers.own_postgres.as_mut();
        let postgres = postgres.context("this test has a server of its own")?;
        postgres.kill().await?;
        postgres.restart().await?;
        let back = Instant::now();
        load.progress(1).await?;
        assert!(
            back.elapsed() < BACK_WITHIN,
            "the first command after {:?}",
            back.elapsed()
        );
    }
    load.progress(300).await?;
    let ledger = load.stop().await;
    // A service sends a batch again when the database did not answer, so callers may not have noticed anything.
    let mut caught = ledger.tally().unknown as f64;
    for service in &backend.commands {
        caught += metrics::sum(service.admin, "daybook_append_retries_total").await?;
    }
    assert!(
        caught > 0.0,
        "no kill caught a command on its way: {:?}",
        ledger.tally()
    );
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}
