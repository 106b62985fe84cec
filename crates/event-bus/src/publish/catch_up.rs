//! Comparing the stream with the log, and filling the difference from Postgres.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use daybook_event_store::{EpochId, LogHead, ReadError, RecordedEvent, Witnesses};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use super::PublisherMetrics;
use super::acks::Outgoing;
use super::task::{Interruption, Setting, Task};
use crate::message;
use crate::stream::{self, StreamState};

/// The pause between two looks at a stream that someone else is filling, doubled up to the last.
const LOOK_PAUSE_FIRST: Duration = Duration::from_millis(1);
const LOOK_PAUSE_LAST: Duration = Duration::from_millis(8);

/// How often the stream's settings are compared. Replicas that were started with different ones do not fight over them.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(60);

/// How much later a stream's epoch may be than the log's. Beyond that somebody has invented it, to stop all commands.
const EPOCHS_AHEAD_MAX: i32 = 1_000;

fn superseded(own: EpochId, seen: EpochId) -> Interruption {
    Interruption::Superseded {
        epoch: own.number,
        seen: seen.number,
    }
}

/// Why a stream cannot stay as it is.
#[derive(Debug, thiserror::Error)]
enum Flaw {
    #[error("it carries an epoch that the log has not")]
    Epoch,
    #[error("it holds what an earlier epoch recorded behind position {0}, where the log's history parts")]
    Fork(u64),
    #[error("its message {0} is not the log's event")]
    Foreign(u64),
}

impl Task {
    /// Makes the stream hold all that the log holds, up to what is in the queue. Messages may still be in flight when it
    /// returns.
    pub(super) async fn catch_up(&mut self) -> Result<(), Interruption> {
        loop {
            if !self.setting.bus.is_connected() {
                return Err(Interruption::Disconnected);
            }
            let compared = self.compare().await;
            if matches!(compared, Ok(_) | Err(Interruption::Superseded { .. })) {
                self.setting.seen.note_look();
            }
            let (head, last) = compared?;
            if head.position - last <= self.setting.options.window_messages as u64 {
                self.take_committed()?;
            }
            let next = self.queue.front().map(|outgoing| outgoing.event.position);
            if last == head.position || next == Some(last + 1) {
                return Ok(());
            }
            // Someone committed what is missing, and may be publishing it this very moment.
            let wanted = next.map_or(head.position, |next| next - 1);
            if let Some(last) = self.wait_for_others(wanted, last).await? {
                return self.fill(last, next).await;
            }
        }
    }

    /// Compares the stream with the log, remakes it if it cannot stay, and drops from the queue what is published.
    /// Returns the log's head and the stream's last sequence, which is never beyond it.
    async fn compare(&mut self) -> Result<(LogHead, u64), Interruption> {
        let Setting {
            bus,
            store,
            partition,
            seen,
            ..
        } = &self.setting;
        // The stream first: the log's head, read later, can only be at the same place or further on.
        let found = stream::find(bus, *partition).await?;
        let mut head = store.head(*partition).await?;
        if head.is_standby {
            return Err(Interruption::Standby);
        }
        if head.id() < seen.latest() {
            return Err(superseded(head.id(), seen.latest()));
        }
        seen.note(head.id());
        if let Some(stream) = &found {
            head = self.check_epoch(stream, head).await?;
        }
        let last = match found {
            Some(stream) => match self.flaw(&stream, head).await? {
                None => {
                    self.reconcile(&stream, head).await?;
                    stream.last
                }
                Some(flaw) => self.rebuild(&stream, head, &flaw).await?,
            },
            None => self.create(head, 0).await?,
        };
        if last > self.checked {
            self.failures = 0;
        }
        self.setting.metrics.unusable.store(false, Ordering::Relaxed);
        self.suspect = None;
        self.generation = head.generation;
        self.checked = last;
        let published = self
            .queue
            .partition_point(|outgoing| outgoing.event.position <= last);
        self.queue.drain(..published);
        self.note_queued(last);
        self.setting
            .published
            .send_if_modified(|published| std::mem::replace(published, last) != last);
        Ok((head, last))
    }

    /// Compares the epochs of stream and log. Whoever meets a later one than its own log's leaves the stream alone, and the
    /// appender stops. A stream that is further than its own epoch's log shows that the log was set back, or what nobody
    /// committed: which of the two does not matter, since the next epoch costs only what is beyond the head.
    async fn check_epoch(&self, stream: &StreamState, head: LogHead) -> Result<LogHead, Interruption> {
        let Setting {
            bus,
            store,
            attaching,
            partition,
            seen,
            ..
        } = &self.setting;
        let (epoch, own) = (stream.epoch, head.id());
        if epoch > own {
            if epoch.number > own.number + EPOCHS_AHEAD_MAX {
                return Err(stream::invented(bus, *partition).into());
            }
            seen.note(epoch);
            return Err(superseded(own, epoch));
        }
        if epoch == own && stream.last > head.position {
            let known = self.known_in_stream(head).await?;
            let witness = Witnesses::some_event_at(epoch.generation, stream.last, known);
            attaching
                .attach(*partition, witness, seen.latest().number)
                .await?;
            return Ok(store.head(*partition).await?);
        }
        Ok(head)
    }

    /// The log's newest event, if the stream has it, too.
    async fn known_in_stream(&self, head: LogHead) -> Result<Option<(u64, Uuid)>, Interruption> {
        let Setting { store, partition, .. } = &self.setting;
        let Some(before) = head.position.checked_sub(1) else {
            return Ok(None);
        };
        for event in store.read_log(*partition, before, 1).await? {
            if self.is_faithful(&event).await? {
                return Ok(Some((event.position, event.event_id)));
            }
        }
        Ok(None)
    }

    /// What is wrong with the stream. Looks at the newest message, unless it is our own, and at the one that stands where
    /// a message of ours was refused: in between, the expected sequences keep everything in its place.
    async fn flaw(&self, stream: &StreamState, head: LogHead) -> Result<Option<Flaw>, Interruption> {
        if let Some(flaw) = self.flaw_of_epoch(stream, head).await? {
            return Ok(Some(flaw));
        }
        if let Some(event) = self
            .suspect
            .as_ref()
            .filter(|event| event.position <= stream.last)
            && !self.is_faithful(event).await?
        {
            return Ok(Some(Flaw::Foreign(event.position)));
        }
        if stream.last == 0 || stream.last == self.checked {
            return Ok(None);
        }
        let newest = self
            .setting
            .store
            .read_log(self.setting.partition, stream.last - 1, 1)
            .await?;
        for event in newest {
            if !self.is_faithful(&event).await? {
                return Ok(Some(Flaw::Foreign(event.position)));
            }
        }
        Ok(None)
    }

    /// Whether the stream carries the log's epoch, or can go on with it.
    async fn flaw_of_epoch(&self, stream: &StreamState, head: LogHead) -> Result<Option<Flaw>, Interruption> {
        if stream.epoch == head.id() {
            return Ok(None);
        }
        let Setting { store, partition, .. } = &self.setting;
        let lineage = store.lineage(*partition).await?;
        Ok(match lineage.valid_up_to(stream.epoch.generation) {
            Some(fork) if stream.last <= fork => None,
            Some(fork) => Some(Flaw::Fork(fork)),
            None => Some(Flaw::Epoch),
        })
    }

    /// Whether the stream's message at the event's position is that event. A deleted message is no lie.
    async fn is_faithful(&self, event: &RecordedEvent) -> Result<bool, Interruption> {
        let Setting { bus, partition, .. } = &self.setting;
        let headers = stream::headers_at(bus, *partition, event.position).await?;
        Ok(headers.is_none_or(|headers| message::is_message_of(&headers, event)))
    }

    /// Sees to the stream's settings, now and then, and at once that it carries the log's newest epoch.
    async fn reconcile(&mut self, stream: &StreamState, head: LogHead) -> Result<(), Interruption> {
        let epoch = head.id();
        if stream.epoch == epoch && Instant::now() < self.reconcile_at {
            return Ok(());
        }
        let Setting {
            bus,
            partition,
            options,
            metrics,
            ..
        } = &self.setting;
        if stream::reconcile(bus, *partition, stream, epoch, options.shape()).await? {
            PublisherMetrics::add(&metrics.reconciled, 1);
        }
        self.reconcile_at = Instant::now() + RECONCILE_INTERVAL;
        Ok(())
    }

    async fn rebuild(&self, stream: &StreamState, head: LogHead, flaw: &Flaw) -> Result<u64, Interruption> {
        let Setting {
            bus,
            partition,
            metrics,
            ..
        } = &self.setting;
        tracing::warn!(
            partition,
            stream.last = stream.last,
            log.head = head.position,
            reason = %flaw,
            "the stream is deleted and filled again from the log",
        );
        stream::delete(bus, *partition, stream).await?;
        self.setting.published.send_replace(0);
        PublisherMetrics::add(&metrics.rebuilt, 1);
        // What is below the fork is in nobody's way: whoever lacks it reads the log.
        let skipped = match flaw {
            Flaw::Fork(fork) => *fork,
            Flaw::Epoch | Flaw::Foreign(_) => 0,
        };
        self.create(head, skipped).await
    }

    /// Makes the stream for what comes after the position `skipped`, or for the newest events that it is to hold. Returns its
    /// last sequence: another replica may have made it meanwhile, and filled it.
    async fn create(&self, head: LogHead, skipped: u64) -> Result<u64, Interruption> {
        let Setting {
            bus,
            partition,
            options,
            ..
        } = &self.setting;
        let retained = options.retained_events_max.unwrap_or(u64::MAX);
        let skipped = skipped.max(head.position.saturating_sub(retained));
        let epoch = head.id();
        stream::create(bus, *partition, epoch, skipped + 1, options.shape()).await?;
        let made = stream::find(bus, *partition).await?;
        // What is beyond the head that was read before is for the next comparison.
        Ok(made.map_or(skipped, |stream| stream.last.min(head.position)))
    }

    /// Waits for others to publish up to `wanted`, or for the appender to hand over what it committed itself: the log may
    /// know of it first. Says where the stream stands when it stands still; `None` when it is time to compare again.
    async fn wait_for_others(&mut self, wanted: u64, last: u64) -> Result<Option<u64>, Interruption> {
        let help_after = self.setting.options.help_after;
        let (mut last, mut pause) = (last, LOOK_PAUSE_FIRST);
        let mut deadline = Instant::now() + help_after;
        while Instant::now() < deadline {
            if self.wait_for_batch(pause).await? {
                return Ok(None);
            }
            pause = (pause * 2).min(LOOK_PAUSE_LAST);
            let found = stream::find(&self.setting.bus, self.setting.partition).await?;
            let now_last = found.map_or(0, |stream| stream.last);
            if now_last >= wanted {
                return Ok(None);
            }
            if now_last != last {
                last = now_last;
                deadline = Instant::now() + help_after;
            }
        }
        Ok(Some(last))
    }

    /// Waits, and is true as soon as there is something in a queue that was empty.
    async fn wait_for_batch(&mut self, pause: Duration) -> Result<bool, Interruption> {
        let takes = self.queue.is_empty() && !self.is_closed;
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(false),
            batch = self.committed.recv(), if takes => match batch {
                Some(batch) => self.accept(batch).map(|()| !self.queue.is_empty()),
                None => {
                    self.is_closed = true;
                    Ok(false)
                }
            },
        }
    }

    /// Queues what has been committed up to now.
    fn take_committed(&mut self) -> Result<(), Interruption> {
        while self.queue.len() < self.setting.options.window_messages
            && let Ok(batch) = self.committed.try_recv()
        {
            self.accept(batch)?;
        }
        Ok(())
    }

    /// Publishes what the log holds after `last`: up to the queue's first event, or all of it.
    async fn fill(&mut self, last: u64, next: Option<u64>) -> Result<(), Interruption> {
        let held = std::mem::take(&mut self.queue);
        let metrics = std::sync::Arc::clone(&self.setting.metrics);
        let filled = match next {
            Some(next) => self.publish_from_log(last, next - 1, &metrics.helped).await,
            None => self.publish_from_log(last, u64::MAX, &metrics.refilled).await,
        };
        self.queue.extend(held);
        self.note_queued(last);
        filled
    }

    /// Sends one chunk while the next is read.
    async fn publish_from_log(
        &mut self,
        last: u64,
        up_to: u64,
        counter: &AtomicU64,
    ) -> Result<(), Interruption> {
        let mut reading = Some(self.read_after(last, up_to));
        while let Some(read) = reading.take() {
            let mut events = read.await.expect("a read neither panics nor is aborted")?;
            let is_full = events.len() == self.setting.options.read_events_max as usize;
            events.retain(|event| event.position <= up_to);
            let Some(newest) = events.last().map(|event| event.position) else {
                break;
            };
            if is_full && newest < up_to {
                reading = Some(self.read_after(newest, up_to));
            }
            PublisherMetrics::add(counter, events.len());
            self.queued = newest;
            self.queue.extend(events.into_iter().map(|event| Outgoing {
                event,
                is_fresh: false,
            }));
            self.send_all().await?;
        }
        Ok(())
    }

    /// Reads a chunk in a task of its own: database work is never dropped half-way. When all of the log is to be read,
    /// batches that were committed before are let go; so the last chunk ends where the next batch begins.
    fn read_after(&mut self, after: u64, up_to: u64) -> JoinHandle<Result<Vec<RecordedEvent>, ReadError>> {
        if up_to == u64::MAX {
            self.let_batches_go();
        }
        let Setting {
            store,
            partition,
            options,
            ..
        } = &self.setting;
        let (store, partition, limit) = (store.clone(), *partition, options.read_events_max);
        tokio::spawn(async move { store.read_log(partition, after, limit).await })
    }

    fn let_batches_go(&mut self) {
        loop {
            match self.committed.try_recv() {
                Ok(_) => {}
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.is_closed = true;
                    return;
                }
            }
        }
    }

    /// Sends the whole queue; answers are taken as they come, and those to the last window are left to the flow.
    async fn send_all(&mut self) -> Result<(), Interruption> {
        loop {
            self.send_queued().await?;
            if self.queue.is_empty() {
                return Ok(());
            }
            let answer = tokio::time::timeout_at(self.deadline(), self.in_flight.answer()).await;
            self.take_ready(answer.map_err(|_| Interruption::Silence)?)?;
        }
    }

    /// Whatever is not beyond this has been dealt with.
    fn note_queued(&mut self, last: u64) {
        self.queued = self.queue.back().map_or(last, |outgoing| outgoing.event.position);
    }
}
