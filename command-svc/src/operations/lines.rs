//! Works on an import: does what its lines ask for.
//!
//! Lines are done many at once, in the order in which they stand where they share a key. A chunk of the input counts as done when all
//! of its lines and of those before it are, and only that is recorded. Whoever goes on after a crash does the rest, and some of
//! it for the second time, under the same idempotency keys.
//!
//! What is held in memory is bounded by the chunks that are open: a line that waits holds up those that are too far behind it.

use std::sync::Arc;
use std::time::Duration;

use daybook_service::Code;
use daybook_service::error::ApiError;
use daybook_service::identity::{Authenticator, Identity, Principal, Scope, ScopeSet};
use futures::stream::{self, Stream, StreamExt as _};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::import::{Import, UnderWay};
use super::input::{Chunk, lines};
use super::lease::{Claimed, Failed, Lease, Outcome};
use super::store::Store;
use super::tally::{Step, Tally};
use super::turn::{Turn, Turns};
use crate::handler::Caller;

/// How many lines of one operation are under way at once.
const LINES_IN_FLIGHT: usize = 512;

/// How many chunks of one operation are open at once: each has at most [`super::input::CHUNK_LINES_MAX`] lines, and less than a megabyte.
const CHUNKS_OPEN_MAX: usize = 8;

/// How often progress is recorded, and looked whether somebody wants the operation to end.
const RECORD_EVERY: Duration = Duration::from_millis(500);

/// How often it is looked whether its caller may still ask for it, and how old what is known of that may be.
const AUTHORIZE_EVERY: Duration = Duration::from_secs(30);

/// The pause after a chunk could not be read.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The characters that are kept of what a line that failed is about.
const REFERENCE_CHARS_MAX: usize = 128;

/// How many violations are kept of each line.
const VIOLATIONS_MAX: usize = 10;

/// What it takes to work on an import.
#[derive(Clone)]
pub(super) struct Lines {
    pub(super) importer: Arc<dyn Import>,
    pub(super) store: Store,
    pub(super) authenticator: Authenticator,
}

impl Lines {
    /// Works on an operation until it has ended; `None` where it is given back before.
    pub(super) async fn work(
        self,
        mut lease: Lease,
        stop: CancellationToken,
    ) -> Result<Option<Outcome>, sqlx::Error> {
        let mut tally = Tally::new(lease.progress().await?);
        let outcome = self.work_on(&mut lease, &mut tally, &stop).await?;
        lease.record(tally.progress, &tally.take_errors()).await?;
        match outcome {
            Some(outcome) => lease.end(outcome).await?,
            None => lease.give_back().await?,
        }
        Ok(outcome)
    }

    async fn work_on(
        self,
        lease: &mut Lease,
        tally: &mut Tally,
        stop: &CancellationToken,
    ) -> Result<Option<Outcome>, sqlx::Error> {
        let mut authorize = interval(AUTHORIZE_EVERY);
        authorize.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut record = interval(RECORD_EVERY);
        record.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first record says when it began.
        if lease.record(tally.progress, &[]).await? {
            return Ok(Some(Outcome::Cancelled));
        }
        let (operation, begun) = (lease.operation.clone(), tally.progress.chunks);
        let caller = caller(&operation, self.importer.scope());
        let chunks = chunks(self.store.clone(), operation.clone(), begun);
        let mut done = Box::pin(steps(chunks, Arc::clone(&self.importer), caller));
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                _ = record.tick() => {
                    if lease.record(tally.progress, &tally.take_errors()).await? {
                        return Ok(Some(Outcome::Cancelled));
                    }
                }
                _ = authorize.tick() => {
                    if let Some(code) = self.refusal(&operation).await {
                        return Ok(Some(Outcome::Refused(code)));
                    }
                }
                step = done.next() => match step {
                    Some(Step::Missing) => return Err(sqlx::Error::RowNotFound),
                    Some(step) => tally.take_in(step),
                    None => return Ok(Some(Outcome::Succeeded)),
                },
            }
        }
    }

    /// The code that whoever asked for the operation would be refused with by now. What is not known refuses nobody: where the
    /// database is away, nothing is recorded either.
    async fn refusal(&self, operation: &Claimed) -> Option<&'static str> {
        let scope = self.importer.scope();
        match self
            .authenticator
            .again(&operation.key_prefix, AUTHORIZE_EVERY)
            .await
        {
            Ok(Identity::Tenant(principal))
                if principal.tenant_id == operation.tenant_id && principal.scopes.contains(scope) =>
            {
                None
            }
            Ok(_) => Some(Code::PermissionDenied.entry().name),
            Err(error) if *error.code() == Code::Unauthenticated => Some(Code::Unauthenticated.entry().name),
            Err(_unknown) => None,
        }
    }
}

/// Whoever asked for the operation: its commands are theirs.
fn caller(operation: &Claimed, scope: Scope) -> Arc<Caller> {
    Arc::new(Caller {
        principal: Arc::new(Principal {
            tenant_id: operation.tenant_id,
            tenant_partition: operation.tenant_partition,
            key_prefix: operation.key_prefix.clone(),
            name: operation.key_name.clone(),
            scopes: ScopeSet::from_iter([scope]),
        }),
        received_at: OffsetDateTime::now_utc(),
    })
}

/// A chunk and its number; none where it is not there.
type Numbered = (i32, Option<Chunk>);

/// The input from a chunk on.
fn chunks(store: Store, operation: Claimed, first: i32) -> impl Stream<Item = Numbered> {
    stream::iter(first..operation.input_chunks).then(move |number| {
        let store = store.clone();
        let (tenant_id, operation_id) = (operation.tenant_id, operation.operation_id);
        async move { (number, read(&store, tenant_id, operation_id, number).await) }
    })
}

/// What is done for the input, one step after another.
fn steps(
    chunks: impl Stream<Item = Numbered>,
    importer: Arc<dyn Import>,
    caller: Arc<Caller>,
) -> impl Stream<Item = Step> {
    let mut turns = Turns::new();
    let places = Arc::new(Semaphore::new(CHUNKS_OPEN_MAX));
    let chunks = stream::unfold((Box::pin(chunks), places), async |(mut chunks, places)| {
        let place = Arc::clone(&places).acquire_owned().await;
        let place = place.expect("nobody closes it");
        // Lines may all be refused at once, without a wait.
        tokio::task::yield_now().await;
        let chunk = chunks.next().await?;
        Some(((chunk, place), (chunks, places)))
    });
    let steps = chunks.flat_map(move |((number, chunk), place)| {
        let Some(chunk) = chunk else {
            return stream::iter(vec![Begun::Step(Step::Missing)]);
        };
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
        steps.push(Begun::Step(Step::Chunk {
            chunk: number,
            lines,
            bytes,
            place,
        }));
        stream::iter(steps)
    });
    steps.map(Begun::finish).buffer_unordered(LINES_IN_FLIGHT)
}

/// A step that has begun.
enum Begun {
    Line {
        chunk: i32,
        line: u64,
        under_way: UnderWay,
        turn: Option<Turn>,
    },
    Step(Step),
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
            Self::Step(step) => step,
        }
    }
}

fn failed(line: u64, reference: Option<String>, error: &ApiError) -> Failed {
    Failed {
        line,
        reference: reference.as_deref().map(shown),
        problem: problem(error).to_string(),
    }
}

/// A problem as it is kept, with as many violations.
fn problem(error: &ApiError) -> Value {
    let mut problem = error.to_item_problem();
    let shown = problem["errors"]
        .as_array()
        .map_or(0, Vec::len)
        .min(VIOLATIONS_MAX);
    let more = error.violations().len() - shown;
    if let Some(errors) = problem
        .get_mut("errors")
        .and_then(Value::as_array_mut)
        .filter(|_| more > 0)
    {
        errors.truncate(shown);
        problem["more_violations"] = more.into();
    }
    problem
}

/// A reference as it is kept: cut, and without what Postgres does not take or nobody can see.
fn shown(reference: &str) -> String {
    let characters = reference.chars().take(REFERENCE_CHARS_MAX);
    let shown = characters.map(|character| match character.is_control() {
        true => char::REPLACEMENT_CHARACTER,
        false => character,
    });
    shown.collect()
}

/// Reads a chunk, again and again while the database is away. As long as the lease is held, it is there.
async fn read(store: &Store, tenant_id: uuid::Uuid, operation: uuid::Uuid, number: i32) -> Option<Chunk> {
    loop {
        match store.input(tenant_id, operation, number).await {
            Ok(chunk) => return chunk,
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

#[cfg(test)]
mod tests {
    use daybook_service::error::FieldViolation;
    use futures::FutureExt as _;
    use uuid::Uuid;

    use super::super::input::CHUNK_LINES_MAX;
    use super::super::lease::Progress;
    use super::*;

    /// Imports no line: the first one waits for ever, and the others are refused.
    struct Stuck;

    impl Import for Stuck {
        fn kind(&self) -> &'static str {
            "stuck"
        }

        fn scope(&self) -> Scope {
            Scope::OrdersWrite
        }

        fn begin(self: Arc<Self>, line: &[u8], _: Arc<Caller>) -> UnderWay {
            UnderWay {
                reference: None,
                key: None,
                doing: match line {
                    b"first" => std::future::pending().boxed(),
                    _ => std::future::ready(Err(ApiError::malformed("no"))).boxed(),
                },
            }
        }
    }

    #[tokio::test]
    async fn a_line_that_waits_holds_up_what_is_far_behind_it() {
        let operation = Claimed {
            operation_id: Uuid::nil(),
            tenant_id: Uuid::nil(),
            kind: "stuck".to_owned(),
            tenant_partition: 0,
            key_prefix: String::new(),
            key_name: String::new(),
            input_chunks: 100,
        };
        let chunk = |number| Chunk {
            first_line: 1,
            lines: match number {
                0 => b"first\n2\n".to_vec(),
                _ => b"1\n".repeat(usize::try_from(CHUNK_LINES_MAX).expect("it is small")),
            },
        };
        let chunks = stream::iter((0..100).map(|number| (number, Some(chunk(number)))));
        let caller = caller(&operation, Scope::OrdersWrite);
        let mut steps = Box::pin(steps(chunks, Arc::new(Stuck), caller));
        let mut tally = Tally::new(Progress::default());
        let (mut taken, mut waits) = (0, 0);
        // Each chunk yields once before it is read.
        while waits < 2 * CHUNKS_OPEN_MAX {
            match steps.next().now_or_never() {
                Some(step) => {
                    tally.take_in(step.expect("the first line never ends"));
                    (taken, waits) = (taken + 1, 0);
                }
                None => {
                    tokio::task::yield_now().await;
                    waits += 1;
                }
            }
        }
        let others = CHUNKS_OPEN_MAX as u64 - 1;
        assert_eq!(taken, 2 + others * (CHUNK_LINES_MAX + 1), "of one hundred chunks");
        assert_eq!(tally.progress, Progress::default());
    }

    #[test]
    fn of_a_line_with_many_violations_the_first_ones_are_kept() {
        let violation = FieldViolation::new("/lines", "REQUIRED", "is required");
        let many = problem(&ApiError::validation(vec![violation.clone(); 500]));
        assert_eq!(many["errors"].as_array().map(Vec::len), Some(VIOLATIONS_MAX));
        assert_eq!(many["more_violations"], 500 - VIOLATIONS_MAX);
        for few in [ApiError::validation(vec![violation]), ApiError::malformed("no")] {
            assert_eq!(problem(&few), few.to_item_problem());
        }
    }

    #[test]
    fn a_reference_is_kept_as_far_as_it_can_be_shown() {
        assert_eq!(shown("Größe 1"), "Größe 1");
        assert_eq!(shown("a\0b\r\n"), "a\u{fffd}b\u{fffd}\u{fffd}");
        assert_eq!(shown(&"ß".repeat(500_000)), "ß".repeat(128));
    }
}
