//! The mailbox of one aggregate: what waits, what is in flight, and the state that commands are decided on.

mod question;

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use daybook_domain::aggregate::Aggregate;
use daybook_event_store::{Answer, Intent, NewCommand, Permit, Receipt, Unanswered, Verdict};
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::question::Question;
use super::cache::{Cache, Stream};
use super::cached::{Bases, Cached};
use super::load::{LoadError, load};
use super::{Contended, Envelope, HandleError, MailboxMetrics, Outcome};
use crate::partitions::Partition;

/// How often a command is decided again because another process wrote to its aggregate, before the caller is told.
pub(super) const ATTEMPTS_MAX: u32 = 64;

/// After a known key has cut a chain, keys are looked up before commands are decided, for this long. Otherwise one caller
/// that repeats old keys has everybody's commands behind it decided again.
const ASK_FIRST_FOR: Duration = Duration::from_secs(1);

/// What the cache's map and the heap's own records take for a mailbox, in bytes.
const ENTRY_BYTES: usize = 256;

/// A command and the caller that waits for its outcome.
pub(super) struct Pending<A: Aggregate> {
    envelope: Arc<Envelope<A::Command>>,
    /// The place in the write path that it takes until it is answered.
    _permit: Permit,
    reply: oneshot::Sender<Result<Outcome, HandleError>>,
    attempts: u32,
    attempts_max: u32,
}

impl<A: Aggregate> Pending<A> {
    pub(super) fn new(
        envelope: Arc<Envelope<A::Command>>,
        permit: Permit,
        reply: oneshot::Sender<Result<Outcome, HandleError>>,
        attempts_max: u32,
    ) -> Self {
        Self {
            envelope,
            _permit: permit,
            reply,
            attempts: 0,
            attempts_max,
        }
    }
}

/// What is known of the aggregate.
enum State<A> {
    /// Nothing, and nobody has looked: a command that opens an aggregate is decided on an empty one, and the append finds
    /// out.
    Unknown,
    /// What was cached turned out to be wrong, or could not be loaded.
    Dropped,
    Loading,
    Cached(Cached<A>),
}

/// How much is sent before what went before it is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pipelined,
    /// Another process wrote in between, and no command has been appended since.
    OneBatchAtATime,
}

/// What was submitted for a command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Submitted {
    Decision { has_events: bool },
    Question(Question),
}

/// A command that is on its way into the log.
struct InFlight<A: Aggregate> {
    mailbox: Arc<Mailbox<A>>,
    command: Pending<A>,
    submitted: Submitted,
    /// Of the state that it was decided on.
    state_number: u64,
    /// Whether the log has judged it: what is left is to read its receipt, and nobody waits for that.
    is_judged: bool,
}

impl<A: Aggregate> Answer for InFlight<A> {
    fn key_is_known(&mut self) {
        if let Submitted::Decision { has_events } = self.submitted {
            self.is_judged = true;
            self.mailbox.decision_is_known(has_events, self.state_number);
        }
    }

    fn answer(self: Box<Self>, verdict: Result<Verdict, Unanswered>) {
        let mailbox = Arc::clone(&self.mailbox);
        mailbox.answered(*self, verdict);
    }
}

struct Slot<A: Aggregate> {
    state: State<A>,
    bases: Bases<A>,
    /// Incremented when the state is dropped, so that of the commands that were decided on a wrong state only the first
    /// drops it.
    state_number: u64,
    /// Commands to be decided, those that are decided again first.
    retries: VecDeque<Pending<A>>,
    waiting: VecDeque<Pending<A>>,
    /// The keys under way, each with the commands that were sent with it once more and wait for the first.
    keys: HashMap<Arc<str>, VecDeque<Pending<A>>>,
    /// Decisions that the log has not judged yet.
    in_flight: usize,
    mode: Mode,
    ask_first_until: Option<Instant>,
}

pub(super) struct Mailbox<A: Aggregate> {
    stream: Stream,
    partition: Partition,
    contended: Arc<Contended>,
    metrics: Arc<MailboxMetrics>,
    cache: Weak<Cache<A>>,
    slot: Mutex<Slot<A>>,
}

impl<A: Aggregate> Mailbox<A> {
    pub(super) fn new(
        stream: Stream,
        partition: Partition,
        contended: Arc<Contended>,
        metrics: Arc<MailboxMetrics>,
        cache: &Arc<Cache<A>>,
    ) -> Self {
        let slot = Slot {
            state: State::Unknown,
            bases: Bases::default(),
            state_number: 0,
            retries: VecDeque::new(),
            waiting: VecDeque::new(),
            keys: HashMap::new(),
            in_flight: 0,
            mode: Mode::Pipelined,
            ask_first_until: None,
        };
        Self {
            stream,
            partition,
            contended,
            metrics,
            cache: Arc::downgrade(cache),
            slot: Mutex::new(slot),
        }
    }

    /// Takes a command in.
    pub(super) fn accept(self: &Arc<Self>, command: Pending<A>) {
        let mut slot = self.slot();
        self.enqueue(&mut slot, command);
        self.drive(&mut slot);
        self.report_size(&mut slot);
    }

    fn slot(&self) -> MutexGuard<'_, Slot<A>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(self: &Arc<Self>, slot: &mut Slot<A>, command: Pending<A>) {
        if let Some(followers) = slot.keys.get_mut(&command.envelope.key) {
            followers.push_back(command);
            return;
        }
        slot.keys
            .insert(Arc::clone(&command.envelope.key), VecDeque::new());
        if slot.ask_first_until.is_some_and(|until| Instant::now() < until) {
            self.ask(slot, command, Question::KeyKnown);
        } else {
            slot.waiting.push_back(command);
        }
    }

    /// Decides all that can be decided now.
    fn drive(self: &Arc<Self>, slot: &mut Slot<A>) {
        if slot.mode == Mode::OneBatchAtATime && slot.in_flight > 0 {
            return;
        }
        while let Some(next) = slot.retries.front().or(slot.waiting.front()) {
            match &slot.state {
                State::Loading => return,
                State::Unknown if A::opens(&next.envelope.command) => {
                    slot.state = State::Cached(Cached::new());
                }
                State::Unknown | State::Dropped => return self.start_load(slot),
                State::Cached(_) => {
                    let next = slot.next().expect("there is a front");
                    self.decide(slot, next);
                }
            }
        }
    }

    fn start_load(self: &Arc<Self>, slot: &mut Slot<A>) {
        slot.state = State::Loading;
        let mailbox = Arc::clone(self);
        tokio::spawn(async move {
            let mut loaded = mailbox.load().await;
            // One connection that fails must not fail everybody who waits.
            if let Err(LoadError::Read(_)) = loaded
                && mailbox.slot().is_waited_for()
            {
                loaded = mailbox.load().await;
            }
            mailbox.loaded(loaded);
        });
    }

    async fn load(&self) -> Result<Cached<A>, LoadError> {
        let base = self.slot().bases.confirmed();
        self.metrics.loads.inc();
        let ((tenant_id, stream_id), partition) = (self.stream.clone(), &self.partition);
        let log = Arc::clone(&partition.streams);
        let load = load(log, tenant_id, partition.appender.partition(), stream_id, base);
        let _place = partition
            .loads
            .place(tenant_id)
            .await
            .expect("no load is refused");
        load.await
    }

    fn loaded(self: &Arc<Self>, loaded: Result<Cached<A>, LoadError>) {
        let mut slot = self.slot();
        match loaded {
            Ok(mut cached) => {
                cached.forget_older();
                slot.bases = Bases::loaded(&cached);
                slot.state = State::Cached(cached);
                // Begin the window anew: the load may have outlasted it.
                if let Some(until) = &mut slot.ask_first_until {
                    *until = Instant::now() + ASK_FIRST_FOR;
                }
                self.drive(&mut slot);
            }
            Err(error) => {
                slot.state = State::Dropped;
                let error = Arc::new(error);
                while let Some(next) = slot.next() {
                    self.reply(&mut slot, next, Err(HandleError::Load(Arc::clone(&error))));
                }
            }
        }
        self.report_size(&mut slot);
    }

    /// Decides a command on the state that is there, and submits what it leads to.
    fn decide(self: &Arc<Self>, slot: &mut Slot<A>, command: Pending<A>) {
        if command.reply.is_closed() {
            return self.release_key(slot, &command.envelope.key);
        }
        let State::Cached(cached) = &mut slot.state else {
            unreachable!("commands are decided on a state")
        };
        if let Some(expected) = command.envelope.expected_version
            && expected != cached.version()
        {
            return self.ask(slot, command, Question::VersionStale { expected });
        }
        match catch_unwind(AssertUnwindSafe(|| cached.decide(&command.envelope))) {
            Ok(Some(decision)) => {
                slot.bases.decided(cached);
                slot.in_flight += 1;
                let has_events = !decision.events.is_empty();
                let submitted = Submitted::Decision { has_events };
                self.submit(slot, command, Intent::Write(decision), submitted);
            }
            Ok(None) => self.ask(slot, command, Question::Missing),
            Err(panic) => {
                // Nothing was submitted, and what is left of the state is not to be believed.
                slot.drop_state(slot.state_number);
                self.reply(slot, command, Err(HandleError::Panicked(message(&*panic))));
            }
        }
    }

    fn submit(
        self: &Arc<Self>,
        slot: &mut Slot<A>,
        command: Pending<A>,
        intent: Intent,
        submitted: Submitted,
    ) {
        let envelope = &command.envelope;
        let new = NewCommand {
            tenant_id: envelope.tenant_id,
            key: Arc::clone(&envelope.key),
            fingerprints: envelope.fingerprints.clone(),
            stream_id: Arc::clone(&envelope.stream_id),
            category: A::CATEGORY,
            group: None,
            intent,
        };
        let in_flight = InFlight {
            mailbox: Arc::clone(self),
            command,
            submitted,
            state_number: slot.state_number,
            is_judged: false,
        };
        self.partition.appender.submit(new, Box::new(in_flight));
    }

    /// Goes on without the receipt of a decision whose key was known: it may take seconds to read.
    fn decision_is_known(self: &Arc<Self>, has_events: bool, state_number: u64) {
        let mut slot = self.slot();
        slot.in_flight -= 1;
        slot.key_was_known(has_events, state_number);
        self.drive(&mut slot);
    }

    /// Takes in what became of a command, and goes on.
    fn answered(self: &Arc<Self>, in_flight: InFlight<A>, verdict: Result<Verdict, Unanswered>) {
        let mut slot = self.slot();
        match in_flight.submitted {
            Submitted::Decision { .. } => {
                slot.in_flight -= usize::from(!in_flight.is_judged);
                self.decision_answered(&mut slot, in_flight, verdict);
            }
            Submitted::Question(question) => {
                self.question_answered(&mut slot, in_flight, question, verdict);
            }
        }
        self.drive(&mut slot);
        self.report_size(&mut slot);
    }

    fn decision_answered(
        self: &Arc<Self>,
        slot: &mut Slot<A>,
        in_flight: InFlight<A>,
        verdict: Result<Verdict, Unanswered>,
    ) {
        let InFlight {
            command,
            state_number,
            ..
        } = in_flight;
        let answer = match verdict {
            Ok(Verdict::Appended(receipt)) => {
                if slot.state_number == state_number {
                    slot.mode = Mode::Pipelined;
                    slot.bases.recorded(receipt.stream_version);
                }
                Ok(outcome(receipt, false))
            }
            Ok(Verdict::Conflict(newest) | Verdict::KeyIsNew(newest)) => {
                // If the newest event is ours, our own chain was cut before this command; if not, another replica wrote.
                let is_ours = matches!(&slot.state, State::Cached(cached) if cached.has(newest.event_id));
                if slot.state_number == state_number && !is_ours {
                    slot.mode = Mode::OneBatchAtATime;
                    self.contended.note(&self.stream);
                }
                slot.drop_state(state_number);
                return self.decide_again(slot, command);
            }
            Ok(Verdict::Replayed(receipt)) => Ok(outcome(receipt, true)),
            Ok(Verdict::KeyReused) => Err(HandleError::KeyReused),
            Err(unanswered) => {
                slot.drop_state(state_number);
                Err(unanswered.into())
            }
        };
        self.reply(slot, command, answer);
    }

    fn decide_again(self: &Arc<Self>, slot: &mut Slot<A>, mut command: Pending<A>) {
        self.metrics.retries.inc();
        command.attempts += 1;
        if command.attempts == command.attempts_max {
            self.reply(slot, command, Err(HandleError::Contended));
        } else {
            slot.retries.push_back(command);
        }
    }

    fn reply(
        self: &Arc<Self>,
        slot: &mut Slot<A>,
        command: Pending<A>,
        answer: Result<Outcome, HandleError>,
    ) {
        if let Ok(outcome) = &answer {
            slot.answer_followers(&command.envelope, outcome);
        }
        self.release_key(slot, &command.envelope.key);
        // Whoever no longer waits for the answer finds it under the key.
        let _ = command.reply.send(answer);
    }

    /// The next of the commands that waited with the same key asks what became of the first.
    fn release_key(self: &Arc<Self>, slot: &mut Slot<A>, key: &Arc<str>) {
        let mut followers = slot.keys.remove(key).unwrap_or_default();
        if let Some(next) = followers.pop_front() {
            slot.keys.insert(Arc::clone(key), followers);
            self.ask(slot, next, Question::KeyKnown);
        }
    }

    /// Tells the cache how much is held here, once there is nothing to do. What does not exist is not kept.
    fn report_size(&self, slot: &mut Slot<A>) {
        if !slot.keys.is_empty() {
            return;
        }
        let state_bytes = match &mut slot.state {
            State::Cached(cached) if cached.version() > 0 => {
                cached.forget_older();
                Some(cached.bytes())
            }
            State::Dropped => Some(0),
            State::Cached(_) | State::Unknown => None,
            State::Loading => return,
        };
        slot.shrink();
        let bytes = state_bytes
            .map(|state| size_of::<Self>() + ENTRY_BYTES + self.stream.1.len() + state + slot.bases.bytes());
        if let Some(cache) = self.cache.upgrade() {
            cache.report(&self.stream, bytes);
        }
    }
}

impl<A: Aggregate> Slot<A> {
    /// The next command to be decided.
    fn next(&mut self) -> Option<Pending<A>> {
        self.retries.pop_front().or_else(|| self.waiting.pop_front())
    }

    /// Whether the caller of a command that is to be decided still waits.
    fn is_waited_for(&self) -> bool {
        let mut commands = self.retries.iter().chain(&self.waiting);
        commands.any(|command| !command.reply.is_closed())
    }

    /// Commands that were sent with the same key while the first was under way: with the same content they get its
    /// receipt.
    fn answer_followers(&mut self, first: &Envelope<A::Command>, outcome: &Outcome) {
        let followers = self.keys.get_mut(&first.key).map(std::mem::take);
        for follower in followers.unwrap_or_default() {
            let has_same_content = follower.envelope.fingerprints == first.fingerprints;
            let answer = match has_same_content {
                true => Ok(Outcome {
                    is_replay: true,
                    ..outcome.clone()
                }),
                false => Err(HandleError::KeyReused),
            };
            let _ = follower.reply.send(answer);
        }
    }

    /// Gives back what a burst of commands took.
    fn shrink(&mut self) {
        self.keys = HashMap::new();
        self.retries = VecDeque::new();
        self.waiting = VecDeque::new();
    }

    /// Drops the state of this number, unless that was done already.
    fn drop_state(&mut self, state_number: u64) {
        if self.state_number == state_number {
            self.state_number += 1;
            self.bases.dropped();
            if matches!(self.state, State::Cached(_)) {
                self.state = State::Dropped;
            }
        }
    }

    /// The key of a decision was known: its events, which the state has taken in, are not recorded, and all behind it in
    /// its chain is decided again. If its batch was sent twice they may be; then a load finds them.
    fn key_was_known(&mut self, has_events: bool, state_number: u64) {
        self.ask_first_until = Some(Instant::now() + ASK_FIRST_FOR);
        if has_events {
            self.drop_state(state_number);
        }
    }
}

fn outcome(receipt: Receipt, is_replay: bool) -> Outcome {
    Outcome { receipt, is_replay }
}

pub(super) fn message(panic: &(dyn std::any::Any + Send)) -> Arc<str> {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").into()
}
