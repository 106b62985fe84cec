//! The appender: one task per partition and process that turns many commands into few transactions.
//!
//! While a batch is in flight the next one gathers; nothing waits for a timer, so a lone command is appended at once and
//! a crowd shares its commit. Commands are appended in the order in which they were submitted. The queue is bounded: a
//! full one refuses at once. A second task answers, so that the database need not wait for that with the next batch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::append::{AppendError, NewCommand, Receipt, Verdict, append};
use crate::event::RecordedEvent;

/// How the appender gathers. The defaults suit one Postgres on one machine.
#[derive(Debug, Clone, Copy)]
pub struct AppenderOptions {
    /// Commands that may wait; one more is refused.
    pub queue_commands_max: usize,
    /// Commands in one batch.
    pub batch_commands_max: usize,
    /// Events in one batch; a single larger command makes a batch of its own.
    pub batch_events_max: usize,
    /// Bytes of payload in one batch; a single larger command makes a batch of its own.
    pub batch_payload_bytes_max: usize,
    /// For how long a batch is sent again when the database does not answer. After that its commands are
    /// [`Unanswered::Unknown`].
    pub retry_for: Duration,
}

impl Default for AppenderOptions {
    fn default() -> Self {
        Self {
            queue_commands_max: 8_192,
            batch_commands_max: 1_024,
            batch_events_max: 4_096,
            batch_payload_bytes_max: 4 << 20,
            retry_for: Duration::from_secs(3),
        }
    }
}

/// The queue is full: try again in a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the append queue is full")]
pub struct Overloaded;

/// There is no verdict on a command.
#[derive(Debug, Clone, Error)]
pub enum Unanswered {
    /// The database cannot store this command's data; nothing was written.
    #[error("the database refused the command")]
    Refused(#[source] Arc<AppendError>),
    /// The database did not answer: the command may have been committed or not. The same key finds out.
    #[error("the outcome of the command is unknown")]
    Unknown(#[source] Arc<AppendError>),
    /// The process is stopping; nothing was written.
    #[error("the appender has stopped")]
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
    pub at: Instant,
}

/// What the appender has done, since it started.
#[derive(Debug, Default)]
pub struct AppenderMetrics {
    /// Batches that were committed.
    pub batches: AtomicU64,
    /// Commands that got a verdict.
    pub commands: AtomicU64,
    /// Events that were committed.
    pub events: AtomicU64,
    /// Commands whose verdict was a conflict.
    pub conflicts: AtomicU64,
    /// Commands whose verdict was a replay.
    pub replays: AtomicU64,
    /// Batches that had to be sent again because the database did not answer.
    pub retries: AtomicU64,
}

impl AppenderMetrics {
    fn count(counter: &AtomicU64, number: usize) {
        counter.fetch_add(number as u64, Ordering::Relaxed);
    }
}

type Answer = oneshot::Sender<Result<Verdict, Unanswered>>;

struct Pending {
    command: NewCommand,
    answer: Answer,
}

/// Hands commands to the appending task; cheap to clone.
#[derive(Clone)]
pub struct Appender {
    partition: i32,
    queue: mpsc::Sender<Pending>,
    metrics: Arc<AppenderMetrics>,
}

impl Appender {
    /// Makes the appender of a partition and the future that does its work; the caller spawns it. The future ends when
    /// every handle is gone and the queue is empty. Committed events go to `committed` as long as that has room: it is a
    /// short cut, whoever publishes reads what is missing from the log.
    pub fn new(
        pool: PgPool,
        partition: i32,
        options: AppenderOptions,
        committed: Option<mpsc::Sender<Committed>>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, commands) = mpsc::channel(options.queue_commands_max);
        let metrics = Arc::new(AppenderMetrics::default());
        let settler = Settler {
            committed,
            metrics: Arc::clone(&metrics),
        };
        let task = Task {
            pool,
            connection: None,
            partition,
            options,
            commands,
            waiting: VecDeque::new(),
            metrics: Arc::clone(&metrics),
        };
        let appender = Self {
            partition,
            queue,
            metrics,
        };
        (appender, task.run(settler))
    }

    /// The partition that this appends to.
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// What it has done so far.
    pub fn metrics(&self) -> &Arc<AppenderMetrics> {
        &self.metrics
    }

    /// How many commands may still be submitted before the queue is full.
    pub fn free(&self) -> usize {
        self.queue.capacity()
    }

    /// Submits a command behind all that were submitted before, without waiting. The verdict comes through
    /// [`Submitted::verdict`]; [`Verdict::Deferred`] never does.
    pub fn submit(&self, command: NewCommand) -> Result<Submitted, Overloaded> {
        let (answer, verdict) = oneshot::channel();
        self.queue
            .try_send(Pending { command, answer })
            .map(|()| Submitted(verdict))
            .map_err(|_| Overloaded)
    }
}

/// A command on its way into the log.
#[derive(Debug)]
pub struct Submitted(oneshot::Receiver<Result<Verdict, Unanswered>>);

impl Submitted {
    /// Waits for what became of the command.
    pub async fn verdict(self) -> Result<Verdict, Unanswered> {
        self.0.await.unwrap_or(Err(Unanswered::Stopped))
    }
}

/// The wait before a batch is sent again, doubled up to the last.
const RETRY_PAUSE_FIRST: Duration = Duration::from_millis(20);
const RETRY_PAUSE_LAST: Duration = Duration::from_millis(500);

struct Task {
    pool: PgPool,
    connection: Option<PoolConnection<Postgres>>,
    partition: i32,
    options: AppenderOptions,
    commands: mpsc::Receiver<Pending>,
    waiting: VecDeque<Pending>,
    metrics: Arc<AppenderMetrics>,
}

impl Task {
    async fn run(mut self, settler: Settler) {
        let (judged, batches) = mpsc::channel(JUDGED_BATCHES_MAX);
        let settling = tokio::spawn(settler.run(batches));
        while self.gather().await {
            let (commands, answers) = self.take_batch();
            self.append_and_hand_on(commands, answers, &judged).await;
        }
        drop(judged);
        settling.await.expect("settling a batch does not panic");
    }

    /// Takes in all that has been submitted; waits only when there is nothing to do. False when nothing will come.
    async fn gather(&mut self) -> bool {
        let room = self.options.batch_commands_max.saturating_sub(self.waiting.len());
        if self.waiting.is_empty() {
            let mut arrived = Vec::with_capacity(room);
            self.commands.recv_many(&mut arrived, room).await;
            self.waiting.extend(arrived);
        } else {
            for _ in 0..room {
                let Ok(pending) = self.commands.try_recv() else {
                    break;
                };
                self.waiting.push_back(pending);
            }
        }
        !self.waiting.is_empty()
    }

    /// As many of the waiting commands as the limits of a batch allow, at least one.
    fn take_batch(&mut self) -> (Vec<NewCommand>, Vec<Answer>) {
        let (mut commands, mut answers) = (Vec::new(), Vec::new());
        let (mut events, mut bytes) = (0, 0);
        while let Some(next) = self.waiting.front() {
            events += next.command.events.len();
            bytes += next
                .command
                .events
                .iter()
                .map(|event| event.payload.len())
                .sum::<usize>();
            let full = commands.len() == self.options.batch_commands_max
                || events > self.options.batch_events_max
                || bytes > self.options.batch_payload_bytes_max;
            if full && !commands.is_empty() {
                break;
            }
            let pending = self.waiting.pop_front().expect("there is a front");
            commands.push(pending.command);
            answers.push(pending.answer);
        }
        (commands, answers)
    }

    async fn append_and_hand_on(
        &mut self,
        commands: Vec<NewCommand>,
        answers: Vec<Answer>,
        judged: &mpsc::Sender<Judged>,
    ) {
        match self.append_with_retries(&commands).await {
            Ok(verdicts) => {
                let batch = self.take_back_deferred(commands, answers, verdicts);
                judged
                    .send(batch)
                    .await
                    .expect("the settler ends after this task");
            }
            // One command's data spoils the call for all: halve the batch until the culprit is alone.
            Err(AppendError::Refused(_)) if commands.len() > 1 => {
                let (mut commands, mut answers) = (commands, answers);
                let later_commands = commands.split_off(commands.len() / 2);
                let later_answers = answers.split_off(commands.len());
                Box::pin(self.append_and_hand_on(commands, answers, judged)).await;
                Box::pin(self.append_and_hand_on(later_commands, later_answers, judged)).await;
            }
            Err(error @ AppendError::Refused(_)) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a command cannot be stored"
                );
                refuse(answers, &Unanswered::Refused(Arc::new(error)));
            }
            Err(error) => refuse(answers, &Unanswered::Unknown(Arc::new(error))),
        }
    }

    /// Sends a batch until the database answers. A batch that was committed although its answer got lost is found again
    /// by its keys.
    async fn append_with_retries(&mut self, commands: &[NewCommand]) -> Result<Vec<Verdict>, AppendError> {
        let deadline = Instant::now() + self.options.retry_for;
        let mut pause = RETRY_PAUSE_FIRST;
        loop {
            let error = match self.append_once(commands).await {
                Err(error @ AppendError::Unknown(_)) => error,
                answered => return answered,
            };
            // The next attempt takes a fresh connection: this one may be broken.
            if let Some(broken) = self.connection.take() {
                drop(broken.detach());
            }
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                batch.commands = commands.len(),
                "the database did not answer an append",
            );
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            AppenderMetrics::count(&self.metrics.retries, 1);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_LAST);
        }
    }

    async fn append_once(&mut self, commands: &[NewCommand]) -> Result<Vec<Verdict>, AppendError> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let fresh = self.pool.acquire().await.map_err(AppendError::Unknown)?;
                self.connection.insert(fresh)
            }
        };
        append(connection, self.partition, commands).await
    }

    /// Puts deferred commands at the front of the next batch.
    fn take_back_deferred(
        &mut self,
        commands: Vec<NewCommand>,
        answers: Vec<Answer>,
        verdicts: Vec<Verdict>,
    ) -> Judged {
        let at = Instant::now();
        let commands = commands.into_iter().zip(answers).zip(verdicts);
        let (deferred, commands): (Vec<_>, Vec<_>) =
            commands.partition(|(_, verdict)| matches!(verdict, Verdict::Deferred));
        for ((command, answer), _) in deferred.into_iter().rev() {
            self.waiting.push_front(Pending { command, answer });
        }
        Judged { commands, at }
    }
}

/// Batches that may wait for the settler: it is the faster of the two, so more than one waits only when it gets no
/// processor.
const JUDGED_BATCHES_MAX: usize = 2;

/// A batch with its verdicts, without the commands that were deferred.
struct Judged {
    commands: Vec<((NewCommand, Answer), Verdict)>,
    /// When the database had answered.
    at: Instant,
}

/// Answers, and hands committed events on, one batch after another.
struct Settler {
    committed: Option<mpsc::Sender<Committed>>,
    metrics: Arc<AppenderMetrics>,
}

impl Settler {
    async fn run(self, mut batches: mpsc::Receiver<Judged>) {
        while let Some(batch) = batches.recv().await {
            self.settle(batch);
        }
    }

    fn settle(&self, Judged { commands, at }: Judged) {
        AppenderMetrics::count(&self.metrics.batches, 1);
        AppenderMetrics::count(&self.metrics.commands, commands.len());
        let mut events = Vec::new();
        let mut generation = None;
        let mut answers = Vec::with_capacity(commands.len());
        for ((command, answer), verdict) in commands {
            match &verdict {
                Verdict::Appended(receipt) => {
                    generation = Some(receipt.generation);
                    events.extend(record(command, receipt));
                }
                Verdict::Conflict { .. } => AppenderMetrics::count(&self.metrics.conflicts, 1),
                Verdict::Replayed(_) => AppenderMetrics::count(&self.metrics.replays, 1),
                Verdict::KeyReused | Verdict::Deferred => {}
            }
            answers.push((answer, verdict));
        }
        AppenderMetrics::count(&self.metrics.events, events.len());
        if let (Some(generation), Some(committed)) = (generation, &self.committed)
            && !events.is_empty()
        {
            // When the publisher is behind it reads these from the log.
            let _ = committed.try_send(Committed {
                generation,
                events,
                at,
            });
        }
        for (answer, verdict) in answers {
            // Whoever no longer waits for the answer finds it under the key.
            let _ = answer.send(Ok(verdict));
        }
    }
}

fn refuse(answers: Vec<Answer>, reason: &Unanswered) {
    for answer in answers {
        let _ = answer.send(Err(reason.clone()));
    }
}

/// The events of a command as the log now holds them.
fn record(command: NewCommand, receipt: &Receipt) -> impl Iterator<Item = RecordedEvent> {
    let first_version = receipt.stream_version - u64::from(receipt.event_count) + 1;
    let (partition, first_position, recorded_at) =
        (receipt.partition, receipt.first_position, receipt.recorded_at);
    let NewCommand {
        tenant_id,
        stream_id,
        category,
        metadata,
        events,
        ..
    } = command;
    events
        .into_iter()
        .zip(0..)
        .map(move |(event, index)| RecordedEvent {
            partition,
            position: first_position + index,
            tenant_id,
            category: category.to_owned(),
            stream_id: stream_id.clone(),
            stream_version: first_version + index,
            event_id: event.event_id,
            event_type: event.event_type.to_owned(),
            schema_version: event.schema_version,
            payload: event.payload,
            metadata: Arc::clone(&metadata),
            recorded_at,
        })
}
