//! Works on an export: reads the log page by page, writes what passes the filters, and keeps it chunk by chunk.
//!
//! What is kept says how far the log was read for it, and a history never changes up to a position. So whoever goes on after a crash
//! writes the rest of the very same file. The hash is that of what is kept: after a crash, that is read again first.

use std::time::Duration;

use daybook_event_store::{EpochId, EventStore, ReadError, RecordedEvent, TenantRange};
use daybook_service::Code;
use daybook_service::error::ApiError;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::request::Asked;
use super::store::{self, Chunk, Export, Store, Written};
use super::{EXPORT_BYTES_MAX, TENANT_BYTES_MAX, content};
use crate::operations::lease::{Claimed, Lease, Progress};

/// From how many bytes on a chunk is kept.
const CHUNK_BYTES: usize = 256 * 1_024;

/// How often progress is recorded, where little passes the filters, and looked whether somebody wants the operation to end.
const RECORD_EVERY: Duration = Duration::from_millis(500);

/// How many positions of the log are looked at in one statement, which takes less time than the session may say nothing.
const PAGE_POSITIONS: u32 = 5_000;

/// How many events one statement gives, …
const PAGE_EVENTS: u32 = 1_000;

/// … and behind how many bytes of payload and metadata it gives none.
const PAGE_BYTES: u32 = 1_024 * 1_024;

/// How an export ended.
enum Outcome {
    /// The file is whole, and this is its hash.
    Whole([u8; 32]),
    Cancelled,
    Failed(ApiError),
}

/// Why an export could not go on. The session is dropped, and with it the lock: somebody goes on later.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    #[error("the log cannot be read")]
    Log(#[from] ReadError),
    #[error("a chunk of the file is gone")]
    Gone,
    #[error("what was asked for cannot be read")]
    Asked(#[from] serde_json::Error),
}

/// Works on one export until it has ended or is to be given back, and gives it where that failed.
pub(in crate::operations) async fn work_and_report(
    store: Store,
    lease: Lease,
    stop: CancellationToken,
) -> Option<Uuid> {
    let operation = lease.operation.operation_id;
    tracing::info!(operation.id = %operation, "working on an export");
    match work(&store, lease, &stop).await {
        Ok(Some(Outcome::Whole(_))) => tracing::info!(operation.id = %operation, "the export is done"),
        Ok(Some(Outcome::Cancelled)) => tracing::info!(operation.id = %operation, "the export was cancelled"),
        Ok(Some(Outcome::Failed(error))) => tracing::warn!(
            error = &error as &dyn std::error::Error,
            operation.id = %operation,
            "the export failed"
        ),
        Ok(None) => tracing::info!(operation.id = %operation, "the export is left to whoever is next"),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                operation.id = %operation,
                "the export was interrupted"
            );
            return Some(operation);
        }
    }
    None
}

/// Works on one export until it has ended; `None` where it is given back before.
async fn work(
    store: &Store,
    mut lease: Lease,
    stop: &CancellationToken,
) -> Result<Option<Outcome>, Interruption> {
    // The first record says when it began.
    let is_cancelled = lease.record(Progress::default(), &[]).await?;
    let operation = lease.operation.clone();
    let (tenant_id, operation_id) = (operation.tenant_id, operation.operation_id);
    let export = store.exports(tenant_id, vec![operation_id]).await?.pop();
    let export = export.ok_or(sqlx::Error::RowNotFound)?;
    let mut writing = Writing::new(store, operation, &export).await?;
    let outcome = match is_cancelled {
        true => Some(Outcome::Cancelled),
        false => writing.go_on(&mut lease, stop).await?,
    };
    let Some(outcome) = outcome else {
        lease.give_back().await?;
        return Ok(None);
    };
    if !matches!(outcome, Outcome::Whole(_)) {
        store::discard(&mut lease).await?;
    }
    writing.end(lease, &outcome).await?;
    Ok(Some(outcome))
}

/// A file that is being written.
struct Writing<'a> {
    store: &'a Store,
    log: EventStore,
    operation: Claimed,
    asked: Asked,
    /// The epoch of the log when it was asked for, …
    epoch: EpochId,
    /// … and the newest one in which the file is known to be of the log's history.
    checked: EpochId,
    /// Behind this position the log is read.
    position: u64,
    /// Up to this one.
    up_to: u64,
    /// How many bytes the file may have.
    bytes_max: u64,
    /// How many chunks are kept.
    chunks: i32,
    /// What is kept, and what is not yet.
    written: Written,
    /// What is not yet kept.
    gathered: Vec<u8>,
    /// Up to where it was recorded that the log was read.
    recorded: Option<u64>,
    recorded_at: Instant,
    /// Of what is kept.
    hash: Sha256,
}

impl<'a> Writing<'a> {
    async fn new(store: &'a Store, operation: Claimed, export: &Export) -> Result<Self, Interruption> {
        let kept = store.bytes(operation.tenant_id).await?.cast_unsigned();
        let asked = export.asked()?;
        let position = export.up_to.cast_unsigned();
        let begins = export.chunks == 0;
        let gathered = match begins {
            true => content::head(asked.format).into_bytes(),
            false => Vec::new(),
        };
        let mut written = export.written;
        written.bytes += length(&gathered);
        Ok(Self {
            store,
            log: store.log(),
            operation,
            asked,
            epoch: export.epoch,
            checked: export.epoch,
            position,
            up_to: export.up_to_position.cast_unsigned(),
            bytes_max: EXPORT_BYTES_MAX.min(TENANT_BYTES_MAX.saturating_sub(kept)),
            chunks: export.chunks,
            written,
            gathered,
            recorded: (!begins).then_some(position),
            recorded_at: Instant::now(),
            hash: Sha256::new(),
        })
    }

    /// Writes what is left; `None` where it is to be given back before.
    async fn go_on(
        &mut self,
        lease: &mut Lease,
        stop: &CancellationToken,
    ) -> Result<Option<Outcome>, Interruption> {
        let mut asked_at = Instant::now();
        for number in 0..self.chunks {
            if stop.is_cancelled() {
                return Ok(None);
            }
            // A large file takes longer than the session may say nothing.
            if asked_at.elapsed() >= RECORD_EVERY {
                asked_at = Instant::now();
                if lease.record(Progress::default(), &[]).await? {
                    return Ok(Some(Outcome::Cancelled));
                }
            }
            let (tenant_id, operation_id) = (self.operation.tenant_id, self.operation.operation_id);
            let kept = self.store.output(tenant_id, operation_id, number).await?;
            self.hash.update(kept.ok_or(Interruption::Gone)?);
        }
        while self.position < self.up_to {
            if stop.is_cancelled() {
                return Ok(None);
            }
            if let Err(refused) = self.write_page().await? {
                return Ok(Some(Outcome::Failed(refused)));
            }
            let is_due = self.gathered.len() >= CHUNK_BYTES || self.recorded_at.elapsed() >= RECORD_EVERY;
            if is_due && self.record(lease).await? {
                return Ok(Some(Outcome::Cancelled));
            }
        }
        let is_recorded = self.recorded == Some(self.position);
        if !is_recorded && self.record(lease).await? {
            return Ok(Some(Outcome::Cancelled));
        }
        let hash = std::mem::take(&mut self.hash);
        Ok(Some(Outcome::Whole(hash.finalize().into())))
    }

    /// Writes what the next part of the log holds. Within, why the file cannot be written at all.
    async fn write_page(&mut self) -> Result<Result<(), ApiError>, Interruption> {
        let page = self.log.read_tenant(self.range()).await?;
        if !self.is_of_history(page.epoch).await? {
            let message = "the history of the log has forked, and no longer has all that was to be exported; export again";
            return Ok(Err(ApiError::new(Code::PositionUnknown, message)));
        }
        for event in &page.events {
            if self.asked.filters.pass(event)
                && let Err(error) = self.write(event)
            {
                return Ok(Err(ApiError::internal(error)));
            }
        }
        self.position = page.up_to;
        Ok(match self.written.bytes.cast_unsigned() > self.bytes_max {
            true => Err(too_large(self.bytes_max)),
            false => Ok(()),
        })
    }

    fn range(&self) -> TenantRange {
        TenantRange {
            tenant_id: self.operation.tenant_id,
            partition: self.operation.tenant_partition,
            after: self.position,
            up_to: self.up_to,
            positions_max: PAGE_POSITIONS,
            events_max: PAGE_EVENTS,
            bytes_max: PAGE_BYTES,
            event_type: self.asked.filters.event_type.clone(),
            stream_id: self.asked.filters.stream_id.clone(),
        }
    }

    /// Whether the log, in this epoch, has all that the file is of: what was recorded before a fork stays.
    async fn is_of_history(&mut self, epoch: EpochId) -> Result<bool, ReadError> {
        if epoch == self.checked {
            return Ok(true);
        }
        let lineage = self.log.lineage(self.operation.tenant_partition).await?;
        self.checked = epoch;
        Ok(lineage.has(self.epoch.generation, self.up_to))
    }

    fn write(&mut self, event: &RecordedEvent) -> Result<(), serde_json::Error> {
        let before = length(&self.gathered);
        content::write(self.asked.format, event, &mut self.gathered)?;
        let position = event.position.cast_signed();
        self.written = Written {
            events: self.written.events + 1,
            bytes: self.written.bytes + length(&self.gathered) - before,
            first_position: self.written.first_position.or(Some(position)),
            last_position: Some(position),
        };
        Ok(())
    }

    /// Keeps what was written, and how far that is. Whether somebody wants the operation to end.
    async fn record(&mut self, lease: &mut Lease) -> Result<bool, sqlx::Error> {
        self.hash.update(&self.gathered);
        let chunk = Chunk {
            number: self.chunks,
            up_to: self.position.cast_signed(),
            written: self.written,
            content: std::mem::take(&mut self.gathered),
        };
        let is_cancelled = store::record(lease, chunk).await?;
        self.chunks += 1;
        self.recorded = Some(self.position);
        self.recorded_at = Instant::now();
        Ok(is_cancelled)
    }

    async fn end(self, lease: Lease, outcome: &Outcome) -> Result<(), sqlx::Error> {
        let (name, sha256, problem) = match outcome {
            Outcome::Whole(sha256) => ("SUCCEEDED", Some(*sha256), None),
            Outcome::Cancelled => ("CANCELLED", None, None),
            Outcome::Failed(error) => ("FAILED", None, Some(error.to_item_problem().to_string())),
        };
        store::end(lease, name, self.written, sha256, problem).await
    }
}

fn too_large(bytes_max: u64) -> ApiError {
    let message = format!(
        "the file would be larger than {bytes_max} bytes, which is what there is room for; export less at a time"
    );
    ApiError::new(Code::PayloadTooLarge, message).with_detail("limit_bytes", bytes_max)
}

fn length(bytes: &[u8]) -> i64 {
    i64::try_from(bytes.len()).expect("a file in memory is small")
}
