//! The log goes on in another history: a standby is promoted, with and without loss, and data are put back.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use daybook_devstack::PostgresOptions;
use daybook_devstack::proxy::Direction;
use daybook_event_store::{EventStore, LogHead};
use daybook_tests::client::Caller;
use daybook_tests::ledger::Ledger;
use daybook_tests::load::Load;
use daybook_tests::orders::{new_key, new_order_id, place};
use daybook_tests::rest::Rest;
use daybook_tests::stack::{Backend, Role, Servers};
use daybook_tests::standby::{EVERYTHING, Pair};
use daybook_tests::{check, log, metrics, wait};
use http::Method;
use sqlx::PgPool;
use tokio::time::Instant;

/// How long after a promotion the first command is accepted and the first fresh read is answered, at the most, while the load
/// goes on. The benchmark prints the figures.
const BACK_WITHIN: Duration = Duration::from_secs(10);

async fn head(superuser: &PgPool) -> anyhow::Result<LogHead> {
    Ok(EventStore::new(superuser.clone()).head(log::PARTITION).await?)
}

/// Nothing was built anew: every projection still shows its first tables.
async fn nothing_is_rebuilt(superuser: &PgPool) -> anyhow::Result<()> {
    let rebuilds: i64 = sqlx::query_scalar("SELECT count(*) FROM read_model.rebuild")
        .fetch_one(superuser)
        .await?;
    ensure!(rebuilds == 0, "{rebuilds} rebuilds were started");
    Ok(())
}

#[tokio::test]
async fn a_standby_that_is_promoted_without_loss_goes_on_and_nothing_is_rebuilt() -> anyhow::Result<()> {
    // No command is acknowledged before the standby has it.
    let mut pair = Pair::start().await?;
    pair.wait_for_standby_at_commit().await?;
    let load = Load::start(&pair.backend.callers()?, 8);
    load.progress(300).await?;
    let before = head(&pair.backend.superuser).await?;

    pair.primary()?.kill().await?;
    let promoted = Instant::now();
    let superuser = pair.promote(&EVERYTHING).await?;
    load.progress(1).await?;
    ensure!(
        promoted.elapsed() < BACK_WITHIN,
        "the first command after {:?}",
        promoted.elapsed()
    );
    let orders = Ledger::default();
    pair.fresh_read(0, &orders).await?;
    ensure!(
        promoted.elapsed() < BACK_WITHIN,
        "the first fresh read after {:?}",
        promoted.elapsed()
    );
    load.progress(300).await?;
    let ledger = load.stop().await;
    ledger.absorb(&orders);

    let after = head(&superuser).await?;
    ensure!(after.epoch.number == before.epoch.number + 1, "{after:?}");
    nothing_is_rebuilt(&superuser).await?;
    check::everything(&superuser, &pair.backend.servers.nats.url(), &ledger).await
}

#[tokio::test]
async fn what_a_promotion_loses_is_shown_to_nobody_and_only_that_is_done_again() -> anyhow::Result<()> {
    let mut pair = Pair::start().await?;
    let load = Load::start(&pair.backend.callers()?, 8);
    load.progress(300).await?;
    let ledger = load.stop().await;
    let fork = pair.standby_has_all().await?;
    let before = head(&pair.backend.superuser).await?;

    // The primary goes on for a while after the standby has lost it.
    pair.replication.black_hole(Direction::Both);
    let load_left_behind = Load::start(&[pair.caller(0)?], 8);
    let load = Load::start(&[pair.caller(1)?], 8);
    load.progress(200).await?;
    let (lost_id, caller) = (new_order_id(), pair.caller(1)?);
    let lost = caller.place(&lost_id, "customer").await?;
    let lost_path = format!("/v1/orders/{lost_id}");
    let answer = caller.get_after(&lost.consistency_token, &lost_path).await?;
    ensure!(answer.status == 200, "{answer:?}");

    // One command service is left with the old primary, which lives.
    let superuser = pair.promote(&[1, 2, 3, 4]).await?;
    wait::until("what was lost is not shown", async || {
        let answer = caller.get(&lost_path).await?;
        Ok(answer.status == 404)
    })
    .await?;
    load.doubt().await?;
    load.progress(300).await?;
    ledger.absorb(&load.stop().await);
    drop(load_left_behind.stop().await);
    pair.fresh_read(1, &ledger).await?;
    let answer = caller.get_after(&lost.consistency_token, &lost_path).await?;
    ensure!(
        answer.status == 400 && answer.json()["code"] == "POSITION_UNKNOWN",
        "{answer:?}"
    );

    // It finds out by the bus that there is a later epoch, and accepts nothing more.
    let left_behind = pair.caller(0)?;
    wait::until("the service with the old primary refuses", async || {
        let refused = left_behind.place(&new_order_id(), "customer").await.is_err();
        Ok(refused)
    })
    .await?;

    let admin = pair.backend.commands[0].admin;
    wait::until("it says that it is not ready", async || {
        Ok(metrics::ready(admin).await.is_err())
    })
    .await?;
    metrics::ready(pair.backend.commands[1].admin).await?;

    let lineage = EventStore::new(superuser.clone()).lineage(log::PARTITION).await?;
    ensure!(
        lineage.valid_up_to(before.epoch.generation) == Some(fork),
        "{lineage:?}, the fork is behind {fork}"
    );
    nothing_is_rebuilt(&superuser).await?;
    check::everything(&superuser, &pair.backend.servers.nats.url(), &ledger).await?;
    // In order it would wait for the standby that it has lost.
    Ok(pair.primary()?.kill().await?)
}

/// An order that is placed and shown by a primary whose standby has lost it already, and the token of its receipt.
struct Lost {
    path: String,
    token: String,
}

impl Lost {
    async fn place(pair: &Pair) -> anyhow::Result<Self> {
        pair.replication.black_hole(Direction::Both);
        let (order_id, caller) = (new_order_id(), pair.caller(1)?);
        let receipt = caller.place(&order_id, "customer").await?;
        let lost = Self {
            path: format!("/v1/orders/{order_id}"),
            token: receipt.consistency_token,
        };
        let answer = caller.get_after(&lost.token, &lost.path).await?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(lost)
    }

    /// Nobody shows it any more, and its token says so.
    async fn is_gone(&self, caller: &Caller) -> anyhow::Result<()> {
        let answer = caller.get(&self.path).await?;
        ensure!(answer.status == 404, "{answer:?}");
        let answer = caller.get_after(&self.token, &self.path).await?;
        ensure!(answer.json()["code"] == "POSITION_UNKNOWN", "{answer:?}");
        Ok(())
    }
}

/// A pair with some orders in it, all of which the standby has.
async fn pair_with_orders() -> anyhow::Result<(Pair, Ledger)> {
    let pair = Pair::start().await?;
    let load = Load::start(&pair.backend.callers()?, 8);
    load.progress(200).await?;
    let ledger = load.stop().await;
    pair.standby_has_all().await?;
    Ok((pair, ledger))
}

#[tokio::test]
async fn a_query_service_that_is_left_with_an_isolated_primary_says_so_and_leaves_it() -> anyhow::Result<()> {
    let (mut pair, ledger) = pair_with_orders().await?;
    let lost = Lost::place(&pair).await?;
    let superuser = pair.promote(&[0, 1, 2, 3]).await?;
    let caller = pair.caller(1)?;
    wait::until("the query service says that it is not ready", async || {
        let _ = ledger.send(&caller, place(&new_order_id(), "customer")).await;
        Ok(metrics::ready(pair.query.admin).await.is_err())
    })
    .await?;
    let answer = caller.get(&lost.path).await?;
    let lag: u64 = answer.header("daybook-lag-ms").parse()?;
    ensure!(lag > 0, "{answer:?}");

    pair.lead_new_connections(&[4]);
    wait::until("it is ready", async || {
        Ok(metrics::ready(pair.query.admin).await.is_ok())
    })
    .await?;
    lost.is_gone(&caller).await?;
    pair.fresh_read(1, &ledger).await?;
    check::everything(&superuser, &pair.backend.servers.nats.url(), &ledger).await?;
    Ok(pair.primary()?.kill().await?)
}

#[tokio::test]
async fn services_that_stay_connected_to_an_isolated_primary_leave_it_and_show_nothing_of_it()
-> anyhow::Result<()> {
    let (mut pair, ledger) = pair_with_orders().await?;
    let lost = Lost::place(&pair).await?;
    // One command service finds the new primary. The others are told by what it does.
    let superuser = pair.promote(&[1]).await?;
    pair.lead_new_connections(&[0, 2, 3, 4]);
    // Of the query service one connection breaks, and not those that rows are read on.
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'daybook-freshness'";
    let cut: i64 = sqlx::query_scalar(cut).fetch_one(&pair.backend.superuser).await?;
    ensure!(cut == 1);
    let caller = pair.caller(1)?;
    wait::until("a fresh read", async || {
        let order_id = new_order_id();
        let Ok(receipt) = ledger.send(&caller, place(&order_id, "customer")).await else {
            return Ok(false);
        };
        let path = format!("/v1/orders/{order_id}");
        let answer = caller.get_after(&receipt.consistency_token, &path).await?;
        ensure!(answer.status != 404, "older than its token: {answer:?}");
        Ok(answer.status == 200)
    })
    .await?;
    lost.is_gone(&caller).await?;

    wait::until("the other command service has left the old primary", async || {
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'daybook-publisher'";
        let sessions: i64 = sqlx::query_scalar(sessions)
            .fetch_one(&pair.backend.superuser)
            .await?;
        Ok(sessions == 0)
    })
    .await?;
    let left_behind = pair.caller(0)?;
    wait::until(
        "the other command service accepts commands of the new primary",
        async || {
            Ok(ledger
                .send(&left_behind, place(&new_order_id(), "customer"))
                .await
                .is_ok())
        },
    )
    .await?;
    pair.fresh_read(0, &ledger).await?;
    nothing_is_rebuilt(&superuser).await?;
    check::everything(&superuser, &pair.backend.servers.nats.url(), &ledger).await?;
    Ok(pair.primary()?.kill().await?)
}

#[tokio::test]
async fn an_import_is_worked_on_though_the_sessions_that_claim_stay_with_an_isolated_primary()
-> anyhow::Result<()> {
    let (mut pair, _) = pair_with_orders().await?;
    pair.replication.black_hole(Direction::Both);
    let superuser = pair.promote(&[]).await?;
    pair.lead_new_connections(&EVERYTHING);
    // Those that append find the new primary, and the others are told by what they do there.
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'daybook-appender'";
    let cut: i64 = sqlx::query_scalar(cut).fetch_one(&pair.backend.superuser).await?;
    ensure!(cut == 2);
    let caller = pair.caller(0)?;
    wait::until("a command is accepted by the new primary", async || {
        Ok(caller.place(&new_order_id(), "customer").await.is_ok())
    })
    .await?;
    let rest = Rest::new(&pair.backend.commands[0].url(), &pair.backend.tenant.service_key);
    let key = new_key();
    let headers = [
        ("content-type", "application/x-ndjson"),
        ("idempotency-key", &*key),
    ];
    wait::until("an import is taken by the new primary", async || {
        let taken = rest
            .send(Method::POST, "/v1/imports", &headers, "{\"order\":\"\"}")
            .await?;
        let is_there = "SELECT EXISTS (SELECT FROM event_store.operation WHERE input_sha256 IS NOT NULL)";
        let is_there: bool = sqlx::query_scalar(is_there).fetch_one(&superuser).await?;
        Ok(taken.status == 202 && is_there)
    })
    .await?;
    wait::until("it has ended", async || {
        let has_ended = "SELECT EXISTS (SELECT FROM event_store.operation WHERE ended_at IS NOT NULL)";
        Ok(sqlx::query_scalar(has_ended).fetch_one(&superuser).await?)
    })
    .await?;
    Ok(pair.primary()?.kill().await?)
}

/// How data of an earlier moment are put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PutBack {
    /// The server's files, while the services live.
    Files,
    /// The same, and then the services are new.
    FilesUnderNewServices,
    /// A dump, under the database's name, while the services live.
    Dump,
}

/// Saves the data and, after more was recorded, puts them back.
async fn put_back(how: PutBack, backend: &mut Backend, saved: &Path, is_saved: bool) -> anyhow::Result<()> {
    let Servers {
        database,
        own_postgres,
        ..
    } = &mut backend.servers;
    if how == PutBack::Dump {
        return match is_saved {
            false => database.dump(saved).await,
            true => database.restore(saved).await,
        };
    }
    let postgres = own_postgres.as_mut().context("it has its own")?;
    postgres.stop().await?;
    match is_saved {
        false => postgres.save_data(saved)?,
        true => postgres.restore_data(saved)?,
    }
    Ok(postgres.restart().await?)
}

/// Data of an earlier moment are put back under load.
async fn data_are_put_back(how: PutBack) -> anyhow::Result<()> {
    let servers = Servers::start_own(PostgresOptions::for_tests).await?;
    let saved = servers.directory().join("saved");
    let mut backend = Backend::on(servers, 2).await?.with_projector().await?;
    let mut other_projector = backend.servers.run(Role::Projector, &[]).await?;
    let load = Load::start(&backend.callers()?, 8);
    load.progress(300).await?;
    let ledger = load.stop().await;
    let before = head(&backend.superuser).await?;
    put_back(how, &mut backend, &saved, false).await?;

    let mut load = Load::start(&backend.callers()?, 8);
    load.progress(300).await?;
    check::caught_up(&backend.superuser).await?;
    if how == PutBack::FilesUnderNewServices {
        backend.commands.clear();
        backend.projector = None;
        other_projector.service.kill().await?;
        drop(load.stop().await);
        put_back(how, &mut backend, &saved, true).await?;
        for _ in 0..2 {
            let service = backend.servers.run(Role::Command, &[]).await?;
            backend.commands.push(service);
        }
        backend = backend.with_projector().await?;
        other_projector = backend.servers.run(Role::Projector, &[]).await?;
        load = Load::start(&backend.callers()?, 8);
    } else {
        put_back(how, &mut backend, &saved, true).await?;
        load.doubt().await?;
    }
    load.progress(600).await?;
    ledger.absorb(&load.stop().await);

    let after = head(&backend.superuser).await?;
    ensure!(after.epoch > before.epoch, "{after:?}");
    let lineage = EventStore::new(backend.superuser.clone())
        .lineage(log::PARTITION)
        .await?;
    // Each process remembers its own batches only, and somebody may have gone on: the fork is never put above where it is.
    let last = lineage
        .valid_up_to(before.epoch.generation)
        .context("it is known")?;
    ensure!(
        last == before.position || (how == PutBack::Files && last < before.position),
        "{lineage:?}, the fork is behind {}",
        before.position
    );
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await?;
    drop(other_projector);
    Ok(())
}

#[tokio::test]
async fn data_that_are_put_back_under_running_services_are_found() -> anyhow::Result<()> {
    data_are_put_back(PutBack::Files).await
}

#[tokio::test]
async fn data_that_are_put_back_are_found_by_services_that_remember_nothing() -> anyhow::Result<()> {
    data_are_put_back(PutBack::FilesUnderNewServices).await
}

#[tokio::test]
async fn a_dump_that_is_restored_under_running_services_is_found() -> anyhow::Result<()> {
    data_are_put_back(PutBack::Dump).await
}
