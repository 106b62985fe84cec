//! Publishing: one task per partition and process that holds the stream equal to the log.
//!
//! Each message says which sequence it expects before it (`Nats-Expected-Last-Sequence`), so JetStream itself refuses
//! duplicates, holes and zombies, and **no leader is needed**: every replica publishes what it committed, straight from
//! memory, with many acknowledgements outstanding. Where something before it is missing, it waits a moment for whoever
//! committed that; then it reads what is missing from the log and publishes that, too: it helps.
//!
//! On start, after any error and every second the publisher compares log and stream and fills the difference from the log.
//! A stream that is gone is made anew. One that carries an earlier epoch goes on if it ends at the fork or before it. One that
//! is longer than its own epoch's log shows that the log was set back: the log gets a new epoch. One that holds a foreign
//! message, an unknown epoch or events beyond a fork is deleted and refilled, from there on. One with other settings than ours
//! is given ours; where JetStream refuses that, and where the stream is not this deployment's, it is left alone and reported.
//!
//! Nothing is published before it is committed, and nobody ever waits for this task: while NATS is away it lets events go,
//! and reads them from the log afterwards.

mod acks;
mod comparison;
mod interruption;
mod machine;
mod task;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use daybook_event_store::{Committed, EventStore, SeenEpoch};
use thiserror::Error;
use tokio::sync::{mpsc, watch};

use crate::bus::{Bus, BusError};
use crate::stream::Shape;

/// How the publisher works. The defaults suit one server or a cluster of three in one place.
#[derive(Clone)]
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
    /// Is told how long events took to be published.
    pub observer: Option<PublishObserver>,
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
            observer: None,
        }
    }
}

impl PublisherOptions {
    pub(crate) fn shape(&self) -> Shape {
        Shape {
            replicas: self.replicas,
            retained_events_max: self.retained_events_max,
        }
    }
}

/// Is told the time from `RecordedEvent::recorded_at` to the acknowledgement of each event that this process committed
/// and published, zero if the clocks disagree. Called on the publisher's task: be quick.
pub type PublishObserver = Arc<dyn Fn(Duration) + Send + Sync>;

/// What a publisher has done, since it started.
#[derive(Debug, Default)]
pub struct PublisherMetrics {
    /// Messages of this publisher that the stream acknowledged.
    pub published: AtomicU64,
    /// Events read from the log because the stream was behind.
    pub refilled: AtomicU64,
    /// Streams deleted because they did not hold what the log holds.
    pub rebuilt: AtomicU64,
    /// Streams whose settings were changed, because they were not those of this process.
    pub reconciled: AtomicU64,
    /// Whether the stream is left alone now, because it is somebody else's or has settings that cannot be changed.
    pub unusable: AtomicBool,
    /// Messages refused because the stream had another last sequence.
    pub refused: AtomicU64,
    /// How often publishing was interrupted, by a refusal, an error or an outage, and began with a comparison.
    pub resyncs: AtomicU64,
    /// Events too large for a message, published as a reference to the log.
    pub referenced: AtomicU64,
}

impl PublisherMetrics {
    fn add(counter: &AtomicU64, number: usize) {
        counter.fetch_add(number as u64, Ordering::Relaxed);
    }
}

/// What the rest of the process sees of a publisher.
#[derive(Debug, Clone)]
pub struct PublisherHandle {
    metrics: Arc<PublisherMetrics>,
    published: watch::Receiver<u64>,
}

impl PublisherHandle {
    /// What it has done so far.
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
        let metrics = Arc::new(PublisherMetrics::default());
        let (sender, published) = watch::channel(0);
        let handle = PublisherHandle {
            metrics: Arc::clone(&metrics),
            published,
        };
        let work = task::run(
            task::Setting {
                bus,
                store,
                attaching,
                partition,
                seen,
                options,
                metrics,
                published: sender,
            },
            committed,
        );
        (handle, work)
    }
}
