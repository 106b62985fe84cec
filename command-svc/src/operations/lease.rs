//! The right to work on an operation: a session that holds its lock. What is written about its progress goes through that
//! session, so whoever has lost it writes nothing more.

use daybook_postgres::{CONNECT_TIMEOUT, LOOKUP_TIMEOUT, QUERY_TIMEOUT, within};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, FromRow, PgConnection};
use uuid::Uuid;

pub(super) const CLAIM: &str = "
    SELECT operation_id, tenant_id, kind, tenant_partition, key_prefix, key_name, input_chunks
    FROM event_store.claim_operation($1)
";

pub(super) const PROGRESS: &str =
    "SELECT chunks, bytes, lines, succeeded, failed FROM event_store.read_operation_progress($1, $2)";

pub(super) const RECORD: &str = "
    SELECT event_store.record_operation_progress($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text[]::json[])
";

pub(super) const END: &str = "SELECT event_store.end_operation($1, $2, $3)";

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

/// Whether somebody wants an operation to end before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Done,
    Cancelled,
}

/// Claims operations, each in a session of its own.
#[derive(Debug)]
pub(super) struct Claims {
    options: PgConnectOptions,
    /// The kinds of operations that this process knows: others are for others.
    kinds: Vec<String>,
    /// A session that holds no lock, for the next claim.
    idle: Option<PgConnection>,
}

impl Claims {
    pub(super) fn new(options: PgConnectOptions, kinds: Vec<String>) -> Self {
        Self {
            options,
            kinds,
            idle: None,
        }
    }

    /// An operation that nobody works on, if there is one.
    pub(super) async fn next(&mut self) -> Result<Option<Lease>, sqlx::Error> {
        let mut session = match self.idle.take() {
            Some(session) => session,
            None => within(CONNECT_TIMEOUT, self.options.connect()).await?,
        };
        let claim = sqlx::query_as(CLAIM)
            .bind(&self.kinds)
            .fetch_optional(&mut session);
        match within(LOOKUP_TIMEOUT, claim).await? {
            Some(operation) => Ok(Some(Lease { session, operation })),
            None => {
                self.idle = Some(session);
                Ok(None)
            }
        }
    }
}

/// An operation and the session that holds its lock until it ends.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) session: PgConnection,
    pub(super) operation: Claimed,
}

impl Lease {
    /// How far the operation had come.
    pub(super) async fn progress(&mut self) -> Result<Progress, sqlx::Error> {
        let progress = sqlx::query_as(PROGRESS)
            .bind(self.operation.tenant_id)
            .bind(self.operation.operation_id)
            .fetch_optional(&mut self.session);
        Ok(within(LOOKUP_TIMEOUT, progress).await?.unwrap_or_default())
    }

    /// Records how far it is, and the errors of what is counted since the record before.
    pub(super) async fn record(
        &mut self,
        progress: Progress,
        errors: &[Failed],
    ) -> Result<Wanted, sqlx::Error> {
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
            .fetch_one(&mut self.session);
        match within(QUERY_TIMEOUT, record).await? {
            true => Ok(Wanted::Cancelled),
            false => Ok(Wanted::Done),
        }
    }

    /// Ends the operation, whose input is gone.
    pub(super) async fn end(mut self, outcome: Wanted) -> Result<(), sqlx::Error> {
        let end = sqlx::query(END)
            .bind(self.operation.tenant_id)
            .bind(self.operation.operation_id)
            .bind(match outcome {
                Wanted::Done => "SUCCEEDED",
                Wanted::Cancelled => "CANCELLED",
            })
            .execute(&mut self.session);
        within(LOOKUP_TIMEOUT, end).await.map(drop)
    }
}
