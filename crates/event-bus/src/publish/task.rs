//! The publisher's work: flow while all is well, and catch up when it is not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use daybook_event_store::{Committed, EventStore, ReadError, RecordedEvent, SeenEpoch};
use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

use super::acks::{Answer, InFlight, Outgoing, SendError};
use super::{PublishError, PublisherMetrics, PublisherOptions};
use crate::bus::Bus;
use crate::stream::StreamError;

/// The pause after the second failure in a row, doubled up to the last.
const FAILURE_PAUSE_FIRST: Duration = Duration::from_millis(50);
const FAILURE_PAUSE_LAST: Duration = Duration::from_secs(1);

/// What the publisher was made with.
pub(super) struct Setting {
    pub(super) bus: Bus,
    pub(super) store: EventStore,
    /// As a role that may open epochs.
    pub(super) attaching: EventStore,
    pub(super) partition: i32,
    pub(super) seen: SeenEpoch,
    pub(super) options: PublisherOptions,
    pub(super) metrics: Arc<PublisherMetrics>,
    pub(super) published: watch::Sender<u64>,
}

/// Why the flow stops for a comparison.
#[derive(Debug, Error)]
pub(super) enum Interruption {
    #[error("it is time to compare")]
    Due,
    #[error("a message was refused: the stream has another last sequence")]
    Refused,
    #[error("JetStream does not take a message: {description} ({code})")]
    Rejected { code: u64, description: String },
    #[error("acknowledgements do not come")]
    Silence,
    #[error("there is no connection")]
    Disconnected,
    #[error("there is a new connection")]
    Reconnected,
    #[error("the log goes on in another epoch")]
    Epoch,
    #[error("the log is a standby's")]
    Standby,
    #[error("the log was superseded: its epoch is {epoch}, and the stream carries {seen}")]
    Superseded { epoch: i32, seen: i32 },
    #[error("a message was not sent")]
    Send(#[source] SendError),
    #[error("the log cannot be read")]
    Log(#[source] ReadError),
    #[error("the stream cannot be used")]
    Stream(#[source] StreamError),
    #[error("the connection is closed")]
    Closed,
}

impl From<ReadError> for Interruption {
    fn from(error: ReadError) -> Self {
        Self::Log(error)
    }
}

impl From<StreamError> for Interruption {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

/// Publishes until `committed` is closed.
pub(super) async fn run(setting: Setting, committed: mpsc::Receiver<Committed>) -> Result<(), PublishError> {
    let in_flight = InFlight::new(&setting.bus)
        .await
        .map_err(PublishError::Acknowledgements)?;
    let connections = setting.bus.connections();
    let task = Task {
        setting,
        committed,
        is_closed: false,
        connections,
        in_flight,
        queue: VecDeque::new(),
        queued: 0,
        generation: Uuid::nil(),
        reconcile_at: Instant::now(),
        checked: 0,
        suspect: None,
        failures: 0,
    };
    task.run().await
}

pub(super) struct Task {
    pub(super) setting: Setting,
    pub(super) committed: mpsc::Receiver<Committed>,
    /// Whether `committed` is closed: nothing more will come.
    pub(super) is_closed: bool,
    pub(super) connections: watch::Receiver<u64>,
    pub(super) in_flight: InFlight,
    /// To be sent, in the order of their positions.
    pub(super) queue: VecDeque<Outgoing>,
    /// The highest position that is in the stream, in flight or in the queue.
    pub(super) queued: u64,
    /// The generation of the log, as of the last comparison.
    pub(super) generation: Uuid,
    /// When the stream's settings are to be compared.
    pub(super) reconcile_at: Instant,
    /// The stream's message with this sequence is known to be the log's event.
    pub(super) checked: u64,
    /// The first event that was refused: what the stream holds in its place has to be looked at.
    pub(super) suspect: Option<RecordedEvent>,
    /// Interruptions since something was last published.
    pub(super) failures: u32,
}

impl Task {
    async fn run(mut self) -> Result<(), PublishError> {
        loop {
            let interruption = match self.catch_up_and_flow().await {
                Ok(()) => return Ok(()),
                Err(Interruption::Closed) => return Err(PublishError::Closed),
                Err(interruption) => interruption,
            };
            if self.is_closed {
                return Ok(());
            }
            self.recover(&interruption).await;
        }
    }

    async fn catch_up_and_flow(&mut self) -> Result<(), Interruption> {
        self.catch_up().await?;
        self.flow().await
    }

    /// Waits until what is in flight is decided, and a while if that was not the first failure.
    async fn recover(&mut self, interruption: &Interruption) {
        if !matches!(interruption, Interruption::Due) {
            PublisherMetrics::add(&self.setting.metrics.resyncs, 1);
            self.failures += 1;
            let is_unusable = matches!(interruption, Interruption::Stream(error) if error.is_final());
            self.setting
                .metrics
                .unusable
                .store(is_unusable, Ordering::Relaxed);
            self.report(interruption);
        }
        self.settle().await;
        let mut unpublished = self.in_flight.begin_attempt();
        unpublished.append(&mut self.queue);
        self.queue = unpublished;
        if self.failures > 1 {
            let doublings = (self.failures - 2).min(8);
            self.pause((FAILURE_PAUSE_FIRST * 2_u32.pow(doublings)).min(FAILURE_PAUSE_LAST))
                .await;
        }
    }

    fn report(&self, interruption: &Interruption) {
        let partition = self.setting.partition;
        match interruption {
            // Replicas that publish side by side refuse each other now and then.
            Interruption::Refused | Interruption::Disconnected | Interruption::Reconnected => {
                tracing::debug!(partition, reason = %interruption, "publishing compares with the stream");
            }
            _ => tracing::warn!(
                partition,
                failures = self.failures,
                error = interruption as &dyn std::error::Error,
                "publishing is interrupted",
            ),
        }
    }

    /// Waits for the answers that are still due, for as long as they keep coming.
    async fn settle(&mut self) {
        while self.in_flight.unanswered() > 0 && self.setting.bus.is_connected() {
            let deadline = self.deadline();
            match tokio::time::timeout_at(deadline, self.in_flight.answer()).await {
                // What else went wrong does not matter: the comparison that follows finds out where the stream stands.
                Ok(Some(answer)) => _ = self.take(answer),
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Waits, or until there is a new connection. What is committed meanwhile is read from the log afterwards.
    async fn pause(&mut self, pause: Duration) {
        let end = tokio::time::sleep(pause);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                Ok(()) = self.connections.changed() => return,
                batch = self.committed.recv(), if !self.is_closed => self.is_closed = batch.is_none(),
            }
            if self.is_closed {
                return;
            }
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.in_flight.deadline(self.setting.options.acknowledge_timeout)
    }

    /// Publishes what comes, as it comes. Returns when nothing more will come and all is published.
    async fn flow(&mut self) -> Result<(), Interruption> {
        let interval = self.setting.options.compare_interval;
        let mut compare = tokio::time::interval_at(Instant::now() + interval, interval);
        compare.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.send_queued().await?;
            let is_idle = self.in_flight.unanswered() == 0;
            if self.is_closed && is_idle && self.queue.is_empty() {
                return Ok(());
            }
            let deadline = self.deadline();
            tokio::select! {
                biased;
                answer = self.in_flight.answer(), if !is_idle => self.take_ready(answer)?,
                batch = self.committed.recv(), if !self.is_closed && self.queue.is_empty() => {
                    match batch {
                        Some(batch) => self.accept(batch)?,
                        None => self.is_closed = true,
                    }
                }
                () = tokio::time::sleep_until(deadline), if !is_idle => return Err(Interruption::Silence),
                Ok(()) = self.connections.changed() => return Err(Interruption::Reconnected),
                // While messages are acknowledged the stream is known to be right.
                _ = compare.tick() => if is_idle { return Err(Interruption::Due) },
            }
        }
    }

    /// Queues a batch that was just committed. What others committed before it may be missing still: each message says
    /// what it expects, so it is sent all the same.
    pub(super) fn accept(&mut self, batch: Committed) -> Result<(), Interruption> {
        if batch.generation != self.generation {
            return Err(Interruption::Epoch);
        }
        for event in batch.events {
            if event.position > self.queued {
                self.queued = event.position;
                self.queue.push_back(Outgoing {
                    event,
                    is_fresh: true,
                });
            }
        }
        Ok(())
    }

    /// Sends as much as the window has room for.
    pub(super) async fn send_queued(&mut self) -> Result<(), Interruption> {
        let options = &self.setting.options;
        while self.in_flight.unanswered() < options.window_messages {
            let Some(outgoing) = self.queue.pop_front() else {
                break;
            };
            let sent = self
                .in_flight
                .send(outgoing, self.generation, options.acknowledge_timeout)
                .await;
            if sent.map_err(Interruption::Send)? {
                PublisherMetrics::add(&self.setting.metrics.referenced, 1);
            }
        }
        Ok(())
    }

    /// Takes an answer and all others that have come.
    pub(super) fn take_ready(&mut self, first: Option<Answer>) -> Result<(), Interruption> {
        let mut next = Some(first.ok_or(Interruption::Closed)?);
        while let Some(answer) = next {
            self.take(answer)?;
            next = self.in_flight.ready_answer();
        }
        Ok(())
    }

    fn take(&mut self, answer: Answer) -> Result<(), Interruption> {
        match answer {
            Answer::Stored(position) => {
                self.stored(position);
                Ok(())
            }
            Answer::Refused(position) => {
                PublisherMetrics::add(&self.setting.metrics.refused, 1);
                if self.suspect.is_none() {
                    self.suspect = self
                        .in_flight
                        .message_at(position)
                        .map(|outgoing| outgoing.event.clone());
                }
                Err(Interruption::Refused)
            }
            Answer::Rejected { code, description } => Err(Interruption::Rejected { code, description }),
        }
    }

    /// Everything up to `position` is in the stream.
    fn stored(&mut self, position: u64) {
        let now = OffsetDateTime::now_utc();
        let mut count = 0;
        for outgoing in self.in_flight.stored(position) {
            count += 1;
            if let (Some(observer), true) = (&self.setting.options.observer, outgoing.is_fresh) {
                let latency = Duration::try_from(now - outgoing.event.recorded_at).unwrap_or_default();
                observer.published(&outgoing.event, latency);
            }
        }
        PublisherMetrics::add(&self.setting.metrics.published, count);
        self.checked = position;
        self.failures = 0;
        self.setting
            .published
            .send_if_modified(|published| std::mem::replace(published, position) < position);
    }
}
