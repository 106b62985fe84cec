//! Works on operations: claims those that nobody works on, and does what their input asks for.
//!
//! Lines are done many at once, in the order in which they stand where they share a key. A chunk of the input counts as done when all
//! of its lines and of those before it are, and only that is recorded. Whoever goes on after a crash does the rest, and some of
//! it for the second time, under the same idempotency keys.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use daybook_service::error::ApiError;
use daybook_service::identity::{Principal, ScopeSet};
use futures::stream::{self, Stream, StreamExt as _};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::import::{Import, UnderWay};
use super::input::{Chunk, lines};
use super::lease::{Claimed, Claims, Failed, Lease, Progress, Wanted};
use super::store::Store;
use super::turn::{Turn, Turns};
use super::{ERRORS_MAX, Importers, exports};
use crate::handler::Caller;

/// How many operations one process works on at once.
const OPERATIONS_MAX: usize = 4;

/// How many lines of one operation are under way at once.
const LINES_IN_FLIGHT: usize = 512;

/// How often it is looked for operations that wait.
const CLAIM_EVERY: Duration = Duration::from_secs(1);

/// How often progress is recorded, and looked whether somebody wants the operation to end.
const RECORD_EVERY: Duration = Duration::from_millis(500);

/// The pause after a chunk could not be read.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How often it is looked for operations that are too old.
const SWEEP_EVERY: Duration = Duration::from_secs(10 * 60);

/// Works on operations of every tenant.
pub(super) struct Worker {
    pub(super) store: Store,
    pub(super) exports: exports::Store,
    pub(super) claims: Claims,
    pub(super) importers: Importers,
    /// Says that there is a new one.
    pub(super) submitted: Arc<Notify>,
    pub(super) shutdown: CancellationToken,
}

impl Worker {
    /// Works until the stop signal; what is not done then is done by another process.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        let mut working = JoinSet::new();
        let mut claim = interval(CLAIM_EVERY);
        claim.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweep_at = Instant::now();
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                _ = claim.tick() => {}
                () = self.submitted.notified() => {}
                Some(_ended) = working.join_next() => {}
            }
            if sweep_at <= Instant::now() {
                sweep_at = Instant::now() + SWEEP_EVERY;
                working.spawn(sweep(self.store.clone(), self.exports.clone()));
            }
            self.claim_all(&mut working).await;
        }
        while working.join_next().await.is_some() {}
        Ok(())
    }

    /// Begins to work on what nobody works on, as far as there is room.
    async fn claim_all(&mut self, working: &mut JoinSet<()>) {
        while working.len() < OPERATIONS_MAX {
            let lease = match self.claims.next().await {
                Ok(Some(lease)) => lease,
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot look for operations"
                    );
                    return;
                }
            };
            let kind = lease.operation.kind.as_str();
            if kind == exports::KIND {
                let (exports, stop) = (self.exports.clone(), self.shutdown.clone());
                working.spawn(exports::work_and_report(exports, lease, stop));
                continue;
            }
            let importer = self.importers.iter().find(|importer| importer.kind() == kind);
            let importer = importer.expect("claims name the kinds that this process knows");
            let (importer, store, stop) = (Arc::clone(importer), self.store.clone(), self.shutdown.clone());
            working.spawn(work_and_report(importer, store, lease, stop));
        }
    }
}

async fn sweep(store: Store, exports: exports::Store) {
    if let Err(error) = exports.sweep().await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "cannot delete old files"
        );
        return;
    }
    loop {
        match store.sweep().await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot delete old operations"
                );
                return;
            }
        }
    }
}

/// Works on one operation. When the database fails the session is dropped, and with it the lock: somebody goes on later.
async fn work_and_report(importer: Arc<dyn Import>, store: Store, lease: Lease, stop: CancellationToken) {
    let operation = lease.operation.operation_id;
    tracing::info!(operation.id = %operation, operation.kind = importer.kind(), "working on an operation");
    match work(importer, store, lease, stop).await {
        Ok(Some(Wanted::Done)) => tracing::info!(operation.id = %operation, "the operation is done"),
        Ok(Some(Wanted::Cancelled)) => {
            tracing::info!(operation.id = %operation, "the operation was cancelled")
        }
        Ok(None) => tracing::info!(operation.id = %operation, "the operation is left to another process"),
        Err(error) => tracing::warn!(
            error = &error as &dyn std::error::Error,
            operation.id = %operation,
            "the operation was interrupted"
        ),
    }
}

/// Works on one operation until it has ended; `None` where the process stops before.
async fn work(
    importer: Arc<dyn Import>,
    store: Store,
    mut lease: Lease,
    stop: CancellationToken,
) -> Result<Option<Wanted>, sqlx::Error> {
    let begun = lease.progress().await?;
    let operation = lease.operation.clone();
    let mut tally = Tally::new(begun);
    // The first record says when it began.
    let mut wanted = lease.record(begun, &[]).await?;
    let caller = caller(&lease, importer.as_ref());
    let steps = steps(store.clone(), operation.clone(), begun.chunks, importer, caller);
    let mut done = Box::pin(steps.buffer_unordered(LINES_IN_FLIGHT));
    let mut record = interval(RECORD_EVERY);
    record.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while wanted == Wanted::Done {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                lease.record(tally.progress, &tally.take_errors()).await?;
                return Ok(None);
            }
            _ = record.tick() => wanted = lease.record(tally.progress, &tally.take_errors()).await?,
            step = done.next() => match step {
                Some(step) => tally.take_in(step),
                None => break,
            },
        }
    }
    drop(done);
    lease.record(tally.progress, &tally.take_errors()).await?;
    store
        .discard_input(operation.tenant_id, operation.operation_id)
        .await?;
    lease.end(wanted).await?;
    Ok(Some(wanted))
}

/// Whoever asked for the operation: its commands are theirs.
fn caller(lease: &Lease, importer: &dyn Import) -> Arc<Caller> {
    let operation = &lease.operation;
    Arc::new(Caller {
        principal: Arc::new(Principal {
            tenant_id: operation.tenant_id,
            tenant_partition: operation.tenant_partition,
            key_prefix: operation.key_prefix.clone(),
            name: operation.key_name.clone(),
            scopes: ScopeSet::from_iter([importer.scope()]),
        }),
        received_at: OffsetDateTime::now_utc(),
    })
}

/// What became of a part of the input.
enum Step {
    /// A line of this chunk.
    Line { chunk: i32, failed: Option<Failed> },
    /// All lines of a chunk have begun: so many there are, and so many bytes.
    Chunk { chunk: i32, lines: i64, bytes: i64 },
}

/// What is to be done for the input from a chunk on, one step after another.
fn steps(
    store: Store,
    operation: Claimed,
    first_chunk: i32,
    importer: Arc<dyn Import>,
    caller: Arc<Caller>,
) -> impl Stream<Item = impl Future<Output = Step>> {
    let mut turns = Turns::new();
    let chunks = stream::iter(first_chunk..operation.input_chunks).then(move |number| {
        let store = store.clone();
        let (tenant_id, operation_id) = (operation.tenant_id, operation.operation_id);
        async move { (number, read(&store, tenant_id, operation_id, number).await) }
    });
    chunks.flat_map(move |(number, chunk)| {
        let mut steps = Vec::new();
        for (line, text) in lines(&chunk) {
            let under_way = Arc::clone(&importer).begin(text, Arc::clone(&caller));
            let turn = under_way.key.as_deref().map(|key| turns.take(key));
            steps.push(Begun::Line {
                chunk: number,
                line,
                under_way,
                turn,
            });
        }
        let lines = i64::try_from(steps.len()).expect("a chunk has few lines");
        let bytes = i64::try_from(chunk.lines.len()).expect("a chunk is small");
        steps.push(Begun::Chunk(Step::Chunk {
            chunk: number,
            lines,
            bytes,
        }));
        stream::iter(steps.into_iter().map(Begun::finish))
    })
}

/// A step that has begun.
enum Begun {
    Line {
        chunk: i32,
        line: u64,
        under_way: UnderWay,
        turn: Option<Turn>,
    },
    Chunk(Step),
}

impl Begun {
    async fn finish(self) -> Step {
        match self {
            Self::Line {
                chunk,
                line,
                under_way,
                mut turn,
            } => {
                if let Some(turn) = &mut turn {
                    turn.come().await;
                }
                let done = under_way.doing.await;
                let failed = done.err().map(|error| failed(line, under_way.reference, &error));
                Step::Line { chunk, failed }
            }
            Self::Chunk(step) => step,
        }
    }
}

fn failed(line: u64, reference: Option<String>, error: &ApiError) -> Failed {
    Failed {
        line,
        reference,
        problem: error.to_item_problem().to_string(),
    }
}

/// Reads a chunk, again and again: as long as the lease is held, it is there.
async fn read(store: &Store, tenant_id: uuid::Uuid, operation: uuid::Uuid, number: i32) -> Chunk {
    loop {
        match store.input(tenant_id, operation, number).await {
            Ok(Some(chunk)) => return chunk,
            Ok(None) => {
                // Whoever deleted it holds the lease, and this one is about to find that out.
                std::future::pending::<Infallible>().await;
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot read the input of an operation"
                );
                tokio::time::sleep(READ_AGAIN_AFTER).await;
            }
        }
    }
}

/// Counts what is done, chunk by chunk.
struct Tally {
    /// Of the chunks that are done, with all before them.
    progress: Progress,
    /// Errors of those that are not recorded yet.
    errors: Vec<Failed>,
    /// The chunks behind those, of which lines are under way or done.
    open: VecDeque<OpenChunk>,
}

#[derive(Default)]
struct OpenChunk {
    /// Lines and bytes, once all lines have begun.
    size: Option<(i64, i64)>,
    done: i64,
    failed: Vec<Failed>,
}

impl Tally {
    fn new(progress: Progress) -> Self {
        Self {
            progress,
            errors: Vec::new(),
            open: VecDeque::new(),
        }
    }

    fn take_in(&mut self, step: Step) {
        match step {
            Step::Line { chunk, failed } => {
                let open = self.open(chunk);
                open.done += 1;
                open.failed.extend(failed);
            }
            Step::Chunk { chunk, lines, bytes } => self.open(chunk).size = Some((lines, bytes)),
        }
        while let Some(first) = self.open.front()
            && let Some((lines, bytes)) = first.size
            && first.done == lines
        {
            let first = self.open.pop_front().expect("there is a front");
            let failed = i64::try_from(first.failed.len()).expect("a chunk has few lines");
            let room = ERRORS_MAX.saturating_sub(self.progress.failed.cast_unsigned());
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            self.errors.extend(first.failed.into_iter().take(room));
            self.progress = Progress {
                chunks: self.progress.chunks + 1,
                bytes: self.progress.bytes + bytes,
                lines: self.progress.lines + lines,
                succeeded: self.progress.succeeded + lines - failed,
                failed: self.progress.failed + failed,
            };
        }
    }

    /// A chunk that is not done.
    fn open(&mut self, chunk: i32) -> &mut OpenChunk {
        let index = usize::try_from(chunk - self.progress.chunks).expect("chunks are done in order");
        while self.open.len() <= index {
            self.open.push_back(OpenChunk::default());
        }
        &mut self.open[index]
    }

    fn take_errors(&mut self) -> Vec<Failed> {
        std::mem::take(&mut self.errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(chunk: i32, failed: Option<u64>) -> Step {
        let failed = failed.map(|line| Failed {
            line,
            reference: None,
            problem: "{}".to_owned(),
        });
        Step::Line { chunk, failed }
    }

    fn chunk(chunk: i32, lines: i64) -> Step {
        Step::Chunk {
            chunk,
            lines,
            bytes: 100 * lines,
        }
    }

    #[test]
    fn a_chunk_counts_once_all_of_its_lines_and_of_those_before_it_are_done() {
        let begun = Progress {
            chunks: 7,
            lines: 70,
            succeeded: 70,
            ..Progress::default()
        };
        let mut tally = Tally::new(begun);
        for step in [line(7, None), chunk(7, 2), line(8, Some(73)), chunk(8, 1)] {
            tally.take_in(step);
            assert_eq!(tally.progress, begun, "a line of the first one is not done");
        }
        assert!(tally.take_errors().is_empty());
        tally.take_in(line(7, Some(72)));
        let done = Progress {
            chunks: 9,
            bytes: 300,
            lines: 73,
            succeeded: 71,
            failed: 2,
        };
        assert_eq!(tally.progress, done);
        let lines: Vec<u64> = tally.take_errors().iter().map(|error| error.line).collect();
        assert_eq!(lines, [72, 73]);
        tally.take_in(chunk(9, 0));
        assert_eq!(
            tally.progress.chunks, 10,
            "a chunk of blank lines is done at once"
        );
    }

    #[test]
    fn errors_beyond_the_limit_are_counted_and_not_kept() {
        let mut tally = Tally::new(Progress::default());
        let lines = i64::try_from(ERRORS_MAX).expect("it is small");
        for _ in 0..2 {
            let number = tally.progress.chunks;
            (0..lines).for_each(|index| tally.take_in(line(number, Some(index.cast_unsigned()))));
            tally.take_in(chunk(number, lines));
        }
        assert_eq!(tally.progress.failed, 2 * lines);
        assert_eq!(tally.take_errors().len() as u64, ERRORS_MAX);
    }
}
