//! The external ledger: every command that was sent, and what its caller was told.
//!
//! A call that was not answered, or was answered with a trouble of the service, is *unknown* and never failed: the
//! command may have been recorded all the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use daybook_proto::common::v1::Receipt;
use tonic::Status;

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
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The aggregate that it was for.
    pub stream_id: String,
    /// What became of it.
    pub outcome: Outcome,
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

/// All commands of a test, by idempotency key. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<HashMap<String, Entry>>>);

impl Ledger {
    /// Notes the answer to a command. What was once known stays so; a command that is sent again after it was accepted
    /// must be answered with an equal receipt.
    ///
    /// # Panics
    /// When two answers to one command contradict each other, and when a service says that it has a fault: whatever is
    /// done to the servers, that is never the answer.
    pub fn note(&self, command: &impl Command, answer: &Result<Receipt, Status>) {
        let outcome = match answer {
            Ok(receipt) => Outcome::Accepted(receipt.clone()),
            Err(status) if refusal::code(status) == "INTERNAL" => {
                panic!("a fault of the service: {status:?}")
            }
            Err(status) if refusal::is_unknown(status) => Outcome::Unknown,
            Err(status) => Outcome::Refused(refusal::code(status)),
        };
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries
            .entry(command.request_id().to_owned())
            .or_insert_with(|| Entry {
                stream_id: command.stream_id().to_owned(),
                outcome: Outcome::Unknown,
            });
        match (&entry.outcome, outcome) {
            (Outcome::Unknown, outcome) => entry.outcome = outcome,
            (_, Outcome::Unknown) => {}
            (before, outcome) => assert_eq!(*before, outcome, "two answers to {}", command.request_id()),
        }
    }

    /// Every command with its outcome.
    #[must_use]
    pub fn entries(&self) -> HashMap<String, Entry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many there are of each outcome.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tally = Tally::default();
        for entry in entries.values() {
            match entry.outcome {
                Outcome::Accepted(_) => tally.accepted += 1,
                Outcome::Refused(_) => tally.refused += 1,
                Outcome::Unknown => tally.unknown += 1,
            }
        }
        tally
    }
}
