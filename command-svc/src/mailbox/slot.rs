//! The mailbox of one aggregate: what waits, what is in flight, and the state that commands are decided on.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use daybook_domain::aggregate::Aggregate;
use daybook_domain::event::Event as _;
use daybook_domain::rejection::Rejection as _;
use daybook_event_store::{
    Decision, Intent, NewCommand, NewEvent, Newest, Permit, Receipt, Unanswered, Verdict,
};
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use super::cache::{Cache, Stream};
use super::load::{LoadError, load};
use super::{Contended, Envelope, HandleError, MailboxMetrics, Outcome};
use crate::partitions::Partition;

/// How often a command is decided again because another process wrote to its aggregate, before the caller is told.
pub(super) const ATTEMPTS_MAX: u32 = 64;

/// How long a mailbox asks for keys before it decides, after a known key has cut a chain. A caller that repeats old keys
/// would else have everybody's commands behind it decided again.
const ASK_FIRST_FOR: Duration = Duration::from_secs(1);

/// How many events a state remembers by their ids while commands are under way: more than can be in flight. Once there is
/// nothing to do it remembers the newest alone.
const RECENT_EVENTS_MAX: usize = 65_536;

/// What a mailbox takes in memory besides its aggregate.
const MAILBOX_BYTES: usize = 512;

/// A command that the mailbox has, and whom to tell what became of it.
pub(super) struct Waiting<A: Aggregate> {
    envelope: Envelope<A::Command>,
    /// The place in the write path that it takes until it is answered.
    _permit: Permit,
    reply: oneshot::Sender<Result<Outcome, HandleError>>,
    attempts: u32,
    attempts_max: u32,
}

impl<A: Aggregate> Waiting<A> {
    pub(super) fn new(
        envelope: Envelope<A::Command>,
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

/// An aggregate as it is believed to be.
pub(super) struct Cached<A> {
    aggregate: A,
    version: u64,
    newest: Option<Uuid>,
    /// The newest events in it, the newest last.
    recent: VecDeque<Uuid>,
}

impl<A: Aggregate> Cached<A> {
    /// An aggregate without events.
    pub(super) fn new() -> Self {
        Self {
            aggregate: A::default(),
            version: 0,
            newest: None,
            recent: VecDeque::new(),
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn newest(&self) -> Option<Uuid> {
        self.newest
    }

    pub(super) fn apply(&mut self, event: &A::Event, event_id: Uuid) {
        self.aggregate = std::mem::take(&mut self.aggregate).evolve(event);
        self.version += 1;
        self.newest = Some(event_id);
        if self.recent.len() == RECENT_EVENTS_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(event_id);
    }

    /// Remembers the newest event alone: whatever is answered to a question that was asked after this names it or a later
    /// one.
    fn forget_older(&mut self) {
        self.recent = self.newest.into_iter().collect();
    }

    /// Whether an event is in this state, in flight or recorded. It may say no of one that is long past.
    fn has(&self, event_id: Option<Uuid>) -> bool {
        event_id.is_none_or(|id| self.recent.iter().rev().any(|recent| *recent == id))
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.aggregate.heap_bytes() + self.recent.capacity() * size_of::<Uuid>()
    }
}

/// What is known of the aggregate.
enum State<A> {
    /// Nothing. Before anything was loaded, a command that opens an aggregate is decided on an empty one: the append
    /// finds out.
    Cold { may_be_new: bool },
    /// It is being loaded.
    Loading,
    /// All that was recorded when it was loaded, and what was decided since.
    Cached(Cached<A>),
}

/// Why a question is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Question {
    /// Keys are asked for before commands are decided.
    KeyKnown,
    /// The caller expects another version than the aggregate seems to have.
    VersionStale { expected: u64 },
    /// The aggregate seems not to exist.
    Missing,
}

/// What was submitted for a command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Submitted {
    Decision { has_events: bool },
    Question(Question),
}

/// A command that is on its way into the log.
struct Flight<A: Aggregate> {
    waiting: Waiting<A>,
    submitted: Submitted,
    /// Of the state that it was decided on.
    epoch: u64,
}

struct Slot<A: Aggregate> {
    state: State<A>,
    /// Counts the states that were forgotten, so that of many commands that were decided on one wrong state only the first
    /// forgets it.
    epoch: u64,
    /// Commands to be decided, those that are decided again first.
    again: VecDeque<Waiting<A>>,
    waiting: VecDeque<Waiting<A>>,
    /// The keys under way, each with the commands that were sent with it once more and wait for the first.
    keys: HashMap<Arc<str>, Vec<Waiting<A>>>,
    /// Decisions that have no verdict yet.
    in_flight: usize,
    /// Another process wrote in between, and nothing has got through since: one batch at a time.
    is_contended: bool,
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
            state: State::Cold { may_be_new: true },
            epoch: 0,
            again: VecDeque::new(),
            waiting: VecDeque::new(),
            keys: HashMap::new(),
            in_flight: 0,
            is_contended: false,
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
    pub(super) fn accept(self: &Arc<Self>, waiting: Waiting<A>) {
        let mut slot = self.slot();
        self.take_in(&mut slot, waiting);
        self.drive(&mut slot);
    }

    fn slot(&self) -> MutexGuard<'_, Slot<A>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_in(self: &Arc<Self>, slot: &mut Slot<A>, waiting: Waiting<A>) {
        if let Some(followers) = slot.keys.get_mut(&waiting.envelope.key) {
            followers.push(waiting);
            return;
        }
        slot.keys.insert(Arc::clone(&waiting.envelope.key), Vec::new());
        if slot.ask_first_until.is_some_and(|until| Instant::now() < until) {
            self.ask(slot, waiting, Question::KeyKnown);
        } else {
            slot.waiting.push_back(waiting);
        }
    }

    /// Decides all that can be decided now.
    fn drive(self: &Arc<Self>, slot: &mut Slot<A>) {
        if slot.is_contended && slot.in_flight > 0 {
            return;
        }
        while let Some(next) = slot.again.front().or(slot.waiting.front()) {
            match &slot.state {
                State::Loading => return,
                State::Cold { may_be_new: true } if A::opens(&next.envelope.command) => {
                    slot.state = State::Cached(Cached::new());
                }
                State::Cold { .. } => return self.start_load(slot),
                State::Cached(_) => {
                    let next = slot.again.pop_front().or_else(|| slot.waiting.pop_front());
                    self.decide(slot, next.expect("there is a front"));
                }
            }
        }
    }

    fn start_load(self: &Arc<Self>, slot: &mut Slot<A>) {
        slot.state = State::Loading;
        self.metrics.loads.fetch_add(1, Ordering::Relaxed);
        let mailbox = Arc::clone(self);
        tokio::spawn(async move {
            let (tenant_id, stream_id) = mailbox.stream.clone();
            let partition = &mailbox.partition;
            let log = Arc::clone(&partition.streams);
            let load = load(log, tenant_id, partition.appender.partition(), stream_id);
            let loaded = partition.loads.load(tenant_id, load).await;
            mailbox.loaded(loaded);
        });
    }

    fn loaded(self: &Arc<Self>, loaded: Result<Cached<A>, LoadError>) {
        let mut slot = self.slot();
        match loaded {
            Ok(mut cached) => {
                cached.forget_older();
                slot.state = State::Cached(cached);
                // The load took its time: what cut the chain before it may come again.
                if let Some(until) = &mut slot.ask_first_until {
                    *until = Instant::now() + ASK_FIRST_FOR;
                }
                self.drive(&mut slot);
            }
            Err(error) => {
                slot.state = State::Cold { may_be_new: false };
                let error = Arc::new(error);
                while let Some(next) = slot.again.pop_front().or_else(|| slot.waiting.pop_front()) {
                    self.reply(&mut slot, next, Err(HandleError::Load(Arc::clone(&error))));
                }
            }
        }
        self.weigh(&mut slot);
    }

    /// Decides a command on the state that is there, and submits what it leads to.
    fn decide(self: &Arc<Self>, slot: &mut Slot<A>, waiting: Waiting<A>) {
        if waiting.reply.is_closed() {
            return self.release_key(slot, &waiting.envelope.key);
        }
        let State::Cached(cached) = &mut slot.state else {
            unreachable!("commands are decided on a state")
        };
        if let Some(expected) = waiting.envelope.expected_version
            && expected != cached.version
        {
            return self.ask(slot, waiting, Question::VersionStale { expected });
        }
        match catch_unwind(AssertUnwindSafe(|| decide(cached, &waiting.envelope))) {
            Ok(Some(decision)) => {
                let has_events = !decision.events.is_empty();
                slot.in_flight += 1;
                self.submit(
                    slot,
                    waiting,
                    Intent::Write(decision),
                    Submitted::Decision { has_events },
                );
            }
            Ok(None) => self.ask(slot, waiting, Question::Missing),
            Err(panic) => {
                // Nothing was submitted, and what is left of the state is not to be believed.
                slot.forget(slot.epoch);
                self.reply(slot, waiting, Err(HandleError::Panicked(message(&*panic))));
            }
        }
    }

    fn ask(self: &Arc<Self>, slot: &mut Slot<A>, waiting: Waiting<A>, question: Question) {
        self.submit(slot, waiting, Intent::Ask, Submitted::Question(question));
    }

    fn submit(
        self: &Arc<Self>,
        slot: &mut Slot<A>,
        waiting: Waiting<A>,
        intent: Intent,
        submitted: Submitted,
    ) {
        let envelope = &waiting.envelope;
        let command = NewCommand {
            tenant_id: envelope.tenant_id,
            key: Arc::clone(&envelope.key),
            fingerprints: envelope.fingerprints.clone(),
            stream_id: Arc::clone(&envelope.stream_id),
            category: A::CATEGORY,
            intent,
        };
        let flight = Flight {
            waiting,
            submitted,
            epoch: slot.epoch,
        };
        let mailbox = Arc::clone(self);
        let answer = move |verdict| mailbox.answered(flight, verdict);
        self.partition.appender.submit(command, Box::new(answer));
    }

    /// Takes in what became of a command, and goes on.
    fn answered(self: &Arc<Self>, flight: Flight<A>, verdict: Result<Verdict, Unanswered>) {
        let mut slot = self.slot();
        let Flight {
            waiting,
            submitted,
            epoch,
        } = flight;
        match submitted {
            Submitted::Decision { has_events } => {
                slot.in_flight -= 1;
                self.decision_answered(&mut slot, waiting, has_events, epoch, verdict);
            }
            Submitted::Question(question) => {
                self.question_answered(&mut slot, waiting, question, epoch, verdict);
            }
        }
        self.drive(&mut slot);
        self.weigh(&mut slot);
    }

    fn decision_answered(
        self: &Arc<Self>,
        slot: &mut Slot<A>,
        waiting: Waiting<A>,
        has_events: bool,
        epoch: u64,
        verdict: Result<Verdict, Unanswered>,
    ) {
        let answer = match verdict {
            Ok(Verdict::Appended(receipt)) => {
                slot.is_contended &= slot.epoch != epoch;
                Ok(outcome(receipt, false))
            }
            Ok(Verdict::Conflict(newest) | Verdict::KeyIsNew(newest)) => {
                // Was it somebody else who wrote? Otherwise the chain was cut in front of it.
                let is_ours = matches!(&slot.state, State::Cached(cached) if cached.has(newest.event_id));
                if slot.epoch == epoch && !is_ours {
                    slot.is_contended = true;
                    self.contended.note(&self.stream);
                }
                slot.forget(epoch);
                return self.decide_again(slot, waiting);
            }
            Ok(Verdict::Replayed(receipt)) => {
                slot.was_known(has_events, epoch);
                Ok(outcome(receipt, true))
            }
            Ok(Verdict::KeyReused) => {
                slot.was_known(has_events, epoch);
                Err(HandleError::KeyReused)
            }
            Err(unanswered) => {
                slot.forget(epoch);
                Err(unanswered.into())
            }
        };
        self.reply(slot, waiting, answer);
    }

    fn question_answered(
        self: &Arc<Self>,
        slot: &mut Slot<A>,
        waiting: Waiting<A>,
        question: Question,
        epoch: u64,
        verdict: Result<Verdict, Unanswered>,
    ) {
        let answer = match verdict {
            Ok(Verdict::Replayed(receipt) | Verdict::Appended(receipt)) => Ok(outcome(receipt, true)),
            Ok(Verdict::KeyReused) => Err(HandleError::KeyReused),
            Err(unanswered) => Err(unanswered.into()),
            Ok(Verdict::KeyIsNew(newest) | Verdict::Conflict(newest)) => {
                if question == Question::KeyKnown {
                    return slot.waiting.push_back(waiting);
                }
                slot.forget_unless_has(newest, epoch);
                match question {
                    Question::VersionStale { expected } if newest.version != expected => {
                        let actual = newest.version;
                        Err(HandleError::VersionConflict { expected, actual })
                    }
                    Question::Missing if newest.event_id.is_none() => Err(HandleError::NotFound),
                    Question::VersionStale { .. } | Question::Missing | Question::KeyKnown => {
                        return self.decide_again(slot, waiting);
                    }
                }
            }
        };
        self.reply(slot, waiting, answer);
    }

    fn decide_again(self: &Arc<Self>, slot: &mut Slot<A>, mut waiting: Waiting<A>) {
        self.metrics.retries.fetch_add(1, Ordering::Relaxed);
        waiting.attempts += 1;
        if waiting.attempts == waiting.attempts_max {
            self.reply(slot, waiting, Err(HandleError::Contended));
        } else {
            slot.again.push_back(waiting);
        }
    }

    fn reply(
        self: &Arc<Self>,
        slot: &mut Slot<A>,
        waiting: Waiting<A>,
        answer: Result<Outcome, HandleError>,
    ) {
        if let Ok(outcome) = &answer {
            slot.answer_followers(&waiting.envelope, outcome);
        }
        self.release_key(slot, &waiting.envelope.key);
        // Whoever no longer waits for the answer finds it under the key.
        let _ = waiting.reply.send(answer);
    }

    /// The commands that waited with the same key ask what became of the first.
    fn release_key(self: &Arc<Self>, slot: &mut Slot<A>, key: &Arc<str>) {
        let mut followers = slot.keys.remove(key).unwrap_or_default().into_iter();
        if let Some(next) = followers.next() {
            slot.keys.insert(Arc::clone(key), followers.collect());
            self.ask(slot, next, Question::KeyKnown);
        }
    }

    fn weigh(&self, slot: &mut Slot<A>) {
        let is_idle = slot.keys.is_empty();
        if let (true, Some(cache)) = (is_idle, self.cache.upgrade()) {
            let state = match &mut slot.state {
                State::Cached(cached) => {
                    cached.forget_older();
                    cached.bytes()
                }
                State::Cold { .. } | State::Loading => 0,
            };
            slot.shrink();
            cache.weigh(&self.stream, MAILBOX_BYTES + self.stream.1.len() + state);
        }
    }
}

impl<A: Aggregate> Slot<A> {
    /// Commands that were sent with the same key and content while the first was under way get its receipt.
    fn answer_followers(&mut self, first: &Envelope<A::Command>, outcome: &Outcome) {
        let Some(followers) = self.keys.get_mut(&first.key) else {
            return;
        };
        for follower in followers.extract_if(.., |one| one.envelope.fingerprints == first.fingerprints) {
            let replay = Outcome {
                is_replay: true,
                ..outcome.clone()
            };
            let _ = follower.reply.send(Ok(replay));
        }
    }

    /// Gives back what a burst of commands took.
    fn shrink(&mut self) {
        self.keys = HashMap::new();
        self.again = VecDeque::new();
        self.waiting = VecDeque::new();
    }

    /// Forgets the state of an epoch, unless that was done already.
    fn forget(&mut self, epoch: u64) {
        if self.epoch == epoch {
            self.epoch += 1;
            if matches!(self.state, State::Cached(_)) {
                self.state = State::Cold { may_be_new: false };
            }
        }
    }

    /// Forgets the state when somebody else wrote: the newest event of the log is not in it.
    fn forget_unless_has(&mut self, newest: Newest, epoch: u64) {
        if matches!(&self.state, State::Cached(cached) if !cached.has(newest.event_id)) {
            self.forget(epoch);
        }
    }

    /// The key of a decision was known: its events, which the state has taken in, are not recorded, and all behind it in
    /// its chain is decided again.
    fn was_known(&mut self, has_events: bool, epoch: u64) {
        self.ask_first_until = Some(Instant::now() + ASK_FIRST_FOR);
        if has_events {
            self.forget(epoch);
        }
    }
}

/// Decides a command, and takes its events into the state; `None` where there is no such aggregate, which is not a rule
/// and may be true no longer when the key comes again.
fn decide<A: Aggregate>(cached: &mut Cached<A>, envelope: &Envelope<A::Command>) -> Option<Decision> {
    let mut decision = Decision {
        decided_on: cached.newest,
        metadata: Arc::clone(&envelope.metadata),
        events: Vec::new(),
        rejection: None,
    };
    match cached.aggregate.decide(envelope.command.clone()) {
        Ok(events) => {
            for event in &events {
                let new = NewEvent {
                    event_id: Uuid::from_u128(rand::random()),
                    event_type: event.event_type(),
                    schema_version: event.schema_version(),
                    payload: event.encode(),
                };
                cached.apply(event, new.event_id);
                decision.events.push(new);
            }
        }
        Err(rejection) if rejection.is_not_found() => return None,
        Err(rejection) => {
            let remembered = serde_json::to_string(&rejection);
            decision.rejection = Some(remembered.expect("a rejection has string keys and plain values"));
        }
    }
    Some(decision)
}

fn outcome(receipt: Receipt, is_replay: bool) -> Outcome {
    Outcome { receipt, is_replay }
}

fn message(panic: &(dyn std::any::Any + Send)) -> Arc<str> {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").into()
}
