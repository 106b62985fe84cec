//! Rebuilds: a projection's tables filled anew from the log, beside the live ones, and swapped in.
//!
//! A rebuild fills the next generation of tables from Postgres (never from the bus), adds the indexes, catches up, and
//! goes live: the live workers are held at their checkpoints for the moment that it takes to reach them, and one
//! transaction swaps the view. Readers never see less than they saw before.
//!
//! Everything it knows is in the database: which rebuild is running, how far its tables are, whether they have their
//! indexes. So a projector that starts again, or another one, goes on where the last batch was committed. An event that
//! cannot be applied ends a rebuild, and the live tables stay.

use std::pin::pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use daybook_postgres::{CONNECT_TIMEOUT, LOOKUP_TIMEOUT, within};
use daybook_read_model::{Generation, ReadModel};
use futures::future::join_all;
use prometheus_client::metrics::counter::Counter;
use sqlx::{Connection as _, PgConnection};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backoff::pause;
use crate::batch_size::BatchSize;
use crate::checkpoint::{self, Claim, Key, LEASE_CHECK_INTERVAL, Lease};
use crate::fill::{self, CHUNK_EVENTS, FillError, Filling};
use crate::fold::Poison;
use crate::registry::{self, Running};
use crate::replica::{returned, with_same_duties};
use crate::runner::{ApplyError, Runner, chain};
use crate::worker::{CLAIM_INTERVAL, Context};

/// The tables go live when a pass over the log finds no more than this many events to catch up with.
const LAST_PASS_EVENTS_MAX: u64 = 2_000;

/// How many indexes are made at once, on a connection each. Making one keeps a core of the database's machine busy, and
/// the smallest machine in use has two.
const INDEXES_AT_ONCE: i64 = 2;

/// How long a statement about a rebuild may take: it may wait for the live workers, or for those who read a view.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long analyzing a filled table may take.
const ANALYZE_TIMEOUT: Duration = Duration::from_secs(300);

/// Why a rebuild did not go on. It is resumed where it stands.
#[derive(Debug, Error)]
pub enum RebuildError {
    /// The database did not answer.
    #[error("cannot {doing}")]
    Database {
        /// The action that failed.
        doing: &'static str,
        /// The database's error.
        source: sqlx::Error,
    },
    /// The tables could not be filled.
    #[error("cannot fill the tables")]
    Fill(#[from] FillError),
}

/// Waits for the database for at most `limit`. After an error the connection is dropped with the rebuild.
async fn answered<T>(
    doing: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, RebuildError> {
    let answer = within(limit, work).await;
    answer.map_err(|source| RebuildError::Database { doing, source })
}

/// The result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A rebuild was taken as far as it goes: live, failed, or told to stop.
    Progressed,
    /// There is no rebuild to work on.
    Idle,
}

/// Runs the rebuilds of one projection, one after another.
#[derive(Debug)]
pub struct Rebuilder<M: ReadModel> {
    context: Context,
    shutdown: CancellationToken,
    /// It outlives a rebuild that is resumed.
    batch_size: BatchSize,
    of: std::marker::PhantomData<fn() -> M>,
}

/// A rebuild that this process works on: the leases on its checkpoints, one for each partition.
struct Rebuild<M: ReadModel> {
    tables: Generation,
    partitions: Vec<Part<M>>,
}

/// One partition of a rebuild.
struct Part<M: ReadModel> {
    runner: Runner<M>,
    applied: Counter,
}

impl<M: ReadModel> Rebuilder<M> {
    /// A rebuilder that stops between two batches when it is told to.
    pub fn new(context: Context, shutdown: CancellationToken) -> Self {
        Self {
            context,
            shutdown,
            batch_size: BatchSize::up_to(CHUNK_EVENTS as usize),
            of: std::marker::PhantomData,
        }
    }

    /// Works until it is told to stop, whenever there is a rebuild that nobody else works on.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut errors = 0;
        let shutdown = self.shutdown.clone();
        while !shutdown.is_cancelled() {
            let rest = match self.bounded_step().await {
                Ok(Step::Progressed) => {
                    errors = 0;
                    continue;
                }
                Ok(Step::Idle) => {
                    errors = 0;
                    self.idle_pause()
                }
                Err(error) => {
                    warn::<M>(&error);
                    errors += 1;
                    pause(errors)
                }
            };
            let wait = with_same_duties(&self.context.duties, tokio::time::sleep(rest));
            let _ = shutdown.run_until_cancelled(wait).await;
        }
        Ok(())
    }

    /// A step that is dropped when this replica lost its session and came back as another one: what the step works with is
    /// void then, and may be silent for long. It takes its connections with it.
    async fn bounded_step(&mut self) -> Result<Step, RebuildError> {
        let returned = returned(self.context.duties.clone());
        tokio::select! {
            step = self.step() => step,
            () = returned => Ok(Step::Progressed),
        }
    }

    /// A rebuild that is there and could not be claimed is tried again a little later.
    fn idle_pause(&self) -> Duration {
        match self.context.duties.borrow().owner_of_rebuild(M::NAME) {
            Some(_) => CLAIM_INTERVAL,
            None => Duration::MAX,
        }
    }

    /// Takes the rebuild that is running, if there is one and nobody else works on it, as far as it goes.
    pub async fn step(&mut self) -> Result<Step, RebuildError> {
        let owner = self.context.duties.borrow_and_update().owner_of_rebuild(M::NAME);
        let Some(owner) = owner else {
            return Ok(Step::Idle);
        };
        let mut connection = self.connect().await?;
        let running = registry::running_rebuild(&mut connection, M::NAME);
        let Some(running) = answered("look for a rebuild", STATEMENT_TIMEOUT, running).await? else {
            return Ok(Step::Idle);
        };
        let Some(mut rebuild) = self.claim(&mut connection, running, owner).await? else {
            return Ok(Step::Idle);
        };
        match self.complete(&mut connection, &mut rebuild, running).await {
            Ok(()) => {
                rebuild.release().await;
                Ok(Step::Progressed)
            }
            Err(RebuildError::Fill(FillError::Apply(ApplyError::Poison(poison)))) => {
                give_up(&mut connection, rebuild.first_lease(), &poison).await?;
                Ok(Step::Progressed)
            }
            Err(error) => Err(error),
        }
    }

    /// This connection has no limit on the time of a statement: indexes take as long as they take.
    async fn connect(&self) -> Result<PgConnection, RebuildError> {
        let purpose = format!("{} rebuild", M::NAME);
        let connecting = self.context.connector.connect_for_long(&purpose);
        answered("connect to the database", CONNECT_TIMEOUT, connecting).await
    }

    /// Takes the leases on all of the rebuild's checkpoints.
    async fn claim(
        &self,
        connection: &mut PgConnection,
        running: Running,
        owner: Uuid,
    ) -> Result<Option<Rebuild<M>>, RebuildError> {
        let mut rebuild = Rebuild {
            tables: running.tables,
            partitions: Vec::new(),
        };
        for partition in self.context.store.partitions().await.map_err(FillError::Read)? {
            let key = Key {
                projection: M::NAME,
                tables: running.tables,
                partition,
            };
            let claiming = checkpoint::claim_rebuilt(connection, key, owner);
            match answered("take a lease", STATEMENT_TIMEOUT, claiming).await? {
                Claim::Held(lease) => rebuild.partitions.push(self.part(lease).await?),
                Claim::RebuildBeyondFork(lease) => {
                    give_up_restored(connection, &lease).await?;
                    return Ok(None);
                }
                Claim::Refused | Claim::BeyondFork => {
                    rebuild.release().await;
                    return Ok(None);
                }
            }
        }
        Ok(Some(rebuild))
    }

    async fn part(&self, lease: Lease) -> Result<Part<M>, RebuildError> {
        let partition = lease.key.partition;
        let purpose = format!("{} rebuild/{partition}", M::NAME);
        let connecting = self.context.connector.connect(&purpose);
        let connection = answered("connect to the database", CONNECT_TIMEOUT, connecting).await?;
        Ok(Part {
            runner: Runner::new(connection, lease, self.context.memory.rebuilt_rows_bytes),
            applied: self.context.metrics.of_rebuild(M::NAME, partition),
        })
    }

    /// Fills, indexes, catches up and goes live; or stops where it is when told to.
    async fn complete(
        &self,
        connection: &mut PgConnection,
        rebuild: &mut Rebuild<M>,
        running: Running,
    ) -> Result<(), RebuildError> {
        let started = Instant::now();
        let filled = self.catch_up(rebuild).await?;
        log_filled::<M>(running.tables, filled, started);
        if !running.is_indexed {
            self.add_indexes(connection, rebuild).await?;
        }
        while !self.shutdown.is_cancelled() {
            rebuild.check_leases().await?;
            if self.catch_up(rebuild).await? <= LAST_PASS_EVENTS_MAX
                && self.go_live(connection, rebuild).await?
            {
                tracing::info!(
                    projection.name = M::NAME,
                    projection.generation = running.tables.get(),
                    rebuild.seconds = started.elapsed().as_secs_f64(),
                    "a rebuild is live"
                );
                break;
            }
        }
        Ok(())
    }

    /// Makes the indexes, several at once, and notes that they are there; or stops between two when told to. Those that
    /// are there already are left alone, so whatever ends it half-way, it can be done again.
    async fn add_indexes(
        &self,
        connection: &mut PgConnection,
        rebuild: &mut Rebuild<M>,
    ) -> Result<(), RebuildError> {
        let adding = "add the indexes";
        let tables = rebuild.tables;
        let counting = registry::count_indexes(connection, M::NAME, tables);
        let count = answered(adding, STATEMENT_TIMEOUT, counting).await?;
        let next = AtomicI64::new(1);
        let makers = (0..INDEXES_AT_ONCE.min(count)).map(|_| self.make_indexes(tables, &next, count));
        // Not `try_join_all`: it would drop the others in the middle of their database work.
        let made = rebuild.check_leases_during(join_all(makers)).await?;
        made.into_iter().collect::<Result<(), _>>()?;
        // Told to stop, the makers may have left some out.
        if self.shutdown.is_cancelled() {
            return Ok(());
        }
        let finishing = registry::finish_fill(connection, M::NAME, tables);
        answered(adding, ANALYZE_TIMEOUT, finishing).await
    }

    /// Makes one index after the other on a connection of its own, whichever is `next`, until there are none left.
    async fn make_indexes(
        &self,
        tables: Generation,
        next: &AtomicI64,
        count: i64,
    ) -> Result<(), RebuildError> {
        let mut connection = self.connect().await?;
        while !self.shutdown.is_cancelled() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number > count {
                break;
            }
            // Takes as long as it takes; the leases that are checked meanwhile show that the database is there.
            let made = registry::make_index(&mut connection, M::NAME, tables, number).await;
            made.map_err(|source| RebuildError::Database {
                doing: "make an index",
                source,
            })?;
        }
        Ok(())
    }

    fn filling(&self) -> Filling<'_> {
        Filling {
            store: &self.context.store,
            memory: self.context.memory,
            batch_size: &self.batch_size,
        }
    }

    /// One pass over the log in all partitions; returns how many events there were.
    async fn catch_up(&self, rebuild: &mut Rebuild<M>) -> Result<u64, RebuildError> {
        let passes = rebuild.partitions.iter_mut().map(async |part| {
            let applied = counting(&part.applied);
            fill::fill(&mut part.runner, self.filling(), &self.shutdown, applied).await
        });
        // Not `try_join_all`: it would drop the others in the middle of their database work.
        let counts: Result<Vec<_>, _> = join_all(passes).await.into_iter().collect();
        Ok(counts?.into_iter().sum())
    }

    /// Holds the live workers still, reaches them, and swaps the view; `false` when something came between.
    async fn go_live(
        &self,
        connection: &mut PgConnection,
        rebuild: &mut Rebuild<M>,
    ) -> Result<bool, RebuildError> {
        let swapping = "make a rebuild live";
        let mut transaction = answered(swapping, STATEMENT_TIMEOUT, connection.begin()).await?;
        let live = registry::hold_live(&mut transaction, M::NAME);
        for (partition, position) in answered(swapping, STATEMENT_TIMEOUT, live).await? {
            if let Some(part) = rebuild.part_mut(partition) {
                let applied = counting(&part.applied);
                fill::fill_up_to(&mut part.runner, self.filling(), position, applied).await?;
            }
        }
        let is_live = registry::go_live(&mut transaction, M::NAME, rebuild.tables);
        let is_live = answered(swapping, STATEMENT_TIMEOUT, is_live).await?;
        answered(swapping, STATEMENT_TIMEOUT, transaction.commit()).await?;
        if is_live {
            self.announce(rebuild).await;
        }
        Ok(is_live)
    }

    async fn announce(&self, rebuild: &Rebuild<M>) {
        for part in &rebuild.partitions {
            checkpoint::announce(&self.context.bus, part.runner.lease()).await;
        }
    }
}

async fn give_up(connection: &mut PgConnection, lease: &Lease, poison: &Poison) -> Result<(), RebuildError> {
    fail(connection, lease, Some(&chain(poison))).await?;
    tracing::error!(
        projection.name = lease.key.projection,
        projection.generation = lease.key.tables.get(),
        event.position = poison.position,
        error = poison as &dyn std::error::Error,
        "a rebuild has failed"
    );
    Ok(())
}

async fn give_up_restored(connection: &mut PgConnection, lease: &Lease) -> Result<(), RebuildError> {
    fail(connection, lease, None).await?;
    tracing::warn!(
        projection.name = lease.key.projection,
        projection.generation = lease.key.tables.get(),
        "the log was restored, so a rebuild is given up"
    );
    Ok(())
}

/// Ends a rebuild, unless another replica has taken it meanwhile.
async fn fail(connection: &mut PgConnection, lease: &Lease, error: Option<&str>) -> Result<(), RebuildError> {
    let failing = registry::fail_rebuild(connection, lease, error);
    match answered("end a rebuild", STATEMENT_TIMEOUT, failing).await? {
        true => Ok(()),
        false => Err(FillError::Apply(ApplyError::Fenced).into()),
    }
}

impl<M: ReadModel> Rebuild<M> {
    /// The lease that is lost before any other one: whoever takes a rebuild over begins with the first partition.
    fn first_lease(&self) -> &Lease {
        let first = self.partitions.first();
        first
            .expect("whoever met an event works on a partition")
            .runner
            .lease()
    }

    fn part_mut(&mut self, partition: i32) -> Option<&mut Part<M>> {
        self.partitions
            .iter_mut()
            .find(|part| part.runner.lease().key.partition == partition)
    }

    /// Finds out that another replica works on the rebuild, or has made it live.
    async fn check_leases(&mut self) -> Result<(), RebuildError> {
        for part in &mut self.partitions {
            let is_held = answered("check a lease", LOOKUP_TIMEOUT, part.runner.holds_lease());
            if !is_held.await? {
                return Err(FillError::Apply(ApplyError::Fenced).into());
            }
        }
        Ok(())
    }

    /// Gives work up that takes its time and does not advance the checkpoints, when a lease is lost meanwhile or the
    /// database does not answer: its connections close, and the server ends what they had begun.
    async fn check_leases_during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, RebuildError> {
        let mut work = pin!(work);
        loop {
            match tokio::time::timeout(LEASE_CHECK_INTERVAL, &mut work).await {
                Ok(done) => return Ok(done),
                Err(_elapsed) => self.check_leases().await?,
            }
        }
    }

    async fn release(self) {
        for part in self.partitions {
            if let Err(error) = within(LOOKUP_TIMEOUT, part.runner.release()).await {
                tracing::warn!(projection.name = M::NAME, %error, "a lease was not released");
            }
        }
    }
}

fn counting(counter: &Counter) -> impl Fn(u64) {
    |events| {
        counter.inc_by(events);
    }
}

fn log_filled<M: ReadModel>(tables: Generation, events: u64, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(
        projection.name = M::NAME,
        projection.generation = tables.get(),
        rebuild.events = events,
        rebuild.seconds = seconds,
        rebuild.events_per_second = events as f64 / seconds,
        "a rebuild has caught up with the log"
    );
}

fn warn<M: ReadModel>(error: &RebuildError) {
    tracing::warn!(
        projection.name = M::NAME,
        error = error as &dyn std::error::Error,
        "a rebuild is resumed where it stands"
    );
}
