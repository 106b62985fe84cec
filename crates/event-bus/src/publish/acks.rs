//! Messages on their way to the stream, and the acknowledgements that come back.
//!
//! Acknowledgements come to one subscription of our own, on `<inbox>.<attempt>.<position>`: so a message costs no timer
//! and no channel, and what an earlier attempt is still owed is told apart.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::{PublishErrorKind, StatusCode, Subscriber};
use daybook_event_store::RecordedEvent;
use futures::{FutureExt as _, StreamExt as _};
use serde::Deserialize;
use thiserror::Error;
use tokio::time::Instant;
use uuid::Uuid;

use crate::bus::{Bus, BusError};
use crate::message::{self, Message};

/// JetStream's code for a message that expects another last sequence.
const WRONG_LAST_SEQUENCE: u64 = 10_071;

/// An event that is to be published.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) event: RecordedEvent,
    /// Whether this process has just committed it, so that its latency means something.
    pub(super) is_fresh: bool,
}

/// What came back for a message of the current attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Everything up to here is in the stream; the messages of this attempt among it are given back.
    Stored(u64),
    /// The stream has another last sequence than this position needs.
    Refused(u64),
    /// JetStream does not take it.
    Rejected {
        /// JetStream's error code, 0 when nothing answers for the subject.
        code: u64,
        /// What it says.
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

/// The messages in flight.
pub(super) struct InFlight {
    bus: Bus,
    inbox: String,
    answers: Subscriber,
    attempt: u64,
    /// Sent and not known to be stored, in the order of their positions.
    messages: VecDeque<Outgoing>,
    /// How many of this attempt's messages have no answer yet.
    unanswered: usize,
    /// When something was last sent or answered.
    last_activity: Instant,
}

impl InFlight {
    pub(super) async fn new(bus: &Bus) -> Result<Self, BusError> {
        let inbox = bus.client().new_inbox();
        let answers = bus.subscribe(format!("{inbox}.*.*")).await?;
        let (messages, last_activity) = (VecDeque::new(), Instant::now());
        Ok(Self {
            bus: bus.clone(),
            inbox,
            answers,
            attempt: 0,
            messages,
            unanswered: 0,
            last_activity,
        })
    }

    pub(super) fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// When the silence has lasted for `timeout`.
    pub(super) fn deadline(&self, timeout: Duration) -> Instant {
        self.last_activity + timeout
    }

    /// Gives all messages back and forgets what is unanswered: later answers to them are ignored.
    pub(super) fn begin_attempt(&mut self) -> VecDeque<Outgoing> {
        self.attempt += 1;
        self.unanswered = 0;
        std::mem::take(&mut self.messages)
    }

    /// Sends a message. True when the event was too large and went as a reference.
    pub(super) async fn send(
        &mut self,
        outgoing: Outgoing,
        generation: Uuid,
        timeout: Duration,
    ) -> Result<bool, SendError> {
        let (event, deployment) = (&outgoing.event, self.bus.deployment());
        let whole = message::encode(event, generation, deployment);
        let whole = self.hand_over(event.position, whole, timeout).await;
        let is_reference = match &whole {
            Err(SendError::Client(error)) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                let reference = message::encode_as_reference(event, generation, deployment);
                self.hand_over(event.position, reference, timeout).await?;
                true
            }
            _ => whole.map(|()| false)?,
        };
        if self.unanswered == 0 {
            self.last_activity = Instant::now();
        }
        self.unanswered += 1;
        self.messages.push_back(outgoing);
        Ok(is_reference)
    }

    async fn hand_over(&self, position: u64, message: Message, timeout: Duration) -> Result<(), SendError> {
        let reply = format!("{}.{}.{position}", self.inbox, self.attempt);
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
    pub(super) async fn answer(&mut self) -> Option<Answer> {
        loop {
            let message = self.answers.next().await?;
            if let Some(answer) = self.read(&message) {
                return Some(answer);
            }
        }
    }

    /// The next answer that has come already.
    pub(super) fn ready_answer(&mut self) -> Option<Answer> {
        self.answer().now_or_never().flatten()
    }

    fn read(&mut self, message: &async_nats::Message) -> Option<Answer> {
        let mut tokens = message.subject.rsplit('.');
        let position = tokens.next()?.parse().ok()?;
        if tokens.next()?.parse() != Ok(self.attempt) {
            return None;
        }
        self.unanswered = self.unanswered.saturating_sub(1);
        self.last_activity = Instant::now();
        Some(answer(message.status, &message.payload, position))
    }

    /// The message in flight that has a position.
    pub(super) fn message_at(&self, position: u64) -> Option<&Outgoing> {
        let index = self
            .messages
            .binary_search_by_key(&position, |outgoing| outgoing.event.position);
        self.messages.get(index.ok()?)
    }

    /// The messages that are stored now that everything up to `position` is.
    pub(super) fn stored(&mut self, position: u64) -> impl Iterator<Item = Outgoing> + '_ {
        let count = self
            .messages
            .partition_point(|outgoing| outgoing.event.position <= position);
        self.messages.drain(..count)
    }
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
