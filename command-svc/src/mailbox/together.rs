//! Commands that are recorded together: the items of a batch, each of which begins an aggregate of its own.
//!
//! All are decided on nothing, without a look at the log, and are appended as one group, which stands as a whole or not at all.
//! Where it does not, because an aggregate is there already, that one is loaded, and all are decided again. So whatever crashes,
//! and whichever replica is sent the same batch again, the keys of a batch are known together or not at all: an answer is made
//! of what is remembered under them.
//!
//! Mailboxes are passed by. They hold states of aggregates that are there, and these are not; where one is wrong about that, the
//! append says so.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use daybook_domain::aggregate::Aggregate;
use daybook_event_store::{
    Answer, Appender, Decision, Intent, NewCommand, Newest, Permit, Receipt, Unanswered, Verdict,
};
use tokio::sync::oneshot;

use super::cached::Cached;
use super::load::load;
use super::slot::message;
use super::{Envelope, HandleError, Mailboxes, Outcome};
use crate::partitions::Partition;

/// How often a batch is decided before its caller is told that others keep writing.
const ATTEMPTS_MAX: u32 = 8;

/// How a refused command affects the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Together {
    /// Nothing of it is done.
    AllOrNothing,
    /// All others are done.
    EachByItself,
}

/// What became of a command of a batch.
#[derive(Debug, Clone)]
pub enum OfBatch {
    /// It was recorded; a refusal by the domain is.
    Recorded(Outcome),
    /// It was refused, and nothing was recorded: the aggregate has another version than the caller expects.
    Refused(HandleError),
    /// Another one was refused, so this one was not recorded.
    NotDone,
}

/// The verdict on a command that was submitted, by its index.
type Judged = (usize, Verdict);

impl<A: Aggregate> Mailboxes<A> {
    /// Decides commands of one tenant, each of which begins an aggregate of its own, and appends what they lead to at once.
    ///
    /// When the future is dropped the commands may be recorded all the same; their keys find out.
    ///
    /// # Errors
    /// See [`HandleError`]: then nothing was recorded, unless the outcome is unknown.
    pub async fn handle_together(
        &self,
        envelopes: Vec<Envelope<A::Command>>,
        together: Together,
    ) -> Result<Vec<OfBatch>, HandleError> {
        let Some(first) = envelopes.first() else {
            return Ok(Vec::new());
        };
        let partition = self.partition(first.partition)?.clone();
        let permits = envelopes.iter().map(|envelope| {
            partition
                .appender
                .admit(envelope.tenant_id, envelope.request_bytes)
        });
        let _permits: Vec<Permit> = permits.collect::<Result<_, _>>()?;
        let mut states: Vec<Cached<A>> = envelopes.iter().map(|_| Cached::new()).collect();
        for _ in 0..ATTEMPTS_MAX {
            let decided = decide_all(&states, &envelopes)?;
            let mut outcomes = vec![OfBatch::NotDone; envelopes.len()];
            let to_append = sort_out(decided, together, &mut outcomes);
            let judged = append(&partition.appender, A::CATEGORY, &envelopes, to_append).await?;
            let stale = take_in(judged, together, &mut outcomes)?;
            if stale.is_empty() {
                return Ok(outcomes);
            }
            for (index, newest) in stale {
                if newest.event_id != states[index].newest() {
                    states[index] = self.load_for(&partition, &envelopes[index]).await?;
                }
            }
        }
        Err(HandleError::Contended)
    }

    async fn load_for(
        &self,
        partition: &Partition,
        envelope: &Envelope<A::Command>,
    ) -> Result<Cached<A>, HandleError> {
        self.metrics.loads.inc();
        let (tenant_id, stream_id) = envelope.stream();
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

/// Decides each command on the state of its aggregate; an error for one whose aggregate has another version than it expects.
fn decide_all<A: Aggregate>(
    states: &[Cached<A>],
    envelopes: &[Envelope<A::Command>],
) -> Result<Vec<Result<Decision, HandleError>>, HandleError> {
    let both = states.iter().zip(envelopes);
    both.map(|(state, envelope)| {
        let actual = state.version();
        if let Some(expected) = envelope.expected_version.filter(|expected| *expected != actual) {
            return Ok(Err(HandleError::VersionConflict { expected, actual }));
        }
        match catch_unwind(AssertUnwindSafe(|| state.clone().decide(envelope))) {
            Ok(decision) => Ok(decision.ok_or(HandleError::NotFound)),
            Err(panic) => Err(HandleError::Panicked(message(&*panic))),
        }
    })
    .collect()
}

/// Notes what is refused without being recorded, and gives what is to be recorded: all, or, where all or nothing is asked for and
/// something is refused, the refusals.
fn sort_out(
    decided: Vec<Result<Decision, HandleError>>,
    together: Together,
    outcomes: &mut [OfBatch],
) -> Vec<(usize, Decision)> {
    let mut decisions = Vec::with_capacity(decided.len());
    let mut is_refused = false;
    for (index, decided) in decided.into_iter().enumerate() {
        match decided {
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
    if is_refused && together == Together::AllOrNothing {
        decisions.retain(|(_, decision)| decision.rejection.is_some());
        // When the batch is sent again, this is all that is known of it.
        if !decisions.is_empty() {
            outcomes.fill(OfBatch::NotDone);
        }
    }
    decisions
}

async fn append<C>(
    appender: &Appender,
    category: &'static str,
    envelopes: &[Envelope<C>],
    to_append: Vec<(usize, Decision)>,
) -> Result<Vec<Judged>, HandleError> {
    let mut commands: Vec<(NewCommand, Box<dyn Answer>)> = Vec::with_capacity(to_append.len());
    let mut verdicts = Vec::with_capacity(to_append.len());
    for (index, decision) in to_append {
        let envelope = &envelopes[index];
        let (answer, verdict) = oneshot::channel();
        let command = NewCommand {
            tenant_id: envelope.tenant_id,
            key: Arc::clone(&envelope.key),
            fingerprints: envelope.fingerprints.clone(),
            stream_id: Arc::clone(&envelope.stream_id),
            category,
            group: None,
            intent: Intent::Write(decision),
        };
        commands.push((command, Box::new(|verdict| drop(answer.send(verdict)))));
        verdicts.push((index, verdict));
    }
    appender.submit_together(commands);
    let mut judged = Vec::with_capacity(verdicts.len());
    for (index, verdict) in verdicts {
        judged.push((index, verdict.await.unwrap_or(Err(Unanswered::Stopped))?));
    }
    Ok(judged)
}

/// Notes what is recorded. Where none of it is, but should be, gives what stood in the way.
fn take_in(
    judged: Vec<Judged>,
    together: Together,
    outcomes: &mut [OfBatch],
) -> Result<Vec<(usize, Newest)>, HandleError> {
    let mut conflicts = Vec::new();
    let mut is_recorded = false;
    let mut record = |index: usize, receipt: Receipt, is_replay| {
        outcomes[index] = OfBatch::Recorded(Outcome { receipt, is_replay });
        is_recorded = true;
    };
    for (index, verdict) in judged {
        match verdict {
            Verdict::Appended(receipt) => record(index, receipt, false),
            Verdict::Replayed(receipt) => record(index, receipt, true),
            Verdict::KeyReused => return Err(HandleError::KeyReused),
            Verdict::Conflict(newest) | Verdict::KeyIsNew(newest) => conflicts.push((index, newest)),
        }
    }
    if !is_recorded {
        return Ok(conflicts);
    }
    // The batch was answered before, and what it did not record then is not recorded now: of what is each by itself, commands that
    // expect an aggregate not to be there.
    if together == Together::EachByItself {
        for (index, newest) in conflicts {
            let (expected, actual) = (0, newest.version);
            outcomes[index] = OfBatch::Refused(HandleError::VersionConflict { expected, actual });
        }
    }
    Ok(Vec::new())
}
