//! Messages between the replicas of one service on core NATS: announcements to all, and commands to one, with an answer.
//!
//! Nothing here is stored or believed: payloads are bytes that sender and receiver seal. Without a connection nothing is
//! sent.

use std::time::Duration;

use async_nats::RequestErrorKind;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use thiserror::Error;
use uuid::Uuid;

use crate::bus::{Bus, BusError};

/// A subject of the deployment.
const ANNOUNCEMENTS: &str = "replicas.announced";

/// How long a full queue may hold up what is sent without being asked for again; after that it is dropped.
const SEND_TIMEOUT: Duration = Duration::from_millis(50);

/// A replica did not answer.
#[derive(Debug, Error)]
pub enum RequestError {
    /// Nothing was sent: there is no connection, or the message is larger than the server takes.
    #[error("the command was not sent")]
    NotSent,
    /// Nobody listens there.
    #[error("the replica is gone")]
    NobodyListens,
    /// No answer came in time.
    #[error("the replica did not answer")]
    NoAnswer,
}

/// A command that another replica sent here.
#[derive(Debug)]
pub struct Incoming {
    /// The message.
    pub payload: Bytes,
    reply: async_nats::Subject,
    client: async_nats::Client,
}

impl Incoming {
    /// Answers it. An answer that cannot be sent is dropped: whoever waits for it stops waiting by itself.
    pub async fn answer(self, payload: Vec<u8>) {
        let sent = self.client.publish(self.reply, payload.into());
        if !matches!(tokio::time::timeout(SEND_TIMEOUT, sent).await, Ok(Ok(()))) {
            tracing::debug!("an answer to a replica was not sent");
        }
    }
}

/// Tells all replicas. It never fails: without a connection it is dropped.
pub async fn announce(bus: &Bus, payload: Vec<u8>) {
    if !bus.is_connected() {
        return;
    }
    let sent = bus.client().publish(bus.subject(ANNOUNCEMENTS), payload.into());
    if !matches!(tokio::time::timeout(SEND_TIMEOUT, sent).await, Ok(Ok(()))) {
        tracing::debug!("an announcement was not sent");
    }
}

/// Everything that replicas announce from now on, one's own announcements included. Survives outages.
///
/// # Errors
/// [`BusError::Subscribe`] when the client is closed, [`BusError::Stuck`] when it takes no commands.
pub async fn announcements(
    bus: &Bus,
) -> Result<impl Stream<Item = Bytes> + Send + Unpin + 'static, BusError> {
    let messages = bus.subscribe(bus.subject(ANNOUNCEMENTS)).await?;
    Ok(messages.map(|message| message.payload))
}

/// Sends a command to a replica and waits for the answer, for at most `patience`.
///
/// # Errors
/// See [`RequestError`].
pub async fn request(
    bus: &Bus,
    replica: Uuid,
    payload: Vec<u8>,
    patience: Duration,
) -> Result<Bytes, RequestError> {
    if !bus.is_connected() {
        return Err(RequestError::NotSent);
    }
    let request = async_nats::Request::new()
        .payload(payload.into())
        .timeout(Some(patience));
    let sent = bus.client().send_request(commands_subject(bus, replica), request);
    // The client's own timeout begins when it has taken the request.
    match tokio::time::timeout(patience, sent).await {
        Ok(Ok(answer)) => Ok(answer.payload),
        Ok(Err(error)) => Err(match error.kind() {
            RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::InvalidSubject => RequestError::NotSent,
            RequestErrorKind::NoResponders => RequestError::NobodyListens,
            RequestErrorKind::TimedOut | RequestErrorKind::Other => RequestError::NoAnswer,
        }),
        Err(_elapsed) => Err(RequestError::NoAnswer),
    }
}

/// The commands that other replicas send to this one. Survives outages.
///
/// # Errors
/// As [`announcements`].
pub async fn commands(
    bus: &Bus,
    replica: Uuid,
) -> Result<impl Stream<Item = Incoming> + Send + Unpin + 'static, BusError> {
    let messages = bus.subscribe(commands_subject(bus, replica)).await?;
    let client = bus.client().clone();
    Ok(messages.filter_map(move |message| {
        let incoming = message.reply.map(|reply| Incoming {
            payload: message.payload,
            reply,
            client: client.clone(),
        });
        std::future::ready(incoming)
    }))
}

fn commands_subject(bus: &Bus, replica: Uuid) -> String {
    bus.subject(format_args!("replicas.{}.commands", replica.simple()))
}
