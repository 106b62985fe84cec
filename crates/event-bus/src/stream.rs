//! The JetStream stream of a partition: its name, its settings, and the few requests about it.

use std::collections::BTreeSet;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind, UpdateStreamError};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RawMessage, RetentionPolicy, StorageType};
use daybook_event_store::{EpochId, RecordedEvent};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::Duration;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::time::timeout;
use uuid::Uuid;

use crate::bus::{Bus, EXCHANGE_TIMEOUT};
use crate::message;

/// The stream's metadata that says whose it is, and which epoch of the log it carries.
const DEPLOYMENT_KEY: &str = "daybook-deployment";
const EPOCH_KEY: &str = "daybook-epoch";
const GENERATION_KEY: &str = "daybook-generation";

/// JetStream's memory of message ids. Nothing here has one: the expected sequence refuses duplicates.
const DUPLICATE_WINDOW: Duration = Duration::from_millis(100);

/// The stream cannot be used.
#[derive(Debug, Error)]
pub(crate) enum StreamError {
    /// A request about it was not answered as it should be.
    #[error("cannot {doing}")]
    Request {
        doing: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is somebody else's, and left alone.
    #[error("the stream {name} does not belong to this deployment; whoever made it has to delete it")]
    Foreign { name: String },
    /// It carries an epoch that nobody can have opened.
    #[error("the stream {name} carries epoch {found}, far beyond the log's {own}; delete the stream")]
    Invented { name: String, found: i32, own: i32 },
    /// It has other settings than it should have, and has to be deleted by hand.
    #[error("the stream has settings that JetStream does not change: {differences}")]
    Settings {
        differences: String,
        #[source]
        source: UpdateStreamError,
    },
}

impl StreamError {
    fn while_doing<E: std::error::Error + Send + Sync + 'static>(
        doing: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Request {
            doing,
            source: source.into(),
        }
    }

    /// Whether an operator has to do something.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(self, Self::Request { .. })
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
pub(crate) struct StreamOptions {
    /// How many servers of a cluster hold it.
    pub(crate) replicas: usize,
    /// How many events it holds, the newest; all of them when `None`.
    pub(crate) retained_events_max: Option<u64>,
}

/// The content of a stream of this deployment, and the epoch that it was made for.
#[derive(Debug, Clone)]
pub(crate) struct StreamState {
    /// The sequence of the oldest message.
    pub(crate) first: u64,
    /// The sequence of the newest message, or what it would be if that were not deleted.
    pub(crate) last: u64,
    /// The epoch of the log that it carries.
    pub(crate) epoch: EpochId,
    /// When it was made: another moment means another stream.
    pub(crate) created: OffsetDateTime,
    config: Config,
}

impl StreamState {
    /// `None` when it is not a stream of this deployment.
    fn of(bus: &Bus, info: &Info) -> Option<Self> {
        let metadata = &info.config.metadata;
        if *metadata.get(DEPLOYMENT_KEY)? != bus.deployment().to_string() {
            return None;
        }
        Some(Self {
            first: info.state.first_sequence,
            last: info.state.last_sequence,
            epoch: EpochId {
                number: metadata.get(EPOCH_KEY)?.parse().ok()?,
                generation: metadata.get(GENERATION_KEY)?.parse().ok()?,
            },
            created: info.created,
            config: info.config.clone(),
        })
    }
}

/// The name of a partition's stream.
pub(crate) fn name(bus: &Bus, partition: i32) -> String {
    format!("{}_EVENTS_{partition}", bus.deployment())
}

/// The stream as it is now; `None` when there is none.
pub(crate) async fn find(bus: &Bus, partition: i32) -> Result<Option<StreamState>, StreamError> {
    let (doing, name) = ("look at the stream", name(bus, partition));
    answered(doing, async {
        match bus.jetstream().get_stream(&name).await {
            Ok(stream) => match StreamState::of(bus, stream.cached_info()) {
                Some(state) => Ok(Some(state)),
                None => Err(StreamError::Foreign { name: name.clone() }),
            },
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
    epoch: EpochId,
    first: u64,
    options: StreamOptions,
) -> Result<(), StreamError> {
    let config = Config {
        description: Some("The log of Daybook: sequence = position. Refilled from Postgres.".to_owned()),
        first_sequence: (first > 1).then_some(first),
        ..Config::default()
    };
    let config = with_settings(config, bus, partition, epoch, options);
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

/// Gives the stream the settings that it would be made with for this epoch. Returns whether it had others.
pub(crate) async fn reconcile(
    bus: &Bus,
    partition: i32,
    stream: &StreamState,
    epoch: EpochId,
    options: StreamOptions,
) -> Result<bool, StreamError> {
    let wanted = with_settings(stream.config.clone(), bus, partition, epoch, options);
    let differences = differences(&stream.config, &wanted);
    if differences.is_empty() {
        return Ok(false);
    }
    if !is_still(bus, partition, stream).await? {
        return Ok(false);
    }
    let doing = "change the settings of the stream";
    let updating = async {
        match bus.jetstream().update_stream(&wanted).await {
            Ok(_) => Ok(()),
            Err(source) if matches!(source.kind(), CreateStreamErrorKind::JetStream(_)) => {
                let differences = differences.clone();
                Err(StreamError::Settings { differences, source })
            }
            Err(error) => Err(StreamError::while_doing(doing)(error)),
        }
    };
    answered(doing, updating).await?;
    tracing::warn!(partition, differences, "the settings of the stream were changed");
    Ok(true)
}

/// Whether the stream is the one that was seen still, and carries that epoch: who acts on it looks again just before.
async fn is_still(bus: &Bus, partition: i32, seen: &StreamState) -> Result<bool, StreamError> {
    let found = find(bus, partition).await?;
    Ok(found.is_some_and(|stream| stream.created == seen.created && stream.epoch == seen.epoch))
}

/// Deletes the stream, unless it is no longer the one that was `seen`, or carries another epoch by now.
pub(crate) async fn delete(bus: &Bus, partition: i32, seen: &StreamState) -> Result<(), StreamError> {
    if !is_still(bus, partition, seen).await? {
        return Ok(());
    }
    let doing = "delete the stream";
    answered(doing, async {
        let deleted = bus.jetstream().delete_stream(name(bus, partition)).await;
        deleted.map(drop).map_err(StreamError::while_doing(doing))
    })
    .await
}

/// The first message from a sequence on, as the stream's leader holds it; `None` when there is none.
pub(crate) async fn message_from(
    bus: &Bus,
    partition: i32,
    sequence: u64,
) -> Result<Option<Stored>, StreamError> {
    #[derive(Deserialize)]
    struct Found {
        message: RawMessage,
    }
    let doing = "read a message of the stream";
    answered(doing, async {
        let subject = format!("STREAM.MSG.GET.{}", name(bus, partition));
        let wanted = json!({ "seq": sequence, "next_by_subj": ">" });
        let answer = bus.jetstream().request(subject, &wanted).await;
        match answer.map_err(StreamError::while_doing(doing))? {
            Response::Ok(Found { message }) => Ok(Some(Stored {
                sequence: message.sequence,
                content: message.try_into().ok(),
            })),
            Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => Ok(None),
            Response::Err { error } => Err(StreamError::while_doing(doing)(error)),
        }
    })
    .await
}

/// A message of a stream.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) sequence: u64,
    /// `None` when its headers cannot be read: whoever may publish may send such, and no event of ours looks so.
    content: Option<StreamMessage>,
}

impl Stored {
    /// Whether it is the message that belongs to this event.
    pub(crate) fn is_message_of(&self, event: &RecordedEvent) -> bool {
        let content = self.content.as_ref();
        content.is_some_and(|content| message::is_message_of(&content.headers, &content.payload, event))
    }

    /// Which event it says that it is: the generation that has recorded it, and its id. `None` when it is no event's.
    pub(crate) fn claim(&self) -> Option<(Uuid, Uuid)> {
        let content = self.content.as_ref()?;
        message::claim(&content.headers, &content.payload)
    }
}

/// The settings of a stream. What they leave open is the server's and the operators': where it is placed, how it is
/// compressed. Messages may be deleted one by one, so that personal data can be erased: readers take the hole from the log.
fn with_settings(base: Config, bus: &Bus, partition: i32, epoch: EpochId, options: StreamOptions) -> Config {
    let subjects = message::subjects(partition, epoch.generation, bus.deployment());
    let mut metadata = base.metadata;
    metadata.insert(DEPLOYMENT_KEY.to_owned(), bus.deployment().to_string());
    metadata.insert(EPOCH_KEY.to_owned(), epoch.number.to_string());
    metadata.insert(GENERATION_KEY.to_owned(), epoch.generation.to_string());
    Config {
        name: name(bus, partition),
        subjects: vec![format!("{subjects}.>")],
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        discard_new_per_subject: false,
        max_messages: options
            .retained_events_max
            .map_or(-1, |count| i64::try_from(count).unwrap_or(i64::MAX)),
        max_messages_per_subject: -1,
        max_bytes: -1,
        max_age: Duration::ZERO,
        max_consumers: -1,
        max_message_size: -1,
        num_replicas: options.replicas,
        duplicate_window: DUPLICATE_WINDOW,
        no_ack: false,
        sealed: false,
        deny_delete: false,
        allow_direct: true,
        republish: None,
        mirror: None,
        sources: None,
        subject_transform: None,
        metadata,
        ..base
    }
}

/// The settings of a stream that differ from the wanted ones, as JetStream names them; empty when none does.
fn differences(found: &Config, wanted: &Config) -> String {
    let json = |config| serde_json::to_value(config).expect("settings are always JSON");
    let (found, wanted): (Value, Value) = (json(found), json(wanted));
    let names = [&found, &wanted].into_iter().filter_map(Value::as_object);
    let names: BTreeSet<&String> = names.flat_map(Map::keys).collect();
    let differing = names
        .into_iter()
        .filter(|name| found[name.as_str()] != wanted[name.as_str()]);
    let differences: Vec<_> = differing
        .map(|name| format!("{name} is {} and not {}", found[name], wanted[name]))
        .collect();
    differences.join(", ")
}
