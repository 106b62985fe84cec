//! Consuming: the events of a partition in order, each exactly once, from a position on.
//!
//! The reader takes messages from the stream without acknowledging them and believes none of them: an event counts when
//! its position is the next one, equals the message's sequence, and its generation is valid there: the log's newest, or an earlier one below its fork. Anything else (a hole, a
//! purged range, a message that is damaged, foreign or only a reference) is read from Postgres, and then the stream goes
//! on. When the stream is silent the reader compares itself with the log's head, and while NATS is away it lives from
//! Postgres alone. So it is right whatever the stream does, and fast while the stream is right.

mod machine;
mod ready;
mod source;

use std::time::{Duration, Instant};

use daybook_event_store::{EpochId, EventStore, ReadError, RecordedEvent};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use self::machine::{Answer, Input, Machine};
use self::source::Consumer;
use crate::bus::Bus;
use crate::finished;
use crate::stream::{self, StreamError};

/// How the reader works.
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    /// The generation of the log that the reader's start belongs to; whatever the log has when `None`.
    pub generation: Option<Uuid>,
    /// Up to here no message of the stream is believed: somebody found that the log does not hold it.
    pub distrusted_up_to: u64,
    /// How long the stream may be silent before the reader compares itself with the log.
    pub idle_interval: Duration,
    /// How often the log is read while the stream cannot be read.
    pub poll_interval: Duration,
    /// How long the stream may be silent while the log is ahead; then it is subscribed to anew.
    pub silence_max: Duration,
    /// Messages that the server may send ahead of the reader.
    pub prefetch_messages: usize,
    /// Bytes of messages that the server may send ahead, at each request. The client makes the next request when half of the
    /// one before has come, so that up to half as much again is under way. A message that is larger is not sent at all;
    /// `max_payload` is 1 MiB by default, and what is larger than that is only in the log.
    pub prefetch_bytes: usize,
    /// Bytes of events that are ready to be handed out, beyond which no more messages are taken; and that are read from the
    /// log at once. In both cases one event is taken whatever its size.
    pub ready_bytes: usize,
    /// Events that are read from the log at once.
    pub read_events_max: u32,
    /// Its counters.
    pub metrics: ReaderMetrics,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        Self {
            generation: None,
            distrusted_up_to: 0,
            idle_interval: Duration::from_millis(250),
            poll_interval: Duration::from_millis(50),
            silence_max: Duration::from_secs(2),
            prefetch_messages: 4_096,
            prefetch_bytes: 16 << 20,
            ready_bytes: 8 << 20,
            read_events_max: 1_000,
            metrics: ReaderMetrics::default(),
        }
    }
}

/// The source of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The stream, or a part of it did: whether the log holds the same is to be seen.
    Bus,
    /// Postgres, every event.
    Log,
}

/// Events with consecutive positions, at least one.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The generation of the log.
    pub generation: Uuid,
    /// The events; the first follows the last of the batch before.
    pub events: Vec<RecordedEvent>,
    /// Their source.
    pub source: Source,
    /// When they were handed out.
    pub delivered_at: Instant,
}

/// Why there are no more events.
#[derive(Debug, Error)]
pub enum ReaderError {
    /// Postgres did not answer. The reader stays where it is: ask again after a pause.
    #[error("the log could not be read")]
    Log(#[source] ReadError),
    /// The log was restored: what was read from it before may never have happened. This reader gives nothing any more.
    #[error("the log's generation is {found} and not {expected}")]
    GenerationChanged {
        /// The generation that the reader began with.
        expected: Uuid,
        /// The generation of the log.
        found: Uuid,
        /// The position of the log's newest event.
        head: u64,
    },
    /// The reader is ahead of the log although the generation is the same: the log was cut off, or the start is wrong.
    #[error("position {position} is beyond the log's head {head}")]
    AheadOfLog {
        /// The reader's position.
        position: u64,
        /// The position of the log's newest event.
        head: u64,
    },
    /// Postgres does not show an event that exists: the role may not see every tenant's events.
    #[error("the log does not show the event at position {position}")]
    Hidden {
        /// The position that should have come.
        position: u64,
    },
}

/// Counters of readers; clones share them.
#[derive(Debug, Clone, Default)]
pub struct ReaderMetrics {
    /// Events that were read from Postgres.
    pub from_log: Counter,
    /// How often a message was not the next event, so that the log was asked.
    pub holes: Counter,
}

impl ReaderMetrics {
    /// Registers them.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let new = Self::default();
        let help = "Events read from the log because the stream did not give them";
        registry.register("consume_from_log", help, new.from_log.clone());
        let help = "Messages of the stream that were not the next event, so that the log was asked";
        registry.register("consume_holes", help, new.holes.clone());
        new
    }
}

/// Reads a partition of the log in order. What to do next is decided by `Machine`; here it is started and waited for.
pub struct Reader {
    bus: Bus,
    store: EventStore,
    partition: i32,
    options: ReaderOptions,
    machine: Machine,
    consumer: Consumer,
    reading: Option<JoinHandle<Result<Answer, ReadError>>>,
    connections: watch::Receiver<u64>,
}

impl Reader {
    /// Reads what comes after the position `after`. Nothing is read before the first call of [`Self::next_batch`].
    pub fn new(bus: Bus, store: EventStore, partition: i32, after: u64, options: ReaderOptions) -> Self {
        Self {
            connections: bus.connections(),
            bus,
            store,
            partition,
            machine: Machine::new(partition, after, options.clone(), Instant::now()),
            options,
            consumer: Consumer::None,
            reading: None,
        }
    }

    /// Its counters.
    pub fn metrics(&self) -> &ReaderMetrics {
        self.machine.metrics()
    }

    /// The next events, as soon as there is one: what is at hand, at most `events_max`. Cancel-safe: a future that is
    /// dropped loses nothing.
    ///
    /// # Errors
    /// [`ReaderError`]; after [`ReaderError::Log`] it can be called again.
    pub async fn next_batch(&mut self, events_max: usize) -> Result<Batch, ReaderError> {
        let events_max = events_max.max(1);
        loop {
            // First, so that the next read is under way while this batch is dealt with.
            let wake_at = self.start_what_is_wanted();
            if let Some(batch) = self.machine.take(events_max, Instant::now()) {
                return Ok(batch);
            }
            let mut next = self.wait(wake_at, events_max).await.map_err(ReaderError::Log)?;
            while let Some(input) = next {
                self.machine.on(input, Instant::now())?;
                next = self.consumer.at_hand(self.machine.listens_beyond(events_max));
            }
        }
    }

    /// Starts what is wanted, in tasks of their own: database work is never dropped half-way. Returns when to ask again.
    fn start_what_is_wanted(&mut self) -> Instant {
        let (is_connected, is_reading) = (self.bus.is_connected(), self.reading.is_some());
        let wanted = self.machine.wanted(Instant::now(), is_connected, is_reading);
        if let Some(read) = wanted.read {
            let reading = source::read(self.store.clone(), self.partition, read, self.options.ready_bytes);
            self.reading = Some(tokio::spawn(reading));
        }
        if let Some(from) = wanted.subscribe_from {
            self.consumer = Consumer::open(self.bus.clone(), self.partition, from, self.options.clone());
        }
        wanted.wake_at
    }

    /// Waits for what comes first; for nothing when it is time. What is waited for stays where it is when this is dropped.
    /// The log goes first: a stream that never pauses must not keep its answers waiting.
    async fn wait(&mut self, wake_at: Instant, events_max: usize) -> Result<Option<Input>, ReadError> {
        let listens_beyond = self.machine.listens_beyond(events_max);
        tokio::select! {
            biased;
            answer = finished(&mut self.reading) => answer.map(Input::Answer).map(Some),
            next = self.consumer.next(listens_beyond) => Ok(Some(next)),
            Ok(()) = self.connections.changed() => Ok(Some(Input::Reconnected)),
            () = tokio::time::sleep_until(wake_at.into()) => Ok(None),
        }
    }
}

/// The stream does not tell its epoch.
#[derive(Debug, Error)]
#[error("cannot read the epoch of the stream")]
pub struct EpochUnread(#[source] StreamError);

/// The epoch that the stream carries, where it is later than this one of the log: that log was superseded.
///
/// # Errors
/// When the stream does not tell.
pub async fn superseding(bus: &Bus, partition: i32, log: EpochId) -> Result<Option<EpochId>, EpochUnread> {
    let found = stream::find(bus, partition).await.map_err(EpochUnread)?;
    let epoch = found.map(|stream| stream.epoch);
    Ok(epoch.filter(|epoch| *epoch > log && !epoch.is_invented(log)))
}
