//! The tables of exports: see `migrations/event-store/0010_exports.sql`.

use std::time::Duration;

use daybook_event_store::{EpochId, EventStore};
use daybook_postgres::{LOOKUP_TIMEOUT, QUERY_TIMEOUT, bounded, within};
use daybook_service::identity::Principal;
use sqlx::{FromRow, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use super::KIND;
use super::request::Asked;
use crate::operations::lease::Lease;
use crate::operations::store::Submitted;
use crate::operations::{OPEN_MAX, RETENTION};

/// How long a file is kept after its operation has ended. It goes a moment before, in parts, so that little is left to be deleted with
/// the operation.
const OUTPUT_RETENTION: Duration = Duration::from_secs(RETENTION.as_secs() - 60 * 60);

pub(in crate::operations) const SUBMIT: &str = "
    SELECT operation_id, kind, input_sha256
    FROM event_store.submit_export($1, $2, $3, $4, $5, $6, $7, $8, $9::text::json, $10, $11, $12)
";

pub(in crate::operations) const EXPORTS: &str = "
    SELECT operation_id, request::text AS request, epoch, generation, after_position, up_to_position, chunks, up_to, events, bytes,
           first_position, last_position, recorded_at, sha256, problem::text AS problem
    FROM event_store.exports($1, $2)
";

pub(in crate::operations) const BYTES: &str = "SELECT event_store.export_bytes($1)";

pub(in crate::operations) const RECORD: &str =
    "SELECT event_store.record_output($1, $2, $3, $4, $5, $6, $7, $8, $9)";

pub(in crate::operations) const OUTPUT: &str = "SELECT event_store.read_output($1, $2, $3)";

pub(in crate::operations) const DISCARD: &str = "SELECT event_store.discard_output($1, $2)";

pub(in crate::operations) const END: &str =
    "SELECT event_store.end_export($1, $2, $3, $4, $5, $6, $7, $8, $9::text::json)";

pub(in crate::operations) const SWEEP: &str = "SELECT event_store.sweep_outputs(make_interval(secs => $1))";

/// An export, and how far it is.
#[derive(Debug, Clone, FromRow)]
pub(super) struct Export {
    pub(super) operation_id: Uuid,
    /// What was asked for, as JSON.
    request: String,
    /// The epoch of the log when it was asked for.
    #[sqlx(flatten)]
    pub(super) epoch: EpochId,
    /// It is of the positions behind this one, …
    pub(super) after_position: i64,
    /// … and up to this one.
    pub(super) up_to_position: i64,
    /// How many chunks are kept.
    pub(super) chunks: i32,
    /// The log was read up to here.
    pub(super) up_to: i64,
    #[sqlx(flatten)]
    pub(super) written: Written,
    /// When the last chunk was kept.
    pub(super) recorded_at: Option<OffsetDateTime>,
    /// The hash of the whole file.
    pub(super) sha256: Option<Vec<u8>>,
    /// Why it failed, as JSON.
    pub(super) problem: Option<String>,
}

impl Export {
    /// What was asked for.
    ///
    /// # Errors
    /// When a later version of this program wrote what this one does not know.
    pub(super) fn asked(&self) -> Result<Asked, serde_json::Error> {
        serde_json::from_str(&self.request)
    }
}

/// What is in a file, or in its first chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromRow)]
pub(super) struct Written {
    pub(super) events: i64,
    pub(super) bytes: i64,
    /// The position of the first event.
    pub(super) first_position: Option<i64>,
    /// That of the last one.
    pub(super) last_position: Option<i64>,
}

/// A chunk of a file.
#[derive(Debug)]
pub(super) struct Chunk {
    /// From 0.
    pub(super) number: i32,
    /// The log was read up to here for it.
    pub(super) up_to: i64,
    /// What is in it and in all before it.
    pub(super) written: Written,
    pub(super) content: Vec<u8>,
}

/// The tables of exports, and the log that they are of. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::operations) struct Store(PgPool);

impl Store {
    pub(in crate::operations) fn new(pool: PgPool) -> Self {
        Self(pool)
    }

    /// The log.
    pub(super) fn log(&self) -> EventStore {
        EventStore::new(self.0.clone())
    }

    /// Has an export wait for whoever works on it, unless the tenant has an operation with its key: that one is returned. `None` when
    /// the tenant has too many open.
    pub(super) async fn submit(
        &self,
        operation: Uuid,
        principal: &Principal,
        key: String,
        asked: &Asked,
    ) -> Result<Option<Submitted>, sqlx::Error> {
        let (request, sha256) = asked.encode();
        let submit = sqlx::query_as(SUBMIT)
            .bind(principal.tenant_id)
            .bind(operation)
            .bind(KIND)
            .bind(key)
            .bind(principal.tenant_partition)
            .bind(principal.key_prefix.clone())
            .bind(principal.name.clone())
            .bind(sha256.to_vec())
            .bind(request)
            .bind(asked.filters.recorded_after)
            .bind(asked.filters.recorded_before)
            .bind(OPEN_MAX);
        bounded(&self.0, LOOKUP_TIMEOUT, move |connection| {
            Box::pin(submit.fetch_optional(connection))
        })
        .await
    }

    /// Those of these operations that are exports.
    pub(super) async fn exports(
        &self,
        tenant_id: Uuid,
        operations: Vec<Uuid>,
    ) -> Result<Vec<Export>, sqlx::Error> {
        bounded(&self.0, QUERY_TIMEOUT, move |connection| {
            let exports = sqlx::query_as(EXPORTS).bind(tenant_id).bind(operations);
            Box::pin(exports.fetch_all(connection))
        })
        .await
    }

    /// How many bytes a tenant's files have that are whole.
    pub(super) async fn bytes(&self, tenant_id: Uuid) -> Result<i64, sqlx::Error> {
        bounded(&self.0, LOOKUP_TIMEOUT, move |connection| {
            Box::pin(sqlx::query_scalar(BYTES).bind(tenant_id).fetch_one(connection))
        })
        .await
    }

    /// A chunk of a file; `None` when it is gone.
    pub(super) async fn output(
        &self,
        tenant_id: Uuid,
        operation: Uuid,
        number: i32,
    ) -> Result<Option<Vec<u8>>, sqlx::Error> {
        bounded(&self.0, QUERY_TIMEOUT, move |connection| {
            let output = sqlx::query_scalar(OUTPUT)
                .bind(tenant_id)
                .bind(operation)
                .bind(number);
            Box::pin(output.fetch_one(connection))
        })
        .await
    }

    /// Deletes the files of operations that are about to be deleted.
    pub(in crate::operations) async fn sweep(&self) -> Result<(), sqlx::Error> {
        loop {
            let has_more = bounded(&self.0, QUERY_TIMEOUT, |connection| {
                let sweep = sqlx::query_scalar::<_, bool>(SWEEP);
                Box::pin(sweep.bind(OUTPUT_RETENTION.as_secs_f64()).fetch_one(connection))
            });
            if !has_more.await? {
                return Ok(());
            }
        }
    }
}

/// Keeps the next chunk of a file, over the session that works on it. Whether somebody wants the operation to end.
pub(super) async fn record(lease: &mut Lease, chunk: Chunk) -> Result<bool, sqlx::Error> {
    let record = sqlx::query_scalar(RECORD)
        .bind(lease.operation.tenant_id)
        .bind(lease.operation.operation_id)
        .bind(chunk.number)
        .bind(chunk.up_to)
        .bind(chunk.written.events)
        .bind(chunk.written.bytes)
        .bind(chunk.written.first_position)
        .bind(chunk.written.last_position)
        .bind(chunk.content)
        .fetch_one(lease.connection()?);
    within(QUERY_TIMEOUT, record).await
}

/// Deletes what there is of a file, over the session that works on it.
pub(super) async fn discard(lease: &mut Lease) -> Result<(), sqlx::Error> {
    loop {
        let discard = sqlx::query_scalar(DISCARD)
            .bind(lease.operation.tenant_id)
            .bind(lease.operation.operation_id)
            .fetch_one(lease.connection()?);
        if !within(QUERY_TIMEOUT, discard).await? {
            return Ok(());
        }
    }
}

/// Ends an export, over the session that works on it: with the hash of a file that is whole, or the problem that there was.
pub(super) async fn end(
    mut lease: Lease,
    outcome: &'static str,
    written: Written,
    sha256: Option<[u8; 32]>,
    problem: Option<String>,
) -> Result<(), sqlx::Error> {
    let end = sqlx::query(END)
        .bind(lease.operation.tenant_id)
        .bind(lease.operation.operation_id)
        .bind(outcome)
        .bind(written.events)
        .bind(written.bytes)
        .bind(written.first_position)
        .bind(written.last_position)
        .bind(sha256.map(|sha256| sha256.to_vec()))
        .bind(problem)
        .execute(lease.connection()?);
    within(LOOKUP_TIMEOUT, end).await.map(drop)
}
