//! The JetStream stream of a partition: its name, its settings, and the few requests about it.

use std::collections::HashMap;

use async_nats::header::HeaderMap;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, Info, RawMessageErrorKind, RetentionPolicy, StorageType,
};
use std::time::Duration;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::time::timeout;
use uuid::Uuid;

use crate::bus::{Bus, EXCHANGE_TIMEOUT};
use crate::message;

/// The stream's metadata that says which generation of the log it carries.
const GENERATION_KEY: &str = "daybook-generation";

/// JetStream's memory of message ids. Nothing here has one: the expected sequence refuses duplicates.
const DUPLICATE_WINDOW: Duration = Duration::from_millis(100);

/// A request about the stream was not answered as it should be.
#[derive(Debug, Error)]
#[error("cannot {doing}")]
pub(crate) struct StreamError {
    doing: &'static str,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl StreamError {
    fn while_doing<E: std::error::Error + Send + Sync + 'static>(
        doing: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self {
            doing,
            source: source.into(),
        }
    }
}

/// The server did not answer.
#[derive(Debug, Error)]
#[error("the server did not answer within {EXCHANGE_TIMEOUT:?}")]
struct Silence;

/// Waits for an answer about the stream for a bounded time.
async fn answered<T>(
    doing: &'static str,
    exchange: impl Future<Output = Result<T, StreamError>>,
) -> Result<T, StreamError> {
    let answer = timeout(EXCHANGE_TIMEOUT, exchange).await;
    answer.unwrap_or_else(|_elapsed| Err(StreamError::while_doing(doing)(Silence)))
}

/// How a stream is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// How many servers of a cluster hold it.
    pub(crate) replicas: usize,
    /// How many events it holds, the newest; all of them when `None`.
    pub(crate) retained_events_max: Option<u64>,
}

/// What a stream holds, and for what it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamState {
    /// The sequence of the newest message, or what it would be if that were not deleted.
    pub(crate) last: u64,
    /// The generation of the log that it was made for; `None` when it is not one of ours.
    pub(crate) generation: Option<Uuid>,
    /// When it was made: another moment means another stream.
    pub(crate) created: OffsetDateTime,
}

impl From<&Info> for StreamState {
    fn from(info: &Info) -> Self {
        let generation = info.config.metadata.get(GENERATION_KEY);
        Self {
            last: info.state.last_sequence,
            generation: generation.and_then(|text| text.parse().ok()),
            created: info.created,
        }
    }
}

/// The name of a partition's stream.
pub(crate) fn name(bus: &Bus, partition: i32) -> String {
    format!("{}_EVENTS_{partition}", bus.deployment())
}

/// The stream as it is now; `None` when there is none.
pub(crate) async fn find(bus: &Bus, partition: i32) -> Result<Option<StreamState>, StreamError> {
    let doing = "look at the stream";
    answered(doing, async {
        match bus.jetstream().get_stream(name(bus, partition)).await {
            Ok(stream) => Ok(Some(StreamState::from(stream.cached_info()))),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(cause) if cause.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    Ok(None)
                }
                _ => Err(StreamError::while_doing(doing)(error)),
            },
        }
    })
    .await
}

/// Makes the stream so that its first message has the sequence `first`. One that is there already stays as it is.
pub(crate) async fn create(
    bus: &Bus,
    partition: i32,
    generation: Uuid,
    first: u64,
    shape: Shape,
) -> Result<(), StreamError> {
    let config = config(bus, partition, generation, first, shape);
    let doing = "make the stream";
    answered(doing, async {
        match bus.jetstream().create_stream(config).await {
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                CreateStreamErrorKind::JetStream(cause)
                    if cause.error_code() == ErrorCode::STREAM_NAME_EXIST =>
                {
                    Ok(())
                }
                _ => Err(StreamError::while_doing(doing)(error)),
            },
        }
    })
    .await
}

/// Deletes the stream, unless it is no longer the one that was `seen`.
pub(crate) async fn delete(bus: &Bus, partition: i32, seen: StreamState) -> Result<(), StreamError> {
    match find(bus, partition).await? {
        Some(stream) if stream.created == seen.created => {}
        _ => return Ok(()),
    }
    let doing = "delete the stream";
    answered(doing, async {
        let deleted = bus.jetstream().delete_stream(name(bus, partition)).await;
        deleted.map(drop).map_err(StreamError::while_doing(doing))
    })
    .await
}

/// The headers of the message with a sequence, as the stream's leader holds it; `None` when it was deleted.
pub(crate) async fn headers_at(
    bus: &Bus,
    partition: i32,
    sequence: u64,
) -> Result<Option<HeaderMap>, StreamError> {
    let doing = "read a message of the stream";
    answered(doing, async {
        let name = name(bus, partition);
        let handle = bus.jetstream().get_stream_no_info(name).await;
        let stream = handle.map_err(StreamError::while_doing("address the stream"))?;
        match stream.get_raw_message(sequence).await {
            Ok(message) => Ok(Some(message.headers)),
            Err(error) => match error.kind() {
                RawMessageErrorKind::NoMessageFound => Ok(None),
                _ => Err(StreamError::while_doing(doing)(error)),
            },
        }
    })
    .await
}

/// Messages may be deleted one by one, so that personal data can be erased: readers take the hole from the log.
fn config(bus: &Bus, partition: i32, generation: Uuid, first: u64, shape: Shape) -> Config {
    Config {
        name: name(bus, partition),
        description: Some("The log of Daybook: sequence = position. Refilled from Postgres.".to_owned()),
        subjects: vec![format!(
            "{}.>",
            message::subjects(partition, generation, bus.deployment())
        )],
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        max_messages: shape
            .retained_events_max
            .map_or(-1, |count| i64::try_from(count).unwrap_or(i64::MAX)),
        max_messages_per_subject: -1,
        max_bytes: -1,
        max_consumers: -1,
        max_message_size: -1,
        num_replicas: shape.replicas,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        first_sequence: (first > 1).then_some(first),
        metadata: HashMap::from([(GENERATION_KEY.to_owned(), generation.to_string())]),
        ..Config::default()
    }
}
