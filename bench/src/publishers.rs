//! What is published in a second while one replica commits, and while two commit in turns: each has an appender and a
//! publisher, and the log's lock makes their batches alternate.

use anyhow::Context as _;
use daybook_devstack::NatsUser;
use daybook_event_bus::publish::{PublishError, Publisher, PublisherHandle, PublisherOptions};
use daybook_event_bus::{Bus, Deployment};
use daybook_event_store::{Appender, AppenderOptions, EventStore, SeenEpoch, Verdict};
use daybook_tests::log::{PARTITION, append_one};
use daybook_tests::stack::Servers;
use daybook_tests::wait;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::append::command;
use crate::report::{Goal, Report};
use crate::{Options, load, raw};

/// Commands under way, of all replicas together.
const IN_FLIGHT: usize = 2_048;

/// Batches that may wait for a publisher, as in the command service.
const COMMITTED_BATCHES_MAX: usize = 32;

/// The name of the row of one replica, for the ratio.
const ONE: &str = "publishing: one replica";

pub(crate) async fn measure(options: &Options, servers: &Servers, report: &mut Report) -> anyhow::Result<()> {
    let superuser = servers.database.superuser().await?;
    for _ in 0..options.runs {
        raw::settle(&superuser).await?;
        let one = published(options, servers, 1).await?;
        report.note(ONE, one.rate, "events/s", Goal::None);
        raw::settle(&superuser).await?;
        let two = published(options, servers, 2).await?;
        report.note(
            "publishing: two replicas that commit in turns",
            two.rate,
            "events/s",
            Goal::None,
        );
        report.note(
            "publishing: two replicas, of one",
            two.rate / one.rate * 100.0,
            "%",
            Goal::AtLeast(60.0),
        );
        report.note(
            "publishing: two replicas, messages refused of those published",
            two.refused * 100.0,
            "%",
            Goal::AtMost(5.0),
        );
    }
    Ok(())
}

/// What came of a run.
struct Published {
    /// Events per second.
    rate: f64,
    /// Messages that were refused, for each that was published.
    refused: f64,
}

async fn published(options: &Options, servers: &Servers, replicas: usize) -> anyhow::Result<Published> {
    let tenant_id = Uuid::now_v7();
    servers.database.add_tenants(&[tenant_id]).await?;
    let (mut tasks, mut appenders, mut publishers) = (JoinSet::new(), Vec::new(), Vec::new());
    for _ in 0..replicas {
        let (appender, publisher) = replica(servers, &mut tasks).await?;
        appenders.push(appender);
        publishers.push(publisher);
    }
    let log = EventStore::new(servers.database.superuser().await?);
    let before = log.head(PARTITION).await?.position;
    for publisher in &publishers {
        let mut position = publisher.published_position();
        let reached = position.wait_for(|position| *position >= before);
        tokio::time::timeout(wait::DEADLINE, reached)
            .await
            .context("the log was not published before")??;
    }
    let append = move |appender: Appender| async move {
        let verdict = append_one(&appender, command(tenant_id, 1)).await?;
        anyhow::ensure!(matches!(verdict, Verdict::Appended(_)), "{verdict:?}");
        Ok(appender)
    };
    let make = |worker: usize| appenders[worker % replicas].clone();
    let load = load::closed(IN_FLIGHT, options.duration(), make, append).await?;
    let positions = publishers.iter().map(|one| *one.published_position().borrow());
    let published = (positions.max().unwrap_or(before) - before) as f64;
    let refused = publishers.iter().map(|one| one.metrics().refused.get());
    let refused = refused.sum::<u64>() as f64 / published;
    drop(appenders);
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    eprintln!("  ({replicas} replicas committed {:.0} events/s)", load.rate());
    Ok(Published {
        rate: published / load.seconds,
        refused,
    })
}

async fn replica(
    servers: &Servers,
    tasks: &mut JoinSet<Result<(), PublishError>>,
) -> anyhow::Result<(Appender, PublisherHandle)> {
    let (committed, to_publish) = mpsc::channel(COMMITTED_BATCHES_MAX);
    let log = servers.database.log().await?;
    let (appender, appending) = Appender::new(log, PARTITION, AppenderOptions::default(), Some(committed));
    tasks.spawn(async move {
        appending.await;
        Ok(())
    });
    let store = EventStore::new(servers.database.pool("daybook_publisher").await?);
    let bus = Bus::connect(
        &servers.nats.url_of(NatsUser::Command),
        &Deployment::default(),
        "bench",
    )
    .await?;
    let (seen, options) = (SeenEpoch::default(), PublisherOptions::default());
    let attaching = EventStore::new(servers.database.pool("daybook_command").await?);
    let (publisher, publishing) = Publisher::new(bus, store, attaching, PARTITION, to_publish, seen, options);
    tasks.spawn(publishing);
    Ok((appender, publisher))
}
