//! Why publishing stops for a comparison of stream and log.

use daybook_event_store::{EpochId, ReadError};
use thiserror::Error;

use super::acks::SendError;
use crate::stream::StreamError;

/// Why publishing is interrupted.
#[derive(Debug, Error)]
pub(super) enum Interruption {
    #[error("a message was refused: the stream has another last sequence")]
    Refused,
    #[error("JetStream does not take a message: {description} ({code})")]
    Rejected { code: u64, description: String },
    #[error("acknowledgements do not come")]
    Silence,
    #[error("there is no connection")]
    Disconnected,
    #[error("there is a new connection")]
    Reconnected,
    #[error("the log goes on in another epoch")]
    Epoch,
    #[error("the log does not show the events that its head promises")]
    Hidden,
    #[error("the log is a standby's")]
    Standby(EpochId),
    #[error("the log was superseded: its epoch is {}, and the stream carries {}", log.number, seen.number)]
    Superseded { log: EpochId, seen: EpochId },
    #[error("a message was not sent")]
    Send(#[source] SendError),
    #[error("the log cannot be read")]
    Log(#[from] ReadError),
    #[error("the stream cannot be used")]
    Stream(#[from] StreamError),
    #[error("the connection is closed")]
    Closed,
}

impl Interruption {
    /// Whether it is a part of normal operation: replicas that publish side by side refuse each other now and then.
    pub(super) fn is_expected(&self) -> bool {
        matches!(
            self,
            Self::Refused | Self::Disconnected | Self::Reconnected | Self::Epoch
        )
    }

    /// Whether the stream is left alone until an operator does something.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Stream(error) if error.is_final())
    }
}
