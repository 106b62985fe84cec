//! The table of operations and what belongs to it, as callers' requests need it: see
//! `migrations/event-store/0009_operations.sql`.

use daybook_postgres::{LOOKUP_TIMEOUT, QUERY_TIMEOUT, bounded};
use daybook_service::identity::Principal;
use sqlx::{FromRow, PgPool, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::input::{Chunk, Whole};

pub(super) const BEGIN: &str = "SELECT event_store.begin_operation($1, $2, $3, $4, $5, $6, $7)";

pub(super) const ADD_INPUT: &str = "SELECT event_store.add_operation_input($1, $2, $3, $4, $5, $6)";

pub(super) const SUBMIT: &str = "
    SELECT operation_id, kind, input_sha256 FROM event_store.submit_operation($1, $2, $3, $4, $5, $6, $7)
";

pub(super) const DISCARD_INPUT: &str = "SELECT event_store.discard_operation_input($1, $2)";

pub(super) const OPEN: &str = "
    SELECT operations, bytes, bytes_of_all, operation_id, kind, input_sha256 FROM event_store.operations_open($1, $2)
";

pub(super) const OPERATIONS: &str = "
    SELECT operation_id, kind, created_at, started_at, cancel_requested_at, ended_at, outcome, cancelled_with, input_bytes,
           input_lines, bytes, lines, succeeded, failed, recorded_at
    FROM event_store.operations($1, $2, $3, $4, $5)
";

pub(super) const ERRORS: &str = "
    SELECT line, reference, problem::text AS problem FROM event_store.operation_errors($1, $2, $3, $4)
";

pub(super) const CANCEL: &str = "SELECT event_store.cancel_operation($1, $2)";

pub(super) const INPUT: &str = "SELECT first_line, lines FROM event_store.read_operation_input($1, $2, $3)";

pub(super) const SWEEP: &str =
    "SELECT event_store.sweep_operations(make_interval(secs => $1), make_interval(secs => $2))";

/// An operation and how far it is.
#[derive(Debug, Clone, FromRow)]
pub(super) struct Row {
    pub(super) operation_id: Uuid,
    pub(super) kind: String,
    pub(super) created_at: OffsetDateTime,
    pub(super) started_at: Option<OffsetDateTime>,
    pub(super) cancel_requested_at: Option<OffsetDateTime>,
    pub(super) ended_at: Option<OffsetDateTime>,
    pub(super) outcome: Option<String>,
    pub(super) cancelled_with: Option<String>,
    pub(super) input_bytes: i64,
    pub(super) input_lines: i64,
    pub(super) bytes: Option<i64>,
    pub(super) lines: Option<i64>,
    pub(super) succeeded: Option<i64>,
    pub(super) failed: Option<i64>,
    pub(super) recorded_at: Option<OffsetDateTime>,
}

/// The operation that has an idempotency key.
#[derive(Debug, Clone, FromRow)]
pub(super) struct Submitted {
    pub(super) operation_id: Uuid,
    pub(super) kind: String,
    pub(super) input_sha256: Vec<u8>,
}

/// What is open of a tenant's and of all.
#[derive(Debug, Clone, Copy, FromRow)]
pub(super) struct Open {
    /// Operations of the tenant that were submitted.
    pub(super) operations: i64,
    /// Bytes of the tenant's inputs, also of those that still arrive.
    pub(super) bytes: i64,
    /// The same of all tenants.
    pub(super) bytes_of_all: i64,
}

/// Why a line failed.
#[derive(Debug, Clone, FromRow)]
pub(super) struct LineError {
    pub(super) line: i64,
    pub(super) reference: Option<String>,
    pub(super) problem: String,
}

/// Which operations are asked for.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) tenant_id: Uuid,
    /// The kinds that the caller may see.
    pub(super) kinds: Vec<String>,
    /// One alone.
    pub(super) operation: Option<Uuid>,
    /// Those before this one.
    pub(super) before: Option<Uuid>,
    pub(super) limit: i32,
}

/// The tables of operations. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Store(PgPool);

impl Store {
    pub(super) fn new(pool: PgPool) -> Self {
        Self(pool)
    }

    /// Notes an operation whose input begins to arrive.
    pub(super) async fn begin(
        &self,
        operation: Uuid,
        principal: &Principal,
        kind: &'static str,
        key: String,
    ) -> Result<(), sqlx::Error> {
        let begin = sqlx::query(BEGIN)
            .bind(principal.tenant_id)
            .bind(operation)
            .bind(kind)
            .bind(key)
            .bind(principal.tenant_partition)
            .bind(principal.key_prefix.clone())
            .bind(principal.name.clone());
        bounded(&self.0, LOOKUP_TIMEOUT, move |connection| {
            Box::pin(async move { begin.execute(connection).await.map(drop) })
        })
        .await
    }

    /// Keeps the next part of an input, which has so many bytes with it.
    pub(super) async fn add_input(
        &self,
        tenant_id: Uuid,
        operation: Uuid,
        number: i32,
        bytes_to_end: u64,
        chunk: Chunk,
    ) -> Result<(), sqlx::Error> {
        let add = sqlx::query(ADD_INPUT)
            .bind(tenant_id)
            .bind(operation)
            .bind(number)
            .bind(chunk.first_line.cast_signed())
            .bind(bytes_to_end.cast_signed())
            .bind(chunk.lines);
        bounded(&self.0, QUERY_TIMEOUT, move |connection| {
            Box::pin(async move { add.execute(connection).await.map(drop) })
        })
        .await
    }

    /// Has an operation wait for whoever works on it, unless the tenant has one with its key: that one is returned. None where as
    /// many of the tenant's are open as may be.
    pub(super) async fn submit(
        &self,
        tenant_id: Uuid,
        operation: Uuid,
        whole: Whole,
        chunks: i32,
    ) -> Result<Option<Submitted>, sqlx::Error> {
        bounded(&self.0, LOOKUP_TIMEOUT, move |connection| {
            let submit = sqlx::query_as(SUBMIT)
                .bind(tenant_id)
                .bind(operation)
                .bind(whole.sha256.to_vec())
                .bind(whole.bytes.cast_signed())
                .bind(whole.lines.cast_signed())
                .bind(chunks)
                .bind(super::OPEN_MAX);
            Box::pin(submit.fetch_optional(connection))
        })
        .await
    }

    /// Deletes an input that was not submitted, and its operation.
    pub(super) async fn discard_input(&self, tenant_id: Uuid, operation: Uuid) -> Result<(), sqlx::Error> {
        loop {
            let has_more = bounded(&self.0, QUERY_TIMEOUT, move |connection| {
                let discard = sqlx::query_scalar::<_, bool>(DISCARD_INPUT);
                Box::pin(discard.bind(tenant_id).bind(operation).fetch_one(connection))
            });
            if !has_more.await? {
                return Ok(());
            }
        }
    }

    /// What is open of a tenant's and of all, and the operation that the tenant has with this key.
    pub(super) async fn open(
        &self,
        tenant_id: Uuid,
        key: String,
    ) -> Result<(Open, Option<Submitted>), sqlx::Error> {
        let open = bounded(&self.0, LOOKUP_TIMEOUT, move |connection| {
            let open = sqlx::query(OPEN).bind(tenant_id).bind(key);
            Box::pin(open.fetch_one(connection))
        });
        let row = open.await?;
        let known: Option<Uuid> = row.try_get("operation_id")?;
        let known = known.map(|_| Submitted::from_row(&row)).transpose()?;
        Ok((Open::from_row(&row)?, known))
    }

    /// Operations, the newest first.
    pub(super) async fn operations(&self, question: Question) -> Result<Vec<Row>, sqlx::Error> {
        bounded(&self.0, QUERY_TIMEOUT, move |connection| {
            let operations = sqlx::query_as(OPERATIONS)
                .bind(question.tenant_id)
                .bind(question.kinds)
                .bind(question.operation)
                .bind(question.before)
                .bind(question.limit);
            Box::pin(operations.fetch_all(connection))
        })
        .await
    }

    /// Errors behind a line, by their lines.
    pub(super) async fn errors(
        &self,
        tenant_id: Uuid,
        operation: Uuid,
        after: i64,
        limit: i32,
    ) -> Result<Vec<LineError>, sqlx::Error> {
        bounded(&self.0, QUERY_TIMEOUT, move |connection| {
            let errors = sqlx::query_as(ERRORS)
                .bind(tenant_id)
                .bind(operation)
                .bind(after)
                .bind(limit);
            Box::pin(errors.fetch_all(connection))
        })
        .await
    }

    /// Asks for an operation to end before it is done.
    pub(super) async fn cancel(&self, tenant_id: Uuid, operation: Uuid) -> Result<(), sqlx::Error> {
        bounded(&self.0, LOOKUP_TIMEOUT, move |connection| {
            let cancel = sqlx::query(CANCEL).bind(tenant_id).bind(operation);
            Box::pin(async move { cancel.execute(connection).await.map(drop) })
        })
        .await
    }

    /// A part of an input; `None` when it is gone.
    pub(super) async fn input(
        &self,
        tenant_id: Uuid,
        operation: Uuid,
        number: i32,
    ) -> Result<Option<Chunk>, sqlx::Error> {
        let read = bounded(&self.0, QUERY_TIMEOUT, move |connection| {
            let input = sqlx::query_as::<_, (i64, Vec<u8>)>(INPUT);
            Box::pin(
                input
                    .bind(tenant_id)
                    .bind(operation)
                    .bind(number)
                    .fetch_optional(connection),
            )
        });
        let chunk = |(first_line, lines): (i64, Vec<u8>)| Chunk {
            first_line: first_line.cast_unsigned(),
            lines,
        };
        Ok(read.await?.map(chunk))
    }

    /// Deletes a part of what is too old; whether there may be more.
    pub(super) async fn sweep(&self) -> Result<bool, sqlx::Error> {
        bounded(&self.0, QUERY_TIMEOUT, move |connection| {
            let sweep = sqlx::query_scalar(SWEEP)
                .bind(super::RETENTION.as_secs_f64())
                .bind(super::ARRIVING_MAX.as_secs_f64());
            Box::pin(sweep.fetch_one(connection))
        })
        .await
    }
}
