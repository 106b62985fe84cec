//! The right to work on an operation: a session that holds its lock. What is written about its progress goes through that
//! session, so whoever has lost it writes nothing more.

use std::io;
use std::time::{Duration, Instant};

use daybook_postgres::{CONNECT_TIMEOUT, LOOKUP_TIMEOUT, QUERY_TIMEOUT, is_current, within};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, FromRow, PgConnection};
use uuid::Uuid;

use super::store::DISCARD_INPUT;

/// How long a session may send nothing before the server ends it, and its lock is free. Whoever works on an operation records its
/// progress every half second, and waits for that for at most [`QUERY_TIMEOUT`].
const SESSION_IDLE_MAX: Duration = Duration::from_secs(12);

pub(super) const CLAIM: &str = "
    SELECT operation_id, tenant_id, kind, tenant_partition, key_prefix, key_name, input_chunks
    FROM event_store.claim_operation($1, $2)
";

pub(super) const PROGRESS: &str =
    "SELECT chunks, bytes, lines, succeeded, failed FROM event_store.read_operation_progress($1, $2)";

pub(super) const RECORD: &str = "
    SELECT event_store.record_operation_progress($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text[]::json[])
";

pub(super) const YIELD: &str = "SELECT event_store.yield_operation($1, $2)";

pub(super) const END: &str = "SELECT event_store.end_operation($1, $2, $3, $4)";

/// An operation to work on.
#[derive(Debug, Clone, FromRow)]
pub(super) struct Claimed {
    pub(super) operation_id: Uuid,
    pub(super) tenant_id: Uuid,
    pub(super) kind: String,
    pub(super) tenant_partition: i32,
    pub(super) key_prefix: String,
    pub(super) key_name: String,
    pub(super) input_chunks: i32,
}

/// How far an operation is: what its first chunks hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromRow)]
pub(super) struct Progress {
    /// How many chunks are done.
    pub(super) chunks: i32,
    pub(super) bytes: i64,
    /// Lines that were read, without blank ones.
    pub(super) lines: i64,
    pub(super) succeeded: i64,
    pub(super) failed: i64,
}

/// Why a line failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) line: u64,
    pub(super) reference: Option<String>,
    /// The problem, as JSON.
    pub(super) problem: String,
}

/// How an operation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Succeeded,
    /// Its caller wanted it to end.
    Cancelled,
    /// Its caller may not ask for it any more: the code of the refusal.
    Refused(&'static str),
}

/// Claims operations, each in a session of its own.
#[derive(Debug)]
pub(super) struct Claims {
    options: PgConnectOptions,
    /// The kinds of operations that this process knows: others are for others.
    kinds: Vec<String>,
    /// A session that holds no lock, for the next claim.
    idle: Option<Session>,
}

impl Claims {
    pub(super) fn new(options: PgConnectOptions, kinds: Vec<String>) -> Self {
        // A process that is stopped keeps its sessions, since the kernel answers for it; its operations are for others then.
        let idle_max = SESSION_IDLE_MAX.as_millis().to_string();
        Self {
            options: options.options([("idle_session_timeout", idle_max)]),
            kinds,
            idle: None,
        }
    }

    /// An operation that nobody works on, if there is one, but for those that are set aside.
    pub(super) async fn next(&mut self, set_aside: &[Uuid]) -> Result<Option<Lease>, sqlx::Error> {
        let mut session = match self.idle.take().filter(Session::is_fresh) {
            Some(session) => session,
            None => Session::open(&self.options).await?,
        };
        let claim = sqlx::query_as(CLAIM)
            .bind(&self.kinds)
            .bind(set_aside)
            .fetch_optional(session.connection()?);
        match within(LOOKUP_TIMEOUT, claim).await? {
            Some(operation) => Ok(Some(Lease { session, operation })),
            None => {
                self.idle = Some(session);
                Ok(None)
            }
        }
    }
}

/// A connection to one server, however long that is the one to write to.
#[derive(Debug)]
struct Session {
    connection: PgConnection,
    opened_at: Instant,
    used_at: Instant,
}

impl Session {
    async fn open(options: &PgConnectOptions) -> Result<Self, sqlx::Error> {
        let opened_at = Instant::now();
        Ok(Self {
            connection: within(CONNECT_TIMEOUT, options.connect()).await?,
            opened_at,
            used_at: opened_at,
        })
    }

    /// Whether the server it leads to is still the one, and has not ended it.
    fn is_fresh(&self) -> bool {
        is_current(self.opened_at.elapsed()) && self.used_at.elapsed() < SESSION_IDLE_MAX / 2
    }

    /// The connection, for its next statement.
    fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        if !is_current(self.opened_at.elapsed()) {
            let cause = "the address may lead to another server by now";
            return Err(io::Error::new(io::ErrorKind::NotConnected, cause).into());
        }
        self.used_at = Instant::now();
        Ok(&mut self.connection)
    }
}

/// An operation and the session that holds its lock until it ends.
#[derive(Debug)]
pub(super) struct Lease {
    session: Session,
    pub(super) operation: Claimed,
}

impl Lease {
    /// The session, for a statement about the operation.
    pub(super) fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        self.session.connection()
    }

    /// How far the operation had come.
    pub(super) async fn progress(&mut self) -> Result<Progress, sqlx::Error> {
        let progress = sqlx::query_as(PROGRESS)
            .bind(self.operation.tenant_id)
            .bind(self.operation.operation_id)
            .fetch_optional(self.session.connection()?);
        Ok(within(LOOKUP_TIMEOUT, progress).await?.unwrap_or_default())
    }

    /// Records how far it is, and the errors of what is counted since the record before. Whether its caller wants it to end.
    pub(super) async fn record(
        &mut self,
        progress: Progress,
        errors: &[Failed],
    ) -> Result<bool, sqlx::Error> {
        let lines: Vec<i64> = errors.iter().map(|error| error.line.cast_signed()).collect();
        let references: Vec<_> = errors.iter().map(|error| error.reference.as_deref()).collect();
        let problems: Vec<_> = errors.iter().map(|error| error.problem.as_str()).collect();
        let record = sqlx::query_scalar(RECORD)
            .bind(self.operation.tenant_id)
            .bind(self.operation.operation_id)
            .bind(progress.chunks)
            .bind(progress.bytes)
            .bind(progress.lines)
            .bind(progress.succeeded)
            .bind(progress.failed)
            .bind(lines)
            .bind(references)
            .bind(problems)
            .fetch_one(self.session.connection()?);
        within(QUERY_TIMEOUT, record).await
    }

    /// Gives it back to whoever is next.
    pub(super) async fn give_back(mut self) -> Result<(), sqlx::Error> {
        let give_back = sqlx::query(YIELD)
            .bind(self.operation.tenant_id)
            .bind(self.operation.operation_id)
            .execute(self.session.connection()?);
        within(LOOKUP_TIMEOUT, give_back).await.map(drop)
    }

    /// Deletes what is left of its input, and ends it.
    pub(super) async fn end(mut self, outcome: Outcome) -> Result<(), sqlx::Error> {
        loop {
            let discard = sqlx::query_scalar(DISCARD_INPUT)
                .bind(self.operation.tenant_id)
                .bind(self.operation.operation_id)
                .fetch_one(self.session.connection()?);
            if !within(QUERY_TIMEOUT, discard).await? {
                break;
            }
        }
        let (outcome, cancelled_with) = match outcome {
            Outcome::Succeeded => ("SUCCEEDED", None),
            Outcome::Cancelled => ("CANCELLED", None),
            Outcome::Refused(code) => ("CANCELLED", Some(code)),
        };
        let end = sqlx::query(END)
            .bind(self.operation.tenant_id)
            .bind(self.operation.operation_id)
            .bind(outcome)
            .bind(cancelled_with)
            .execute(self.session.connection()?);
        within(LOOKUP_TIMEOUT, end).await.map(drop)
    }
}
