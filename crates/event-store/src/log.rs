//! The log as an appender sees it: Postgres, through one connection that nothing else waits for.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use daybook_postgres::{CONNECT_TIMEOUT, LOOKUP_TIMEOUT, bounded, within};
use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{ConnectOptions as _, FromRow, PgConnection, PgPool, Row as _};
use time::OffsetDateTime;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::append::{AppendError, Judgement, append};
use crate::command::{NewCommand, Receipt};
use crate::lineage::{EpochId, SeenEpoch, Witnesses, attach};
use crate::stored_key::StoredKey;

/// A log to append to: Postgres, or the model of it that the simulation checks the write side against.
pub trait Log: Send + Sync + 'static {
    /// Appends a batch, and answers within a bounded time.
    fn append(
        &self,
        partition: i32,
        commands: &[NewCommand],
    ) -> impl Future<Output = Result<Judgement, AppendError>> + Send;

    /// The commands remembered under these tenants' keys, by the keys' index. `epoch` is the newest one.
    fn remembered(
        &self,
        partition: i32,
        epoch: EpochId,
        keys: &[(Uuid, Arc<str>)],
    ) -> impl Future<Output = Result<HashMap<usize, Remembered>, AppendError>> + Send;
}

/// A command as it is remembered under its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// 64 bits of a keyed hash of the command's content.
    pub fingerprint: i64,
    /// The id of its first event; `None` when it has none.
    pub event_id: Option<Uuid>,
    /// The answer to it.
    pub receipt: Receipt,
}

/// How long one attempt to append may take. A batch takes milliseconds; a checkpoint may hold it up for a second.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an attempt waits for the partition's lock, behind the batches of other replicas. A locked row costs one wait, or
/// two, and this counts for each; a newcomer that overtakes costs another. Usually all are over before [`ATTEMPT_TIMEOUT`],
/// so it is the server that ends the wait, and the session stays good.
const LOCK_TIMEOUT: Duration = Duration::from_millis(750);

/// How long the server may take to end a session that did not answer.
const END_SESSION_TIMEOUT: Duration = Duration::from_secs(1);

/// A partition of the log in Postgres.
#[derive(Debug)]
pub struct PostgresLog {
    options: PgConnectOptions,
    partition: i32,
    sessions: Mutex<Sessions>,
    receipts: PgPool,
    seen: SeenEpoch,
}

/// The appender's session with the server.
#[derive(Debug, Default)]
struct Sessions {
    /// `None` until it is first needed, and after it failed.
    current: Option<Session>,
    /// One that has not answered. It is ended before the next one appends: an attempt that was given up must not be
    /// committed after something was answered on the strength of another.
    unanswered: Option<SessionId>,
    /// Events recorded through the sessions up to now.
    witnesses: Witnesses,
}

#[derive(Debug)]
struct Session {
    connection: PgConnection,
    id: SessionId,
    /// The epoch that it appends to.
    epoch: EpochId,
}

/// A session by its server process; process ids come round again.
#[derive(Debug, Clone, Copy, FromRow)]
struct SessionId {
    pid: i32,
    backend_start: OffsetDateTime,
}

impl PostgresLog {
    /// Appends through a connection of its own, made with `options`, and reads receipts through the pool `receipts`. Both
    /// log in as the role that may append. It stops appending while `seen` has a later epoch than the log that it reaches.
    #[must_use]
    pub fn new(options: PgConnectOptions, partition: i32, receipts: PgPool, seen: SeenEpoch) -> Self {
        Self {
            options: options.options([
                // Whatever the role's or the database's default is: the append function takes no other.
                ("default_transaction_isolation", "read committed".to_owned()),
                ("lock_timeout", LOCK_TIMEOUT.as_millis().to_string()),
            ]),
            partition,
            sessions: Mutex::default(),
            receipts,
            seen,
        }
    }

    async fn connect(&self, sessions: &mut Sessions) -> Result<Session, sqlx::Error> {
        let mut connection = within(CONNECT_TIMEOUT, self.options.connect()).await?;
        if let Some(session) = sessions.unanswered {
            within(LOOKUP_TIMEOUT, end_session(&mut connection, session)).await?;
            sessions.unanswered = None;
        }
        let id = sqlx::query_as(OWN_SESSION);
        let id = within(LOOKUP_TIMEOUT, id.fetch_one(&mut connection)).await?;
        self.seen.first_look().await;
        let attaching = attach(
            &mut connection,
            self.partition,
            &sessions.witnesses,
            self.seen.latest().number,
        );
        let epoch = within(LOOKUP_TIMEOUT, attaching).await?.id;
        self.seen.note(epoch);
        Ok(Session {
            connection,
            id,
            epoch,
        })
    }

    /// A session with the newest epoch. One whose log was superseded is given up: perhaps the address leads to another server
    /// by now.
    async fn session(&self, sessions: &mut Sessions) -> Result<Session, AppendError> {
        let session = match sessions.current.take() {
            Some(session) if session.epoch >= self.seen.latest() => session,
            _ => self.connect(sessions).await.map_err(AppendError::Unknown)?,
        };
        let seen = self.seen.latest();
        if session.epoch < seen {
            let (epoch, seen) = (session.epoch.number, seen.number);
            return Err(AppendError::Superseded { epoch, seen });
        }
        sessions.witnesses.begin(session.epoch.generation);
        Ok(session)
    }
}

pub(crate) const OWN_SESSION: &str = "
    SELECT pid, backend_start FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()
";

/// One that waits for its synchronous standby is not ended: its batch is committed here, and would be shown before the
/// standby has it.
pub(crate) const END_SESSION: &str = "
    SELECT CASE WHEN wait_event = 'SyncRep' THEN false ELSE pg_catalog.pg_terminate_backend(pid, $3) END
    FROM pg_catalog.pg_stat_activity WHERE pid = $1 AND backend_start = $2
";

/// Ends another session of this role, and waits until its server process is gone.
async fn end_session(connection: &mut PgConnection, session: SessionId) -> Result<(), sqlx::Error> {
    let timeout_ms = i64::try_from(END_SESSION_TIMEOUT.as_millis()).expect("it is short");
    let ended: Option<bool> = sqlx::query_scalar(END_SESSION)
        .bind(session.pid)
        .bind(session.backend_start)
        .bind(timeout_ms)
        .fetch_optional(connection)
        .await?;
    match ended {
        None | Some(true) => Ok(()),
        Some(false) => Err(sqlx::Error::Io(io::Error::other(
            "the session that was sent the batch before does not end",
        ))),
    }
}

impl Log for PostgresLog {
    async fn append(&self, partition: i32, commands: &[NewCommand]) -> Result<Judgement, AppendError> {
        debug_assert_eq!(partition, self.partition, "a log is one partition's");
        let mut sessions = self.sessions.lock().await;
        let mut session = self.session(&mut sessions).await?;
        sessions.unanswered = Some(session.id);
        let answer = within(
            ATTEMPT_TIMEOUT,
            append(&mut session.connection, partition, commands),
        )
        .await;
        match &answer {
            Err(AppendError::Unknown(_)) => {}
            // The next attempt attaches anew.
            Err(AppendError::EpochOver(_)) => sessions.unanswered = None,
            judged => {
                sessions.unanswered = None;
                match judged {
                    // Somebody has opened the next epoch since the session attached.
                    Ok(judgement) if judgement.epoch.generation != session.epoch.generation => return answer,
                    Ok(judgement) => sessions.witnesses.note(commands, judgement),
                    Err(_) => {}
                }
                sessions.current = Some(session);
            }
        }
        answer
    }

    async fn remembered(
        &self,
        partition: i32,
        epoch: EpochId,
        keys: &[(Uuid, Arc<str>)],
    ) -> Result<HashMap<usize, Remembered>, AppendError> {
        let tenants = keys.iter().map(|(tenant, _)| *tenant).collect();
        let keys = keys.iter().map(|(_, key)| Arc::clone(key)).collect();
        let read = bounded(&self.receipts, LOOKUP_TIMEOUT, move |connection| {
            Box::pin(read_receipts(connection, partition, epoch, tenants, keys))
        });
        read.await.map_err(AppendError::Unknown)
    }
}

/// Events were recorded in the latest epoch that begins at or before them: any later one that did would have recorded others in
/// their place.
pub(crate) const RECEIPTS: &str = "
    SELECT r.ord, r.fingerprint, r.position, r.event_count, r.outcome::text AS outcome, r.event_id, r.stream_id,
           r.stream_version, r.recorded_at, e.number, e.generation
    FROM event_store.receipts($1, $2, $3) AS r
    LEFT JOIN LATERAL (
        SELECT e.number, e.generation FROM event_store.epoch AS e
        WHERE r.event_count > 0 AND e.partition = $1 AND e.from_position <= r.position
        ORDER BY e.number DESC LIMIT 1
    ) AS e ON true
";

async fn read_receipts(
    connection: &mut PgConnection,
    partition: i32,
    epoch: EpochId,
    tenants: Vec<Uuid>,
    keys: Vec<Arc<str>>,
) -> Result<HashMap<usize, Remembered>, sqlx::Error> {
    let keys: Vec<_> = keys.iter().map(|key| StoredKey::new(key)).collect();
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
            Ok((index, remembered(row, partition, epoch)?))
        })
        .collect()
}

fn remembered(row: &PgRow, partition: i32, newest: EpochId) -> Result<Remembered, sqlx::Error> {
    let event_count = row.try_get::<i32, _>("event_count")?.cast_unsigned();
    let epoch = match row.try_get("number")? {
        Some(number) => EpochId {
            number,
            generation: row.try_get("generation")?,
        },
        None => newest,
    };
    let receipt = |stream_id, stream_version, recorded_at, rejection| {
        Ok::<_, sqlx::Error>(Receipt {
            stream_id,
            stream_version,
            partition,
            first_position: row.try_get::<i64, _>("position")?.cast_unsigned(),
            event_count,
            epoch,
            recorded_at,
            rejection,
        })
    };
    let receipt = match row.try_get::<Option<&str>, _>("outcome")? {
        Some(outcome) => {
            let outcome: Outcome<'_> =
                serde_json::from_str(outcome).map_err(|error| sqlx::Error::Decode(error.into()))?;
            receipt(
                outcome.stream_id.into(),
                outcome.stream_version,
                moment(outcome.recorded_at_us),
                outcome.rejection.map(|json| json.get().to_owned()),
            )?
        }
        None => {
            let first_version = row.try_get::<i64, _>("stream_version")?.cast_unsigned();
            receipt(
                row.try_get::<&str, _>("stream_id")?.into(),
                first_version + u64::from(event_count) - 1,
                row.try_get("recorded_at")?,
                None,
            )?
        }
    };
    Ok(Remembered {
        fingerprint: row.try_get("fingerprint")?,
        event_id: row.try_get("event_id")?,
        receipt,
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
