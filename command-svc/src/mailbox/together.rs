//! Commands that are recorded together: the items of a batch, each of which begins an aggregate of its own.
//!
//! All are decided on nothing, without a look at the log, and are appended as one group, which stands as a whole or not at all.
//! Where it does not, because an aggregate is there already, that one is loaded, and all are decided again.
//!
//! The batch's own key is in the group, too, as that of a command without events. So whatever crashes, and whichever replica is
//! sent the same batch again, the keys of a batch are known together or not at all; and another batch under a known key is refused.
//! A batch whose key is known is answered from what is remembered of its items alone: this program may have stricter rules than
//! the one that recorded them.
//!
//! Mailboxes are passed by. They hold states of aggregates that are there, and these are not; where one is wrong about that, the
//! append says so.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use daybook_domain::aggregate::Aggregate;
use daybook_event_store::{
    Answer, Appender, Decision, Intent, NewCommand, Newest, Permit, Unanswered, Verdict,
};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::cached::Cached;
use super::load::load;
use super::slot::message;
use super::{Envelope, HandleError, Mailboxes, Outcome};
use crate::partitions::Partition;

/// How often a batch is decided before its caller is told that others keep writing.
const ATTEMPTS_MAX: u32 = 8;

/// How a refused item affects its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Together {
    /// Nothing of it is done.
    AllOrNothing,
    /// All others are done.
    EachByItself,
}

/// Commands of one tenant that are recorded together.
#[derive(Debug, Clone)]
pub struct NewBatch<C> {
    /// The tenant's partition of the log.
    pub partition: i32,
    /// Whose aggregates are begun.
    pub tenant_id: Uuid,
    /// The key of the whole, and its content.
    pub identity: Identity,
    /// How a refused item affects it.
    pub together: Together,
    /// The items, each for an aggregate of its own.
    pub items: Vec<Item<C>>,
}

/// An item of a batch.
#[derive(Debug, Clone)]
pub enum Item<C> {
    /// A command.
    Valid(Envelope<C>),
    /// One that is not valid. It may have been when the batch first came.
    Invalid(Identity),
}

/// What a batch, or an item of it, is known by.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The idempotency key.
    pub key: Arc<str>,
    /// Keyed hashes of the content; the first is stored.
    pub fingerprints: Vec<i64>,
}

/// What became of an item of a batch.
#[derive(Debug, Clone)]
pub enum OfBatch {
    /// It was recorded; a refusal by the domain is.
    Recorded(Outcome),
    /// It was refused, and nothing was recorded: the aggregate has another version than the caller expects.
    Refused(HandleError),
    /// It was not recorded: it is not valid, or was not when the batch first came, or another item was refused.
    NotDone,
}

/// The verdict on an item, by its index; on the batch's own key without one.
type Judged = (Option<usize>, Verdict);

/// What is to be recorded of items, by their index, and what became of each item so far.
type Decided = (Vec<(usize, Decision)>, Vec<OfBatch>);

/// Items that are not recorded, by their index, and the newest events of their streams.
type Missing = Vec<(usize, Newest)>;

impl<A: Aggregate> Mailboxes<A> {
    /// Decides the commands of a batch, and appends what they lead to at once.
    ///
    /// When the future is dropped the commands may be recorded all the same; their keys find out.
    ///
    /// # Errors
    /// See [`HandleError`]: then nothing was recorded, unless the outcome is unknown.
    pub async fn handle_together(&self, batch: NewBatch<A::Command>) -> Result<Vec<OfBatch>, HandleError> {
        let partition = self.partition(batch.partition)?.clone();
        let appender = &partition.appender;
        let _permits = batch.admit(appender)?;
        let mut states: Vec<Cached<A>> = batch.items.iter().map(|_| Cached::new()).collect();
        for _ in 0..ATTEMPTS_MAX {
            let (decisions, mut outcomes) = batch.decide(&states)?;
            let judged = batch
                .judge(appender, A::CATEGORY, batch.to_append(decisions))
                .await?;
            let is_known = judged
                .iter()
                .any(|(_, verdict)| matches!(verdict, Verdict::Replayed(_)));
            let missing = take_in(judged, &mut outcomes)?;
            if is_known {
                batch
                    .recall(appender, A::CATEGORY, missing, &mut outcomes)
                    .await?;
                return Ok(outcomes);
            }
            if missing.is_empty() {
                return Ok(outcomes);
            }
            for (index, newest) in missing {
                if newest.event_id != states[index].newest() {
                    let stream_id = batch.stream_id(Some(index));
                    states[index] = self.load_for(&partition, batch.tenant_id, stream_id).await?;
                }
            }
        }
        Err(HandleError::Contended)
    }

    async fn load_for(
        &self,
        partition: &Partition,
        tenant_id: Uuid,
        stream_id: Arc<str>,
    ) -> Result<Cached<A>, HandleError> {
        self.metrics.loads.inc();
        let _place = partition
            .loads
            .place(tenant_id)
            .await
            .expect("no load is refused");
        let log = Arc::clone(&partition.streams);
        let loaded = load(log, tenant_id, partition.appender.partition(), stream_id, None).await;
        loaded.map_err(|error| HandleError::Load(Arc::new(error)))
    }
}

impl<C: Clone> NewBatch<C> {
    /// Takes a place for each command, and one for the batch's own key.
    fn admit(&self, appender: &Appender) -> Result<Vec<Permit>, HandleError> {
        let commands = self.items.iter().filter_map(|item| match item {
            Item::Valid(envelope) => Some(envelope.request_bytes),
            Item::Invalid(_) => None,
        });
        let permits = commands
            .chain([0])
            .map(|bytes| appender.admit(self.tenant_id, bytes));
        Ok(permits.collect::<Result<_, _>>()?)
    }

    /// Decides each command on the state of its aggregate. What is to be recorded: all decisions, or, where all or nothing is
    /// asked for and something is refused, the refusals; none, where an item is not valid then. And what is refused without
    /// being recorded.
    fn decide<A>(&self, states: &[Cached<A>]) -> Result<Decided, HandleError>
    where
        A: Aggregate<Command = C>,
    {
        let is_atomic = self.together == Together::AllOrNothing;
        let (mut decisions, mut outcomes) = (Vec::new(), vec![OfBatch::NotDone; self.items.len()]);
        if is_atomic && self.items.iter().any(|item| matches!(item, Item::Invalid(_))) {
            return Ok((decisions, outcomes));
        }
        let mut is_refused = false;
        for (index, (item, state)) in self.items.iter().zip(states).enumerate() {
            let Item::Valid(envelope) = item else { continue };
            match decide(state, envelope)? {
                Ok(decision) => {
                    is_refused |= decision.rejection.is_some();
                    decisions.push((index, decision));
                }
                Err(error) => {
                    is_refused = true;
                    outcomes[index] = OfBatch::Refused(error);
                }
            }
        }
        if is_refused && is_atomic {
            decisions.retain(|(_, decision)| decision.rejection.is_some());
            // When the batch is sent again, this is all that is known of it.
            if !decisions.is_empty() {
                outcomes.fill(OfBatch::NotDone);
            }
        }
        Ok((decisions, outcomes))
    }

    /// The batch's own key and what was decided. Where nothing is to be recorded, only whether the key is known is asked.
    fn to_append(&self, decisions: Vec<(usize, Decision)>) -> Vec<(Option<usize>, Intent)> {
        let own = match decisions.is_empty() {
            true => Intent::Ask,
            false => Intent::Write(Decision {
                decided_on: None,
                metadata: "{}".into(),
                events: Vec::new(),
                rejection: None,
            }),
        };
        let decisions = decisions.into_iter();
        let of_items = decisions.map(|(index, decision)| (Some(index), Intent::Write(decision)));
        [(None, own)].into_iter().chain(of_items).collect()
    }

    /// Notes what is remembered of a batch whose key is known, and is asked for where it was not judged with it.
    async fn recall(
        &self,
        appender: &Appender,
        category: &'static str,
        mut missing: Missing,
        outcomes: &mut [OfBatch],
    ) -> Result<(), HandleError> {
        let is_judged = |index: &usize| {
            matches!(outcomes[*index], OfBatch::Recorded(_)) || missing.iter().any(|(one, _)| one == index)
        };
        let others = (0..self.items.len()).filter(|index| !is_judged(index));
        let questions = others.map(|index| (Some(index), Intent::Ask)).collect();
        let judged = self.judge(appender, category, questions).await?;
        missing.extend(take_in(judged, outcomes)?);
        // What was not recorded then is not recorded now: of what is each by itself, commands that expect an aggregate not to be
        // there, and what was not valid.
        if self.together == Together::EachByItself {
            for (index, newest) in missing.into_iter().filter(|(_, newest)| newest.version > 0) {
                let (expected, actual) = (0, newest.version);
                outcomes[index] = OfBatch::Refused(HandleError::VersionConflict { expected, actual });
            }
        }
        Ok(())
    }

    /// Submits a group and waits for the verdicts.
    async fn judge(
        &self,
        appender: &Appender,
        category: &'static str,
        group: Vec<(Option<usize>, Intent)>,
    ) -> Result<Vec<Judged>, HandleError> {
        let mut commands: Vec<(NewCommand, Box<dyn Answer>)> = Vec::with_capacity(group.len());
        let mut verdicts = Vec::with_capacity(group.len());
        for (item, intent) in group {
            let (key, fingerprints) = self.identity(item);
            let command = NewCommand {
                tenant_id: self.tenant_id,
                key,
                fingerprints,
                stream_id: self.stream_id(item),
                category,
                group: None,
                intent,
            };
            let (answer, verdict) = oneshot::channel();
            commands.push((command, Box::new(|verdict| drop(answer.send(verdict)))));
            verdicts.push((item, verdict));
        }
        appender.submit_together(commands);
        let mut judged = Vec::with_capacity(verdicts.len());
        for (item, verdict) in verdicts {
            judged.push((item, verdict.await.unwrap_or(Err(Unanswered::Stopped))?));
        }
        Ok(judged)
    }

    fn identity(&self, item: Option<usize>) -> (Arc<str>, Vec<i64>) {
        let (key, fingerprints) = match item.map(|index| &self.items[index]) {
            Some(Item::Valid(envelope)) => (&envelope.key, &envelope.fingerprints),
            Some(Item::Invalid(identity)) => (&identity.key, &identity.fingerprints),
            None => (&self.identity.key, &self.identity.fingerprints),
        };
        (Arc::clone(key), fingerprints.clone())
    }

    /// The stream of an item. That of the batch itself never has events; it is its own, so that batches need not wait for one
    /// another, and comes before those of aggregates, so that the append knows without a look which of them are new.
    fn stream_id(&self, item: Option<usize>) -> Arc<str> {
        match item.map(|index| &self.items[index]) {
            Some(Item::Valid(envelope)) => Arc::clone(&envelope.stream_id),
            Some(Item::Invalid(_)) => "".into(),
            None => format!("batch/{}", self.identity.key).into(),
        }
    }
}

/// Decides a command; an error where its aggregate has another version than it expects.
fn decide<A: Aggregate>(
    state: &Cached<A>,
    envelope: &Envelope<A::Command>,
) -> Result<Result<Decision, HandleError>, HandleError> {
    let actual = state.version();
    if let Some(expected) = envelope.expected_version.filter(|expected| *expected != actual) {
        return Ok(Err(HandleError::VersionConflict { expected, actual }));
    }
    match catch_unwind(AssertUnwindSafe(|| state.clone().decide(envelope))) {
        Ok(decision) => Ok(decision.ok_or(HandleError::NotFound)),
        Err(panic) => Err(HandleError::Panicked(message(&*panic))),
    }
}

/// Notes what is recorded, and gives what is not.
fn take_in(judged: Vec<Judged>, outcomes: &mut [OfBatch]) -> Result<Missing, HandleError> {
    let mut missing = Vec::new();
    for (item, verdict) in judged {
        let (receipt, is_replay) = match verdict {
            Verdict::Appended(receipt) => (receipt, false),
            Verdict::Replayed(receipt) => (receipt, true),
            Verdict::KeyReused => return Err(HandleError::KeyReused),
            Verdict::Conflict(newest) | Verdict::KeyIsNew(newest) => {
                missing.extend(item.map(|index| (index, newest)));
                continue;
            }
        };
        if let Some(index) = item {
            outcomes[index] = OfBatch::Recorded(Outcome { receipt, is_replay });
        }
    }
    Ok(missing)
}
