//! The appender: one task per partition and process that turns many commands into few transactions.
//!
//! While a batch is in flight the next one gathers; nothing waits for a timer, so a lone command is appended at once and
//! a crowd shares its commit. A second task answers, so that the database need not wait for that with the next batch.
//!
//! A batch whose answer got lost is sent again unchanged: what was committed is found by its keys, and recognised as this
//! very decision by its events' ids. A batch that cannot be stored is divided between its chains and never in a group; in a
//! chain that cannot be stored only the culprit is refused, and what was decided on it is in conflict with the log.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use uuid::Uuid;

use crate::answers::{Answers, Judged};
use crate::append::{AppendError, Judgement, chains, groups};
use crate::command::{NewCommand, Verdict};
use crate::event::RecordedEvent;
use crate::log::Log;
use crate::queue::{BatchLimits, NotAdmitted, Pending, Queue};

/// How the appender gathers. The defaults suit one Postgres on one machine.
#[derive(Debug, Clone)]
pub struct AppenderOptions {
    /// Commands that may be under way, from their admission to their answer; one more is refused. A tenant may have at most
    /// half of what all others leave free.
    pub commands_max: usize,
    /// Bytes of the requests that these commands came in, shared out alike.
    pub bytes_max: usize,
    /// Limits of one batch.
    pub batch: BatchLimits,
    /// For how long a batch is sent again, and receipts are read again, when the database does not answer. After that the
    /// commands are [`Unanswered::Unknown`].
    pub retry_for: Duration,
    /// Its counters.
    pub metrics: AppenderMetrics,
}

impl Default for AppenderOptions {
    fn default() -> Self {
        Self {
            commands_max: 16_384,
            bytes_max: 64 << 20,
            batch: BatchLimits {
                commands_max: 1_024,
                events_max: 4_096,
                payload_bytes_max: 4 << 20,
            },
            // Three attempts, at the least.
            retry_for: Duration::from_secs(8),
            metrics: AppenderMetrics::default(),
        }
    }
}

/// There is no verdict on a command.
#[derive(Debug, Clone, Error)]
pub enum Unanswered {
    /// The database cannot store this command's data; nothing was written.
    #[error("the database cannot store the command")]
    Refused(#[source] Arc<AppendError>),
    /// The database did not answer: the command may have been committed or not. The same key finds out.
    #[error("the outcome of the command is unknown")]
    Unknown(#[source] Arc<AppendError>),
    /// The appender stopped before it answered: the command may have been committed or not. The same key finds out.
    #[error("the appender stopped before it answered")]
    Stopped,
}

/// The events of a batch, just committed, for whoever publishes them.
#[derive(Debug)]
pub struct Committed {
    /// The generation of the log.
    pub generation: Uuid,
    /// The events in the order of their positions, which are consecutive.
    pub events: Vec<RecordedEvent>,
    /// When the database had answered.
    pub at: std::time::Instant,
}

/// Counters of appenders; clones share them.
#[derive(Debug, Clone, Default)]
pub struct AppenderMetrics {
    /// Batches that were judged.
    pub batches: Counter,
    /// Commands that got a verdict.
    pub commands: Counter,
    /// Events that were committed.
    pub events: Counter,
    /// Commands whose verdict was a conflict.
    pub conflicts: Counter,
    /// Commands whose key was known.
    pub replays: Counter,
    /// Batches that had to be sent again because the database did not answer.
    pub retries: Counter,
    /// Reads of receipts that had to be made again because the database did not answer.
    pub receipt_retries: Counter,
    /// Commands that may still be admitted.
    pub free: Gauge,
}

impl AppenderMetrics {
    /// Registers them.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let new = Self::default();
        for (name, help, counter) in [
            ("append_batches", "Batches that were committed", &new.batches),
            ("append_commands", "Commands that got a verdict", &new.commands),
            ("append_events", "Events that were committed", &new.events),
            (
                "append_conflicts",
                "Commands that were decided on something else than what is recorded",
                &new.conflicts,
            ),
            (
                "append_replays",
                "Commands whose key had been used for the same before",
                &new.replays,
            ),
            (
                "append_retries",
                "Batches sent again because the database did not answer",
                &new.retries,
            ),
            (
                "append_receipt_retries",
                "Receipts read again because the database did not answer",
                &new.receipt_retries,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        let help = "Commands that may still be admitted before one is refused";
        registry.register("append_queue_free", help, new.free.clone());
        new
    }
}

/// Receives the verdict on a command; dropped if the appender stops first. It must not block.
pub trait Answer: Send {
    /// The command's key is known: nothing was written for it now. Its receipt is read next, which may take a while.
    fn key_is_known(&mut self) {}

    /// The verdict on it, or why there is none.
    fn answer(self: Box<Self>, verdict: Result<Verdict, Unanswered>);
}

impl<F: FnOnce(Result<Verdict, Unanswered>) + Send> Answer for F {
    fn answer(self: Box<Self>, verdict: Result<Verdict, Unanswered>) {
        self(verdict);
    }
}

/// Hands commands to the appending task; cheap to clone.
#[derive(Clone)]
pub struct Appender {
    shared: Arc<Shared>,
    /// The task ends when the last of these is gone.
    _alive: mpsc::Sender<Infallible>,
}

impl fmt::Debug for Appender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Appender")
            .field("partition", &self.shared.partition)
            .finish_non_exhaustive()
    }
}

struct Shared {
    partition: i32,
    options: AppenderOptions,
    queue: Mutex<Queue>,
    arrived: Notify,
    admitted: Mutex<Admitted>,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admitted(&self) -> MutexGuard<'_, Admitted> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The commands under way.
#[derive(Default)]
struct Admitted {
    all: Load,
    by_tenant: HashMap<Uuid, Load>,
}

/// Commands, and the bytes of the requests that they came in.
#[derive(Default, Clone, Copy)]
struct Load {
    commands: usize,
    bytes: usize,
}

impl Load {
    fn of(bytes: usize) -> Self {
        Self { commands: 1, bytes }
    }

    fn add(&mut self, more: Self) {
        self.commands += more.commands;
        self.bytes += more.bytes;
    }

    fn remove(&mut self, less: Self) {
        self.commands -= less.commands;
        self.bytes -= less.bytes;
    }

    /// Whether one more of these bytes would be too much.
    fn has_no_room(&self, bytes: usize, commands_max: usize, bytes_max: usize) -> bool {
        self.commands >= commands_max || (self.commands > 0 && self.bytes + bytes > bytes_max)
    }
}

/// The right to have one command under way, given back when it is dropped.
pub struct Permit {
    shared: Arc<Shared>,
    tenant_id: Uuid,
    bytes: usize,
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut admitted = self.shared.admitted();
        let load = Load::of(self.bytes);
        admitted.all.remove(load);
        let of_tenant = admitted.by_tenant.get_mut(&self.tenant_id);
        let of_tenant = of_tenant.expect("a permit is counted");
        of_tenant.remove(load);
        if of_tenant.commands == 0 {
            admitted.by_tenant.remove(&self.tenant_id);
        }
        self.shared.options.metrics.free.inc();
    }
}

impl Appender {
    /// Makes the appender of a partition and the future that does its work; the caller spawns it. The future ends when
    /// every handle is gone and the queue is empty. Committed events go to `committed` as long as that has room: it is a
    /// short cut, whoever publishes reads what is missing from the log.
    pub fn new<L: Log>(
        log: L,
        partition: i32,
        options: AppenderOptions,
        committed: Option<mpsc::Sender<Committed>>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (alive, handles) = mpsc::channel(1);
        let free = i64::try_from(options.commands_max).unwrap_or(i64::MAX);
        options.metrics.free.inc_by(free);
        let (retry_for, metrics) = (options.retry_for, options.metrics.clone());
        let shared = Arc::new(Shared {
            partition,
            options,
            queue: Mutex::default(),
            arrived: Notify::new(),
            admitted: Mutex::default(),
        });
        let log = Arc::new(log);
        let answers = Answers::new(Arc::clone(&log), partition, retry_for, committed, metrics);
        let task = Task {
            log,
            shared: Arc::clone(&shared),
            handles,
        };
        let appender = Self {
            shared,
            _alive: alive,
        };
        (appender, task.run(answers))
    }

    /// The partition that this appends to.
    #[must_use]
    pub fn partition(&self) -> i32 {
        self.shared.partition
    }

    /// Its counters.
    #[must_use]
    pub fn metrics(&self) -> &AppenderMetrics {
        &self.shared.options.metrics
    }

    /// Takes a place for a command that came in a request of this many bytes, or says at once that there is none. It is
    /// taken before the command is decided, so that nothing that was decided is ever withdrawn.
    ///
    /// # Errors
    /// [`NotAdmitted`].
    pub fn admit(&self, tenant_id: Uuid, bytes: usize) -> Result<Permit, NotAdmitted> {
        let AppenderOptions {
            commands_max,
            bytes_max,
            ..
        } = self.shared.options;
        let mut admitted = self.shared.admitted();
        let all = admitted.all;
        if all.has_no_room(bytes, commands_max, bytes_max) {
            return Err(NotAdmitted::Full);
        }
        let of_tenant = admitted.by_tenant.get(&tenant_id).copied().unwrap_or_default();
        // Half of what the others leave: a tenant that takes all it gets still leaves room for the next one.
        let commands_left = (commands_max - (all.commands - of_tenant.commands)).div_ceil(2);
        let bytes_left = bytes_max.saturating_sub(all.bytes - of_tenant.bytes) / 2;
        if of_tenant.has_no_room(bytes, commands_left, bytes_left) {
            return Err(NotAdmitted::TenantShareFull);
        }
        admitted
            .by_tenant
            .entry(tenant_id)
            .or_default()
            .add(Load::of(bytes));
        admitted.all.add(Load::of(bytes));
        drop(admitted);
        self.metrics().free.dec();
        Ok(Permit {
            shared: Arc::clone(&self.shared),
            tenant_id,
            bytes,
        })
    }

    /// Submits an admitted command behind all of its tenant that were submitted before, without waiting. `answer` is
    /// told what became of it.
    pub fn submit(&self, command: NewCommand, answer: Box<dyn Answer>) {
        self.shared.queue().push(Pending { command, answer });
        self.shared.arrived.notify_one();
    }

    /// Submits admitted commands of one tenant, each for a stream and under a key of its own, to be recorded all together or
    /// not at all. Where they are not, those that stood in the way have the verdict that they would have alone, and the others
    /// are a [`Verdict::Conflict`] with the very event that they were decided on.
    pub fn submit_together(&self, commands: Vec<(NewCommand, Box<dyn Answer>)>) {
        let group = Some(Uuid::now_v7());
        let mut queue = self.shared.queue();
        for (command, answer) in commands {
            let command = NewCommand { group, ..command };
            queue.push(Pending { command, answer });
        }
        drop(queue);
        self.shared.arrived.notify_one();
    }
}

/// First backoff before a batch is sent again; it doubles up to [`RETRY_BACKOFF_MAX`].
const RETRY_BACKOFF: Duration = Duration::from_millis(20);
const RETRY_BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Batches that may wait for their answers to be given: answering is the faster of the two, so more than one waits only
/// when it gets no processor.
const JUDGED_BATCHES_MAX: usize = 2;

struct Task<L> {
    log: Arc<L>,
    shared: Arc<Shared>,
    handles: mpsc::Receiver<Infallible>,
}

impl<L: Log> Task<L> {
    async fn run(mut self, answers: Answers<L>) {
        let (judged, batches) = mpsc::channel(JUDGED_BATCHES_MAX);
        let answering = tokio::spawn(answers.run(batches));
        while let Some(batch) = self.next_batch().await {
            self.append_and_hand_on(batch, &judged).await;
        }
        drop(judged);
        answering.await.expect("answering a batch does not panic");
    }

    /// Waits only when there is nothing to do; `None` when nothing will come.
    async fn next_batch(&mut self) -> Option<Vec<Pending>> {
        loop {
            let arrived = self.shared.arrived.notified();
            let batch = self.shared.queue().take_batch(self.shared.options.batch);
            if !batch.is_empty() {
                return Some(batch);
            }
            tokio::select! {
                biased;
                () = arrived => {}
                gone = self.handles.recv() => match gone {
                    Some(never) => match never {},
                    None if self.shared.queue().is_empty() => return None,
                    None => {}
                }
            }
        }
    }

    async fn append_and_hand_on(&self, batch: Vec<Pending>, judged: &mpsc::Sender<Judged>) {
        let (commands, answers): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|one| (one.command, one.answer)).unzip();
        match self.append_with_retries(&commands).await {
            Ok(judgement) => {
                let at = std::time::Instant::now();
                let batch = Judged {
                    commands,
                    answers,
                    judgement,
                    at,
                };
                judged
                    .send(batch)
                    .await
                    .unwrap_or_else(|_| unreachable!("answering ends after this task"));
            }
            Err(error @ AppendError::Refused(_)) => match divide(&commands) {
                Some(later) => {
                    let mut first: Vec<Pending> = pending(commands, answers);
                    let second = first.split_off(later);
                    Box::pin(self.append_and_hand_on(first, judged)).await;
                    Box::pin(self.append_and_hand_on(second, judged)).await;
                }
                None => refuse_for_good(error, answers),
            },
            Err(error @ AppendError::Contradiction(_)) => refuse_for_good(error, answers),
            Err(error) => refuse(answers, &Unanswered::Unknown(Arc::new(error))),
        }
    }

    /// Sends a batch until the database has judged it.
    async fn append_with_retries(&self, commands: &[NewCommand]) -> Result<Judgement, AppendError> {
        let mut backoff = Backoff::new(self.shared.options.retry_for);
        loop {
            let error = match self.log.append(self.shared.partition, commands).await {
                Err(
                    error @ (AppendError::Locked(_)
                    | AppendError::EpochOver(_)
                    | AppendError::Superseded { .. }
                    | AppendError::Unknown(_)),
                ) => error,
                judged => return judged,
            };
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                batch.commands = commands.len(),
                "the database did not judge an append",
            );
            let goes_on = match error {
                // It has waited already; or the next attempt opens the next epoch.
                AppendError::Locked(_) | AppendError::EpochOver(_) => backoff.has_time(),
                _ => backoff.pause(&self.shared.options.metrics.retries).await,
            };
            if !goes_on {
                return Err(error);
            }
        }
    }
}

/// The pauses between attempts to have an answer from the database.
pub(crate) struct Backoff {
    pause: Duration,
    deadline: Instant,
}

impl Backoff {
    /// For attempts that begin now and go on for so long.
    pub(crate) fn new(retry_for: Duration) -> Self {
        Self {
            pause: RETRY_BACKOFF,
            deadline: Instant::now() + retry_for,
        }
    }

    /// Whether there is time for another attempt.
    fn has_time(&self) -> bool {
        Instant::now() + self.pause < self.deadline
    }

    /// Waits before the next attempt, which it counts; `false` at once when there is no time for one.
    pub(crate) async fn pause(&mut self, attempts: &Counter) -> bool {
        if !self.has_time() {
            return false;
        }
        attempts.inc();
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(RETRY_BACKOFF_MAX);
        true
    }
}

/// The index at which a batch that cannot be stored is divided: between its chains, or in the middle of its only one;
/// `None` where it is one command or one group.
fn divide(commands: &[NewCommand]) -> Option<usize> {
    let chains = chains(commands);
    if chains.len() == 1 {
        return (commands.len() > 1).then_some(commands.len() / 2);
    }
    let groups = groups(commands, &chains);
    let is_inside = |chain: &usize| {
        groups
            .iter()
            .any(|group| group.start < *chain && *chain < group.end)
    };
    let places: Vec<usize> = (1..chains.len()).filter(|chain| !is_inside(chain)).collect();
    let middle = places.get(places.len() / 2)?;
    Some(chains[*middle].start)
}

fn pending(commands: Vec<NewCommand>, answers: Vec<Box<dyn Answer>>) -> Vec<Pending> {
    let both = commands.into_iter().zip(answers);
    both.map(|(command, answer)| Pending { command, answer })
        .collect()
}

fn refuse_for_good(error: AppendError, answers: Vec<Box<dyn Answer>>) {
    tracing::error!(
        error = &error as &dyn std::error::Error,
        batch.commands = answers.len(),
        "the database refused an append"
    );
    refuse(answers, &Unanswered::Refused(Arc::new(error)));
}

fn refuse(answers: Vec<Box<dyn Answer>>, reason: &Unanswered) {
    for answer in answers {
        answer.answer(Err(reason.clone()));
    }
}
