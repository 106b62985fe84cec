//! The reader as a state machine. It decides what to do next; the waiting is left to its owner.
//!
//! There is no NATS, no Postgres and no clock in here. [`Machine::on`] takes what has come, [`Machine::wanted`] says what
//! is to be started, and [`Machine::take`] gives the next events. Whatever comes in, and in whichever order, the
//! events that come out are those of the log, in order, each once.

use std::time::{Duration, Instant};

use daybook_event_store::{Lineage, LogHead, RecordedEvent};
use uuid::Uuid;

use super::ready::Ready;
use super::{Batch, ReaderError, ReaderMetrics, ReaderOptions, Source};

/// The pause before another attempt to subscribe to the stream.
const SUBSCRIBE_PAUSE: Duration = Duration::from_millis(200);

/// The reader's state: where the next event is expected from.
#[derive(Debug)]
enum State {
    /// From nowhere: the log's generation is not known yet, so nothing in the stream can be believed.
    Starting,
    /// From the stream.
    Following,
    /// From the log, because the stream does not have it right, or is behind.
    Filling {
        /// Up to here the log has to be read.
        end: u64,
        /// Up to here it is read if it goes on so far: more than has to be, where one hole follows on another.
        read_to: u64,
        /// The event behind the hole. Nothing more is taken from the stream while it waits.
        ahead: Option<Box<RecordedEvent>>,
        /// Whether a read of the log has begun since it is known that the hole reaches so far.
        is_asked: bool,
    },
}

/// The subscription to the stream.
#[derive(Debug, Clone, Copy)]
enum Subscription {
    Closed {
        open_at: Instant,
    },
    Opening,
    Open {
        /// Since when the log goes on without it.
        silent_since: Option<Instant>,
    },
}

/// An input: a message, or an answer of the log.
#[derive(Debug)]
pub(super) enum Input {
    /// A message of the stream.
    Message {
        sequence: u64,
        /// The event in it and the generation that it names; `None` when it is not a whole event.
        carried: Option<(RecordedEvent, Uuid)>,
    },
    /// The answer to a read of the log.
    Answer(Answer),
    /// The stream is subscribed to.
    Subscribed,
    /// The stream could not be subscribed to, or the subscription has ended.
    Unsubscribed,
    /// The connection to NATS was made anew: the server may have lost consumer and stream.
    Reconnected,
}

/// A read of the log: its head, and what comes after a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogRead {
    pub(super) after: u64,
    /// Events to be read at most.
    pub(super) limit: u32,
    pub(super) wants_lineage: bool,
}

/// The log's answer to a read.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) read: LogRead,
    /// Its head, before the events were read.
    pub(super) head: LogHead,
    /// Only where it was asked for.
    pub(super) lineage: Option<Lineage>,
    pub(super) events: Vec<RecordedEvent>,
}

/// The work that is wanted now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Read the log.
    pub(super) read: Option<LogRead>,
    /// Subscribe to the stream, from a sequence on.
    pub(super) subscribe_from: Option<u64>,
    /// When to ask again if nothing has come until then.
    pub(super) wake_at: Instant,
}

/// The state of a reader.
#[derive(Debug)]
pub(super) struct Machine {
    partition: i32,
    options: ReaderOptions,
    state: State,
    subscription: Subscription,
    /// The log's generation; `None` until it is known.
    generation: Option<Uuid>,
    /// Which generations it has, and how far: messages of earlier ones stay in the stream.
    lineage: Lineage,
    /// The position of the newest event that is ready or was handed out.
    last: u64,
    ready: Ready,
    /// How many events have come from the log since the last one from the stream.
    from_log_in_a_row: u64,
    /// When an event last came from the stream, or the log was read.
    active_at: Instant,
}

impl Machine {
    pub(super) fn new(partition: i32, after: u64, options: ReaderOptions, now: Instant) -> Self {
        Self {
            partition,
            generation: options.generation,
            options,
            state: State::Starting,
            subscription: Subscription::Closed { open_at: now },
            lineage: Lineage::default(),
            last: after,
            ready: Ready::new(),
            from_log_in_a_row: 0,
            active_at: now,
        }
    }

    pub(super) fn metrics(&self) -> &ReaderMetrics {
        &self.options.metrics
    }

    /// The work to be started now. A read of the log that is under way `is_reading`; another one waits for its answer.
    pub(super) fn wanted(&mut self, now: Instant, is_connected: bool, is_reading: bool) -> Wanted {
        let read_at = (!is_reading).then(|| self.read_at(now));
        let subscribe_at = match self.subscription {
            Subscription::Closed { open_at } if is_connected => Some(open_at),
            _ => None,
        };
        let is_due = |at: &Instant| *at <= now;
        let read = read_at.filter(is_due).map(|_| self.read(is_connected));
        if let (State::Filling { is_asked, .. }, Some(_)) = (&mut self.state, read) {
            *is_asked = true;
        }
        let subscribe_from = subscribe_at.filter(is_due).map(|_| self.last + 1);
        if subscribe_from.is_some() {
            self.subscription = Subscription::Opening;
        }
        let later = read_at.into_iter().chain(subscribe_at).filter(|at| !is_due(at));
        Wanted {
            read,
            subscribe_from,
            wake_at: later.min().unwrap_or(now + self.options.silence_max),
        }
    }

    fn read_at(&self, now: Instant) -> Instant {
        match (&self.state, self.subscription) {
            (State::Starting | State::Filling { .. }, _) => now,
            (State::Following, Subscription::Open { .. }) => self.active_at + self.options.idle_interval,
            (State::Following, _) => self.active_at + self.options.poll_interval,
        }
    }

    fn read(&self, is_connected: bool) -> LogRead {
        let wanted = match self.state {
            // The events are about to come from the stream.
            State::Starting if is_connected => 0,
            State::Starting | State::Following => u64::MAX,
            State::Filling { end, read_to, .. } => end.max(read_to) - self.last,
        };
        let events_max = self.options.read_events_max;
        LogRead {
            after: self.last,
            limit: u32::try_from(wanted).map_or(events_max, |wanted| wanted.min(events_max)),
            wants_lineage: matches!(self.state, State::Starting),
        }
    }

    /// Beyond which sequence it matters what is in a message; `None` while no message is taken at all.
    pub(super) fn listens_beyond(&self, events_max: usize) -> Option<u64> {
        let is_open = matches!(self.subscription, Subscription::Open { .. });
        let is_open_to_it = matches!(self.state, State::Following | State::Filling { ahead: None, .. });
        let has_room = self.ready.has_room(events_max, self.options.ready_bytes);
        (is_open && is_open_to_it && has_room).then(|| self.last.max(self.options.distrusted_up_to))
    }

    /// The next events, at most `events_max`.
    pub(super) fn take(&mut self, events_max: usize, now: Instant) -> Option<Batch> {
        let generation = self.generation?;
        let (events, source) = self.ready.take(events_max)?;
        Some(Batch {
            generation,
            events,
            source,
            delivered_at: now,
        })
    }

    /// Takes what has come.
    ///
    /// # Errors
    /// When the log is not the one that the reader began with, or does not show its events.
    pub(super) fn on(&mut self, input: Input, now: Instant) -> Result<(), ReaderError> {
        match input {
            Input::Message { sequence, carried } => self.on_message(sequence, carried, now),
            Input::Answer(answer) => return self.on_answer(answer, now),
            Input::Subscribed => {
                self.subscription = Subscription::Open { silent_since: None };
                self.active_at = now;
            }
            Input::Unsubscribed => self.unsubscribe(now + SUBSCRIBE_PAUSE),
            Input::Reconnected => self.unsubscribe(now),
        }
        Ok(())
    }

    fn unsubscribe(&mut self, open_at: Instant) {
        self.subscription = Subscription::Closed { open_at };
    }

    fn on_message(&mut self, sequence: u64, carried: Option<(RecordedEvent, Uuid)>, now: Instant) {
        if sequence <= self.last {
            self.end_silence();
            return;
        }
        match self.trusted(sequence, carried) {
            Some(event) if sequence == self.last + 1 => self.follow(event, now),
            event => self.open_hole(sequence, event),
        }
    }

    /// The event in a message, if it is what belongs at its sequence in this log.
    fn trusted(&self, sequence: u64, carried: Option<(RecordedEvent, Uuid)>) -> Option<RecordedEvent> {
        let (event, generation) = carried?;
        let is_at_home = event.partition == self.partition && event.position == sequence;
        let is_trusted = sequence > self.options.distrusted_up_to && self.lineage.has(generation, sequence);
        (is_at_home && is_trusted).then_some(event)
    }

    /// Goes on with the stream's event, which is the next one.
    fn follow(&mut self, event: RecordedEvent, now: Instant) {
        self.end_silence();
        self.active_at = now;
        self.from_log_in_a_row = 0;
        self.last = event.position;
        self.ready.push(event, Source::Bus);
        // The stream is here: what it does not have right further on is met again.
        self.state = State::Following;
    }

    /// Notes that the stream does not have what is next. A lone hole is read as it is. Where one follows directly on
    /// another, as much is read as has come from the log in a row, so that a long run of such messages takes few reads.
    fn open_hole(&mut self, sequence: u64, event: Option<RecordedEvent>) {
        self.options.metrics.holes.inc();
        let (old_end, read_to) = match self.state {
            State::Filling { end, read_to, .. } => (end, read_to),
            State::Starting | State::Following => (0, self.last + self.from_log_in_a_row),
        };
        self.state = State::Filling {
            end: if event.is_some() {
                sequence - 1
            } else {
                sequence.max(old_end)
            },
            read_to,
            ahead: event.map(Box::new),
            is_asked: false,
        };
    }

    fn on_answer(&mut self, answer: Answer, now: Instant) -> Result<(), ReaderError> {
        self.active_at = now;
        answer.check(self.generation)?;
        let is_newest =
            |lineage: &Lineage| lineage.valid_up_to(answer.head.epoch.generation) == Some(u64::MAX);
        if !answer.lineage.as_ref().is_none_or(is_newest) {
            // The next epoch was opened between the two: they are read once more.
            return Ok(());
        }
        self.generation = Some(answer.head.epoch.generation);
        if let Some(lineage) = answer.lineage {
            self.lineage = lineage;
            self.state = State::Following;
        }
        let is_news = self.append(answer.events);
        let head = answer.head.position;
        match &mut self.state {
            State::Filling {
                end, ahead, is_asked, ..
            } => {
                // A message beyond the head makes no hole: it was forged, and what comes before it may never come.
                if *is_asked {
                    *end = head.min(*end);
                }
                if *end <= self.last {
                    let ahead = ahead.take();
                    self.state = State::Following;
                    if let Some(event) = ahead.filter(|event| event.position == self.last + 1) {
                        self.follow(*event, now);
                    }
                }
            }
            State::Following if is_news => {
                self.note_silence(now);
                if self.last < head {
                    self.state = State::Filling {
                        end: head,
                        read_to: head,
                        ahead: None,
                        is_asked: false,
                    };
                }
            }
            State::Starting | State::Following => {}
        }
        Ok(())
    }

    /// Takes events of the log that have not come from the stream meanwhile. Returns whether there are any.
    fn append(&mut self, mut events: Vec<RecordedEvent>) -> bool {
        events.retain(|event| event.position > self.last);
        let count = events.len() as u64;
        self.last += count;
        self.from_log_in_a_row += count;
        self.options.metrics.from_log.inc_by(count);
        for event in events {
            self.ready.push(event, Source::Log);
        }
        count > 0
    }

    /// A subscription that is silent while the log goes on is made anew.
    fn note_silence(&mut self, now: Instant) {
        let Subscription::Open { silent_since } = &mut self.subscription else {
            return;
        };
        let since = *silent_since.get_or_insert(now);
        if now >= since + self.options.silence_max {
            self.unsubscribe(now);
        }
    }

    fn end_silence(&mut self) {
        if let Subscription::Open { silent_since } = &mut self.subscription {
            *silent_since = None;
        }
    }
}

impl Answer {
    /// Whether it is the log that is expected, and shows all that its head promises.
    fn check(&self, expected: Option<Uuid>) -> Result<(), ReaderError> {
        let (found, head) = (self.head.epoch.generation, self.head.position);
        let expected = expected.unwrap_or(found);
        if expected != found {
            return Err(ReaderError::GenerationChanged {
                expected,
                found,
                head,
            });
        }
        let LogRead {
            after: position,
            limit,
            ..
        } = self.read;
        if head < position {
            return Err(ReaderError::AheadOfLog { position, head });
        }
        let next = position + 1;
        if limit > 0 && head > position && self.events.is_empty() {
            return Err(ReaderError::Hidden { position: next });
        }
        let mut shown = self.events.iter().zip(next..);
        match shown.find(|(event, position)| event.position != *position) {
            Some((_, position)) => Err(ReaderError::Hidden { position }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
