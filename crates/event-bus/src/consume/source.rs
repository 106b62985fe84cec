//! The sources of a reader's events: a consumer on the stream, and reads of the log.

use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, StreamError, pull};
use daybook_event_store::{EventStore, ReadError, RecordedEvent};
use futures::{FutureExt as _, StreamExt as _};
use thiserror::Error;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use uuid::Uuid;

use super::ReaderOptions;
use super::machine::{Answer, Input, LogRead};
use crate::bus::{Bus, EXCHANGE_TIMEOUT};
use crate::message::{self, MessageError};
use crate::stream;

/// A consumer that tells nothing for twice as long is dead.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long the server keeps a pull request open.
const PULL_EXPIRES: Duration = Duration::from_secs(30);

/// After which the server forgets the consumer of a reader that is gone.
const INACTIVE_THRESHOLD: Duration = Duration::from_secs(30);

/// The stream cannot be subscribed to.
#[derive(Debug, Error)]
pub(super) enum SubscribeError {
    #[error("cannot make a consumer")]
    Consumer(#[source] async_nats::jetstream::stream::ConsumerError),
    #[error("cannot read from the consumer")]
    Messages(#[source] StreamError),
    #[error("the server did not answer within {EXCHANGE_TIMEOUT:?}")]
    Silent,
    #[error("the subscription has ended")]
    Ended,
}

/// The reader's consumer of the stream.
pub(super) enum Consumer {
    None,
    Opening(JoinHandle<Result<pull::Stream, SubscribeError>>),
    Open(Box<pull::Stream>),
}

impl Consumer {
    /// Subscribes to the stream from a sequence on. Beyond the stream's end that means from its next message on.
    pub(super) fn open(bus: Bus, partition: i32, from: u64, options: ReaderOptions) -> Self {
        let consuming = consume(bus, partition, from, options);
        Self::Opening(tokio::spawn(async move {
            let consumed = timeout(EXCHANGE_TIMEOUT, consuming).await;
            consumed.unwrap_or(Err(SubscribeError::Silent))
        }))
    }

    /// Waits for what comes next: a message only if there is a sequence beyond which it matters what is in it. Nothing is
    /// lost when this is dropped.
    pub(super) async fn next(&mut self, listens_beyond: Option<u64>) -> Input {
        match (&mut *self, listens_beyond) {
            (Self::Opening(task), _) => match task.await.expect("the task neither panics nor is aborted") {
                Ok(stream) => {
                    *self = Self::Open(Box::new(stream));
                    Input::Subscribed
                }
                Err(error) => self.ended(&error),
            },
            (Self::Open(stream), Some(beyond)) => {
                let next = stream.next().await;
                self.received(next, beyond)
            }
            (Self::None | Self::Open(_), _) => std::future::pending().await,
        }
    }

    /// The messages that have come already.
    pub(super) fn at_hand(&mut self, listens_beyond: Option<u64>) -> Option<Input> {
        self.next(listens_beyond).now_or_never()
    }

    fn received(&mut self, next: Option<Result<Message, pull::MessagesError>>, beyond: u64) -> Input {
        match next {
            Some(Ok(message)) => {
                // What has no sequence is not the stream's, and is passed over.
                let sequence = message.info().map_or(0, |info| info.stream_sequence);
                let carried = (sequence > beyond).then(|| decode(&message)).flatten();
                Input::Message { sequence, carried }
            }
            Some(Err(error)) => self.ended(&error),
            None => self.ended(&SubscribeError::Ended),
        }
    }

    fn ended(&mut self, error: &(dyn std::error::Error + 'static)) -> Input {
        tracing::debug!(error, "the stream is subscribed to anew");
        *self = Self::None;
        Input::Unsubscribed
    }
}

fn decode(message: &Message) -> Option<(RecordedEvent, Uuid)> {
    let headers = message.headers.as_ref()?;
    let decoded = message::decode(headers, &message.payload);
    let report = |error: &MessageError| {
        let error = error as &dyn std::error::Error;
        tracing::debug!(subject = %message.subject, error, "a message is not a whole event");
    };
    decoded.inspect_err(report).ok()
}

async fn consume(
    bus: Bus,
    partition: i32,
    from: u64,
    options: ReaderOptions,
) -> Result<pull::Stream, SubscribeError> {
    let config = pull::Config {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
        ack_policy: AckPolicy::None,
        inactive_threshold: INACTIVE_THRESHOLD,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    };
    let name = stream::name(&bus, partition);
    let made = bus.jetstream().create_consumer_on_stream(config, name).await;
    let consumer = made.map_err(SubscribeError::Consumer)?;
    let messages = consumer
        .stream()
        .max_messages_per_batch(options.prefetch_messages)
        .max_bytes_per_batch(options.prefetch_bytes)
        .heartbeat(HEARTBEAT)
        .expires(PULL_EXPIRES)
        .messages();
    messages.await.map_err(SubscribeError::Messages)
}

/// Reads the log: its head first, then its lineage and what comes after a position, as far as they are wanted.
pub(super) async fn read(
    store: EventStore,
    partition: i32,
    read: LogRead,
    bytes_max: usize,
) -> Result<Answer, ReadError> {
    let head = store.head(partition).await?;
    let lineage = match read.wants_lineage {
        true => Some(store.lineage(partition).await?),
        false => None,
    };
    let events = match read.limit {
        0 => Vec::new(),
        _ if head.position <= read.after => Vec::new(),
        limit => {
            store
                .read_log_within(partition, read.after, limit, bytes_max)
                .await?
        }
    };
    Ok(Answer {
        read,
        head,
        lineage,
        events,
    })
}
