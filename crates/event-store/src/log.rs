//! The log as an appender sees it: Postgres, through one connection that nothing else waits for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use daybook_postgres::{CONNECT_TIMEOUT, LOOKUP_TIMEOUT, bounded, within};
use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{ConnectOptions as _, PgConnection, PgPool, Row as _};
use time::OffsetDateTime;
use tokio::sync::Mutex;
use tokio::time::timeout;
use uuid::Uuid;

use crate::append::{AppendError, Judgement, append};
use crate::command::NewCommand;

/// Where an appender sends its batches. Postgres is one; the other is the model of the log that the simulation checks
/// the write side against.
pub trait Log: Send + Sync + 'static {
    /// Appends a batch, and answers within a bounded time.
    fn append(
        &self,
        partition: i32,
        commands: &[NewCommand],
    ) -> impl Future<Output = Result<Judgement, AppendError>> + Send;

    /// What is remembered under these tenants' keys, by their index.
    fn remembered(
        &self,
        partition: i32,
        keys: &[(Uuid, Arc<str>)],
    ) -> impl Future<Output = Result<HashMap<usize, Remembered>, AppendError>> + Send;
}

/// What is remembered of a command under its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// The keyed hash of the command's content.
    pub fingerprint: Uuid,
    /// The id of its first event; `None` when it has none.
    pub event_id: Option<Uuid>,
    /// See [`crate::Receipt`].
    pub stream_id: Arc<str>,
    /// See [`crate::Receipt`].
    pub stream_version: u64,
    /// See [`crate::Receipt`].
    pub first_position: u64,
    /// See [`crate::Receipt`].
    pub event_count: u32,
    /// See [`crate::Receipt`].
    pub recorded_at: OffsetDateTime,
    /// See [`crate::Receipt`].
    pub rejection: Option<String>,
}

/// How long one attempt to append may take. A batch takes milliseconds; a checkpoint may hold it up for a second.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// The log in Postgres.
#[derive(Debug)]
pub struct PostgresLog {
    options: PgConnectOptions,
    /// `None` until it is first needed, and after it failed.
    connection: Mutex<Option<PgConnection>>,
    receipts: PgPool,
}

impl PostgresLog {
    /// Appends through a connection of its own, made with `options`, and reads receipts through the pool `receipts`. Both
    /// log in as the role that may append.
    #[must_use]
    pub fn new(options: PgConnectOptions, receipts: PgPool) -> Self {
        Self {
            options,
            connection: Mutex::new(None),
            receipts,
        }
    }

    async fn connect(&self) -> Result<PgConnection, AppendError> {
        within(CONNECT_TIMEOUT, self.options.connect())
            .await
            .map_err(AppendError::Unknown)
    }
}

impl Log for PostgresLog {
    async fn append(&self, partition: i32, commands: &[NewCommand]) -> Result<Judgement, AppendError> {
        let mut slot = self.connection.lock().await;
        // Out of its place while it is used: a connection that did not answer, or was left in the middle, is closed.
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let answered = timeout(ATTEMPT_TIMEOUT, append(&mut connection, partition, commands)).await;
        let answer = answered.unwrap_or(Err(AppendError::TimedOut));
        if !matches!(answer, Err(AppendError::Unknown(_) | AppendError::TimedOut)) {
            *slot = Some(connection);
        }
        answer
    }

    async fn remembered(
        &self,
        partition: i32,
        keys: &[(Uuid, Arc<str>)],
    ) -> Result<HashMap<usize, Remembered>, AppendError> {
        let tenants = keys.iter().map(|(tenant, _)| *tenant).collect();
        let keys = keys.iter().map(|(_, key)| key.to_string()).collect();
        let read = bounded(&self.receipts, LOOKUP_TIMEOUT, move |connection| {
            Box::pin(read_receipts(connection, partition, tenants, keys))
        });
        read.await.map_err(AppendError::Unknown)
    }
}

pub(crate) const RECEIPTS: &str = "
    SELECT ord, fingerprint, position, event_count, outcome::text AS outcome, event_id, stream_id, stream_version, recorded_at
    FROM event_store.receipts($1, $2, $3)
";

async fn read_receipts(
    connection: &mut PgConnection,
    partition: i32,
    tenants: Vec<Uuid>,
    keys: Vec<String>,
) -> Result<HashMap<usize, Remembered>, sqlx::Error> {
    let rows = sqlx::query(RECEIPTS)
        .bind(partition)
        .bind(tenants)
        .bind(keys)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            let ordinal: i64 = row.try_get("ord")?;
            let index = usize::try_from(ordinal - 1).expect("ordinals start at 1");
            Ok((index, remembered(row)?))
        })
        .collect()
}

fn remembered(row: &PgRow) -> Result<Remembered, sqlx::Error> {
    let (fingerprint, first_position) = (row.try_get("fingerprint")?, row.try_get::<i64, _>("position")?);
    let event_count = row.try_get::<i32, _>("event_count")?.cast_unsigned();
    if let Some(outcome) = row.try_get::<Option<&str>, _>("outcome")? {
        let outcome: Outcome<'_> =
            serde_json::from_str(outcome).map_err(|error| sqlx::Error::Decode(error.into()))?;
        return Ok(Remembered {
            fingerprint,
            event_id: None,
            stream_id: outcome.stream_id.into(),
            stream_version: outcome.stream_version,
            first_position: first_position.cast_unsigned(),
            event_count,
            recorded_at: moment(outcome.recorded_at_us),
            rejection: outcome.rejection.map(|json| json.get().to_owned()),
        });
    }
    let first_version = row.try_get::<i64, _>("stream_version")?.cast_unsigned();
    Ok(Remembered {
        fingerprint,
        event_id: row.try_get("event_id")?,
        stream_id: row.try_get::<&str, _>("stream_id")?.into(),
        stream_version: first_version + u64::from(event_count) - 1,
        first_position: first_position.cast_unsigned(),
        event_count,
        recorded_at: row.try_get("recorded_at")?,
        rejection: None,
    })
}

/// The receipt of a command without events, as the append function remembers it.
#[derive(Deserialize)]
struct Outcome<'a> {
    stream_id: String,
    stream_version: u64,
    recorded_at_us: i64,
    #[serde(borrow)]
    rejection: Option<&'a RawValue>,
}

fn moment(microseconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(microseconds) * 1_000)
        .expect("Postgres keeps times that fit")
}
