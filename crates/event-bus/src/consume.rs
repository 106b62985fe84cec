//! Consuming: the events of a partition in order, each exactly once, from a position on.
//!
//! The reader takes messages from the stream without acknowledging them and believes none of them: an event counts when
//! its position is the next one, equals the message's sequence, and its generation is the log's. Anything else (a hole, a
//! purged range, a message that is damaged, foreign or only a reference) is read from Postgres, and then the stream goes
//! on. When the stream is silent the reader compares itself with the log's head, and while NATS is away it lives from
//! Postgres alone. So it is right whatever the stream does, and fast while the stream is right.

mod source;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::consumer::pull;
use daybook_event_store::{EventStore, Lineage, ReadError, RecordedEvent};
use futures::{FutureExt as _, StreamExt as _};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use self::source::{Look, SourceError};
use crate::bus::Bus;
use crate::message;

/// The pause before another attempt to read the stream.
const SUBSCRIBE_PAUSE: Duration = Duration::from_millis(200);

/// How the reader works.
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    /// The generation of the log that the reader's start belongs to; whatever the log has when `None`.
    pub generation: Option<Uuid>,
    /// Up to here no message of the stream is believed: somebody found that the log does not hold it.
    pub distrusted_up_to: u64,
    /// How long the stream may be silent before the reader compares itself with the log.
    pub idle_interval: Duration,
    /// How often the log is looked at while the stream cannot be read.
    pub poll_interval: Duration,
    /// How long the stream may be silent while the log is ahead; then it is subscribed to anew.
    pub silence_max: Duration,
    /// Messages that the server may send ahead of the reader.
    pub prefetch_messages: usize,
    /// Events that are read from the log at once.
    pub read_events_max: u32,
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
            read_events_max: 1_000,
        }
    }
}

/// Where a batch came from.
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
    /// Where they came from.
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
        /// Where the reader stands.
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

/// What a reader has done, since it was made.
#[derive(Debug, Default)]
pub struct ReaderMetrics {
    /// Events that came from the stream.
    pub from_bus: AtomicU64,
    /// Events that were read from Postgres.
    pub from_log: AtomicU64,
    /// How often a message was not the next event, so that the log was asked.
    pub holes: AtomicU64,
    /// How often the stream was subscribed to.
    pub subscriptions: AtomicU64,
}

/// Reads a partition of the log in order.
pub struct Reader {
    bus: Bus,
    store: EventStore,
    partition: i32,
    options: ReaderOptions,
    metrics: Arc<ReaderMetrics>,
    /// The log's generation; `None` until the log has been looked at.
    generation: Option<Uuid>,
    /// Which generations it has, and how far: messages of earlier ones stay in the stream.
    lineage: Lineage,
    /// The position of the newest event that is ready or handed out.
    last: u64,
    /// To be handed out.
    ready: VecDeque<RecordedEvent>,
    /// Where they came from: all of them from the log, or any of them from the stream.
    source: Source,
    subscription: Option<pull::Stream>,
    subscribing: Option<JoinHandle<Result<pull::Stream, SourceError>>>,
    subscribe_at: Instant,
    connections: watch::Receiver<u64>,
    /// Up to here the log has to be read, because the stream does not have it right.
    hole_end: u64,
    /// The event behind the hole.
    ahead: Option<RecordedEvent>,
    looking: Option<JoinHandle<Result<Look, ReadError>>>,
    /// When something last happened: a message came or the log was looked at.
    heard_at: Instant,
    /// Since when the stream is silent while the log goes on.
    silent_since: Option<Instant>,
}

/// What happened while the reader waited.
enum Happening {
    Message(Option<Result<jetstream::Message, pull::MessagesError>>),
    Looked(Result<Look, ReadError>),
    Subscribed(Result<pull::Stream, SourceError>),
    Reconnected,
    Time,
}

impl Reader {
    /// Reads what comes after the position `after`. Nothing happens before the first call of [`Self::next_batch`].
    pub fn new(bus: Bus, store: EventStore, partition: i32, after: u64, options: ReaderOptions) -> Self {
        let connections = bus.connections();
        let now = Instant::now();
        Self {
            bus,
            store,
            partition,
            generation: None,
            lineage: Lineage::default(),
            options,
            metrics: Arc::default(),
            last: after,
            ready: VecDeque::new(),
            source: Source::Log,
            subscription: None,
            subscribing: None,
            subscribe_at: now,
            connections,
            hole_end: 0,
            ahead: None,
            looking: None,
            heard_at: now,
            silent_since: None,
        }
    }

    /// What it has done so far.
    pub fn metrics(&self) -> Arc<ReaderMetrics> {
        Arc::clone(&self.metrics)
    }

    /// The next events, as soon as there is one: what is at hand, at most `events_max`. Cancel-safe: a future that is
    /// dropped loses nothing.
    ///
    /// # Errors
    /// [`ReaderError`]; after [`ReaderError::Log`] it can be called again.
    pub async fn next_batch(&mut self, events_max: usize) -> Result<Batch, ReaderError> {
        loop {
            if let Some(batch) = self.take(events_max) {
                return Ok(batch);
            }
            self.start_what_is_due();
            match self.wait().await {
                Happening::Message(message) => self.hear(message, events_max),
                Happening::Looked(look) => self.learn(look)?,
                Happening::Subscribed(subscribed) => self.subscribed(subscribed),
                // The server may have lost the consumer and the stream: begin anew rather than wait for silence.
                Happening::Reconnected => self.unsubscribe(Instant::now()),
                Happening::Time => {}
            }
        }
    }

    fn take(&mut self, events_max: usize) -> Option<Batch> {
        let generation = self.generation?;
        let count = self.ready.len().min(events_max.max(1));
        let events: Vec<_> = self.ready.drain(..count).collect();
        (!events.is_empty()).then(|| Batch {
            generation,
            events,
            source: self.source,
            delivered_at: Instant::now(),
        })
    }

    /// Waits for what comes first. Everything that is waited for stays where it is when this is dropped.
    async fn wait(&mut self) -> Happening {
        let listens = self.generation.is_some() && self.ahead.is_none();
        let wake_at = tokio::time::Instant::from_std(self.wake_at());
        tokio::select! {
            biased;
            message = next_of(&mut self.subscription), if listens => Happening::Message(message),
            look = finished(&mut self.looking) => Happening::Looked(look),
            subscribed = finished(&mut self.subscribing) => Happening::Subscribed(subscribed),
            Ok(()) = self.connections.changed() => Happening::Reconnected,
            () = tokio::time::sleep_until(wake_at) => Happening::Time,
        }
    }

    /// When something is to be started if nothing comes before that. What runs already wakes us by itself.
    fn wake_at(&self) -> Instant {
        let look_at = self.looking.is_none().then(|| self.look_at());
        let subscribe_at = self.may_subscribe().then_some(self.subscribe_at);
        let first = look_at.into_iter().chain(subscribe_at).min();
        first.unwrap_or_else(|| Instant::now() + self.options.silence_max)
    }

    fn may_subscribe(&self) -> bool {
        self.subscription.is_none() && self.subscribing.is_none() && self.bus.is_connected()
    }

    fn look_at(&self) -> Instant {
        match self.subscription {
            Some(_) => self.heard_at + self.options.idle_interval,
            None => self.heard_at + self.options.poll_interval,
        }
    }

    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        if self.may_subscribe() && now >= self.subscribe_at {
            let (bus, from) = (self.bus.clone(), self.last + 1);
            let subscribe = source::subscribe(bus, self.partition, from, self.options.prefetch_messages);
            self.subscribing = Some(tokio::spawn(subscribe));
        }
        let is_due = self.generation.is_none() || self.hole_end > self.last || now >= self.look_at();
        if self.looking.is_none() && is_due {
            self.look();
        }
    }

    /// Looks at the log in a task of its own: database work is never dropped half-way.
    fn look(&mut self) {
        let chunk = self.options.read_events_max;
        let limit = match self.hole_end.checked_sub(self.last) {
            Some(hole) if hole > 0 => u32::try_from(hole).unwrap_or(chunk).min(chunk),
            // The stream is about to tell; only the generation is missing.
            _ if self.generation.is_none() && self.bus.is_connected() => 0,
            _ => chunk,
        };
        let look = source::look(
            self.store.clone(),
            self.partition,
            self.last,
            limit,
            self.generation.is_none(),
        );
        self.looking = Some(tokio::spawn(look));
    }

    /// Takes a message and what else is at hand.
    fn hear(&mut self, first: Option<Result<jetstream::Message, pull::MessagesError>>, events_max: usize) {
        self.heard_at = Instant::now();
        let mut next = Some(first);
        while let Some(message) = next.take() {
            match message {
                Some(Ok(message)) => self.accept(&message),
                Some(Err(error)) => {
                    tracing::debug!(partition = self.partition, error = %error, "the stream is subscribed to anew");
                    self.unsubscribe(self.heard_at + SUBSCRIBE_PAUSE);
                }
                None => self.unsubscribe(self.heard_at + SUBSCRIBE_PAUSE),
            }
            if self.ahead.is_none()
                && self.ready.len() < events_max
                && let Some(subscription) = &mut self.subscription
            {
                next = subscription.next().now_or_never();
            }
        }
    }

    /// Takes the next event, or finds that there is a hole.
    fn accept(&mut self, message: &jetstream::Message) {
        let Ok(info) = message.info() else { return };
        let sequence = info.stream_sequence;
        if sequence <= self.last {
            self.silent_since = None;
            return;
        }
        match self.trusted(message, sequence) {
            Some(event) if sequence == self.last + 1 => {
                self.silent_since = None;
                self.last = sequence;
                self.source = Source::Bus;
                self.ready.push_back(event);
                self.metrics.from_bus.fetch_add(1, Ordering::Relaxed);
            }
            event => {
                self.metrics.holes.fetch_add(1, Ordering::Relaxed);
                self.hole_end = if event.is_some() { sequence - 1 } else { sequence };
                self.ahead = event;
            }
        }
    }

    /// The message's event, if it is what belongs at its sequence in this log.
    fn trusted(&self, message: &jetstream::Message, sequence: u64) -> Option<RecordedEvent> {
        if sequence <= self.options.distrusted_up_to {
            return None;
        }
        let decoded = message
            .headers
            .as_ref()
            .map(|headers| message::decode(headers, &message.payload))?;
        let (event, generation) = decoded
            .inspect_err(|error| {
                tracing::debug!(partition = self.partition, sequence, error = %error, "a message is not a whole event");
            })
            .ok()?;
        let is_at_home = event.partition == self.partition && event.position == sequence;
        (is_at_home && self.lineage.has(generation, sequence)).then_some(event)
    }

    /// Takes what the log has, and what that says about the stream.
    fn learn(&mut self, look: Result<Look, ReadError>) -> Result<(), ReaderError> {
        self.heard_at = Instant::now();
        let mut look = look.map_err(ReaderError::Log)?;
        self.check_generation(&look)?;
        if let Some(lineage) = look.lineage.take() {
            self.lineage = lineage;
        }
        look.check()?;
        let is_behind = look.is_full() && self.hole_end == 0;
        let head = look.head.position;
        let new: Vec<_> = look
            .events
            .into_iter()
            .filter(|event| event.position > self.last)
            .collect();
        let is_ahead_of_stream = !new.is_empty();
        if let Some(newest) = new.last() {
            self.last = newest.position;
            self.source = Source::Log;
            self.metrics
                .from_log
                .fetch_add(new.len() as u64, Ordering::Relaxed);
            self.notice_silence();
            self.ready.extend(new);
        }
        self.close_hole(head);
        if self.hole_end > self.last || (is_behind && is_ahead_of_stream) {
            // The next chunk is read while this one is dealt with.
            self.look();
        }
        Ok(())
    }

    fn check_generation(&mut self, look: &Look) -> Result<(), ReaderError> {
        let found = look.head.generation;
        let expected = *self
            .generation
            .get_or_insert(self.options.generation.unwrap_or(found));
        if expected == found {
            return Ok(());
        }
        Err(ReaderError::GenerationChanged {
            expected,
            found,
            head: look.head.position,
        })
    }

    /// A subscription that says nothing while the log goes on is made anew.
    fn notice_silence(&mut self) {
        if self.hole_end > 0 || self.subscription.is_none() {
            return;
        }
        let since = *self.silent_since.get_or_insert(self.heard_at);
        if self.heard_at >= since + self.options.silence_max {
            self.unsubscribe(self.heard_at);
        }
    }

    /// Goes on with the event behind the hole once the hole is filled. A message beyond the log's head made none: it was
    /// forged, and whoever waited for what comes before it would ask the log again and again.
    fn close_hole(&mut self, head: u64) {
        self.ahead.take_if(|event| event.position > head);
        if self.ahead.is_none() {
            self.hole_end = self.hole_end.min(head);
        }
        if self.hole_end > self.last {
            return;
        }
        self.hole_end = 0;
        if let Some(event) = self.ahead.take()
            && event.position == self.last + 1
        {
            self.last = event.position;
            self.source = Source::Bus;
            self.ready.push_back(event);
        }
    }

    fn subscribed(&mut self, subscribed: Result<pull::Stream, SourceError>) {
        self.heard_at = Instant::now();
        match subscribed {
            Ok(subscription) => {
                self.metrics.subscriptions.fetch_add(1, Ordering::Relaxed);
                self.subscription = Some(subscription);
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(partition = self.partition, error, "the stream cannot be read");
                self.subscribe_at = self.heard_at + SUBSCRIBE_PAUSE;
            }
        }
    }

    fn unsubscribe(&mut self, again_at: Instant) {
        self.subscription = None;
        self.subscribing = None;
        self.silent_since = None;
        self.subscribe_at = again_at;
    }
}

/// The next message; never without a subscription.
async fn next_of(
    subscription: &mut Option<pull::Stream>,
) -> Option<Result<jetstream::Message, pull::MessagesError>> {
    match subscription {
        Some(subscription) => subscription.next().await,
        None => std::future::pending().await,
    }
}

/// What a task came to; never without a task. The task stays when this is dropped.
async fn finished<T>(task: &mut Option<JoinHandle<T>>) -> T {
    let Some(running) = task else {
        return std::future::pending().await;
    };
    let result = running.await.expect("the task neither panics nor is aborted");
    *task = None;
    result
}
