//! Applies the log to tables that are not live, as fast as possible: reading, decoding and applying overlap.
//!
//! One task reads ahead from Postgres, threads for blocking work decode, and the caller's task folds and stores.

use std::time::{Duration, Instant};

use daybook_event_bus::consume::Source;
use daybook_event_store::{EventStore, ReadError, RecordedEvent};
use daybook_postgres::within;
use daybook_read_model::ReadModel;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::batch::{Batch, Decoded};
use crate::batch_size::BatchSize;
use crate::memory::{CHUNKS_OF_REBUILD, Memory};
use crate::runner::{ApplyError, Runner};

/// How many events are read at most, and applied in one transaction.
pub(crate) const CHUNK_EVENTS: u32 = 10_000;

/// How many chunks may wait to be applied, beside the one that is read and the one that is applied.
const CHUNKS_AHEAD_MAX: usize = CHUNKS_OF_REBUILD - 2;

/// How long one batch may take. A runner that took longer is dropped with its connection.
const APPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a fill did not get to the end of the log.
#[derive(Debug, Error)]
pub enum FillError {
    /// The log could not be read.
    #[error("cannot read the log")]
    Read(#[from] ReadError),
    /// A batch could not be applied.
    #[error("cannot apply a batch")]
    Apply(#[from] ApplyError),
}

/// A chunk that is being decoded, or why it could not be read.
type Chunk = Result<JoinHandle<Option<Batch>>, ReadError>;

/// What the log is read from, and how much of it at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filling<'a> {
    /// The log.
    pub(crate) store: &'a EventStore,
    /// How much memory what takes.
    pub(crate) memory: Memory,
    /// How many events are applied in one transaction.
    pub(crate) batch_size: &'a BatchSize,
}

/// Applies everything that the log has; `applied` is told of every batch. Stops between two batches when told to.
/// Returns the number of events.
pub(crate) async fn fill<M: ReadModel>(
    runner: &mut Runner<M>,
    filling: Filling<'_>,
    shutdown: &CancellationToken,
    applied: impl Fn(u64),
) -> Result<u64, FillError> {
    let start = runner.lease().position;
    let mut chunks = read_ahead(filling, runner);
    while !shutdown.is_cancelled()
        && let Some(chunk) = chunks.recv().await
    {
        let decoded = chunk?
            .await
            .expect("decoding does not panic, and is never aborted");
        let Some(batch) = decoded else { break };
        apply_all(runner, &batch, filling.batch_size, &applied).await?;
    }
    Ok(runner.lease().position - start)
}

async fn apply_all<M: ReadModel>(
    runner: &mut Runner<M>,
    batch: &Batch,
    batch_size: &BatchSize,
    applied: &impl Fn(u64),
) -> Result<(), ApplyError> {
    let events: Vec<&Decoded> = batch.events.iter().collect();
    let mut rest = events.as_slice();
    while !rest.is_empty() {
        let (next, began) = (&rest[..rest.len().min(batch_size.events())], Instant::now());
        let count = within(APPLY_TIMEOUT, runner.apply(next))
            .await
            .inspect_err(|error| {
                // Too slow, or too large for a statement: the same would happen again.
                if matches!(error, ApplyError::Database(_)) {
                    batch_size.took_too_long(next.len());
                }
            })?;
        batch_size.took(began.elapsed());
        rest = &rest[count..];
        applied(count as u64);
    }
    Ok(())
}

/// Reads from the runner's position to the head of the log, as it was before the last read: whoever waited for a read that
/// gives nothing would never be done while others append. Ends when nobody receives any more.
fn read_ahead<M: ReadModel>(filling: Filling<'_>, runner: &Runner<M>) -> mpsc::Receiver<Chunk> {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD_MAX);
    let (store, memory) = (filling.store.clone(), filling.memory);
    let lease = runner.lease();
    let (partition, log_generation, mut position) =
        (lease.key.partition, lease.epoch.generation, lease.position);
    tokio::spawn(async move {
        loop {
            let (head, recorded) = match read_chunk(&store, memory, partition, position).await {
                Ok(read) => read,
                Err(error) => break drop(sender.send(Err(error)).await),
            };
            let Some(last) = recorded.last() else { break };
            position = last.position;
            let decode = move || Batch::decode(log_generation, recorded, Source::Log, Instant::now());
            let decoding = tokio::task::spawn_blocking(decode);
            if sender.send(Ok(decoding)).await.is_err() || position >= head {
                break;
            }
        }
    });
    receiver
}

/// The log's head, and then a chunk of what comes after a position.
async fn read_chunk(
    store: &EventStore,
    memory: Memory,
    partition: i32,
    after: u64,
) -> Result<(u64, Vec<RecordedEvent>), ReadError> {
    let head = store.head(partition).await?.position;
    let recorded = store
        .read_log_within(partition, after, CHUNK_EVENTS, memory.chunk_bytes)
        .await?;
    Ok((head, recorded))
}

/// Applies the log up to `position` and no further than the chunk that holds it; for the last few events.
pub(crate) async fn fill_up_to<M: ReadModel>(
    runner: &mut Runner<M>,
    filling: Filling<'_>,
    position: u64,
    applied: impl Fn(u64),
) -> Result<(), FillError> {
    while runner.lease().position < position {
        let lease = runner.lease();
        let log_generation = lease.epoch.generation;
        let (_head, recorded) =
            read_chunk(filling.store, filling.memory, lease.key.partition, lease.position).await?;
        let Some(batch) = Batch::decode(log_generation, recorded, Source::Log, Instant::now()) else {
            break;
        };
        apply_all(runner, &batch, filling.batch_size, &applied).await?;
    }
    Ok(())
}
