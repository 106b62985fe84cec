//! Two command services that publish the same log at once.

use anyhow::ensure;
use daybook_tests::load::Load;
use daybook_tests::stack::{Backend, Running};
use daybook_tests::{check, log, metrics, nats, wait};

/// How often one of them is stopped at the most. Each time it may be caught between commit and publish, or not.
const STOPS_MAX: usize = 30;

/// How many stops it takes at the least.
const STOPS_MIN: usize = 5;

/// Commands that are accepted by the other one while one is stopped.
const COMMANDS_PER_STOP: usize = 40;

#[tokio::test]
async fn what_a_service_stopped_between_commit_and_publish_has_left_is_published_by_the_other()
-> anyhow::Result<()> {
    let mut backend = Backend::start(2).await?.with_projector().await?;
    let load = Load::start(&backend.callers()?, 16);
    load.progress(200).await?;
    let mut stops = 0;
    while stops < STOPS_MIN || helped(&backend.commands[1]).await? == 0.0 {
        ensure!(
            stops < STOPS_MAX,
            "{STOPS_MAX} stops, and never was one caught between commit and publish"
        );
        backend.commands[0].service.pause();
        load.progress(COMMANDS_PER_STOP).await?;
        // With one of them out of action the stream still gets to where the log is now.
        let head = log::head(&backend.superuser).await?;
        let published = published_up_to(&backend, head).await;
        backend.commands[0].service.resume();
        published?;
        load.progress(COMMANDS_PER_STOP).await?;
        stops += 1;
    }
    let ledger = load.stop().await;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}

#[tokio::test]
async fn what_a_service_committed_and_never_published_is_published_by_one_that_committed_nothing()
-> anyhow::Result<()> {
    let mut backend = Backend::start(2).await?.with_projector().await?;
    // All commands go to the first. The second takes part in nothing.
    let load = Load::start(&backend.callers()?[..1], 16);
    load.progress(100).await?;
    // Not paused: what waits in the buffers of a paused server is still published when it goes on.
    backend.servers.nats.kill().await?;
    let published = log::head(&backend.superuser).await?;
    load.progress(200).await?;
    backend.commands[0].service.kill().await?;
    let ledger = load.stop().await;
    backend.servers.nats.restart().await?;
    let head = log::head(&backend.superuser).await?;
    published_up_to(&backend, head).await?;
    let helped = helped(&backend.commands[1]).await?;
    ensure!(
        helped >= (head - published) as f64,
        "{helped} of the {} events that were left behind",
        head - published
    );
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}

/// Events that a service has published for the other one, whichever way it found that they were missing.
async fn helped(service: &Running) -> anyhow::Result<f64> {
    metrics::sum(service.admin, "daybook_publish_refilled_total").await
}

async fn published_up_to(backend: &Backend, head: u64) -> anyhow::Result<()> {
    let context = nats::jetstream(&backend.servers.nats.url()).await?;
    wait::until("the stream has what was committed before", async || {
        let stream = context.get_stream(nats::STREAM).await?;
        Ok(stream.cached_info().state.last_sequence >= head)
    })
    .await
}

#[tokio::test]
async fn a_service_killed_again_and_again_leaves_no_gap_in_log_or_stream() -> anyhow::Result<()> {
    let mut backend = Backend::start(2).await?.with_projector().await?;
    let load = Load::start(&backend.callers()?, 16);
    for kill in 0..6 {
        load.progress(100).await?;
        let service = &mut backend.commands[kill % 2].service;
        service.kill().await?;
        load.progress(20).await?;
        backend.commands[kill % 2].service.restart().await?;
    }
    load.progress(100).await?;
    let ledger = load.stop().await;
    assert!(
        ledger.tally().unknown > 0,
        "no kill caught a command on its way: {:?}",
        ledger.tally()
    );
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}
