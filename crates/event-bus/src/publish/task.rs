//! The publisher's task: does what the [`Machine`] wants next, tells it what came of it, and waits.

use std::time::Duration;

use daybook_event_store::{Committed, EventStore, LogHead, ReadError, RecordedEvent, SeenEpoch};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use super::acks::{Acks, Answer};
use super::comparison::{Findings, compare};
use super::interruption::Interruption;
use super::machine::{Action, Machine, Outgoing};
use super::{PublishError, PublisherMetrics, PublisherOptions};
use crate::bus::Bus;
use crate::{finished, stream};

/// The publisher's connections and options.
pub(super) struct Context {
    pub(super) bus: Bus,
    pub(super) store: EventStore,
    /// As a role that may open epochs.
    pub(super) attaching: EventStore,
    pub(super) partition: i32,
    pub(super) seen: SeenEpoch,
    pub(super) options: PublisherOptions,
    pub(super) published: watch::Sender<u64>,
}

impl Context {
    pub(super) fn metrics(&self) -> &PublisherMetrics {
        &self.options.metrics
    }

    /// Whether the address of the log leads to another server by now than connections that are open.
    async fn leads_elsewhere(&self, interruption: &Interruption) -> bool {
        let (log, is_standby) = match interruption {
            // Some of them lead to the server of the next epoch.
            Interruption::Epoch => return true,
            Interruption::Standby(log) => (*log, true),
            Interruption::Superseded { log, .. } => (*log, false),
            _ => return false,
        };
        let elsewhere = self.seen.head_elsewhere(&self.store, self.partition, log).await;
        elsewhere.is_some_and(|head| head.epoch != log || (is_standby && !head.is_standby))
    }
}

/// Publishes until `committed` is closed.
pub(super) async fn run(context: Context, committed: mpsc::Receiver<Committed>) -> Result<(), PublishError> {
    let acks = Acks::new(&context.bus)
        .await
        .map_err(PublishError::Acknowledgements)?;
    // Replicas that lost the stream at one moment do not all help at one moment.
    let help_after = context.options.help_after;
    let options = PublisherOptions {
        help_after: help_after + help_after.mul_f64(f64::from(Uuid::now_v7().as_bytes()[15]) / 256.0),
        ..context.options.clone()
    };
    let task = Task {
        machine: Machine::new(&options, Instant::now()),
        connections: context.bus.connections(),
        is_left_alone: false,
        findings: Findings::default(),
        context,
        committed,
        acks,
        reading: None,
    };
    task.run().await
}

/// A read of the log, and then a look at its head: what was read is of that epoch, or of an earlier one.
type Reading = JoinHandle<Result<(Vec<RecordedEvent>, LogHead), ReadError>>;

struct Task {
    context: Context,
    machine: Machine,
    /// Whether the stream is unusable.
    is_left_alone: bool,
    findings: Findings,
    committed: mpsc::Receiver<Committed>,
    connections: watch::Receiver<u64>,
    acks: Acks,
    reading: Option<Reading>,
}

impl Task {
    async fn run(mut self) -> Result<(), PublishError> {
        loop {
            match self.step().await {
                Ok(Action::Stop) => return Ok(()),
                Ok(_) => {}
                Err(Interruption::Closed) => return Err(PublishError::Closed),
                Err(interruption) => {
                    if self.context.leads_elsewhere(&interruption).await {
                        daybook_event_store::reconnect();
                    }
                    self.interrupted(&interruption);
                }
            }
        }
    }

    /// Does the next thing that there is to do.
    async fn step(&mut self) -> Result<Action, Interruption> {
        self.machine.elapsed(Instant::now())?;
        self.send().await?;
        let action = self.machine.next(Instant::now());
        match action {
            Action::Compare => {
                let found = compare(&self.context, &self.machine, &mut self.findings).await?;
                self.leave_alone(false);
                self.note_published(found.last);
                self.machine.compared(found, Instant::now());
            }
            Action::Look => {
                let found = stream::find(&self.context.bus, self.context.partition).await?;
                let last = found.map_or(0, |stream| stream.last);
                self.machine.looked(last, Instant::now());
            }
            Action::Read { after } => self.reading = Some(self.read_after(after)),
            Action::Wait { until } => self.wait(until).await?,
            Action::Stop => {}
        }
        Ok(action)
    }

    fn interrupted(&mut self, interruption: &Interruption) {
        self.context.metrics().resyncs.inc();
        self.leave_alone(interruption.is_final());
        self.reading = None;
        self.machine.interrupted(interruption);
        let partition = self.context.partition;
        if interruption.is_expected() {
            tracing::debug!(partition, reason = %interruption, "publishing compares with the stream");
        } else {
            tracing::warn!(
                partition,
                failures = self.machine.failures(),
                error = interruption as &dyn std::error::Error,
                "publishing is interrupted",
            );
        }
    }

    /// Notes whether the stream is left alone from now on.
    fn leave_alone(&mut self, is_left_alone: bool) {
        let change = i64::from(is_left_alone) - i64::from(self.is_left_alone);
        self.context.metrics().unusable.inc_by(change);
        self.is_left_alone = is_left_alone;
    }

    /// Sends as much as there is, and as the window has room for.
    async fn send(&mut self) -> Result<(), Interruption> {
        let timeout = self.context.options.acknowledge_timeout;
        let (generation, attempt) = (self.machine.generation(), self.machine.attempt());
        while let Some(outgoing) = self.machine.next_to_send(Instant::now()) {
            let sent = self
                .acks
                .send(&outgoing.event, generation, attempt, timeout)
                .await;
            if sent.map_err(Interruption::Send)? {
                self.context.metrics().referenced.inc();
            }
        }
        Ok(())
    }

    /// Waits for what comes first, and takes it.
    async fn wait(&mut self, until: Instant) -> Result<(), Interruption> {
        tokio::select! {
            biased;
            answer = self.acks.answer(self.machine.attempt()), if self.machine.awaits_answers() => {
                self.take_answers(answer)
            }
            read = finished(&mut self.reading) => self.take_read(read),
            batch = self.committed.recv(), if self.machine.takes_committed() => match batch {
                Some(batch) => self.machine.committed(batch, Instant::now()),
                None => {
                    self.machine.close();
                    Ok(())
                }
            },
            Ok(()) = self.connections.changed() => self.machine.reconnected(),
            () = tokio::time::sleep_until(until) => Ok(()),
        }
    }

    /// Takes an answer and all others that have come.
    fn take_answers(&mut self, first: Option<Answer>) -> Result<(), Interruption> {
        let mut next = Some(first.ok_or(Interruption::Closed)?);
        while let Some(answer) = next {
            if matches!(answer, Answer::Refused(_)) {
                self.context.metrics().refused.inc();
            }
            let stored = self.machine.answered(answer, Instant::now())?;
            self.note_stored(&stored);
            next = self.acks.ready_answer(self.machine.attempt());
        }
        self.note_published(self.machine.checked());
        Ok(())
    }

    fn note_stored(&self, stored: &[Outgoing]) {
        self.context.metrics().published.inc_by(stored.len() as u64);
        let Some(histogram) = &self.context.options.latency else {
            return;
        };
        let now = OffsetDateTime::now_utc();
        for outgoing in stored.iter().filter(|outgoing| outgoing.is_fresh) {
            let latency = Duration::try_from(now - outgoing.event.recorded_at).unwrap_or_default();
            histogram.observe(latency.as_secs_f64());
        }
    }

    /// Notes how far the stream is known to be right.
    fn note_published(&self, position: u64) {
        let published = &self.context.published;
        published.send_if_modified(|published| std::mem::replace(published, position) != position);
    }

    /// Reads a chunk in a task of its own: database work is never dropped half-way. Batches that were committed before are let
    /// go; so the last chunk ends where the next batch begins.
    fn read_after(&mut self, after: u64) -> Reading {
        while let Ok(batch) = self.committed.try_recv() {
            self.machine.leave_to_log(&batch);
        }
        let Context {
            store,
            partition,
            options,
            ..
        } = &self.context;
        let (store, partition, limit) = (store.clone(), *partition, options.read_events_max);
        tokio::spawn(async move {
            let events = store.read_log(partition, after, limit).await?;
            Ok((events, store.head(partition).await?))
        })
    }

    fn take_read(
        &mut self,
        read: Result<(Vec<RecordedEvent>, LogHead), ReadError>,
    ) -> Result<(), Interruption> {
        let (events, head) = read?;
        self.context.metrics().refilled.inc_by(events.len() as u64);
        self.machine.read(events, head, Instant::now())
    }
}
