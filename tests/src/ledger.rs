//! The external ledger: every command that was sent, and what its caller was told.
//!
//! A call that was not answered, or was answered with a failure of the service, is *unknown* and never failed: the
//! command may have been recorded all the same.

use std::collections::HashMap;
use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{anyhow, ensure};
use daybook_event_store::RecordedEvent;
use daybook_proto::common::v1::Receipt;
use daybook_simulation::meaning::Streams;
use tonic::Status;
use uuid::Uuid;

use crate::client::Caller;
use crate::command::Command;
use crate::refusal;

/// What the caller of a command knows about it.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It was recorded, and this is its receipt.
    Accepted(Receipt),
    /// It was refused, with this code of the catalogue.
    Refused(String),
    /// There was no answer that tells.
    Unknown,
}

/// A command and its outcome.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What became of it.
    pub outcome: Outcome,
    /// The request as it goes over the wire: a long run has a million of them.
    request: Box<[u8]>,
    leads_to: fn(&[u8], &Streams, &RecordedEvent) -> anyhow::Result<()>,
}

impl Entry {
    fn new<C: Command>(command: &C, outcome: Outcome) -> Self {
        Self {
            outcome,
            request: command.encode_to_vec().into(),
            leads_to: leads_to::<C>,
        }
    }

    /// Checks that the command leads to an event, the next one of a log that was read so far.
    ///
    /// # Errors
    /// When it leads to something else.
    pub fn leads_to(&self, streams: &Streams, recorded: &RecordedEvent) -> anyhow::Result<()> {
        (self.leads_to)(&self.request, streams, recorded)
    }
}

fn leads_to<C: Command>(request: &[u8], streams: &Streams, recorded: &RecordedEvent) -> anyhow::Result<()> {
    let addressed = C::decode(request)?.into_command(Uuid::now_v7);
    let (id, command) = addressed.map_err(|violations| anyhow!("it is not valid: {violations:?}"))?;
    ensure!(
        id.to_string() == recorded.stream_id,
        "it is for {id}, and its event is in {}",
        recorded.stream_id
    );
    streams.leads_to::<C::Aggregate>(command, recorded)
}

/// How many commands there are of each outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Recorded.
    pub accepted: usize,
    /// Refused.
    pub refused: usize,
    /// Nobody knows.
    pub unknown: usize,
}

impl Tally {
    /// Commands whose outcome is known.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.accepted + self.refused
    }

    fn of(&mut self, outcome: &Outcome) -> &mut usize {
        match outcome {
            Outcome::Accepted(_) => &mut self.accepted,
            Outcome::Refused(_) => &mut self.refused,
            Outcome::Unknown => &mut self.unknown,
        }
    }
}

/// All commands of a test, by idempotency key. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    /// Counted along: a long run has a million entries and is asked all the time how far it is.
    tally: Arc<Mutex<Tally>>,
}

impl Ledger {
    /// Sends a command, and notes the answer.
    ///
    /// # Errors
    /// The status of the refusal.
    pub async fn send(&self, caller: &Caller, command: impl Command) -> Result<Receipt, Status> {
        let answer = caller.send(command.clone()).await;
        self.note(&command, &answer);
        answer
    }

    /// Takes in another ledger, of other commands.
    pub fn absorb(&self, other: &Self) {
        let others = other.entries().clone();
        for (key, entry) in others {
            let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
            *tally.of(&entry.outcome) += 1;
            drop(tally);
            self.entries().insert(key, entry);
        }
    }

    /// Data were put back: what was accepted up to now may be gone.
    pub fn doubt(&self) {
        let mut entries = self.entries();
        let accepted = entries
            .values_mut()
            .filter(|entry| matches!(entry.outcome, Outcome::Accepted(_)));
        let doubted = accepted.map(|entry| entry.outcome = Outcome::Unknown).count();
        let mut tally = lock(&self.tally);
        tally.accepted -= doubted;
        tally.unknown += doubted;
    }

    /// Notes the answer to a command, and returns what this answer alone says. What was once known stays so; a command that is sent again after it was accepted
    /// must be answered with an equal receipt. A refusal that no key remembers (a version conflict, say) is about this
    /// send only: what became of an earlier one stays unknown.
    ///
    /// # Panics
    /// When two answers to one command contradict each other, and when a service says that it has a fault: whatever is
    /// done to the servers, that is never the answer.
    pub fn note(&self, command: &impl Command, answer: &Result<Receipt, Status>) -> Outcome {
        let said = match answer {
            Ok(receipt) => Outcome::Accepted(receipt.clone()),
            Err(status) if refusal::code(status) == "INTERNAL" => {
                panic!("a fault of the service: {status:?}")
            }
            Err(status) if refusal::is_unknown(status) => Outcome::Unknown,
            Err(status) => Outcome::Refused(refusal::code(status)),
        };
        let is_of_this_send = answer
            .as_ref()
            .is_err_and(|status| !refusal::is_remembered(status));
        let mut entries = self.entries();
        let mut tally = lock(&self.tally);
        let outcome = said.clone();
        match entries.entry(command.request_id().to_owned()) {
            Vacant(place) => {
                *tally.of(&outcome) += 1;
                place.insert(Entry::new(command, outcome));
            }
            Occupied(mut place) => match (&place.get().outcome, outcome) {
                (_, Outcome::Unknown) => {}
                (Outcome::Unknown, Outcome::Refused(_)) if is_of_this_send => {}
                (Outcome::Unknown, known) => {
                    tally.unknown -= 1;
                    *tally.of(&known) += 1;
                    place.get_mut().outcome = known;
                }
                (before, outcome) => {
                    assert_eq!(*before, outcome, "two answers to {}", command.request_id());
                }
            },
        }
        said
    }

    /// Every command with its outcome, by idempotency key. Nobody can note anything as long as this is held.
    pub fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        lock(&self.entries)
    }

    /// How many there are of each outcome.
    #[must_use]
    pub fn tally(&self) -> Tally {
        *lock(&self.tally)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::confirm;

    #[test]
    fn a_refusal_that_no_key_remembers_leaves_an_earlier_send_unknown_and_one_that_is_remembered_does_not() {
        let ledger = Ledger::default();
        let answers = |refusal: Status| {
            let command = confirm("ord_1");
            ledger.note(&command, &Err(Status::unavailable("no answer")));
            ledger.note(&command, &Err(refusal));
            ledger.tally()
        };
        assert_eq!(answers(Status::aborted("another version")).unknown, 1);
        assert_eq!(answers(Status::not_found("not yet")).unknown, 2);
        assert_eq!(answers(Status::resource_exhausted("too much")).unknown, 3);
        let tally = answers(Status::failed_precondition("a rule"));
        assert_eq!((tally.unknown, tally.refused, tally.accepted), (3, 1, 0));
    }
}
