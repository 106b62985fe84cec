//! The comparison of stream and log: whose epoch each carries, whether the stream may stay, and where both stand.

use std::time::Duration;

use daybook_event_store::{LogHead, RecordedEvent, Witnesses};
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use super::interruption::Interruption;
use super::machine::{Comparison, Machine};
use super::task::Context;
use crate::stream::{self, StreamError, StreamState};

/// How often the stream's settings are compared. Replicas that were started with different ones do not fight over them.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(60);

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

/// What one comparison leaves to the next.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// When the stream's settings were last compared.
    reconciled_at: Option<Instant>,
    /// Where both ended, and whose newest message was the log's newest event: that is not looked at each time.
    faithful: Option<End>,
    /// Where to begin the stream that was deleted last and could not be made anew yet: behind this position. What is below
    /// was right, and nobody misses it.
    begins_behind: u64,
}

/// Where both the stream and the log end, by the log's newest event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    /// When the stream was made.
    created: OffsetDateTime,
    position: u64,
    event_id: Uuid,
}

impl End {
    /// `None` where one is further than the other, or both are empty.
    fn of(stream: &StreamState, head: LogHead) -> Option<Self> {
        Some(Self {
            created: stream.created,
            position: head.position,
            event_id: head.event_id.filter(|_| stream.last == head.position)?,
        })
    }
}

/// Compares the stream with the log and remakes it if it cannot stay. Sees to its settings when it is time for that.
pub(super) async fn compare(
    context: &Context,
    machine: &Machine,
    findings: &mut Findings,
) -> Result<Comparison, Interruption> {
    if !context.bus.is_connected() {
        return Err(Interruption::Disconnected);
    }
    let comparison = compare_connected(context, machine, findings).await;
    if matches!(comparison, Ok(_) | Err(Interruption::Superseded { .. })) {
        context.seen.note_look();
    }
    comparison
}

async fn compare_connected(
    context: &Context,
    machine: &Machine,
    findings: &mut Findings,
) -> Result<Comparison, Interruption> {
    let Context {
        bus,
        store,
        partition,
        seen,
        ..
    } = context;
    // The stream first: the log's head, read later, can only be at the same place or further on.
    let found = stream::find(bus, *partition).await?;
    let head = store.head(*partition).await?;
    if head.is_standby {
        return Err(Interruption::Standby(head.epoch));
    }
    if head.epoch < seen.latest() {
        return Err(Interruption::Superseded {
            log: head.epoch,
            seen: seen.latest(),
        });
    }
    seen.note(head.epoch);
    let (head, last) = match found {
        None => (head, context.create(head, findings).await?),
        Some(stream) => {
            context.check_epoch(&stream, head)?;
            let (head, flaw) = context.examine(machine, findings, &stream, head).await?;
            match flaw {
                None => {
                    context.reconcile(&stream, head, findings).await?;
                    (head, stream.last)
                }
                Some(flaw) => (head, context.rebuild(&stream, head, &flaw, findings).await?),
            }
        }
    };
    Ok(Comparison {
        head: head.position,
        generation: head.epoch.generation,
        last,
    })
}

impl Context {
    /// Compares the epochs of stream and log. Whoever meets a later one than its own log's leaves the stream alone, and the
    /// appender stops.
    fn check_epoch(&self, stream: &StreamState, head: LogHead) -> Result<(), Interruption> {
        let (epoch, own) = (stream.epoch, head.epoch);
        if epoch <= own {
            return Ok(());
        }
        if epoch.is_invented(own) {
            let (found, own) = (epoch.number, own.number);
            let name = stream::name(&self.bus, self.partition);
            return Err(StreamError::Invented { name, found, own }.into());
        }
        self.seen.note(epoch);
        Err(Interruption::Superseded {
            log: own,
            seen: epoch,
        })
    }

    /// The stream's fault, if any, and the log's head after the check.
    ///
    /// Where the stream has an event that the log has not, and should have, the log was set back, however far it has come
    /// since: it goes on in the next epoch. Or an event was invented, which only who may publish can do. The stream does not
    /// tell, and the next epoch is the lesser evil: what lies behind the place where the two part is refused to whoever holds a
    /// token or a cursor for it, also where it is recorded still, instead of being taken for something else. What is no event
    /// at all says nothing of the log, and costs it nothing.
    async fn examine(
        &self,
        machine: &Machine,
        findings: &mut Findings,
        stream: &StreamState,
        head: LogHead,
    ) -> Result<(LogHead, Option<Flaw>), Interruption> {
        if let Some(flaw) = self.flaw_of_epoch(stream, head).await? {
            return Ok((head, Some(flaw)));
        }
        let Some(contradiction) = self.contradiction(machine, findings, stream, head).await? else {
            return Ok((head, None));
        };
        let known = self.last_in_both(stream.first.max(1), contradiction).await?;
        let parting = known.map_or(stream.first.max(1), |(position, _)| position + 1);
        let foreign = Flaw::Foreign(parting);
        let message = stream::message_from(&self.bus, self.partition, parting).await?;
        let claim = message.and_then(|message| Some((message.sequence, message.claim()?)));
        let Some((position, (generation, event_id))) = claim else {
            return Ok((head, Some(foreign)));
        };
        let witnesses = Witnesses::of_stream(generation, (position, event_id), known);
        let seen = self.seen.latest().number;
        self.attaching.attach(self.partition, witnesses, seen).await?;
        let head = self.store.head(self.partition).await?;
        let flaw = self.flaw_of_epoch(stream, head).await?;
        Ok((head, Some(flaw.unwrap_or(foreign))))
    }

    /// The first place where the stream may hold another event than the log. Looks at what stands where a message of ours was
    /// refused, at what is beyond the log's head, and at the newest message, unless both end as they did before: in between, the
    /// expected sequences keep everything in its place.
    async fn contradiction(
        &self,
        machine: &Machine,
        findings: &mut Findings,
        stream: &StreamState,
        head: LogHead,
    ) -> Result<Option<u64>, Interruption> {
        if let Some(event) = machine.suspect(head.epoch.generation, stream.last)
            && !self.is_faithful(event).await?
        {
            return Ok(Some(event.position));
        }
        if stream.last > head.position {
            return Ok(Some(head.position + 1));
        }
        let end = End::of(stream, head);
        if end.is_some() && end == findings.faithful {
            return Ok(None);
        }
        let Some(before) = stream.last.checked_sub(1) else {
            return Ok(None);
        };
        for event in self.store.read_log(self.partition, before, 1).await? {
            if !self.is_faithful(&event).await? {
                return Ok(Some(event.position));
            }
            findings.faithful = end.filter(|end| end.event_id == event.event_id);
        }
        Ok(None)
    }

    /// An event before the position `end` that both the log and the stream have, as new as bisection finds one. All that is
    /// before it is common to both: histories part once, and an event's id does not come again. Where a message was deleted
    /// the next one tells.
    async fn last_in_both(&self, mut begin: u64, mut end: u64) -> Result<Option<(u64, Uuid)>, Interruption> {
        let mut known = None;
        while begin < end {
            let middle = begin + (end - begin) / 2;
            match self.first_in_both(middle, end).await? {
                Some(event) => {
                    begin = event.position + 1;
                    known = Some((event.position, event.event_id));
                }
                None => end = middle,
            }
        }
        Ok(known)
    }

    /// The event that the first message from a position on is, unless it is not before `end` or the log has another event there.
    async fn first_in_both(&self, position: u64, end: u64) -> Result<Option<RecordedEvent>, Interruption> {
        let found = stream::message_from(&self.bus, self.partition, position).await?;
        let Some(message) = found.filter(|message| message.sequence < end) else {
            return Ok(None);
        };
        let events = self.store.read_log(self.partition, message.sequence - 1, 1);
        Ok(events
            .await?
            .into_iter()
            .find(|event| message.is_message_of(event)))
    }

    /// Whether the stream carries the log's epoch, or can go on with it.
    async fn flaw_of_epoch(&self, stream: &StreamState, head: LogHead) -> Result<Option<Flaw>, Interruption> {
        if stream.epoch == head.epoch {
            return Ok(None);
        }
        let lineage = self.store.lineage(self.partition).await?;
        Ok(match lineage.valid_up_to(stream.epoch.generation) {
            Some(fork) if stream.last <= fork => None,
            Some(fork) => Some(Flaw::Fork(fork)),
            None => Some(Flaw::Epoch),
        })
    }

    /// Whether the stream's message at the event's position is that event, word for word. A deleted message is no lie.
    async fn is_faithful(&self, event: &RecordedEvent) -> Result<bool, Interruption> {
        let found = stream::message_from(&self.bus, self.partition, event.position).await?;
        Ok(found.is_none_or(|found| found.sequence > event.position || found.is_message_of(event)))
    }

    /// Sees to the stream's settings, now and then, and at once that it carries the log's newest epoch.
    async fn reconcile(
        &self,
        stream: &StreamState,
        head: LogHead,
        findings: &mut Findings,
    ) -> Result<(), Interruption> {
        let (epoch, now) = (head.epoch, Instant::now());
        let is_due = |at: Instant| now >= at + RECONCILE_INTERVAL;
        if stream.epoch == epoch && !findings.reconciled_at.is_none_or(is_due) {
            return Ok(());
        }
        let options = self.options.stream_options();
        if stream::reconcile(&self.bus, self.partition, stream, epoch, options).await? {
            self.metrics().reconciled.inc();
        }
        findings.reconciled_at = Some(now);
        Ok(())
    }

    async fn rebuild(
        &self,
        stream: &StreamState,
        head: LogHead,
        flaw: &Flaw,
        findings: &mut Findings,
    ) -> Result<u64, Interruption> {
        tracing::warn!(
            partition = self.partition,
            stream.last = stream.last,
            log.head = head.position,
            reason = %flaw,
            "the stream is deleted and filled again from the log",
        );
        findings.begins_behind = match flaw {
            Flaw::Fork(fork) => *fork,
            Flaw::Foreign(position) => position - 1,
            Flaw::Epoch => 0,
        };
        stream::delete(&self.bus, self.partition, stream).await?;
        self.published.send_replace(0);
        self.metrics().rebuilt.inc();
        self.create(head, findings).await
    }

    /// Makes the stream for what comes behind the place where it is to begin, or for the newest events that it is to hold.
    /// Returns its last sequence: another replica may have made it meanwhile, and filled it.
    async fn create(&self, head: LogHead, findings: &mut Findings) -> Result<u64, Interruption> {
        let retained = self.options.retained_events_max.unwrap_or(u64::MAX);
        let published_again = retained.min(self.options.refilled_events_max);
        let oldest = head.position.saturating_sub(published_again);
        let skipped = findings.begins_behind.min(head.position).max(oldest);
        let options = self.options.stream_options();
        stream::create(&self.bus, self.partition, head.epoch, skipped + 1, options).await?;
        let made = stream::find(&self.bus, self.partition).await?;
        findings.begins_behind = 0;
        // What is beyond the head that was read before is for the next comparison.
        Ok(made.map_or(skipped, |stream| stream.last.min(head.position)))
    }
}
