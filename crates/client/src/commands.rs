//! Sends commands until their outcome is known.

use daybook_proto::common::v1::Receipt;
use tokio::time::sleep;

use crate::command::is_replay;
use crate::retry::{Attempts, GIVE_UP_AFTER};
use crate::{Authorized, Command, Failure, Refusal, new_key};

/// A caller of the command service. Cheap to clone; clones share their connection.
#[derive(Debug, Clone)]
pub struct Commands {
    connection: Authorized,
}

/// A command that was accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct Sent {
    /// What the service answered.
    pub receipt: Receipt,
    /// Whether the command had been accepted before, by another attempt or another caller with the same key.
    pub is_replay: bool,
}

impl Commands {
    /// A caller on a connection to the command service.
    #[must_use]
    pub fn new(connection: Authorized) -> Self {
        Self { connection }
    }

    /// Sends a command until it is accepted or refused for good, or its time is up. Without an idempotency key it gets a new one;
    /// every attempt is sent under the same.
    ///
    /// # Errors
    /// [`Failure::CommandRefused`] where it certainly changed nothing, [`Failure::Unknown`] where it may have: send the same
    /// command under the key that this names to find out.
    pub async fn send(&self, command: impl Command) -> Result<Receipt, Failure> {
        Ok(self.send_and_tell(command).await?.receipt)
    }

    /// Sends a command like [`Self::send`], and also tells whether it had been accepted before.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn send_and_tell(&self, mut command: impl Command) -> Result<Sent, Failure> {
        if command.request_id().is_empty() {
            command.set_request_id(new_key());
        }
        let mut attempts = Attempts::new(GIVE_UP_AFTER);
        let mut may_be_recorded = false;
        loop {
            let attempt = command
                .clone()
                .send_once(self.connection.clone(), attempts.patience());
            let refusal = match attempt.await {
                Ok(response) => {
                    let is_replay = is_replay(&response);
                    let receipt = response.into_inner();
                    return Ok(Sent { receipt, is_replay });
                }
                Err(status) => Refusal::from(status),
            };
            may_be_recorded = refusal.leaves_open(may_be_recorded);
            match attempts.pause_after(&refusal) {
                Some(pause) => sleep(pause).await,
                None => return Err(failure(command.take_request_id(), refusal, may_be_recorded)),
            }
        }
    }
}

fn failure(key: String, refusal: Refusal, may_be_recorded: bool) -> Failure {
    let refusal = Box::new(refusal);
    if may_be_recorded {
        Failure::Unknown { key, last: refusal }
    } else {
        Failure::CommandRefused { key, refusal }
    }
}
