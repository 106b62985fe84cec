//! The publisher's states and the transitions between them, without NATS, Postgres or a clock.
//!
//! What this process commits is sent from memory as long as it continues what the stream has. Where it does not, another
//! replica has committed what comes before it and should be publishing that: the stream is polled until it gets there. If
//! it stands still instead, or if what is here has holes as well, everything that is missing is read from the log and
//! published at once. So of several replicas that are behind one publishes for all, and the others wait for as long as
//! the stream grows: no leader is elected, and replicas do not refuse each other's messages for long.

use std::collections::VecDeque;
use std::time::Duration;

use daybook_event_store::{Committed, LogHead, RecordedEvent};
use tokio::time::Instant;
use uuid::Uuid;

use super::PublisherOptions;
use super::acks::Answer;
use super::interruption::Interruption;

/// The first backoff, after the second failure in a row; it doubles up to the last.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// The pause between two looks at a stream that someone else is filling; it doubles up to the last.
const LOOK_PAUSE_FIRST: Duration = Duration::from_millis(1);
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(5);

/// How many windows of missing events are still published by a process that is to end. More are left to others.
const WINDOWS_AT_END_MAX: u64 = 4;

/// How often a process that is to end goes on after an interruption.
const INTERRUPTIONS_AT_END_MAX: u32 = 3;

/// How many bytes of events are kept in memory, beside the last batch. What does not fit is read from the log again.
const MEMORY_BYTES_MAX: usize = 32 << 20;

/// An event that is to be published.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) event: RecordedEvent,
    /// Whether this process has just committed it, so that its latency means something.
    pub(super) is_fresh: bool,
}

/// The publisher's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The log's head and the stream's last sequence are to be compared.
    Comparing,
    /// New commits of this process are sent as they come; if there are none, stream and log are compared at this time.
    Flowing { compare_at: Instant },
    /// Another replica committed what comes next and should publish it; this one polls the stream.
    Waiting(Wait),
    /// Missing events are read from the log and sent, at least up to here; the next read begins after `read_after`,
    /// `None` while one is under way.
    Filling { read_after: Option<u64>, up_to: u64 },
    /// Publishing was interrupted; the answers to what is in flight are waited for.
    Settling,
    /// A pause after repeated interruptions.
    BackingOff { until: Instant },
    /// Nothing more will be committed here, and all is published or left to others.
    Stopped,
}

/// How long somebody else is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wait {
    /// The stream's last sequence.
    last: u64,
    /// Until then it must have moved on.
    deadline: Instant,
    look_at: Instant,
    pause: Duration,
}

/// The next thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Compare the log's head with the stream's last sequence.
    Compare,
    /// Look at the stream's last sequence.
    Look,
    /// Begin to read the log after a position.
    Read { after: u64 },
    /// Wait for something to happen, but not longer than this.
    Wait { until: Instant },
    /// End.
    Stop,
}

/// The heads of log and stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Comparison {
    /// The log's newest event.
    pub(super) head: u64,
    /// The log's generation.
    pub(super) generation: Uuid,
    /// The stream's last sequence.
    pub(super) last: u64,
}

/// The publisher of one partition.
#[derive(Debug)]
pub(super) struct Machine {
    options: Limits,
    state: State,
    /// The generation of the log, as of the last comparison.
    generation: Uuid,
    /// To be sent, in the order of their positions.
    queue: VecDeque<Outgoing>,
    /// Sent and not known to be stored, in the order of their positions.
    in_flight: VecDeque<Outgoing>,
    /// Bytes in the queue and in flight.
    bytes: usize,
    /// How many messages of this attempt have no answer yet.
    unanswered: usize,
    /// Counts the attempts: answers to messages of an earlier one mean nothing any more.
    attempt: u64,
    /// When something was last sent or answered.
    active_at: Instant,
    /// Everything up to here is in the stream, in flight or in the queue, without a hole.
    reached: u64,
    /// The highest position that is known to be committed.
    known: u64,
    /// The stream's message with this sequence is known to be the log's event.
    checked: u64,
    /// The first event that was refused: what the stream holds in its place has to be looked at.
    suspect: Option<RecordedEvent>,
    /// Interruptions since something was last published.
    failures: u32,
    end: End,
}

/// Whether the publisher is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// More will be committed here.
    No,
    /// Nothing more will, but what there was may have been let go: only a comparison tells.
    Closed,
    /// Log and stream were compared after that.
    Compared,
}

/// The options that matter here.
#[derive(Debug, Clone, Copy)]
struct Limits {
    window_messages: usize,
    read_events: usize,
    compare_interval: Duration,
    help_after: Duration,
    acknowledge_timeout: Duration,
}

impl Machine {
    pub(super) fn new(options: &PublisherOptions, now: Instant) -> Self {
        Self {
            options: Limits {
                window_messages: options.window_messages,
                read_events: options.read_events_max as usize,
                compare_interval: options.compare_interval,
                help_after: options.help_after,
                acknowledge_timeout: options.acknowledge_timeout,
            },
            state: State::Comparing,
            generation: Uuid::nil(),
            queue: VecDeque::new(),
            in_flight: VecDeque::new(),
            bytes: 0,
            unanswered: 0,
            attempt: 0,
            active_at: now,
            reached: 0,
            known: 0,
            checked: 0,
            suspect: None,
            failures: 0,
            end: End::No,
        }
    }

    /// The generation of the log that events are published under.
    pub(super) fn generation(&self) -> Uuid {
        self.generation
    }

    /// The number of this attempt.
    pub(super) fn attempt(&self) -> u64 {
        self.attempt
    }

    /// The stream's message with this sequence is known to be the log's event.
    pub(super) fn checked(&self) -> u64 {
        self.checked
    }

    /// The first event whose place in the stream may be taken by a foreign message: it was refused or never acknowledged, and
    /// the stream is past it already. `None` if the log's generation has changed.
    pub(super) fn suspect(&self, generation: Uuid, last: u64) -> Option<&RecordedEvent> {
        let unanswered = self.in_flight.front().or(self.queue.front());
        let suspect = self
            .suspect
            .as_ref()
            .or(unanswered.map(|outgoing| &outgoing.event));
        suspect.filter(|event| generation == self.generation && event.position <= last)
    }

    /// How often publishing was interrupted since something was last published.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether answers are due.
    pub(super) fn awaits_answers(&self) -> bool {
        self.unanswered > 0
    }

    /// Whether to take what was committed here.
    pub(super) fn takes_committed(&self) -> bool {
        let is_ready = match self.state {
            State::Flowing { .. } => self.queue.is_empty(),
            State::Waiting(_) | State::BackingOff { .. } => true,
            State::Comparing | State::Filling { .. } | State::Settling | State::Stopped => false,
        };
        is_ready && self.end == End::No
    }

    /// The next thing to do, when everything was sent that [`Self::next_to_send`] gave.
    pub(super) fn next(&mut self, now: Instant) -> Action {
        let has_room = self.queue.len() < self.options.read_events && self.bytes < MEMORY_BYTES_MAX;
        match self.state {
            State::Comparing => Action::Compare,
            State::Stopped => Action::Stop,
            State::Waiting(wait) if wait.look_at <= now => Action::Look,
            State::Filling {
                read_after: Some(after),
                ..
            } if has_room => {
                self.state = State::Filling {
                    read_after: None,
                    up_to: self.known,
                };
                Action::Read { after }
            }
            _ => self.wait(now),
        }
    }

    fn wait(&self, now: Instant) -> Action {
        let silent_at = self.active_at + self.options.acknowledge_timeout;
        let of_state = match self.state {
            State::Flowing { compare_at } => Some(compare_at),
            State::Waiting(wait) => Some(wait.look_at),
            State::BackingOff { until } => Some(until),
            _ => None,
        };
        let of_answers = self.awaits_answers().then_some(silent_at);
        let until = of_state
            .into_iter()
            .chain(of_answers)
            .min()
            .unwrap_or(now + self.options.acknowledge_timeout);
        Action::Wait { until }
    }

    /// The next event to be sent now, which is in flight from here on.
    pub(super) fn next_to_send(&mut self, now: Instant) -> Option<&Outgoing> {
        let sends = matches!(self.state, State::Flowing { .. } | State::Filling { .. });
        if !sends || self.unanswered >= self.options.window_messages {
            return None;
        }
        let outgoing = self.queue.pop_front()?;
        if self.unanswered == 0 {
            self.active_at = now;
        }
        self.unanswered += 1;
        self.in_flight.push_back(outgoing);
        self.in_flight.back()
    }

    /// Takes what a comparison found.
    pub(super) fn compared(&mut self, found: Comparison, now: Instant) {
        self.begin_attempt();
        if found.generation != self.generation {
            // What waits here may be of a history that is gone; if it is not, the log has it.
            self.forget_queue();
            self.generation = found.generation;
        }
        if self.end == End::Closed {
            self.end = End::Compared;
        }
        if found.last > self.checked {
            self.failures = 0;
        }
        self.suspect = None;
        self.checked = found.last;
        // What is beyond was committed before the head was read, and is not in this log any more.
        self.forget_beyond(found.head);
        self.known = found.head;
        self.go_on_from(found.last, now);
    }

    /// Takes the stream's last sequence, while somebody else is waited for.
    pub(super) fn looked(&mut self, last: u64, now: Instant) {
        let State::Waiting(mut wait) = self.state else {
            return;
        };
        let wanted = self
            .queue
            .front()
            .map_or(self.known, |first| first.event.position - 1);
        if self.queue.is_empty() && last > wait.last {
            // Somebody publishes what comes next. It is compared with the log when something of ours follows on it, or when it is
            // time; where it stops, the next comparison finds the rest.
            self.known = self.reached;
            self.state = self.flowing(now);
            return;
        }
        let is_checked = last == self.checked;
        let is_late = last == wait.last && now >= wait.deadline && !self.awaits_answers();
        if is_checked && last >= wanted {
            return self.go_on_from(last, now);
        }
        if is_checked && is_late {
            return self.fill_from(last);
        }
        // What others published is compared with the log before anything follows on it.
        if last < wait.last || last >= wanted || is_late {
            self.state = State::Comparing;
            return;
        }
        if last > wait.last {
            wait.last = last;
            wait.deadline = now + self.options.help_after;
        }
        wait.look_at = now + wait.pause;
        wait.pause = (wait.pause * 2).min(LOOK_PAUSE_MAX);
        self.state = State::Waiting(wait);
    }

    /// Takes what was read from the log, which are the next events, and the head that it had after that.
    ///
    /// # Errors
    /// [`Interruption::Epoch`] when the log has gone on in another epoch: they may be of that one.
    /// [`Interruption::Hidden`] when the log does not show them.
    pub(super) fn read(
        &mut self,
        events: Vec<RecordedEvent>,
        head: LogHead,
        now: Instant,
    ) -> Result<(), Interruption> {
        let State::Filling { up_to, .. } = self.state else {
            return Ok(());
        };
        if head.epoch.generation != self.generation {
            return Err(Interruption::Epoch);
        }
        if events.is_empty() {
            return Err(Interruption::Hidden);
        }
        for event in events {
            let is_fresh = false;
            self.push(Outgoing { event, is_fresh });
        }
        self.known = self.known.max(head.position);
        // What was committed here since the read began comes from memory.
        self.state = match self.reached < up_to {
            true => State::Filling {
                read_after: Some(self.reached),
                up_to,
            },
            false => self.flowing(now),
        };
        Ok(())
    }

    /// Takes a batch that was committed here.
    ///
    /// # Errors
    /// [`Interruption::Epoch`] when the log has gone on in another epoch than it was compared in.
    pub(super) fn committed(&mut self, batch: Committed, now: Instant) -> Result<(), Interruption> {
        let is_full = self.queue.len() >= self.options.window_messages || self.bytes >= MEMORY_BYTES_MAX;
        match self.state {
            State::BackingOff { .. } => {}
            _ if batch.generation != self.generation => return Err(Interruption::Epoch),
            State::Flowing { .. } | State::Waiting(_) if !is_full => self.queue_fresh(batch.events, now),
            _ => self.leave_to_log(&batch),
        }
        Ok(())
    }

    fn queue_fresh(&mut self, events: Vec<RecordedEvent>, now: Instant) {
        let end = self
            .queue
            .back()
            .map_or(self.reached, |last| last.event.position.max(self.reached));
        let mut new = events
            .into_iter()
            .skip_while(|event| event.position <= end)
            .peekable();
        let Some(first) = new.peek().map(|event| event.position) else {
            return;
        };
        let (reached, was_empty) = (self.reached, self.queue.is_empty());
        for event in new {
            let is_fresh = true;
            self.known = self.known.max(event.position);
            self.push(Outgoing { event, is_fresh });
        }
        match self.state {
            State::Flowing { .. } if first > reached + 1 => self.wait_for_others(reached, now),
            State::Waiting(wait) if was_empty => {
                self.state = State::Waiting(Wait {
                    look_at: now,
                    pause: LOOK_PAUSE_FIRST,
                    ..wait
                });
            }
            _ => {}
        }
    }

    /// Leaves a batch that was committed here to a read of the log.
    pub(super) fn leave_to_log(&mut self, batch: &Committed) {
        if let Some(newest) = batch.events.last()
            && batch.generation == self.generation
        {
            self.known = self.known.max(newest.position);
        }
        if let State::Filling { up_to, .. } = &mut self.state {
            *up_to = self.known;
        }
    }

    /// Nothing more will be committed here.
    pub(super) fn close(&mut self) {
        self.end = End::Closed;
    }

    /// Takes an answer to a message of this attempt. Returns the events that are known to be stored by it.
    ///
    /// # Errors
    /// Why publishing is interrupted.
    pub(super) fn answered(&mut self, answer: Answer, now: Instant) -> Result<Vec<Outgoing>, Interruption> {
        self.unanswered = self.unanswered.saturating_sub(1);
        self.active_at = now;
        let interruption = match answer {
            Answer::Stored(position) => return Ok(self.stored(position)),
            Answer::Refused(position) => {
                if self.suspect.is_none() {
                    let refused = self.in_flight.iter().find(|sent| sent.event.position == position);
                    self.suspect = refused.map(|sent| sent.event.clone());
                }
                Interruption::Refused
            }
            Answer::Rejected { code, description } => Interruption::Rejected { code, description },
        };
        // What else goes wrong meanwhile does not matter: the comparison finds out where the stream stands.
        match self.state {
            State::Settling => Ok(Vec::new()),
            _ => Err(interruption),
        }
    }

    fn stored(&mut self, position: u64) -> Vec<Outgoing> {
        let count = self
            .in_flight
            .partition_point(|sent| sent.event.position <= position);
        let stored: Vec<_> = self.in_flight.drain(..count).collect();
        self.bytes -= bytes_of(&stored);
        self.checked = position;
        self.failures = 0;
        stored
    }

    /// Takes that there is a new connection: nothing of what was under way on the old one is certain.
    ///
    /// # Errors
    /// [`Interruption::Reconnected`] unless it was waited for.
    pub(super) fn reconnected(&mut self) -> Result<(), Interruption> {
        match self.state {
            State::Comparing | State::Stopped => Ok(()),
            State::Settling | State::BackingOff { .. } => {
                self.begin_attempt();
                self.state = State::Comparing;
                Ok(())
            }
            State::Flowing { .. } | State::Waiting(_) | State::Filling { .. } => {
                Err(Interruption::Reconnected)
            }
        }
    }

    /// Does what is due by now.
    ///
    /// # Errors
    /// [`Interruption::Silence`] when answers do not come.
    pub(super) fn elapsed(&mut self, now: Instant) -> Result<(), Interruption> {
        let is_silent = self.awaits_answers() && now >= self.active_at + self.options.acknowledge_timeout;
        let is_idle = !self.awaits_answers() && self.queue.is_empty();
        match self.state {
            State::Settling if is_silent || !self.awaits_answers() => self.settled(now),
            State::BackingOff { until } if until <= now || self.end != End::No => {
                self.state = State::Comparing
            }
            State::Flowing { .. } | State::Waiting(_) | State::Filling { .. } if is_silent => {
                return Err(Interruption::Silence);
            }
            State::Flowing { .. } if is_idle && self.reached < self.known => {
                self.wait_for_others(self.reached, now)
            }
            State::Flowing { .. } if is_idle && self.end == End::Closed => self.state = State::Comparing,
            State::Flowing { .. } if is_idle && self.end == End::Compared => self.state = State::Stopped,
            State::Flowing { compare_at } if compare_at <= now => {
                // While messages are acknowledged the stream is known to be right.
                self.state = if is_idle {
                    State::Comparing
                } else {
                    self.flowing(now)
                };
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes that publishing was interrupted.
    pub(super) fn interrupted(&mut self, interruption: &Interruption) {
        self.failures += 1;
        let goes_on = interruption.is_expected() && self.failures <= INTERRUPTIONS_AT_END_MAX;
        self.state = match self.end {
            End::Closed | End::Compared if !goes_on => State::Stopped,
            _ => State::Settling,
        };
        if matches!(interruption, Interruption::Reconnected) {
            // Answers that are still due were lost with the connection.
            self.unanswered = 0;
        }
    }

    /// Nothing more is known of what is in flight: it is to be sent again, unless the stream turns out to have it.
    fn settled(&mut self, now: Instant) {
        self.begin_attempt();
        self.state = match self.failures {
            0 | 1 => State::Comparing,
            failures => {
                let backoff = BACKOFF_FIRST * 2_u32.pow((failures - 2).min(8));
                State::BackingOff {
                    until: now + backoff.min(BACKOFF_MAX),
                }
            }
        };
    }

    fn begin_attempt(&mut self) {
        self.attempt += 1;
        self.unanswered = 0;
        self.in_flight.append(&mut self.queue);
        std::mem::swap(&mut self.in_flight, &mut self.queue);
    }

    /// Goes on behind the stream's last sequence.
    fn go_on_from(&mut self, last: u64, now: Instant) {
        let published = self
            .queue
            .partition_point(|outgoing| outgoing.event.position <= last);
        self.bytes -= self
            .queue
            .drain(..published)
            .map(|outgoing| outgoing.event.size_bytes())
            .sum::<usize>();
        self.reached = last;
        let Some(first) = self.queue.front().map(|outgoing| outgoing.event.position) else {
            return match self.known <= last {
                true => self.state = self.flowing(now),
                false => self.wait_for_others(last, now),
            };
        };
        let newest = self.queue.back().map_or(last, |outgoing| outgoing.event.position);
        let has_holes = newest - first + 1 > self.queue.len() as u64;
        if first > last + 1 {
            self.wait_for_others(last, now);
        } else if has_holes {
            self.fill_from(last);
        } else {
            self.reached = newest;
            self.state = self.flowing(now);
        }
    }

    fn flowing(&self, now: Instant) -> State {
        State::Flowing {
            compare_at: now + self.options.compare_interval,
        }
    }

    fn wait_for_others(&mut self, last: u64, now: Instant) {
        // Who has nothing of its own to publish is in no hurry.
        let (first, pause) = match self.queue.is_empty() {
            true => (self.options.help_after / 2, LOOK_PAUSE_MAX),
            false => (Duration::ZERO, LOOK_PAUSE_FIRST),
        };
        self.state = State::Waiting(Wait {
            last: last.min(self.checked),
            deadline: now + self.options.help_after,
            look_at: now + first,
            pause,
        });
    }

    fn fill_from(&mut self, last: u64) {
        self.forget_queue();
        self.reached = last;
        let missing = self.known - last;
        let is_long = missing > WINDOWS_AT_END_MAX * self.options.window_messages as u64;
        self.state = match self.end {
            End::Closed | End::Compared if is_long => State::Stopped,
            _ => State::Filling {
                read_after: Some(last),
                up_to: self.known,
            },
        };
    }

    fn push(&mut self, outgoing: Outgoing) {
        self.bytes += outgoing.event.size_bytes();
        let position = outgoing.event.position;
        if position == self.reached + 1 {
            self.reached = position;
        }
        self.queue.push_back(outgoing);
    }

    /// Forgets what is queued beyond a position.
    fn forget_beyond(&mut self, position: u64) {
        let kept = self
            .queue
            .partition_point(|outgoing| outgoing.event.position <= position);
        let forgotten = self.queue.split_off(kept);
        self.bytes -= bytes_of(&forgotten);
    }

    /// Empties the queue; its events are read from the log again.
    fn forget_queue(&mut self) {
        let forgotten = std::mem::take(&mut self.queue);
        self.bytes -= bytes_of(&forgotten);
    }
}

fn bytes_of<'a>(events: impl IntoIterator<Item = &'a Outgoing>) -> usize {
    let bytes = events.into_iter().map(|outgoing| outgoing.event.size_bytes());
    bytes.sum()
}

#[cfg(test)]
mod tests;
