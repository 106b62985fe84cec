//! One call of `event_store.append`: a batch of commands in, a verdict on each out.
//!
//! The rules that the verdicts follow are written beside the function, in `migrations/event-store/0004_append.sql`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo};
use sqlx::{Encode, PgConnection, Postgres, Row as _, Type};
use thiserror::Error;
use time::OffsetDateTime;
use uuid::Uuid;

/// A command's outcome on its way into the log: its events, or a refusal to be remembered.
#[derive(Debug, Clone)]
pub struct NewCommand {
    /// Whose stream it is.
    pub tenant_id: Uuid,
    /// The caller's idempotency key, unique within the tenant.
    pub key: String,
    /// SHA-256 of the command's content, without its key.
    pub fingerprint: [u8; 32],
    /// The stream that the events go to.
    pub stream_id: String,
    /// The stream's kind ("order").
    pub category: &'static str,
    /// The version that the stream must have, 0 for a new one; `None` for any.
    pub expected_version: Option<u64>,
    /// [`crate::Metadata`] as JSON, shared by the events.
    pub metadata: Arc<str>,
    /// The events; none for a refusal.
    pub events: Vec<NewEvent>,
    /// The domain's refusal as JSON, remembered under the key like a success.
    pub rejection: Option<String>,
}

/// An event that has no position yet.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// The event's own id.
    pub event_id: Uuid,
    /// What happened ("order.placed").
    pub event_type: &'static str,
    /// The version of the payload's schema.
    pub schema_version: u32,
    /// The payload, a JSON text.
    pub payload: String,
}

/// What a command did; the same key and content always gives an equal one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The stream that the command was for.
    pub stream_id: String,
    /// The stream's version after the command.
    pub stream_version: u64,
    /// The partition of the log.
    pub partition: i32,
    /// The positions are `first_position..first_position + event_count`.
    pub first_position: u64,
    /// How many events the command has; 0 for a refusal.
    pub event_count: u32,
    /// The generation of the log.
    pub generation: Uuid,
    /// When it was committed, by the database's clock.
    pub recorded_at: OffsetDateTime,
    /// The domain's refusal as JSON, when the command was refused.
    pub rejection: Option<String>,
}

impl Receipt {
    /// The position of the newest event of the command; `None` for a refusal, which has no events.
    pub fn last_position(&self) -> Option<u64> {
        (self.event_count > 0).then(|| self.first_position + u64::from(self.event_count) - 1)
    }
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its events are committed.
    Appended(Receipt),
    /// The stream is at another version than expected; nothing was written.
    Conflict {
        /// The stream's version, the commands before this one in the batch included.
        actual_version: u64,
    },
    /// The key was used before with the same content: the first receipt.
    Replayed(Receipt),
    /// The key was used before with other content; nothing was written.
    KeyReused,
    /// It could not be judged in this batch; send it again in the next one.
    Deferred,
}

/// Why a batch was not appended. When the connection broke, the batch may have been committed all the same; sending it
/// again is safe, since every command has a key.
#[derive(Debug, Error)]
pub enum AppendError {
    /// Postgres refused the batch as a whole; nothing was written.
    #[error("the database refused the batch")]
    Refused(#[source] sqlx::Error),
    /// The outcome is unknown.
    #[error("the database did not answer the append")]
    Unknown(#[source] sqlx::Error),
    /// The database answered something that this build does not understand.
    #[error("the append function answered with an unknown verdict {0}")]
    Verdict(i16),
}

impl From<sqlx::Error> for AppendError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            // Classes 22 and 23: this data cannot be stored. Everything else is the server's or the network's trouble.
            sqlx::Error::Database(database)
                if database
                    .code()
                    .is_some_and(|code| code.starts_with("22") || code.starts_with("23")) =>
            {
                Self::Refused(error)
            }
            _ => Self::Unknown(error),
        }
    }
}

pub(crate) const APPEND: &str = "
    SELECT generation, recorded_at, verdict, version, first_position, replays::text AS replays
    FROM event_store.append(
        $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
";

/// Appends a batch in one call and returns a verdict on each command, in order.
pub async fn append(
    connection: &mut PgConnection,
    partition: i32,
    commands: &[NewCommand],
) -> Result<Vec<Verdict>, AppendError> {
    let row = bind(partition, commands).fetch_one(connection).await?;
    verdicts(&row, partition, commands)
}

/// Lays the batch out as the function's arrays: one element per command, then one element per event.
fn bind(
    partition: i32,
    commands: &[NewCommand],
) -> sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments> {
    let events = || {
        commands.iter().enumerate().flat_map(|(index, command)| {
            let events = command.events.iter().enumerate();
            events.map(move |(event_index, event)| (index + 1, event_index, event))
        })
    };
    sqlx::query(APPEND)
        .bind(partition)
        .bind(column(commands, |command| command.tenant_id))
        .bind(column(commands, |command| command.key.as_str()))
        .bind(column(commands, |command| command.fingerprint.as_slice()))
        .bind(column(commands, |command| command.stream_id.as_str()))
        .bind(column(commands, |command| command.category))
        .bind(column(commands, |command| {
            command.expected_version.map(u64::cast_signed)
        }))
        .bind(column(commands, |command| count(command.events.len())))
        .bind(column(commands, |command| JsonText(&command.metadata)))
        .bind(column(commands, |command| {
            command.rejection.as_deref().map(JsonText)
        }))
        .bind(events().map(|(command, ..)| count(command)).collect::<Vec<_>>())
        .bind(events().map(|(_, index, _)| count(index)).collect::<Vec<_>>())
        .bind(events().map(|(.., event)| event.event_id).collect::<Vec<_>>())
        .bind(events().map(|(.., event)| event.event_type).collect::<Vec<_>>())
        .bind(
            events()
                .map(|(.., event)| event.schema_version.cast_signed())
                .collect::<Vec<_>>(),
        )
        .bind(
            events()
                .map(|(.., event)| JsonText(&event.payload))
                .collect::<Vec<_>>(),
        )
        .bind(are_unrelated(commands))
}

/// The numbers of `json` and `json[]`, the same in every Postgres (its `pg_type.dat`).
const JSON: Oid = Oid(114);
const JSON_ARRAY: Oid = Oid(199);

/// A JSON text on its way into a column of type `json`, which keeps it byte for byte; Postgres checks it.
struct JsonText<'a>(&'a str);

impl Type<Postgres> for JsonText<'_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(JSON)
    }
}

impl PgHasArrayType for JsonText<'_> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(JSON_ARRAY)
    }
}

impl Encode<'_, Postgres> for JsonText<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }
}

/// Whether no key and no stream occurs twice.
fn are_unrelated(commands: &[NewCommand]) -> bool {
    let (mut keys, mut streams) = (HashSet::new(), HashSet::new());
    commands.iter().all(|command| {
        keys.insert((command.tenant_id, command.key.as_str()))
            && streams.insert((command.tenant_id, command.stream_id.as_str()))
    })
}

fn column<'a, T>(commands: &'a [NewCommand], value: impl Fn(&'a NewCommand) -> T) -> Vec<T> {
    commands.iter().map(value).collect()
}

fn count(number: usize) -> i32 {
    i32::try_from(number).expect("a batch is bounded far below i32::MAX")
}

fn verdicts(
    row: &sqlx::postgres::PgRow,
    partition: i32,
    commands: &[NewCommand],
) -> Result<Vec<Verdict>, AppendError> {
    let generation: Uuid = row.try_get("generation")?;
    let recorded_at: OffsetDateTime = row.try_get("recorded_at")?;
    let verdicts: Vec<i16> = row.try_get("verdict")?;
    let versions: Vec<i64> = row.try_get("version")?;
    let first_positions: Vec<i64> = row.try_get("first_position")?;
    let mut replays = replays(row.try_get("replays")?)?;

    let mut result = Vec::with_capacity(commands.len());
    for (index, command) in commands.iter().enumerate() {
        result.push(match verdicts[index] {
            1 => Verdict::Appended(Receipt {
                stream_id: command.stream_id.clone(),
                stream_version: versions[index].cast_unsigned(),
                partition,
                first_position: first_positions[index].cast_unsigned(),
                event_count: count(command.events.len()).cast_unsigned(),
                generation,
                recorded_at,
                rejection: command.rejection.clone(),
            }),
            2 => Verdict::Conflict {
                actual_version: versions[index].cast_unsigned(),
            },
            3 => replays
                .remove(&(index + 1))
                .map(|replay| Verdict::Replayed(replay.into_receipt(partition, generation)))
                .ok_or(AppendError::Verdict(3))?,
            4 => Verdict::KeyReused,
            5 => Verdict::Deferred,
            other => return Err(AppendError::Verdict(other)),
        });
    }
    Ok(result)
}

/// A remembered receipt, as the function returns it.
#[derive(Deserialize)]
struct Replay<'a> {
    command: usize,
    stream_id: String,
    stream_version: u64,
    first_position: Option<u64>,
    event_count: u32,
    #[serde(borrow)]
    rejection: Option<&'a RawValue>,
    recorded_at_us: i64,
}

impl Replay<'_> {
    fn into_receipt(self, partition: i32, generation: Uuid) -> Receipt {
        Receipt {
            stream_id: self.stream_id,
            stream_version: self.stream_version,
            partition,
            first_position: self.first_position.unwrap_or(0),
            event_count: self.event_count,
            generation,
            recorded_at: OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.recorded_at_us) * 1_000)
                .expect("Postgres keeps times that fit"),
            rejection: self.rejection.map(|json| json.get().to_owned()),
        }
    }
}

fn replays(json: Option<&str>) -> Result<HashMap<usize, Replay<'_>>, AppendError> {
    let replays: Vec<Replay<'_>> = match json {
        Some(json) => serde_json::from_str(json)
            .map_err(|error| AppendError::Unknown(sqlx::Error::Decode(error.into())))?,
        None => Vec::new(),
    };
    Ok(replays
        .into_iter()
        .map(|replay| (replay.command, replay))
        .collect())
}
