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
    Standby,
    #[error("the log was superseded: its epoch is {epoch}, and the stream carries {seen}")]
    Superseded { epoch: i32, seen: i32 },
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
    pub(super) fn superseded(own: EpochId, seen: EpochId) -> Self {
        Self::Superseded {
            epoch: own.number,
            seen: seen.number,
        }
    }

    /// Whether it is a part of normal operation: replicas that publish side by side refuse each other now and then.
    pub(super) fn is_expected(&self) -> bool {
        matches!(
            self,
            Self::Refused | Self::Disconnected | Self::Reconnected | Self::Epoch
        )
    }

    /// Whether the address of the log may lead to another server by now than the connections that are open.
    pub(super) fn is_of_old_connection(&self) -> bool {
        matches!(self, Self::Epoch | Self::Standby | Self::Superseded { .. })
    }

    /// Whether the stream is left alone until an operator does something.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Stream(error) if error.is_final())
    }
}
