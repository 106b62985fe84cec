//! A standby is promoted: how soon commands and fresh reads go on, and what is done again of what was lost.

use anyhow::{Context as _, ensure};
use daybook_devstack::PostgresOptions;
use daybook_devstack::proxy::Direction;
use daybook_event_store::{Appender, AppenderOptions, NewCommand, Verdict};
use daybook_tests::ledger::Ledger;
use daybook_tests::load::Load;
use daybook_tests::log::append_one;
use daybook_tests::stack::Servers;
use daybook_tests::standby::{EVERYTHING, Pair};
use daybook_tests::{check, wait};
use daybook_tests::{metrics, nats};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::append::command;
use crate::report::{Goal, Report};
use crate::{Options, raw};

/// Events of the log before the loss, and events that are lost.
const EVENTS: usize = 1_000_000;
const LOST: usize = 1_000;

/// Events of a command, and commands that are under way at once.
const EVENTS_EACH: usize = 10;
const IN_FLIGHT: usize = 1_024;

pub(crate) async fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    for _ in 0..options.runs {
        without_loss(report).await?;
    }
    with_loss(report).await
}

async fn pair() -> anyhow::Result<Pair> {
    let servers = Servers::start_own(PostgresOptions::new).await?;
    raw::fill_segments(&servers.database.superuser().await?).await?;
    Pair::on(servers).await
}

async fn without_loss(report: &mut Report) -> anyhow::Result<()> {
    let mut pair = pair().await?;
    pair.wait_for_standby_at_commit().await?;
    let load = Load::start(&pair.backend.callers()?, 8);
    load.progress(1_000).await?;
    pair.primary()?.kill().await?;
    let began = Instant::now();
    let superuser = pair.promote(&EVERYTHING).await?;
    load.progress(1).await?;
    let commands = began.elapsed();
    pair.fresh_read(0, &Ledger::default()).await?;
    let reads = began.elapsed();
    load.stop().await;
    note(
        report,
        "promotion without loss, until the first good command",
        commands.as_secs_f64(),
        5.0,
        "s",
    );
    note(
        report,
        "promotion without loss, until the first fresh read",
        reads.as_secs_f64(),
        5.0,
        "s",
    );
    let rebuilds = rebuilds(&superuser).await?;
    note(
        report,
        "promotion without loss, rebuilds",
        rebuilds,
        0.0,
        "rebuilds",
    );
    Ok(())
}

fn note(report: &mut Report, name: &str, value: f64, most: f64, unit: &'static str) {
    report.note(name, value, unit, Goal::AtMost(most));
}

async fn with_loss(report: &mut Report) -> anyhow::Result<()> {
    let mut pair = pair().await?;
    append(&pair, EVENTS).await?;
    pair.standby_has_all().await?;
    published(&pair, EVENTS).await?;
    check::caught_up(&pair.backend.superuser).await?;
    pair.replication.black_hole(Direction::Both);
    append(&pair, LOST).await?;
    published(&pair, EVENTS + LOST).await?;

    let before = messages(&pair).await?;
    pair.primary()?.kill().await?;
    let began = Instant::now();
    let superuser = pair.promote(&EVERYTHING).await?;
    let ledger = Ledger::default();
    pair.fresh_read(0, &ledger).await?;
    let reads = began.elapsed();
    let head = check::caught_up(&superuser).await?;
    published(&pair, usize::try_from(head)?).await?;
    let lost = format!("promotion with {LOST} of {EVENTS} events lost");
    let again = messages(&pair).await? - before;
    note(
        report,
        &format!("{lost}: messages published until bus and log are equal"),
        again,
        LOST as f64,
        "messages",
    );
    note(
        report,
        &format!("{lost}: rebuilds"),
        rebuilds(&superuser).await?,
        0.0,
        "rebuilds",
    );
    note(
        report,
        &format!("{lost}: until the first fresh read"),
        reads.as_secs_f64(),
        5.0,
        "s",
    );
    Ok(())
}

async fn rebuilds(superuser: &PgPool) -> anyhow::Result<f64> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM read_model.rebuild")
        .fetch_one(superuser)
        .await?;
    Ok(count as f64)
}

/// Messages that the command services have published.
async fn messages(pair: &Pair) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for service in &pair.backend.commands {
        sum += metrics::sum(service.admin, "daybook_publish_messages_total").await?;
    }
    Ok(sum)
}

/// Waits until the stream ends at a position.
async fn published(pair: &Pair, position: usize) -> anyhow::Result<()> {
    let context = nats::jetstream(&pair.backend.servers.nats.url()).await?;
    wait::until("the stream ends with the log", async || {
        let Ok(stream) = context.get_stream(nats::STREAM).await else {
            return Ok(false);
        };
        let last = stream.cached_info().state.last_sequence;
        Ok(last == position as u64)
    })
    .await
}

/// Appends events of a category that no read model knows: they flow past each.
async fn append(pair: &Pair, events: usize) -> anyhow::Result<()> {
    let tenant_id = pair.backend.tenant.tenant_id;
    let log = pair.backend.servers.database.log().await?;
    let (appender, appending) = Appender::new(log, 0, AppenderOptions::default(), None);
    let task = tokio::spawn(appending);
    let mut under_way = JoinSet::new();
    for _ in 0..events / EVENTS_EACH {
        let command = NewCommand {
            category: "bench",
            ..command(tenant_id, EVENTS_EACH)
        };
        let appender = appender.clone();
        under_way.spawn(async move { append_one(&appender, command).await });
        while under_way.len() >= IN_FLIGHT {
            let verdict = under_way.join_next().await.context("one is under way")??;
            ensure!(matches!(verdict?, Verdict::Appended(_)));
        }
    }
    while let Some(verdict) = under_way.join_next().await {
        ensure!(matches!(verdict??, Verdict::Appended(_)));
    }
    drop(appender);
    Ok(task.await?)
}
