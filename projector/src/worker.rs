//! A worker keeps the live tables of one projection up to date, in one partition.
//!
//! [`Worker::step`] looks at what is true and does the next thing: take the lease, apply a batch, ask whether the lease is
//! lost, give it back, note a failure. Signals only wake it earlier. Whether the lease is this replica's business is in its
//! [`Duties`]. A worker that finds that it has lost it (another replica took it, or a rebuild went live) begins at the
//! lease again.
//!
//! An event that cannot be applied stops the projection, not the process: the failure is noted for operators, nothing is
//! skipped, and the worker goes on trying, less and less often.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daybook_event_bus::Bus;
use daybook_event_bus::consume::Source;
use daybook_event_bus::signal;
use daybook_event_store::{EventStore, ReadError};
use daybook_postgres::{LOOKUP_TIMEOUT, within};
use daybook_read_model::{Generation, ReadModel};
use sqlx::PgConnection;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backoff::pause;
use crate::batch::{Batch, Decoded};
use crate::batch_size::BatchSize;
use crate::checkpoint::{self, Claim, LEASE_CHECK_INTERVAL, Lease};
use crate::database::Connector;
use crate::feed::{Feed, Subscription, Taken};
use crate::fold::Poison;
use crate::memory::Memory;
use crate::metrics::{Metrics, WorkerMetrics};
use crate::registry::{self, Begun};
use crate::replica::{Duties, returned, with_same_duties};
use crate::runner::{ApplyError, Runner};
use crate::trace::EventSpans;

/// How many events are applied in one transaction, about. Batches are as large as what has come in meanwhile.
const BATCH_EVENTS_MAX: usize = 2_000;

/// How often a lease is tried for that this replica should have.
pub(crate) const CLAIM_INTERVAL: Duration = Duration::from_secs(1);

/// How long a step may take. It takes milliseconds.
const STEP_TIMEOUT: Duration = Duration::from_secs(8);

/// How often all sessions are made anew at the most, while their address leads to a log that was superseded.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(5);

/// How often an event is tried before its projection is failed.
const ATTEMPTS_MAX: u32 = 3;

/// The requester recorded for rebuilds that nobody asked for.
const OURSELVES: &str = "projector";

/// Why a step could not be done. The next one begins with a new connection and looks at the checkpoint again.
#[derive(Debug, Error)]
pub enum StepError {
    /// The database did not answer.
    #[error("cannot {doing}")]
    Database {
        /// The action that failed.
        doing: &'static str,
        /// The database's error.
        source: sqlx::Error,
    },
    /// The log could not be read.
    #[error("cannot read the log")]
    Log(#[from] ReadError),
    /// A batch could not be applied.
    #[error("cannot apply a batch")]
    Apply(#[source] ApplyError),
    /// The log that was read is not the one that the read models' server has: one of the two sessions leads to another server.
    #[error("the log was read from another server")]
    OtherLog,
    /// The database did not answer in time.
    #[error("the database did not answer within {STEP_TIMEOUT:?}")]
    Silent,
}

impl StepError {
    pub(crate) fn while_doing(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Database { doing, source }
    }
}

/// The result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something; there may be more to do.
    Progressed,
    /// Nothing: everything is applied.
    CaughtUp,
    /// Nothing: the lease is another replica's business, or new tables have to go live first.
    Standby,
    /// Nothing: the next event cannot be applied.
    Stuck,
}

/// Shared by the workers and rebuilds of one process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Context {
    /// Makes connections.
    pub connector: Connector,
    /// Reads the log.
    pub store: EventStore,
    /// Carries the signals.
    pub bus: Bus,
    /// How much memory what takes.
    pub memory: Memory,
    /// Metrics.
    pub metrics: Metrics,
    /// The work assigned to this replica.
    pub duties: watch::Receiver<Duties>,
    /// When the sessions were last to be made anew.
    pub reconnected_at: watch::Sender<Option<Instant>>,
}

impl Context {
    /// Has all sessions made anew, this replica's with them, unless that was done just now: they lead to a log that was
    /// superseded.
    pub(crate) fn reconnect(&self) {
        let now = Instant::now();
        let is_due = self.reconnected_at.send_if_modified(|reconnected_at| {
            let is_due = reconnected_at.is_none_or(|at| now >= at + RECONNECT_INTERVAL);
            if is_due {
                *reconnected_at = Some(now);
            }
            is_due
        });
        if is_due {
            daybook_postgres::reconnect();
        }
    }
}

/// Keeps one read model up to date in one partition.
#[derive(Debug)]
pub struct Worker<M: ReadModel> {
    context: Context,
    partition: i32,
    feed: Subscription,
    metrics: WorkerMetrics,
    /// A connection without a lease.
    spare: Option<PgConnection>,
    runner: Option<Runner<M>>,
    retry: Option<Retry>,
    batch_size: BatchSize,
    /// How many events were last tried at a time.
    tried: usize,
    /// Whether the next events come from the log, whatever the feed has.
    reads_log: bool,
}

/// Attempts at an event that cannot be applied.
#[derive(Debug)]
struct Retry {
    /// Whose event it is: other tables may well take it.
    tables: Generation,
    /// The last position of what was delivered with it.
    last: u64,
    attempts: u32,
    at: Instant,
}

/// Events to be applied, from one or several batches.
struct Delivery {
    batches: Vec<Arc<Batch>>,
}

impl Delivery {
    fn events_after(&self, position: u64, events_max: usize) -> Vec<&Decoded> {
        self.batches
            .iter()
            .flat_map(|batch| batch.after(position))
            .take(events_max)
            .collect()
    }

    fn is_of(&self, log_generation: Uuid) -> bool {
        self.batches
            .iter()
            .all(|batch| batch.log_generation == log_generation)
    }

    fn is_from_log(&self) -> bool {
        let mut events = self.batches.iter().flat_map(|batch| &batch.events);
        events.all(|event| event.digest.is_none())
    }

    fn last(&self) -> u64 {
        self.batches.last().map_or(0, |batch| batch.last())
    }

    fn delivered_at(&self) -> Option<Instant> {
        self.batches.first().map(|batch| batch.delivered_at)
    }
}

impl<M: ReadModel> Worker<M> {
    /// A worker that takes its events from the feed while it stands inside it.
    pub fn new(context: Context, partition: i32, feed: &Feed) -> Self {
        Self {
            metrics: context.metrics.of_worker(M::NAME, partition),
            context,
            partition,
            feed: feed.subscribe(),
            spare: None,
            runner: None,
            retry: None,
            batch_size: BatchSize::up_to(BATCH_EVENTS_MAX),
            tried: BATCH_EVENTS_MAX,
            reads_log: false,
        }
    }

    /// Works until it is told to stop, and gives the lease back.
    pub async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let (mut errors, mut session) = (0, self.session());
        while !shutdown.is_cancelled() {
            if std::mem::replace(&mut session, self.session()) != session {
                // This replica came back as another one, perhaps on another server.
                self.spare = None;
            }
            match self.bounded_step().await {
                Ok(Step::Progressed) => errors = 0,
                Ok(idle) => {
                    errors = 0;
                    let duties = self.context.duties.clone();
                    let wait = with_same_duties(&duties, self.wait(idle));
                    let _ = shutdown.run_until_cancelled(wait).await;
                }
                Err(error) => {
                    self.warn(&error);
                    errors += 1;
                    // When the replica has joined anew, the database is back.
                    let wait = with_same_duties(&self.context.duties, tokio::time::sleep(pause(errors)));
                    let _ = shutdown.run_until_cancelled(wait).await;
                }
            }
        }
        self.release().await;
        Ok(())
    }

    /// A step that is dropped when it takes too long, or when this replica lost its session and came back as another one:
    /// what the step works with is void then, and may be silent for long. It takes its connection with it.
    async fn bounded_step(&mut self) -> Result<Step, StepError> {
        let returned = returned(self.context.duties.clone());
        tokio::select! {
            step = tokio::time::timeout(STEP_TIMEOUT, self.step()) => match step {
                Ok(step) => return step,
                Err(_elapsed) => {}
            },
            () = returned => return Ok(Step::Progressed),
        }
        self.batch_size.took_too_long(self.tried);
        Err(StepError::Silent)
    }

    /// Does the next thing that there is to do.
    pub async fn step(&mut self) -> Result<Step, StepError> {
        let owner = self.owner();
        // Whatever goes wrong: what is known about the connection and the checkpoint is put back only when it is certain.
        let mut runner = match (self.runner.take(), owner) {
            (Some(runner), Some(owner)) if runner.lease().owner == owner => runner,
            (Some(runner), _) => return self.give_back(runner).await,
            (None, Some(owner)) => return self.claim(owner).await,
            (None, None) => return self.leave_to_others().await,
        };
        if self.retry.as_ref().is_some_and(|retry| Instant::now() < retry.at) {
            return self.check_lease(runner, Step::Stuck).await;
        }
        let lease = runner.lease();
        let Some(delivery) = self.next_delivery(lease).await? else {
            return self.check_lease(runner, Step::CaughtUp).await;
        };
        if !delivery.is_of(lease.epoch.generation) {
            // Either of the two is of an earlier epoch. The log is right, and the advance tells whether the lease is.
            self.reads_log = true;
            self.runner = Some(runner);
            return Ok(Step::Progressed);
        }
        match self.apply(&mut runner, &delivery).await {
            Ok(()) => {
                self.runner = Some(runner);
                Ok(Step::Progressed)
            }
            Err(ApplyError::Fenced) => {
                tracing::info!(projection.name = M::NAME, self.partition, "the lease is lost");
                Ok(Step::Progressed)
            }
            Err(ApplyError::NotInLog) if delivery.is_from_log() => {
                self.context.reconnect();
                Err(StepError::OtherLog)
            }
            Err(ApplyError::NotInLog) => {
                self.distrust(delivery.last());
                Ok(Step::Progressed)
            }
            Err(ApplyError::Poison(poison)) => self.retry_later(runner, &delivery, &poison).await,
            Err(error) => Err(StepError::Apply(error)),
        }
    }

    /// The worker's position, while it holds the lease.
    pub fn position(&self) -> Option<u64> {
        self.runner.as_ref().map(|runner| runner.lease().position)
    }

    /// The id of this replica, as long as its session lasts.
    fn session(&self) -> Uuid {
        self.context.duties.borrow().owner
    }

    /// In whose name to hold the lease; `None` when it is another replica's business.
    fn owner(&mut self) -> Option<Uuid> {
        let duties = self.context.duties.borrow_and_update();
        duties.owner_of_live(M::NAME, self.partition)
    }

    /// In whose name a lease may be recorded that is another replica's business.
    fn owner_of_surplus(&self) -> Option<Uuid> {
        let duties = self.context.duties.borrow();
        duties.owner_of_surplus(M::NAME, self.partition)
    }

    /// Has nothing to do with the lease, and sees to it that nobody believes so: the answer to a claim may have been lost,
    /// or the session on which the lease was to be released. As long as this replica lives, no other one could take it.
    async fn leave_to_others(&mut self) -> Result<Step, StepError> {
        self.feed.step_aside();
        let spare = self.spare.take();
        if let Some(owner) = self.owner_of_surplus() {
            let mut connection = self.connection(spare).await?;
            let released = checkpoint::release_live(&mut connection, M::NAME, self.partition, owner).await;
            if released.map_err(StepError::while_doing("give a lease back"))? {
                tracing::info!(
                    projection.name = M::NAME,
                    self.partition,
                    "forgotten lease released"
                );
                signal::announce_freed(&self.context.bus).await;
            }
        }
        Ok(Step::Standby)
    }

    /// Takes the lease on the live tables, if it is to be had.
    async fn claim(&mut self, owner: Uuid) -> Result<Step, StepError> {
        let spare = self.spare.take();
        let mut connection = self.connection(spare).await?;
        let claimed = checkpoint::claim_live(&mut connection, M::NAME, self.partition, owner).await;
        match claimed.map_err(StepError::while_doing("take a lease"))? {
            Claim::Held(lease) => {
                tracing::info!(
                    projection.name = M::NAME,
                    projection.generation = lease.key.tables.get(),
                    lease.fence = lease.fence,
                    self.partition,
                    position = lease.position,
                    "lease acquired"
                );
                self.retry.take_if(|retry| retry.tables != lease.key.tables);
                self.runner = Some(Runner::new(connection, lease, self.context.memory.rows_bytes));
                Ok(Step::Progressed)
            }
            Claim::BeyondFork => {
                self.begin_anew(&mut connection).await?;
                self.stand_by(connection)
            }
            // The log's history forked between two statements: the next claim finds that out.
            Claim::Refused | Claim::RebuildBeyondFork(_) => self.stand_by(connection),
        }
    }

    /// The connection that is there, or a new one.
    async fn connection(&self, spare: Option<PgConnection>) -> Result<PgConnection, StepError> {
        if let Some(connection) = spare {
            return Ok(connection);
        }
        let purpose = format!("{}/{}", M::NAME, self.partition);
        let connected = self.context.connector.connect(&purpose).await;
        connected.map_err(StepError::while_doing("connect to the database"))
    }

    fn stand_by(&mut self, connection: PgConnection) -> Result<Step, StepError> {
        self.feed.step_aside();
        self.spare = Some(connection);
        Ok(Step::Standby)
    }

    /// The log's history forked before what these tables hold: they are of no use, and new ones have to be built. Until
    /// those go live, readers see the old ones.
    async fn begin_anew(&self, connection: &mut PgConnection) -> Result<(), StepError> {
        const REASON: &str = "the log was set back, and the tables hold what is not in it";
        let begun = registry::begin_anew(connection, M::NAME, self.partition, REASON, OURSELVES).await;
        match begun.map_err(StepError::while_doing("start a rebuild"))? {
            Begun::Rebuild(tables) => tracing::warn!(
                projection.name = M::NAME,
                projection.generation = tables.get(),
                self.partition,
                "the log was set back; the projection is rebuilt"
            ),
            Begun::Failed => tracing::error!(
                projection.name = M::NAME,
                self.partition,
                "the log was set back, and the rebuild has failed: so has the projection"
            ),
            Begun::Before => {}
        }
        Ok(())
    }

    /// Events after the checkpoint: from the feed, or read alone by a worker that stands elsewhere.
    async fn next_delivery(&mut self, lease: &Lease) -> Result<Option<Delivery>, StepError> {
        let bytes_max = self.context.memory.read_bytes;
        let taken = self
            .feed
            .take(lease.position, self.batch_size.events(), bytes_max);
        let reads_log = std::mem::take(&mut self.reads_log);
        let last_taken = match taken {
            Taken::Batches(batches) if !reads_log => return Ok(Some(Delivery { batches })),
            Taken::CaughtUp if !reads_log => return Ok(None),
            // They are let go before others are read in their place.
            Taken::Batches(batches) => Some(Delivery { batches }.last()),
            Taken::CaughtUp | Taken::Elsewhere => None,
        };
        let read = self.read_log(lease).await?;
        if read.is_none() {
            let refuted = last_taken.or(self.retry.as_ref().map(|retry| retry.last));
            refuted.into_iter().for_each(|last| self.distrust(last));
        }
        Ok(read)
    }

    /// The bus gave what the log does not hold. Its events are read from the log, and were never poison.
    fn distrust(&mut self, last: u64) {
        self.metrics.refuted();
        tracing::warn!(
            projection.name = M::NAME,
            self.partition,
            position = last,
            "the bus has events that the log does not hold; the log is read instead"
        );
        self.feed.distrust(last);
        self.retry = None;
    }

    async fn read_log(&self, lease: &Lease) -> Result<Option<Delivery>, StepError> {
        let limit = u32::try_from(self.batch_size.events()).expect("the size of a batch fits 32 bits");
        let recorded = self
            .context
            .store
            .read_log_within(
                self.partition,
                lease.position,
                limit,
                self.context.memory.read_bytes,
            )
            .await?;
        // What was read belongs to the lease's log, or the advance fails: it looks at the log's generation itself.
        let batch = Batch::decode(lease.epoch.generation, recorded, Source::Log, Instant::now());
        Ok(batch.map(|batch| Delivery {
            batches: vec![Arc::new(batch)],
        }))
    }

    async fn apply(&mut self, runner: &mut Runner<M>, delivery: &Delivery) -> Result<(), ApplyError> {
        let events = delivery.events_after(runner.lease().position, self.batch_size.events());
        self.tried = events.len();
        let began = Instant::now();
        let spans = EventSpans::begin(M::NAME, &events);
        let applied = runner.apply(&events).await?;
        drop(spans);
        self.batch_size.took(began.elapsed());
        self.retry = None;
        checkpoint::announce(&self.context.bus, runner.lease()).await;
        let delivered_at = delivery.delivered_at().unwrap_or_else(Instant::now);
        self.metrics.applied(&events[..applied], delivered_at);
        Ok(())
    }

    /// Gives the lease back, for another replica has less to do, or in order to hold it in a new name.
    async fn give_back(&mut self, runner: Runner<M>) -> Result<Step, StepError> {
        self.retry = None;
        let released = runner.release().await;
        released.map_err(StepError::while_doing("give a lease back"))?;
        tracing::info!(projection.name = M::NAME, self.partition, "lease released");
        signal::announce_freed(&self.context.bus).await;
        Ok(Step::Progressed)
    }

    /// Finds out that the lease is lost while there is nothing to apply; tells once more how far the tables are if it is not.
    async fn check_lease(&mut self, mut runner: Runner<M>, idle: Step) -> Result<Step, StepError> {
        if Instant::now() >= runner.check_at() {
            let is_held = runner.holds_lease().await;
            if !is_held.map_err(StepError::while_doing("check a lease"))? {
                return Ok(Step::Progressed);
            }
            self.check_server(runner.lease()).await?;
            checkpoint::announce(&self.context.bus, runner.lease()).await;
        }
        self.runner = Some(runner);
        Ok(idle)
    }

    /// Finds out that the rows are written to a server that was superseded, while the log is read on the one that took its
    /// place: with nothing to apply, nothing else would show it.
    async fn check_server(&self, lease: &Lease) -> Result<(), StepError> {
        let head = self.context.store.head(self.partition).await;
        if head.is_ok_and(|head| head.epoch > lease.epoch) {
            self.context.reconnect();
            return Err(StepError::OtherLog);
        }
        Ok(())
    }

    /// Notes a failed attempt. What came over the bus may be damaged, so the next attempts read the log.
    async fn retry_later(
        &mut self,
        mut runner: Runner<M>,
        delivery: &Delivery,
        poison: &Poison,
    ) -> Result<Step, StepError> {
        let attempts = self.retry.as_ref().map_or(1, |retry| retry.attempts + 1);
        self.reads_log = true;
        self.retry = Some(Retry {
            tables: runner.lease().key.tables,
            last: delivery.last(),
            attempts,
            at: Instant::now() + pause(attempts),
        });
        if attempts >= ATTEMPTS_MAX && !runner.lease().failed {
            let noted = runner.fail(poison).await;
            noted.map_err(StepError::while_doing("note a failure"))?;
            tracing::error!(
                projection.name = M::NAME,
                self.partition,
                event.position = poison.position,
                error = poison as &dyn std::error::Error,
                "a projection has failed"
            );
        }
        // It must not hold up the others.
        self.feed.step_aside();
        self.runner = Some(runner);
        Ok(Step::Stuck)
    }

    /// Waits for a reason to take the next step, but for new duties.
    async fn wait(&mut self, idle: Step) {
        match idle {
            Step::Progressed => {}
            Step::Standby if self.owner().is_none() && self.owner_of_surplus().is_none() => {
                std::future::pending().await
            }
            Step::Standby => tokio::time::sleep(CLAIM_INTERVAL).await,
            Step::Stuck => {
                let retry_at = self.retry.as_ref().map_or_else(Instant::now, |retry| retry.at);
                let check_at = self.runner.as_ref().map_or(retry_at, Runner::check_at);
                self.reads_log = true;
                tokio::time::sleep_until(retry_at.min(check_at).into()).await;
            }
            Step::CaughtUp => {
                let changed = tokio::time::timeout(LEASE_CHECK_INTERVAL, self.feed.changed()).await;
                // The feed is a hint. When it is silent, the log is looked at all the same.
                self.reads_log = changed.is_err();
            }
        }
    }

    fn warn(&self, error: &StepError) {
        tracing::warn!(
            projection.name = M::NAME,
            self.partition,
            error = error as &dyn std::error::Error,
            "a step failed; the worker begins at the checkpoint again"
        );
    }

    async fn release(self) {
        if let Some(runner) = self.runner
            && let Err(error) = within(LOOKUP_TIMEOUT, runner.release()).await
        {
            tracing::warn!(projection.name = M::NAME, error = %error, "a lease was not released");
        }
    }
}
