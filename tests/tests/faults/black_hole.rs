//! The network between a service and one of its servers goes silent: nothing arrives, and nobody is told.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use daybook_devstack::proxy::Direction;
use daybook_postgres::{ACQUIRE_TIMEOUT, QUERY_TIMEOUT};
use daybook_tests::client::Caller;
use daybook_tests::command;
use daybook_tests::ledger::Ledger;
use daybook_tests::load::Load;
use daybook_tests::network::Network;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::probe::Probe;
use daybook_tests::stack::{Backend, Role, Servers};
use daybook_tests::tenant::Tenant;
use daybook_tests::{check, log, wait};
use futures::future::join_all;
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The deadline of a command.
const DEADLINE: Duration = Duration::from_secs(1);

/// Workers that send commands.
const WORKERS: usize = 8;

/// Callers that read at once: more than the query service has connections.
const READERS: usize = 16;

/// What a machine that builds and tests at the same time may add to a deadline. The benchmark holds it to 100 ms.
const SLACK: Duration = Duration::from_secs(2);

/// How long after the network is back the first command is accepted, at the most.
const COMMANDS_BACK_WITHIN: Duration = Duration::from_secs(5);

/// How long after the network is back everything else works, at the most.
const BACK_WITHIN: Duration = Duration::from_secs(10);

/// One service of this role behind a network that fails, and what else writes, on a good one.
async fn backend(role: Role) -> anyhow::Result<(Network, Backend)> {
    let servers = Servers::start().await?;
    let network = Network::between(&servers, role).await?;
    let superuser = servers.database.superuser().await?;
    let tenant = Tenant::create(&superuser).await?;
    let environment = |of: Role| {
        if of == role {
            network.environment()
        } else {
            Vec::new()
        }
    };
    let command = servers.run(Role::Command, &environment(Role::Command)).await?;
    let projector = servers
        .run(Role::Projector, &environment(Role::Projector))
        .await?;
    let backend = Backend {
        commands: vec![command],
        projector: Some(projector),
        tenant,
        superuser,
        servers,
    };
    Ok((network, backend))
}

async fn no_session_is_left_in_a_transaction(superuser: &PgPool) -> anyhow::Result<()> {
    wait::until("no session is idle in a transaction", async || {
        let left: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND state LIKE 'idle in transaction%'
               AND state_change < clock_timestamp() - interval '1 second'",
        )
        .fetch_one(superuser)
        .await?;
        Ok(left == 0)
    })
    .await
}

#[tokio::test]
async fn commands_are_answered_in_time_and_go_on_when_the_network_to_postgres_is_back() -> anyhow::Result<()>
{
    let (network, backend) = backend(Role::Command).await?;
    let caller = backend.caller()?;
    let probe = Probe::start(&caller, WORKERS, DEADLINE);
    accepted(&probe, 100).await?;
    for direction in [Direction::Both, Direction::ToClient] {
        let before = probe.tally().unknown;
        network.postgres.black_hole(direction);
        wait::until("every worker has waited four times", async || {
            Ok(probe.tally().unknown >= before + 4 * WORKERS)
        })
        .await?;
        network.postgres.heal();
        let healed = Instant::now();
        accepted(&probe, 1).await?;
        ensure!(
            healed.elapsed() < COMMANDS_BACK_WITHIN,
            "the first command after {:?}",
            healed.elapsed()
        );
        accepted(&probe, 100).await?;
    }
    ensure!(network.postgres.swallowed() > 0, "the network did not fail");
    let slowest = probe.slowest();
    ensure!(slowest < DEADLINE + SLACK, "a call took {slowest:?}");
    let ledger = probe.stop().await;
    unknown_orders_are_looked_for(&caller, &ledger).await?;
    no_session_is_left_in_a_transaction(&backend.superuser).await?;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}

async fn accepted(probe: &Probe, more: usize) -> anyhow::Result<()> {
    let wanted = probe.tally().accepted + more;
    wait::until("more commands are accepted", async || {
        Ok(probe.tally().accepted >= wanted)
    })
    .await
}

/// Each loads an aggregate through a connection of the pool: all of them together take all that there are.
async fn unknown_orders_are_looked_for(caller: &Caller, ledger: &Ledger) -> anyhow::Result<()> {
    let calls = (0..READERS).map(|_| ledger.send(caller, command::confirm(&new_order_id())));
    for answer in join_all(calls).await {
        let refused = answer.err().context("there is no such order")?;
        ensure!(refused.code() == tonic::Code::NotFound, "{refused:?}");
    }
    Ok(())
}

#[tokio::test]
async fn reads_end_in_time_and_go_on_when_the_network_to_postgres_is_back() -> anyhow::Result<()> {
    let (_fine, backend) = backend(Role::Query).await?;
    let network = Network::between(&backend.servers, Role::Query).await?;
    let query = backend.servers.run(Role::Query, &network.environment()).await?;
    let command = backend.commands[0].url();
    let caller = Caller::new(&command, &query.url(), &command, backend.tenant.clone())?;
    let (order_id, ledger) = (new_order_id(), Ledger::default());
    let placed = ledger.send(&caller, place(&order_id, "ada")).await?;
    let paths = [
        format!("/v1/orders/{order_id}"),
        "/v1/orders".to_owned(),
        format!("/v1/orders/{order_id}/events"),
        "/v1/customers/ada/totals".to_owned(),
    ];
    for path in &paths {
        let read = caller.get_after(&placed.consistency_token, path).await?;
        ensure!(read.status == 200, "{} {}", read.status, read.json());
    }
    network.postgres.black_hole(Direction::Both);
    // The first crowd loses the connections of the pool, the second one finds none.
    for _ in 0..2 {
        let asked = Instant::now();
        for status in crowd(&caller, &paths).await? {
            // 429: the tenant's share of the places is taken by its reads that are not answered.
            ensure!([429, 503, 504].contains(&status), "{status} through a black hole");
        }
        let waited = asked.elapsed();
        ensure!(
            waited < ACQUIRE_TIMEOUT + QUERY_TIMEOUT + SLACK,
            "the last answer after {waited:?}"
        );
    }
    network.postgres.heal();
    let healed = Instant::now();
    wait::until("an order can be read", async || {
        Ok(caller.get(&paths[0]).await?.status == 200)
    })
    .await?;
    wait::until("everybody can read", async || {
        let statuses = crowd(&caller, &paths).await?;
        Ok(statuses.iter().all(|status| *status == 200))
    })
    .await?;
    ensure!(
        healed.elapsed() < BACK_WITHIN,
        "back after {:?}",
        healed.elapsed()
    );
    ensure!(network.postgres.swallowed() > 0, "the network did not fail");
    no_session_is_left_in_a_transaction(&backend.superuser).await?;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}

/// What many who read at once are answered.
async fn crowd(caller: &Caller, paths: &[String]) -> anyhow::Result<Vec<u16>> {
    let mut reads = JoinSet::new();
    for path in paths.iter().cycle().take(READERS) {
        let (caller, path) = (caller.clone(), path.clone());
        reads.spawn(async move { caller.get(&path).await.map(|answer| answer.status) });
    }
    reads.join_all().await.into_iter().collect()
}

#[tokio::test]
async fn projections_go_on_when_the_network_to_postgres_is_back() -> anyhow::Result<()> {
    let (network, backend) = backend(Role::Projector).await?;
    let load = Load::start(&backend.callers()?, WORKERS);
    load.progress(100).await?;
    check::caught_up(&backend.superuser).await?;
    network.postgres.black_hole(Direction::Both);
    let before = log::head(&backend.superuser).await?;
    wait::until("every worker has said something into the hole", async || {
        Ok(network.postgres.swallowed() >= 2 * WORKERS)
    })
    .await?;
    load.progress(200).await?;
    ensure!(
        log::head(&backend.superuser).await? > before,
        "nothing to project"
    );
    network.postgres.heal();
    let healed = Instant::now();
    check::caught_up(&backend.superuser).await?;
    ensure!(
        healed.elapsed() < BACK_WITHIN + SLACK,
        "caught up after {:?}",
        healed.elapsed()
    );
    let ledger = load.stop().await;
    no_session_is_left_in_a_transaction(&backend.superuser).await?;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}

#[tokio::test]
async fn projections_go_on_from_the_log_while_the_network_to_nats_is_silent() -> anyhow::Result<()> {
    let (network, backend) = backend(Role::Projector).await?;
    let load = Load::start(&backend.callers()?, WORKERS);
    load.progress(100).await?;
    for direction in [Direction::Both, Direction::ToServer, Direction::ToClient] {
        let before = network.nats.swallowed();
        network.nats.black_hole(direction);
        load.progress(100).await?;
        let silent = Instant::now();
        check::caught_up(&backend.superuser).await?;
        ensure!(
            silent.elapsed() < BACK_WITHIN,
            "caught up after {:?}",
            silent.elapsed()
        );
        wait::until("something was said into the hole", async || {
            Ok(network.nats.swallowed() > before)
        })
        .await?;
        network.nats.heal();
        load.progress(100).await?;
    }
    let ledger = load.stop().await;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}

#[tokio::test]
async fn commands_are_unaffected_and_all_are_published_when_the_network_to_nats_is_back() -> anyhow::Result<()>
{
    let (network, backend) = backend(Role::Command).await?;
    let probe = Probe::start(&backend.caller()?, WORKERS, 5 * DEADLINE);
    accepted(&probe, 100).await?;
    network.nats.black_hole(Direction::Both);
    accepted(&probe, 300).await?;
    ensure!(network.nats.swallowed() > 0, "the network did not fail");
    network.nats.heal();
    accepted(&probe, 100).await?;
    ensure!(probe.tally().unknown == 0, "a command had to wait for NATS");
    let ledger = probe.stop().await;
    // The whole check waits until the stream has the whole log.
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}
