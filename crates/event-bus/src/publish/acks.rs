//! Messages on their way to the stream, and the acknowledgements that come back.
//!
//! Acknowledgements come to one subscription of our own, on `<inbox>.<attempt>.<position>`: so a message costs no timer
//! and no channel, and what an earlier attempt is still owed is told apart.

use std::time::Duration;

use async_nats::{PublishErrorKind, StatusCode, Subscriber};
use daybook_event_store::RecordedEvent;
use futures::{FutureExt as _, StreamExt as _};
use serde::Deserialize;
use thiserror::Error;
use uuid::Uuid;

use crate::bus::{Bus, BusError};
use crate::message::{self, Message};

/// JetStream's code for a message that expects another last sequence.
const WRONG_LAST_SEQUENCE: u64 = 10_071;

/// The answer to a message of the current attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Everything up to here is in the stream.
    Stored(u64),
    /// The stream has another last sequence than this position needs.
    Refused(u64),
    /// JetStream does not take it.
    Rejected {
        /// JetStream's error code, 0 when nothing answers for the subject.
        code: u64,
        /// The server's words.
        description: String,
    },
}

/// A message was not handed to the client.
#[derive(Debug, Error)]
pub(super) enum SendError {
    #[error("the NATS client does not take the message")]
    Client(#[source] async_nats::PublishError),
    #[error("the NATS client takes no messages")]
    Stuck,
}

/// The way to the stream, and back.
pub(super) struct Acks {
    bus: Bus,
    inbox: String,
    answers: Subscriber,
}

impl Acks {
    pub(super) async fn new(bus: &Bus) -> Result<Self, BusError> {
        let inbox = bus.client().new_inbox();
        let answers = bus.subscribe(format!("{inbox}.*.*")).await?;
        Ok(Self {
            bus: bus.clone(),
            inbox,
            answers,
        })
    }

    /// Sends an event in an attempt. True when it was too large and went as a reference.
    pub(super) async fn send(
        &self,
        event: &RecordedEvent,
        generation: Uuid,
        attempt: u64,
        timeout: Duration,
    ) -> Result<bool, SendError> {
        let deployment = self.bus.deployment();
        let reply = format!("{}.{attempt}.{}", self.inbox, event.position);
        let whole = message::encode(event, generation, deployment);
        match self.hand_over(reply.clone(), whole, timeout).await {
            Err(SendError::Client(error)) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                let reference = message::encode_as_reference(event, generation, deployment);
                self.hand_over(reply, reference, timeout).await?;
                Ok(true)
            }
            sent => sent.map(|()| false),
        }
    }

    async fn hand_over(&self, reply: String, message: Message, timeout: Duration) -> Result<(), SendError> {
        let Message {
            subject,
            headers,
            payload,
        } = message;
        let publish = self
            .bus
            .client()
            .publish_with_reply_and_headers(subject, reply, headers, payload);
        let published = tokio::time::timeout(timeout, publish).await;
        published
            .map_err(|_| SendError::Stuck)?
            .map_err(SendError::Client)
    }

    /// The next answer to this attempt, as it comes; `None` when the client is closed. Cancel-safe.
    pub(super) async fn answer(&mut self, attempt: u64) -> Option<Answer> {
        loop {
            let message = self.answers.next().await?;
            if let Some(answer) = read(&message, attempt) {
                return Some(answer);
            }
        }
    }

    /// The next answer that has come already.
    pub(super) fn ready_answer(&mut self, attempt: u64) -> Option<Answer> {
        self.answer(attempt).now_or_never().flatten()
    }
}

/// The answer that a message is to a message of this attempt.
fn read(message: &async_nats::Message, attempt: u64) -> Option<Answer> {
    let mut tokens = message.subject.rsplit('.');
    let position = tokens.next()?.parse().ok()?;
    let is_of_attempt = tokens.next()?.parse() == Ok(attempt);
    is_of_attempt.then(|| answer(message.status, &message.payload, position))
}

fn answer(status: Option<StatusCode>, payload: &[u8], position: u64) -> Answer {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        seq: u64,
        error: Option<Refusal>,
    }
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(default)]
        err_code: u64,
        #[serde(default)]
        description: String,
    }
    if let Some(status) = status {
        return Answer::Rejected {
            code: 0,
            description: format!("nothing answers for the stream ({status})"),
        };
    }
    match serde_json::from_slice::<Body>(payload) {
        Ok(Body { error: None, seq }) if seq == position => Answer::Stored(position),
        Ok(Body {
            error: Some(error), ..
        }) if error.err_code == WRONG_LAST_SEQUENCE => Answer::Refused(position),
        Ok(Body {
            error: Some(Refusal {
                err_code: code,
                description,
            }),
            ..
        }) => Answer::Rejected { code, description },
        Ok(Body { error: None, seq }) => {
            let description = format!("position {position} was stored at the sequence {seq}");
            Answer::Rejected { code: 0, description }
        }
        Err(error) => Answer::Rejected {
            code: 0,
            description: format!("an answer cannot be read: {error}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_at_the_expected_sequence_means_stored() {
        let payload = br#"{"stream":"EVENTS_0","seq":7}"#;
        assert_eq!(answer(None, payload, 7), Answer::Stored(7));
        assert!(matches!(answer(None, payload, 8), Answer::Rejected { .. }));
    }

    #[test]
    fn a_wrong_last_sequence_is_told_from_other_refusals() {
        let wrong =
            br#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 3"},"seq":0}"#;
        assert_eq!(answer(None, wrong, 9), Answer::Refused(9));
        let full = br#"{"error":{"code":500,"err_code":10023,"description":"insufficient resources"}}"#;
        let description = "insufficient resources".to_owned();
        assert_eq!(
            answer(None, full, 9),
            Answer::Rejected {
                code: 10_023,
                description
            }
        );
    }

    #[test]
    fn silence_on_the_subject_is_no_acknowledgement() {
        let answer = answer(Some(StatusCode::NO_RESPONDERS), b"", 1);
        assert!(matches!(answer, Answer::Rejected { code: 0, .. }));
    }
}
