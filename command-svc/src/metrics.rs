//! What the command service shows of its appenders and publishers, summed over the partitions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use daybook_event_bus::publish::{PublishObserver, PublisherHandle, PublisherMetrics};
use daybook_event_store::{Appender, AppenderMetrics};
use daybook_service::metrics::{EventMoments, Moment, Reading, Registry};

/// Shows what the appenders do.
pub(crate) fn register_appenders(registry: &Registry, appenders: Vec<Appender>) {
    let metrics: Arc<[Arc<AppenderMetrics>]> =
        appenders.iter().map(|one| Arc::clone(one.metrics())).collect();
    let counter = |name: &str, help: &str, of: fn(&AppenderMetrics) -> &AtomicU64| {
        let metrics = Arc::clone(&metrics);
        registry.register(
            name,
            help,
            Reading::counter(move || sum(metrics.iter().map(|one| of(one)))),
        );
    };
    counter("append_batches", "Batches that were committed", |one| {
        &one.batches
    });
    counter("append_commands", "Commands that got a verdict", |one| {
        &one.commands
    });
    counter("append_events", "Events that were committed", |one| &one.events);
    counter(
        "append_conflicts",
        "Commands that were decided on something else than what is recorded",
        |one| &one.conflicts,
    );
    counter(
        "append_replays",
        "Commands whose key had been used for the same before",
        |one| &one.replays,
    );
    counter(
        "append_retries",
        "Batches sent again because the database did not answer",
        |one| &one.retries,
    );
    counter(
        "append_receipt_retries",
        "Receipts read again because the database did not answer",
        |one| &one.receipt_retries,
    );
    let free = move || appenders.iter().map(|one| one.free() as u64).min().unwrap_or(0);
    let help = "Commands that may still be admitted before one is refused";
    registry.register("append_queue_free", help, Reading::gauge(free));
}

/// Shows what the publishers do.
pub(crate) fn register_publishers(registry: &Registry, publishers: &[PublisherHandle]) {
    let publishers: Arc<[PublisherHandle]> = publishers.into();
    let counter = |name: &str, help: &str, of: fn(&PublisherMetrics) -> &AtomicU64| {
        let publishers = Arc::clone(&publishers);
        let read = move || sum(publishers.iter().map(|one| of(one.metrics())));
        registry.register(name, help, Reading::counter(read));
    };
    counter(
        "publish_messages",
        "Messages that the stream acknowledged",
        |one| &one.published,
    );
    counter(
        "publish_refilled",
        "Events read from the log because the stream was behind",
        |one| &one.refilled,
    );
    counter(
        "publish_rebuilt",
        "Streams that did not hold what the log holds",
        |one| &one.rebuilt,
    );
    counter(
        "publish_reconciled",
        "Streams whose settings were changed to those of this process",
        |one| &one.reconciled,
    );
    counter(
        "publish_refused",
        "Messages refused for their place in the stream",
        |one| &one.refused,
    );
    counter(
        "publish_resyncs",
        "Comparisons of log and stream after an interruption",
        |one| &one.resyncs,
    );
    counter("publish_referenced", "Events too large for a message", |one| {
        &one.referenced
    });
    let unusable = move || {
        let unusable = publishers
            .iter()
            .map(|one| one.metrics().unusable.load(Ordering::Relaxed));
        unusable.map(u64::from).sum()
    };
    let help = "Streams left alone: not of this deployment, of an impossible epoch, or with settings that cannot be changed";
    registry.register("publish_unusable", help, Reading::gauge(unusable));
}

fn sum<'a>(counters: impl Iterator<Item = &'a AtomicU64>) -> u64 {
    counters.map(|counter| counter.load(Ordering::Relaxed)).sum()
}

/// Measures the time from commit to acknowledgement by the bus.
pub(crate) fn publish_observer(moments: &EventMoments) -> PublishObserver {
    let histogram = moments.latency(Moment::Committed, Moment::Published);
    Arc::new(move |latency| histogram.observe(latency.as_secs_f64()))
}
