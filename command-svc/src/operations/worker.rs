//! Works on operations: claims those that nobody works on, some at a time, and gives back those that others have waited for long
//! enough.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use daybook_service::identity::Authenticator;
use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::lease::{Claims, Lease, Outcome};
use super::lines::Lines;
use super::store::Store;
use super::{Importers, exports};

/// How many operations one process works on at once.
const OPERATIONS_MAX: usize = 4;

/// How long an operation is worked on before it is given back where others wait.
const SLICE: Duration = Duration::from_secs(3 * 60);

/// How often it is looked for operations that wait.
const CLAIM_EVERY: Duration = Duration::from_secs(1);

/// For how long an operation is set aside that failed, in milliseconds.
const SET_ASIDE_FOR_MILLIS: std::ops::Range<u64> = 1_000..5_000;

/// How often it is looked for operations that are too old.
const SWEEP_EVERY: Duration = Duration::from_secs(10 * 60);

/// Works on operations of every tenant.
pub(super) struct Worker {
    pub(super) store: Store,
    pub(super) exports: exports::Store,
    pub(super) claims: Claims,
    pub(super) importers: Importers,
    pub(super) authenticator: Authenticator,
    /// Says that there is a new one.
    pub(super) submitted: Arc<Notify>,
    pub(super) shutdown: CancellationToken,
}

impl Worker {
    /// Works until the stop signal; what is not done then is done by another process.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        let mut working = Working::default();
        let mut claim = interval(CLAIM_EVERY);
        claim.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                _ = claim.tick() => {}
                () = self.submitted.notified() => {}
                () = working.one_has_ended() => {}
            }
            self.claim_all(&mut working).await;
        }
        while !working.tasks.is_empty() {
            working.one_has_ended().await;
        }
        Ok(())
    }

    /// Begins to work on what nobody works on, as far as there is room, or one has been worked on for long enough.
    async fn claim_all(&mut self, working: &mut Working) {
        loop {
            // One that has just failed is free again, and not to be claimed yet.
            working.take_ended();
            if !working.has_room(Instant::now()) {
                return;
            }
            let lease = match self.claims.next(&working.set_aside(Instant::now())).await {
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
            // What failed while this looked was free again, and was claimed: it goes with its session.
            working.take_ended();
            if working.is_set_aside(&lease) {
                continue;
            }
            working.make_room(Instant::now());
            self.spawn(working, lease);
        }
    }

    fn spawn(&self, working: &mut Working, lease: Lease) {
        let slice = Slice {
            begun_at: Instant::now(),
            stop: self.shutdown.child_token(),
        };
        let (kind, stop) = (lease.operation.kind.as_str(), slice.stop.clone());
        let task = if kind == exports::KIND {
            let task = exports::work_and_report(self.exports.clone(), lease, stop);
            working.tasks.spawn(task)
        } else {
            let importer = self.importers.iter().find(|importer| importer.kind() == kind);
            let lines = Lines {
                importer: Arc::clone(importer.expect("claims name the kinds that this process knows")),
                store: self.store.clone(),
                authenticator: self.authenticator.clone(),
            };
            working.tasks.spawn(work_and_report(lines, lease, stop))
        };
        working.slices.insert(task.id(), slice);
    }
}

/// What is being worked on.
#[derive(Default)]
struct Working {
    /// Each gives the operation that failed.
    tasks: JoinSet<Option<Uuid>>,
    slices: HashMap<Id, Slice>,
    /// Those that failed, and until when they are left alone.
    set_aside: HashMap<Uuid, Instant>,
}

/// The time that one operation has.
struct Slice {
    begun_at: Instant,
    stop: CancellationToken,
}

impl Working {
    /// Waits until one has ended, which may be for ever.
    async fn one_has_ended(&mut self) {
        match self.tasks.join_next_with_id().await {
            Some(ended) => self.end(ended),
            None => std::future::pending().await,
        }
    }

    /// Takes out those that have ended.
    fn take_ended(&mut self) {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.end(ended);
        }
    }

    fn end(&mut self, ended: Result<(Id, Option<Uuid>), JoinError>) {
        match ended {
            Ok((id, failed)) => {
                self.slices.remove(&id);
                // At moments of their own, for each process that tries.
                let pause = Duration::from_millis(rand::random_range(SET_ASIDE_FOR_MILLIS));
                self.set_aside
                    .extend(failed.map(|operation| (operation, Instant::now() + pause)));
            }
            Err(panicked) => {
                self.slices.remove(&panicked.id());
            }
        }
    }

    /// Whether an operation failed a moment ago.
    fn is_set_aside(&self, lease: &Lease) -> bool {
        self.set_aside.contains_key(&lease.operation.operation_id)
    }

    /// The operations that are left alone.
    fn set_aside(&mut self, now: Instant) -> Vec<Uuid> {
        self.set_aside.retain(|_, until| *until > now);
        self.set_aside.keys().copied().collect()
    }

    /// Whether one more may be claimed.
    fn has_room(&self, now: Instant) -> bool {
        let going_on = self.going_on().count();
        going_on < OPERATIONS_MAX && self.slices.len() < 2 * OPERATIONS_MAX
            || going_on == OPERATIONS_MAX && self.longest(now).is_some()
    }

    /// Has the one that was worked on for longest give way, where there are as many as may be.
    fn make_room(&self, now: Instant) {
        if self.going_on().count() == OPERATIONS_MAX
            && let Some(longest) = self.longest(now)
        {
            longest.stop.cancel();
        }
    }

    fn going_on(&self) -> impl Iterator<Item = &Slice> {
        self.slices.values().filter(|slice| !slice.stop.is_cancelled())
    }

    /// The one whose time was over first.
    fn longest(&self, now: Instant) -> Option<&Slice> {
        let over = self.going_on().filter(|slice| slice.begun_at + SLICE <= now);
        over.min_by_key(|slice| slice.begun_at)
    }
}

/// Deletes what is too old, time and again.
pub(super) async fn sweep(store: Store, exports: exports::Store) -> anyhow::Result<()> {
    let mut sweep = interval(SWEEP_EVERY);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        sweep.tick().await;
        let swept = async {
            // Files before their operations: they are large, and go in parts.
            exports.sweep().await?;
            while store.sweep().await? {}
            Ok::<_, sqlx::Error>(())
        };
        if let Err(error) = swept.await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot delete old operations"
            );
        }
    }
}

/// Works on one operation, and gives it where that failed. When the database fails the session is dropped, and with it the lock:
/// somebody goes on later.
async fn work_and_report(lines: Lines, lease: Lease, stop: CancellationToken) -> Option<Uuid> {
    let operation = lease.operation.operation_id;
    tracing::info!(operation.id = %operation, operation.kind = lines.importer.kind(), "working on an operation");
    match lines.work(lease, stop).await {
        Ok(Some(Outcome::Succeeded)) => tracing::info!(operation.id = %operation, "the operation succeeded"),
        Ok(Some(Outcome::Cancelled)) => {
            tracing::info!(operation.id = %operation, "the operation was cancelled")
        }
        Ok(Some(Outcome::Refused(code))) => {
            tracing::info!(operation.id = %operation, code, "the operation was cancelled: its caller would be refused")
        }
        Ok(None) => tracing::info!(operation.id = %operation, "the operation is left to whoever is next"),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                operation.id = %operation,
                "the operation was interrupted"
            );
            return Some(operation);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operations that have been worked on for so many seconds.
    fn working(seconds: &[u64]) -> (Working, Instant) {
        let mut working = Working::default();
        let now = Instant::now() + Duration::from_secs(1_000);
        for seconds in seconds {
            let id = working.tasks.spawn(std::future::pending()).id();
            let slice = Slice {
                begun_at: now - Duration::from_secs(*seconds),
                stop: CancellationToken::new(),
            };
            working.slices.insert(id, slice);
        }
        (working, now)
    }

    fn stopped(working: &Working, now: Instant) -> Vec<u64> {
        let slices = working.slices.values();
        let stopped = slices.filter(|slice| slice.stop.is_cancelled());
        stopped.map(|slice| (now - slice.begun_at).as_secs()).collect()
    }

    #[tokio::test]
    async fn the_one_that_was_worked_on_for_longest_gives_way_once_its_time_is_over() {
        let (few, now) = working(&[10, 1_000, 20]);
        assert!(few.has_room(now));
        few.make_room(now);
        assert!(stopped(&few, now).is_empty(), "there is room without that");

        let (early, now) = working(&[10, 179, 20, 30]);
        assert!(!early.has_room(now));

        let (late, now) = working(&[10, 200, 500, 30]);
        assert!(late.has_room(now));
        late.make_room(now);
        assert_eq!(stopped(&late, now), [500]);
        assert!(
            late.has_room(now),
            "the next one that gives way is there while that one ends"
        );
    }

    #[tokio::test]
    async fn what_failed_is_set_aside_for_a_moment() {
        let mut working = Working::default();
        let (failed, begun) = (Uuid::from_u128(1), Instant::now());
        working.tasks.spawn(async move { Some(failed) });
        working.tasks.spawn(async { None });
        working.one_has_ended().await;
        working.one_has_ended().await;
        assert_eq!(working.set_aside(begun + Duration::from_millis(900)), [failed]);
        let later = Instant::now() + Duration::from_secs(6);
        assert!(working.set_aside(later).is_empty());
    }
}
