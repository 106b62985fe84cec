//! The projector's metrics: each projection's position, the events that it applies, and the time that events take to
//! get there.

use std::time::{Duration, Instant};

use daybook_event_bus::consume::ReaderMetrics;
use daybook_postgres::{LOOKUP_TIMEOUT, within};
use daybook_service::metrics::{EventMoments, Moment, Registry};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::batch::{Decoded, Origin};
use crate::checkpoint;
use crate::database::Connector;

/// How often the positions are read.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How many events of a batch are looked at for how long they took: all of a small one, spread over a large one.
const SAMPLES_PER_BATCH_MAX: usize = 64;

/// Which projection, in which partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    projection: String,
    partition: i32,
}

/// Which partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartitionLabels {
    partition: i32,
}

/// All of it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    moments: EventMoments,
    pub(crate) reader: ReaderMetrics,
    applied: Family<Labels, Counter>,
    batches: Family<Labels, Histogram>,
    refuted: Family<Labels, Counter>,
    rebuilt: Family<Labels, Counter>,
    position: Family<Labels, Gauge>,
    head: Family<Labels, Gauge>,
    lag_events: Family<Labels, Gauge>,
    lag_seconds: Family<Labels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    failed: Family<Labels, Gauge>,
    rebuilding: Family<Labels, Gauge>,
    superseded: Family<PartitionLabels, Gauge>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &Registry) -> Self {
        let batch_sizes = || Histogram::new(exponential_buckets(1.0, 2.0, 14));
        Self {
            moments: EventMoments::new(registry),
            reader: registry.with(ReaderMetrics::new),
            applied: registry.register(
                "projection_events_applied",
                "Events applied to the live tables by this process",
                Family::default(),
            ),
            batches: registry.register(
                "projection_batch_events",
                "Events that are applied in one transaction",
                Family::new_with_constructor(batch_sizes as fn() -> Histogram),
            ),
            refuted: registry.register(
                "projection_batches_refuted",
                "Batches from the bus that were not applied, because the log does not hold their events",
                Family::default(),
            ),
            rebuilt: registry.register(
                "projection_rebuild_events_applied",
                "Events applied to tables that are not live yet by this process",
                Family::default(),
            ),
            position: registry.register(
                "projection_position",
                "The position up to which everything is applied",
                Family::default(),
            ),
            head: registry.register(
                "projection_log_head",
                "The position of the newest event of the log",
                Family::default(),
            ),
            lag_events: registry.register(
                "projection_lag_events",
                "How many events are not applied yet",
                Family::default(),
            ),
            lag_seconds: registry.register(
                "projection_lag_seconds",
                "The age of the oldest event that is not applied yet",
                Family::default(),
            ),
            failed: registry.register(
                "projection_failed",
                "1 when the projection stands before an event that it cannot take",
                Family::default(),
            ),
            rebuilding: registry.register(
                "projection_rebuilding",
                "1 when new tables are being filled",
                Family::default(),
            ),
            superseded: registry.register(
                "projection_log_superseded",
                "1 while the stream carries a later epoch than the log that this process reads",
                Family::default(),
            ),
        }
    }

    /// Metrics of one worker on the live tables.
    pub(crate) fn of_worker(&self, projection: &str, partition: i32) -> WorkerMetrics {
        let labels = labels(projection, partition);
        WorkerMetrics {
            applied: self.applied.get_or_create_owned(&labels),
            refuted: self.refuted.get_or_create_owned(&labels),
            batches: self.batches.get_or_create_owned(&labels),
            committed_to_delivered: self.moments.latency(Moment::Committed, Moment::Delivered),
            delivered_to_applied: self.moments.latency(Moment::Delivered, Moment::Applied),
            committed_to_applied: self.moments.latency(Moment::Committed, Moment::Applied),
            received_to_applied: self.moments.latency(Moment::Received, Moment::Applied),
        }
    }

    /// Counter of a rebuild.
    pub(crate) fn of_rebuild(&self, projection: &str, partition: i32) -> Counter {
        self.rebuilt.get_or_create_owned(&labels(projection, partition))
    }

    /// Notes whether the stream carries a later epoch than the log.
    pub(crate) fn superseded(&self, partition: i32, is_superseded: bool) {
        self.superseded
            .get_or_create(&PartitionLabels { partition })
            .set(i64::from(is_superseded));
    }

    /// Reads the positions every second, for all projections whoever works on them, until told to stop.
    pub async fn watch(
        self,
        connector: Connector,
        mut reconnects: watch::Receiver<Option<Instant>>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        while !shutdown.is_cancelled() {
            reconnects.mark_unchanged();
            let observed = tokio::select! {
                observed = self.observe_while_connected(&connector, &shutdown) => observed,
                Ok(()) = reconnects.changed() => continue,
            };
            if let Err(error) = observed {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot read how far the projections are"
                );
            }
            let _ = shutdown
                .run_until_cancelled(tokio::time::sleep(POLL_INTERVAL))
                .await;
        }
        Ok(())
    }

    async fn observe_while_connected(
        &self,
        connector: &Connector,
        shutdown: &CancellationToken,
    ) -> Result<(), sqlx::Error> {
        let mut connection = connector.connect("metrics").await?;
        while !shutdown.is_cancelled() {
            for live in within(LOOKUP_TIMEOUT, checkpoint::live(&mut connection, None)).await? {
                self.observe(&live);
            }
            let _ = shutdown
                .run_until_cancelled(tokio::time::sleep(POLL_INTERVAL))
                .await;
        }
        Ok(())
    }

    fn observe(&self, live: &checkpoint::Live) {
        let labels = labels(&live.name, live.partition);
        let lag = live.head.saturating_sub(live.position);
        self.position
            .get_or_create(&labels)
            .set(live.position.cast_signed());
        self.head.get_or_create(&labels).set(live.head.cast_signed());
        self.lag_events.get_or_create(&labels).set(lag.cast_signed());
        let lag = Duration::from_millis(live.lag_ms.unwrap_or(0).cast_unsigned());
        self.lag_seconds.get_or_create(&labels).set(lag.as_secs_f64());
        self.failed
            .get_or_create(&labels)
            .set(i64::from(live.failed_at.is_some()));
        self.rebuilding
            .get_or_create(&labels)
            .set(i64::from(live.is_rebuilding));
    }
}

fn labels(projection: &str, partition: i32) -> Labels {
    Labels {
        projection: projection.to_owned(),
        partition,
    }
}

/// Metrics of one worker on the live tables.
#[derive(Debug, Clone)]
pub(crate) struct WorkerMetrics {
    applied: Counter,
    refuted: Counter,
    batches: Histogram,
    committed_to_delivered: Histogram,
    delivered_to_applied: Histogram,
    committed_to_applied: Histogram,
    received_to_applied: Histogram,
}

impl WorkerMetrics {
    /// Notes a batch that the log does not hold.
    pub(crate) fn refuted(&self) {
        self.refuted.inc();
    }

    /// Notes a batch that was committed just now.
    pub(crate) fn applied(&self, events: &[&Decoded], delivered_at: Instant) {
        self.applied.inc_by(events.len() as u64);
        self.batches.observe(events.len() as f64);
        let now = OffsetDateTime::now_utc();
        let since_delivery = delivered_at.elapsed();
        let step = events.len().div_ceil(SAMPLES_PER_BATCH_MAX).max(1);
        for event in events.iter().step_by(step).map(|decoded| &decoded.event) {
            // The clocks of two machines differ; a time below zero is none.
            let since_commit = Duration::try_from(now - event.recorded_at).unwrap_or_default();
            self.delivered_to_applied.observe(since_delivery.as_secs_f64());
            self.committed_to_applied.observe(since_commit.as_secs_f64());
            self.committed_to_delivered
                .observe(since_commit.saturating_sub(since_delivery).as_secs_f64());
            if let Some(received) = Origin::of(event).received_at_us {
                let since = now.unix_timestamp_nanos() / 1_000 - i128::from(received);
                self.received_to_applied.observe(since.max(0) as f64 / 1e6);
            }
        }
    }
}
