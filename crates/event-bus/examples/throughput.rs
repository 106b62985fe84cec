//! How fast the log gets into the stream and out of it again, beside what JetStream does by itself.
//!
//! `cargo run --release -p daybook-event-bus --example throughput [EVENTS]`

#![expect(clippy::print_stdout, reason = "it reports to whoever runs it")]

#[path = "../tests/support/mod.rs"]
#[expect(dead_code, reason = "the suites need more of it")]
mod support;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use daybook_event_bus::publish::{PublishObserver, PublisherOptions};
use daybook_event_bus::{Deployment, message};
use daybook_event_store::{Committed, RecordedEvent};
use futures::StreamExt as _;
use support::{Publishing, Stack};

const BATCH_EVENTS: usize = 500;
const LATENCY_EVENTS: usize = 5_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let events = std::env::args()
        .nth(1)
        .map_or(Ok(200_000), |count| count.parse())?;
    one_publisher(events).await?;
    two_publishers(events).await?;
    latency().await
}

async fn one_publisher(events: usize) -> anyhow::Result<()> {
    let mut stack = Stack::start().await?;
    let compare_interval = Duration::from_secs(3_600);
    let options = PublisherOptions {
        compare_interval,
        ..PublisherOptions::default()
    };
    let publishing = stack.publisher_with(options).await?;
    publishing.tell(stack.commit(1).await?);
    publishing.published(1).await?;

    let batches = commit(&mut stack, events).await?;
    let sample = batches[0].events[0].clone();
    let start = Instant::now();
    for batch in batches {
        publishing.tell_all(batch).await?;
    }
    publishing.published(events as u64 + 1).await?;
    report("published from memory", events, start);
    explain(&publishing);
    publishing.stop().await?;

    let start = Instant::now();
    support::read_to(&mut stack.reader(0).await?, events as u64 + 1).await?;
    report("read from the stream", events, start);

    stack.raw_stream().await?;
    stack.nats.delete_store().await?;
    stack.nats.restart().await?;
    let start = Instant::now();
    support::read_to(&mut stack.reader(0).await?, events as u64 + 1).await?;
    report("read from the log", events, start);

    let start = Instant::now();
    let publishing = stack.publisher().await?;
    publishing.published(events as u64 + 1).await?;
    report("filled from the log", events, start);
    publishing.stop().await?;
    plain_jetstream(&stack, events, &sample).await
}

/// The same message over and over by the client's own publishing, as many in flight, without expected sequences.
async fn plain_jetstream(stack: &Stack, events: usize, sample: &RecordedEvent) -> anyhow::Result<()> {
    let context = stack.jetstream().await?;
    let config = async_nats::jetstream::stream::Config {
        name: "PLAIN".into(),
        subjects: vec!["plain.>".into()],
        ..Default::default()
    };
    context.create_stream(config).await?;
    let message = message::encode(sample, uuid::Uuid::nil(), &Deployment::default());
    let mut headers = message.headers;
    headers = headers
        .iter()
        .filter(|(name, _)| !name.to_string().starts_with("Nats-"))
        .map(|(name, values)| (name.clone(), values[0].clone()))
        .collect();
    let start = Instant::now();
    let publishing = futures::stream::iter(0..events).map(|_| {
        let (context, headers, payload) = (context.clone(), headers.clone(), message.payload.clone());
        async move {
            context
                .publish_with_headers("plain.order", headers, payload)
                .await?
                .await
        }
    });
    let mut acknowledged = publishing.buffered(2_048);
    while let Some(answer) = acknowledged.next().await {
        answer?;
    }
    report("plain JetStream, same headers", events, start);
    Ok(())
}

/// Two command services commit in turns, as fast as the log takes it.
async fn two_publishers(events: usize) -> anyhow::Result<()> {
    let mut stack = Stack::start().await?;
    let publishers = [stack.publisher().await?, stack.publisher().await?];
    let start = Instant::now();
    for turn in 0..events / BATCH_EVENTS {
        let committed = stack.commit(BATCH_EVENTS).await?;
        publishers[turn % 2].tell_all(committed).await?;
    }
    report("committed by two replicas in turns", events, start);
    for publishing in &publishers {
        publishing.published(events as u64).await?;
    }
    report("... and published", events, start);
    publishers.iter().for_each(explain);
    Ok(())
}

#[derive(Default)]
struct Latencies(Mutex<Vec<(u64, Instant)>>);

impl PublishObserver for Latencies {
    fn published(&self, event: &RecordedEvent, _since_recorded: Duration) {
        self.0
            .lock()
            .expect("nobody panics with it")
            .push((event.position, Instant::now()));
    }
}

/// 1,000 events a second, each committed on its own: from the moment the publisher is told to the acknowledgement, and to
/// the reader.
async fn latency() -> anyhow::Result<()> {
    let mut stack = Stack::start().await?;
    let observer = Arc::new(Latencies::default());
    let options = PublisherOptions {
        observer: Some(observer.clone()),
        ..PublisherOptions::default()
    };
    let publishing = stack.publisher_with(options).await?;
    let mut reader = stack.reader(0).await?;
    publishing.tell(stack.commit(1).await?);
    publishing.published(1).await?;
    support::read_to(&mut reader, 1).await?;

    let reading = tokio::spawn(async move {
        let mut delivered = Vec::new();
        while delivered.len() < LATENCY_EVENTS {
            let batch = support::next(&mut reader).await?;
            delivered.extend(
                batch
                    .events
                    .iter()
                    .map(|event| (event.position, batch.delivered_at)),
            );
        }
        anyhow::Ok(delivered)
    });
    let mut told = Vec::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    for _ in 0..LATENCY_EVENTS {
        ticks.tick().await;
        let committed = stack.commit(1).await?;
        told.push((committed.events[0].position, Instant::now()));
        publishing.tell(committed);
    }
    let delivered = reading.await??;
    publishing.published(LATENCY_EVENTS as u64 + 1).await?;
    let acknowledged = observer.0.lock().expect("nobody panics with it").clone();
    percentiles("told to acknowledged", &told, &acknowledged);
    percentiles("told to delivered", &told, &delivered);
    explain(&publishing);
    Ok(())
}

fn percentiles(what: &str, from: &[(u64, Instant)], to: &[(u64, Instant)]) {
    let first = from[0].0;
    let later = to.iter().filter_map(|(position, at)| {
        let index = usize::try_from(position.checked_sub(first)?).ok()?;
        Some(at.saturating_duration_since(from.get(index)?.1))
    });
    let mut latencies: Vec<_> = later.collect();
    latencies.sort();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!(
        "{what:36} n {:6}  p50 {:?}  p99 {:?}  p99.9 {:?}",
        latencies.len(),
        at(0.5),
        at(0.99),
        at(0.999)
    );
}

async fn commit(stack: &mut Stack, events: usize) -> anyhow::Result<Vec<Committed>> {
    let mut batches = Vec::new();
    for _ in 0..events / BATCH_EVENTS {
        batches.push(stack.commit(BATCH_EVENTS).await?);
    }
    Ok(batches)
}

fn report(what: &str, events: usize, start: Instant) {
    let elapsed = start.elapsed();
    println!(
        "{what:36} {events:8} in {elapsed:10.3?} = {:9.0}/s",
        events as f64 / elapsed.as_secs_f64()
    );
}

fn explain(publishing: &Publishing) {
    let metrics = publishing.handle.metrics();
    println!(
        "    published {} helped {} refilled {} refused {} resyncs {}",
        metrics.published.load(Relaxed),
        metrics.helped.load(Relaxed),
        metrics.refilled.load(Relaxed),
        metrics.refused.load(Relaxed),
        metrics.resyncs.load(Relaxed),
    );
}
