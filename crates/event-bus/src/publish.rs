//! Publishing: one task per partition and process that holds the stream equal to the log.
//!
//! Each message says which sequence it expects before it (`Nats-Expected-Last-Sequence`), so JetStream itself refuses
//! duplicates, holes and zombies, and **no leader is needed**: every replica publishes what it committed, straight from
//! memory, with many acknowledgements outstanding. Where something before it is missing, it waits a moment for whoever
//! committed that; then it reads what is missing from the log and publishes that, too: it helps.
//!
//! On start, after any error and every second the publisher compares log and stream and fills the difference from the log.
//! A stream that is gone is made anew. One that carries an earlier epoch goes on if it ends at the fork or before it. One that
//! has an event where the log has another one, or none, shows that the log was set back: the log gets a new epoch. One that
//! holds a foreign message, an unknown epoch or events beyond a fork is deleted and refilled, from there on. One with other
//! settings than ours is given ours; where JetStream refuses that, and where the stream is not this deployment's, it is left
//! alone and reported.
//!
//! Nothing is published before it is committed, and nobody ever waits for this task: while NATS is away it lets events go,
//! and reads them from the log afterwards.

mod acks;
mod comparison;
mod interruption;
mod machine;
mod task;

use std::time::Duration;

use daybook_event_store::{Committed, EventStore, SeenEpoch};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::sync::{mpsc, watch};

use crate::bus::{Bus, BusError};
use crate::stream::StreamOptions;

/// How the publisher works. The defaults suit one server or a cluster of three in one place.
#[derive(Debug, Clone)]
pub struct PublisherOptions {
    /// Messages that may wait for their acknowledgement. Far below JetStream's own limit of 10,000 per stream, so that
    /// several replicas fit beside each other.
    pub window_messages: usize,
    /// How often the log and the stream are compared.
    pub compare_interval: Duration,
    /// How long the stream may stand still before missing events are published for whoever committed them.
    pub help_after: Duration,
    /// How long an acknowledgement may take; after that it is unknown whether the message is in the stream.
    pub acknowledge_timeout: Duration,
    /// Events that are read from the log at once.
    pub read_events_max: u32,
    /// How many servers of a NATS cluster hold the stream.
    pub replicas: usize,
    /// How many events the stream holds, the newest; all of them when `None`. Older ones are read from the log.
    pub retained_events_max: Option<u64>,
    /// How many events are published again into a stream that has to be made anew, the newest: what is committed meanwhile waits
    /// behind them. Older ones are read from the log.
    pub refilled_events_max: u64,
    /// Its counters.
    pub metrics: PublisherMetrics,
    /// Takes the seconds from `RecordedEvent::recorded_at` to the acknowledgement of each event that this process committed
    /// and published, zero if the clocks disagree.
    pub latency: Option<Histogram>,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        Self {
            window_messages: 2_048,
            compare_interval: Duration::from_secs(1),
            help_after: Duration::from_millis(50),
            acknowledge_timeout: Duration::from_secs(2),
            read_events_max: 1_000,
            replicas: 1,
            retained_events_max: None,
            refilled_events_max: 1_000_000,
            metrics: PublisherMetrics::default(),
            latency: None,
        }
    }
}

impl PublisherOptions {
    pub(crate) fn stream_options(&self) -> StreamOptions {
        StreamOptions {
            replicas: self.replicas,
            retained_events_max: self.retained_events_max,
        }
    }
}

/// Counters of publishers; clones share them.
#[derive(Debug, Clone, Default)]
pub struct PublisherMetrics {
    /// Messages that the stream acknowledged.
    pub published: Counter,
    /// Events read from the log because the stream was behind.
    pub refilled: Counter,
    /// Streams deleted because they did not hold what the log holds.
    pub rebuilt: Counter,
    /// Streams whose settings were changed, because they were not those of this process.
    pub reconciled: Counter,
    /// Streams that are left alone now, because they are somebody else's or have settings that cannot be changed.
    pub unusable: Gauge,
    /// Messages refused because the stream had another last sequence.
    pub refused: Counter,
    /// How often publishing was interrupted, by a refusal, an error or an outage, and began with a comparison.
    pub resyncs: Counter,
    /// Events too large for a message, published as a reference to the log.
    pub referenced: Counter,
}

impl PublisherMetrics {
    /// Registers them.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let new = Self::default();
        for (name, help, counter) in [
            (
                "publish_messages",
                "Messages that the stream acknowledged",
                &new.published,
            ),
            (
                "publish_refilled",
                "Events read from the log because the stream was behind",
                &new.refilled,
            ),
            (
                "publish_rebuilt",
                "Streams that did not hold what the log holds",
                &new.rebuilt,
            ),
            (
                "publish_reconciled",
                "Streams whose settings were changed to those of this process",
                &new.reconciled,
            ),
            (
                "publish_refused",
                "Messages refused for their place in the stream",
                &new.refused,
            ),
            (
                "publish_resyncs",
                "Comparisons of log and stream after an interruption",
                &new.resyncs,
            ),
            (
                "publish_referenced",
                "Events too large for a message",
                &new.referenced,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        let help = "Streams left alone: not of this deployment, of an impossible epoch, or with settings that cannot be changed";
        registry.register("publish_unusable", help, new.unusable.clone());
        new
    }
}

/// A publisher's progress and counters, for the rest of the process.
#[derive(Debug, Clone)]
pub struct PublisherHandle {
    metrics: PublisherMetrics,
    published: watch::Receiver<u64>,
}

impl PublisherHandle {
    /// Its counters.
    pub fn metrics(&self) -> &PublisherMetrics {
        &self.metrics
    }

    /// The newest position that is known to be in the stream, as it changes. It falls when the stream is rebuilt.
    pub fn published_position(&self) -> watch::Receiver<u64> {
        self.published.clone()
    }
}

/// The publisher cannot go on.
#[derive(Debug, Error)]
pub enum PublishError {
    /// There is no way to receive acknowledgements.
    #[error("cannot receive acknowledgements")]
    Acknowledgements(#[source] BusError),
    /// The connection was closed by this process itself.
    #[error("the connection to NATS is closed")]
    Closed,
}

/// Publishes a partition of the log.
#[derive(Debug)]
pub struct Publisher;

impl Publisher {
    /// Makes the publisher of a partition and the future that does its work; the caller spawns it. `store` reads every
    /// tenant's events. `attaching` is of a role that may append, and so open epochs. `seen` is told of the epochs that the
    /// stream carries. The future ends well when `committed` is closed and what came through it is published, or was left to
    /// another replica or the next start.
    #[expect(
        clippy::new_ret_no_self,
        reason = "like the appender, it is a handle and a future"
    )]
    pub fn new(
        bus: Bus,
        store: EventStore,
        attaching: EventStore,
        partition: i32,
        committed: mpsc::Receiver<Committed>,
        seen: SeenEpoch,
        options: PublisherOptions,
    ) -> (
        PublisherHandle,
        impl Future<Output = Result<(), PublishError>> + Send + 'static,
    ) {
        let (sender, published) = watch::channel(0);
        let handle = PublisherHandle {
            metrics: options.metrics.clone(),
            published,
        };
        let work = task::run(
            task::Context {
                bus,
                store,
                attaching,
                partition,
                seen,
                options,
                published: sender,
            },
            committed,
        );
        (handle, work)
    }
}
