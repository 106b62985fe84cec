//! Leaving a server that was superseded: what the stream says about it, and who asks.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use async_nats::{Client, Message};
use daybook_devstack::NatsUser;
use daybook_event_bus::{Bus, Deployment};
use daybook_event_store::{EventStore, LogHead};
use daybook_projector::epoch;
use daybook_projector::feed::Feed;
use daybook_projector::worker::Context;
use daybook_tests::log::PARTITION;
use daybook_tests::nats::{self, STREAM};
use daybook_tests::stack::Servers;
use daybook_tests::wait::DEADLINE;
use futures::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Setup;

/// A process on the bus.
async fn process(setup: &Setup, servers: &Servers) -> anyhow::Result<Context> {
    let bus = Bus::connect(
        &servers.nats.url_of(NatsUser::Projector),
        &Deployment::default(),
        "tests",
    )
    .await?;
    Ok(Context {
        bus,
        ..setup.process().await
    })
}

/// What everybody asks about streams from now on.
async fn questions(servers: &Servers) -> anyhow::Result<(Client, impl Stream<Item = Message> + use<>)> {
    let administrator = nats::connect(&servers.nats.url()).await?;
    let questions = administrator.subscribe("$JS.API.STREAM.INFO.>").await?;
    administrator.flush().await?;
    Ok((administrator, questions))
}

/// Who has asked these: each client has an inbox of its own.
async fn askers(
    questions: &mut (impl Stream<Item = Message> + Unpin),
    count: usize,
) -> anyhow::Result<BTreeSet<String>> {
    let asked = questions.take(count).map(|question| {
        let inbox = question.reply?.to_string();
        inbox.rsplit_once('.').map(|(client, _)| client.to_owned())
    });
    let asked: Vec<_> = tokio::time::timeout(DEADLINE, asked.collect()).await?;
    let askers: Option<BTreeSet<String>> = asked.into_iter().collect();
    askers.context("whoever asks waits for an answer")
}

/// Makes a stream that carries the epoch after the log's.
async fn stream_of_later_epoch(servers: &Servers, head: LogHead) -> anyhow::Result<()> {
    let metadata = [
        ("daybook-deployment", Deployment::default().to_string()),
        ("daybook-epoch", (head.epoch.number + 1).to_string()),
        ("daybook-generation", Uuid::now_v7().to_string()),
    ];
    let config = async_nats::jetstream::stream::Config {
        name: STREAM.to_owned(),
        subjects: vec!["daybook.events.0.>".to_owned()],
        metadata: metadata.map(|(name, value)| (name.to_owned(), value)).into(),
        ..Default::default()
    };
    let jetstream = nats::jetstream(&servers.nats.url()).await?;
    jetstream.create_stream(config).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_kept_while_new_ones_lead_to_the_same_log_whatever_epoch_the_stream_carries()
-> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let setup = Setup::on(servers.database.clone()).await;
    let head = EventStore::new(setup.superuser.clone()).head(PARTITION).await?;
    stream_of_later_epoch(&servers, head).await?;
    let (process, feed, shutdown) = (
        process(&setup, &servers).await?,
        Feed::default(),
        CancellationToken::new(),
    );
    let mut place = feed.subscribe();
    place.take(0, 1, 1);
    let (_administrator, mut questions) = questions(&servers).await?;
    let watching = tokio::spawn(epoch::watch(process.clone(), PARTITION, feed, shutdown.clone()));
    askers(&mut questions, 4).await?;
    ensure!(process.reconnected_at.borrow().is_none());
    shutdown.cancel();
    watching.await?
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_works_in_no_partition_asks_about_no_stream() -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let setup = Setup::on(servers.database.clone()).await;
    let shutdown = CancellationToken::new();
    let (_administrator, mut questions) = questions(&servers).await?;
    let (at_work, idle) = (Feed::default(), Feed::default());
    let mut place = at_work.subscribe();
    place.take(0, 1, 1);
    for feed in [&idle, &at_work] {
        let process = process(&setup, &servers).await?;
        tokio::spawn(epoch::watch(process, PARTITION, feed.clone(), shutdown.clone()));
    }
    ensure!(askers(&mut questions, 3).await?.len() == 1);
    shutdown.cancel();
    Ok(())
}
