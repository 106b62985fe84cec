//! One mailbox per aggregate: commands are decided one after another against the newest state in memory.
//!
//! A command does not wait for the append of the one before it: it is decided on what that one would lead to, and both
//! ride in the same batch. So a hot aggregate takes as many commands as the log takes, and not one per commit.
//!
//! A state in memory is only ever a guess. The expected version that goes with each append makes it true: when another
//! process wrote in between, the append is refused, the guess is forgotten, and the command is decided again on what
//! the log says. Refusals by the domain go the same way, with an expected version and without events, so that nobody is
//! refused because of an event that was never committed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use daybook_domain::aggregate::Aggregate;
use daybook_domain::event::Event as _;
use daybook_domain::rejection::Rejection as _;
use daybook_event_store::{
    Direction, EventStore, NewCommand, NewEvent, Overloaded, Receipt, Submitted, Unanswered, Verdict,
};
use moka::sync::Cache;
use thiserror::Error;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::partitions::{Partition, Partitions};

/// How often a command is decided again because another process wrote to its aggregate, before the caller is told.
const ATTEMPTS_MAX: u32 = 16;

/// How many aggregates are kept in memory.
const MAILBOXES_MAX: u64 = 100_000;

/// Events in one read of a long stream.
const LOAD_EVENTS_MAX: u32 = 1_000;

/// An expected version that no stream has: the append is never made, and its verdict tells what the key was used for.
const NEVER: u64 = i64::MAX.cast_unsigned();

/// A command and what is recorded with it.
#[derive(Debug, Clone)]
pub struct Envelope<C> {
    /// The tenant's partition of the log.
    pub partition: i32,
    /// Whose aggregate it is.
    pub tenant_id: Uuid,
    /// The aggregate.
    pub stream_id: String,
    /// The caller's idempotency key.
    pub key: String,
    /// SHA-256 of the command's content.
    pub fingerprint: [u8; 32],
    /// The version that the caller expects the aggregate to have.
    pub expected_version: Option<u64>,
    /// [`daybook_event_store::Metadata`] as JSON.
    pub metadata: Arc<str>,
    /// The command.
    pub command: C,
}

/// What became of a command.
#[derive(Debug)]
pub struct Outcome {
    /// What was recorded; a refusal by the domain is in it.
    pub receipt: Receipt,
    /// Whether it was recorded before, under the same key.
    pub is_replay: bool,
}

/// Why a command has no outcome. Nothing was written, unless the outcome is unknown.
#[derive(Debug, Error)]
pub enum HandleError {
    /// The aggregate has another version than the caller expects.
    #[error("the aggregate is at version {actual}, not {expected}")]
    VersionConflict {
        /// What the caller expects.
        expected: u64,
        /// What it is.
        actual: u64,
    },
    /// The key was used before with other content.
    #[error("the idempotency key was used for another command")]
    KeyReused,
    /// There is no such aggregate.
    #[error("there is no such aggregate")]
    NotFound,
    /// This process does not serve the tenant's partition yet.
    #[error("this replica does not serve the tenant's partition")]
    NoPartition,
    /// Too much is waiting already, or others keep writing to the aggregate.
    #[error("there is too much to do")]
    Overloaded,
    /// The aggregate could not be loaded.
    #[error("cannot load the aggregate")]
    Load(#[source] Arc<LoadError>),
    /// There is no verdict on the append.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
}

impl From<Overloaded> for HandleError {
    fn from(_: Overloaded) -> Self {
        Self::Overloaded
    }
}

/// Why an aggregate could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] daybook_event_store::ReadError),
    /// An event could not be understood.
    #[error("cannot understand the event at position {position}")]
    Decode {
        /// Where it is.
        position: u64,
        /// What is wrong with it.
        #[source]
        source: daybook_domain::event::DecodeError,
    },
    /// The process is stopping.
    #[error("the load was given up")]
    GivenUp,
}

/// How the mailboxes fare.
#[derive(Debug, Default)]
pub struct MailboxMetrics {
    /// Commands that had to be decided again.
    pub retries: AtomicU64,
    /// Aggregates that were loaded from the log.
    pub loads: AtomicU64,
}

/// A tenant and one of its streams.
type StreamKey = (Uuid, String);

type SharedSlot<A> = Arc<Mutex<Slot<A>>>;

/// The mailboxes of one kind of aggregate.
pub struct Mailboxes<A: Aggregate> {
    partitions: Partitions,
    boxes: Cache<StreamKey, SharedSlot<A>>,
    metrics: Arc<MailboxMetrics>,
}

impl<A: Aggregate> fmt::Debug for Mailboxes<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailboxes")
            .field("category", &A::CATEGORY)
            .finish_non_exhaustive()
    }
}

/// What is believed of one aggregate.
struct Slot<S> {
    guess: Option<Guess<S>>,
    /// Counts the guesses that were given up, so that of many commands that were refused for the same wrong guess only
    /// the first gives it up.
    epoch: u64,
}

struct Guess<S> {
    state: S,
    version: u64,
}

impl<S: Default> Guess<S> {
    fn of_nothing() -> Self {
        Self {
            state: S::default(),
            version: 0,
        }
    }
}

/// A command on its way into the log, and what it was decided on.
struct Attempt {
    submitted: Submitted,
    kind: Kind,
    epoch: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It carries events, and the guess has taken them in.
    Events,
    /// It carries a refusal to be remembered.
    Refusal,
    /// It asks whether the key was used, for a command whose caller expects another version.
    VersionProbe { expected: u64 },
    /// It asks whether the key was used, for a command on an aggregate that seems not to exist.
    ExistenceProbe,
}

/// What is to be done after a verdict.
enum Next {
    Done(Outcome),
    DecideAgain,
}

impl<A: Aggregate> Mailboxes<A> {
    /// Loads from and appends to `partitions`, and counts in `metrics`.
    pub fn new(partitions: Partitions, metrics: Arc<MailboxMetrics>) -> Self {
        Self {
            partitions,
            boxes: Cache::new(MAILBOXES_MAX),
            metrics,
        }
    }

    /// Decides a command, appends what it leads to, and waits for the verdict.
    ///
    /// When the future is dropped the command may be recorded all the same; its key finds out.
    pub async fn handle(&self, envelope: &Envelope<A::Command>) -> Result<Outcome, HandleError> {
        let partition = self
            .partitions
            .get(envelope.partition)
            .ok_or(HandleError::NoPartition)?;
        let slot = self.slot(envelope);
        for _ in 0..ATTEMPTS_MAX {
            let attempt = self.decide_and_submit(partition, &slot, envelope).await?;
            let (kind, epoch) = (attempt.kind, attempt.epoch);
            let verdict = attempt.submitted.verdict().await;
            let is_guess_wrong = match &verdict {
                Ok(Verdict::Appended(_)) => false,
                Ok(Verdict::Replayed(_) | Verdict::KeyReused) => kind == Kind::Events,
                Ok(Verdict::Conflict { .. } | Verdict::Deferred) | Err(_) => true,
            };
            if is_guess_wrong {
                forget(&slot, epoch).await;
            }
            match next(verdict?, kind)? {
                Next::Done(outcome) => return Ok(outcome),
                Next::DecideAgain => self.metrics.retries.fetch_add(1, Ordering::Relaxed),
            };
        }
        Err(HandleError::Overloaded)
    }

    fn slot(&self, envelope: &Envelope<A::Command>) -> SharedSlot<A> {
        let key = (envelope.tenant_id, envelope.stream_id.clone());
        self.boxes.get_with(key, || {
            Arc::new(Mutex::new(Slot {
                guess: None,
                epoch: 0,
            }))
        })
    }

    /// Decides on the newest guess and submits, in the order in which commands come to the mailbox.
    async fn decide_and_submit(
        &self,
        partition: &Partition,
        slot: &Mutex<Slot<A>>,
        envelope: &Envelope<A::Command>,
    ) -> Result<Attempt, HandleError> {
        let mut slot = slot.lock().await;
        let epoch = slot.epoch;
        let guess = match &mut slot.guess {
            Some(guess) => guess,
            none => none.insert(self.first_guess(partition, envelope, epoch).await?),
        };
        let (command, events, kind) = Self::decide(guess, envelope);
        let submitted = partition.appender.submit(command)?;
        guess.version += events.len() as u64;
        for event in &events {
            guess.state = std::mem::take(&mut guess.state).evolve(event);
        }
        Ok(Attempt {
            submitted,
            kind,
            epoch,
        })
    }

    /// A command that opens an aggregate is decided on nothing, without a look at the log; once that proved wrong the log
    /// is asked.
    async fn first_guess(
        &self,
        partition: &Partition,
        envelope: &Envelope<A::Command>,
        epoch: u64,
    ) -> Result<Guess<A>, HandleError> {
        if epoch == 0 && A::opens(&envelope.command) {
            return Ok(Guess::of_nothing());
        }
        self.metrics.loads.fetch_add(1, Ordering::Relaxed);
        let (store, partition) = (partition.store.clone(), envelope.partition);
        let (tenant_id, stream_id) = (envelope.tenant_id, envelope.stream_id.clone());
        // A task of its own: this future may be dropped when its caller goes away, a read under way must not.
        let load = tokio::spawn(async move { load::<A>(&store, tenant_id, partition, &stream_id).await });
        load.await
            .unwrap_or(Err(LoadError::GivenUp))
            .map_err(|error| HandleError::Load(Arc::new(error)))
    }

    fn decide(guess: &Guess<A>, envelope: &Envelope<A::Command>) -> (NewCommand, Vec<A::Event>, Kind) {
        let mut append = NewCommand {
            tenant_id: envelope.tenant_id,
            key: envelope.key.clone(),
            fingerprint: envelope.fingerprint,
            stream_id: envelope.stream_id.clone(),
            category: A::CATEGORY,
            expected_version: Some(guess.version),
            metadata: Arc::clone(&envelope.metadata),
            events: Vec::new(),
            rejection: None,
        };
        if let Some(expected) = envelope.expected_version
            && expected != guess.version
        {
            append.expected_version = Some(NEVER);
            return (append, Vec::new(), Kind::VersionProbe { expected });
        }
        match guess.state.decide(envelope.command.clone()) {
            Ok(events) => {
                append.events = events.iter().map(new_event::<A>).collect();
                (append, events, Kind::Events)
            }
            Err(rejection) => {
                if !rejection.is_not_found() {
                    let remembered = serde_json::to_string(&rejection);
                    append.rejection =
                        Some(remembered.expect("a rejection has string keys and plain values"));
                    return (append, Vec::new(), Kind::Refusal);
                }
                append.expected_version = Some(NEVER);
                (append, Vec::new(), Kind::ExistenceProbe)
            }
        }
    }
}

fn new_event<A: Aggregate>(event: &A::Event) -> NewEvent {
    NewEvent {
        event_id: Uuid::now_v7(),
        event_type: event.event_type(),
        schema_version: event.schema_version(),
        payload: event.encode(),
    }
}

fn next(verdict: Verdict, kind: Kind) -> Result<Next, HandleError> {
    match verdict {
        Verdict::Appended(receipt) => Ok(Next::Done(Outcome {
            receipt,
            is_replay: false,
        })),
        Verdict::Replayed(receipt) => Ok(Next::Done(Outcome {
            receipt,
            is_replay: true,
        })),
        Verdict::KeyReused => Err(HandleError::KeyReused),
        Verdict::Deferred => Ok(Next::DecideAgain),
        Verdict::Conflict { actual_version } => match kind {
            Kind::VersionProbe { expected } if actual_version != expected => {
                Err(HandleError::VersionConflict {
                    expected,
                    actual: actual_version,
                })
            }
            Kind::ExistenceProbe if actual_version == 0 => Err(HandleError::NotFound),
            Kind::Events | Kind::Refusal | Kind::VersionProbe { .. } | Kind::ExistenceProbe => {
                Ok(Next::DecideAgain)
            }
        },
    }
}

/// Gives a guess up that proved wrong, unless that was done already.
async fn forget<S>(slot: &Mutex<Slot<S>>, epoch: u64) {
    let mut slot = slot.lock().await;
    if slot.epoch == epoch {
        slot.guess = None;
        slot.epoch += 1;
    }
}

async fn load<A: Aggregate>(
    store: &EventStore,
    tenant_id: Uuid,
    partition: i32,
    stream_id: &str,
) -> Result<Guess<A>, LoadError> {
    let mut guess: Guess<A> = Guess::of_nothing();
    loop {
        let versions = guess.version + 1..=u64::MAX;
        let events = store
            .read_stream(
                tenant_id,
                partition,
                stream_id,
                versions,
                LOAD_EVENTS_MAX,
                Direction::Forward,
            )
            .await?;
        for event in &events {
            let position = event.position;
            let event = A::Event::decode(&event.event_type, event.schema_version, &event.payload)
                .map_err(|source| LoadError::Decode { position, source })?;
            guess.state = guess.state.evolve(&event);
            guess.version += 1;
        }
        if events.len() < LOAD_EVENTS_MAX as usize {
            return Ok(guess);
        }
    }
}
