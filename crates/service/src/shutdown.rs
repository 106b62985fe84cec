//! How a process ends: on a signal, or because one of its tasks did; within [`EXIT_DEADLINE`] in any case.
//!
//! A service that has lost one of its tasks must not go on looking healthy. So every long-running task is supervised, and
//! a task that ends before the stop signal ends the process with a failure, whether it returned `Ok`, returned an error or
//! panicked.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::server::GRACE_PERIOD;

/// After the stop signal the process is gone within this time, whatever hangs.
pub const EXIT_DEADLINE: Duration = Duration::from_secs(10);

/// How long tasks may take to stop: the server's grace, and half a second to write down what they did.
const STOP_TIMEOUT: Duration = GRACE_PERIOD.saturating_add(Duration::from_millis(500));

/// The watchdog comes a little earlier than the deadline, so that the deadline is kept.
const WATCHDOG_MARGIN: Duration = Duration::from_millis(250);

/// The exit code of a process that had to be cut off, as of one that was killed by SIGTERM.
const EXIT_CUT_OFF: i32 = 128 + 15;

/// A token that is cancelled by SIGTERM or SIGINT, with a watchdog: from the signal on, the process ends within
/// [`EXIT_DEADLINE`]. A second signal ends it at once. For `main`, once, inside a runtime.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn on_signals() -> std::io::Result<CancellationToken> {
    let terminate = signal(SignalKind::terminate())?;
    let interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    tokio::spawn(watch(terminate, interrupt, token.clone()));
    Ok(token)
}

async fn watch(mut terminate: Signal, mut interrupt: Signal, token: CancellationToken) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = token.cancelled() => {}
    }
    tracing::info!("stopping");
    start_watchdog();
    token.cancel();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    std::process::exit(EXIT_CUT_OFF);
}

/// A thread of its own, so that a runtime that is stuck does not hold it up.
fn start_watchdog() {
    let spawned = std::thread::Builder::new().name("watchdog".to_owned()).spawn(|| {
        std::thread::sleep(EXIT_DEADLINE - WATCHDOG_MARGIN);
        tracing::error!("the process did not stop in time and is cut off");
        std::process::exit(EXIT_CUT_OFF);
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "there is no watchdog; the process may take longer to stop");
    }
}

/// The long-running tasks of a process.
#[derive(Debug)]
pub struct Supervisor {
    shutdown: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
    /// Those that go on until all others have stopped.
    companions: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
}

impl Supervisor {
    /// A supervisor that stops its tasks through this token.
    #[must_use]
    pub fn new(shutdown: CancellationToken) -> Self {
        Self {
            shutdown,
            tasks: JoinSet::new(),
            companions: JoinSet::new(),
            names: HashMap::new(),
        }
    }

    /// Starts a task. It watches the token itself, and ends soon after it is cancelled.
    pub fn spawn<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let handle = self.tasks.spawn(task);
        self.names.insert(handle.id(), name);
    }

    /// Starts a task that serves the others while they stop (the private listener), and is dropped after them.
    pub fn spawn_companion<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let handle = self.companions.spawn(task);
        self.names.insert(handle.id(), name);
    }

    /// Waits until the token is cancelled or a task ends, then stops the others.
    ///
    /// # Errors
    /// When a task ended before the stop signal, or failed while stopping.
    pub async fn run(mut self) -> Result<(), TaskEnded> {
        let first = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => None,
            Some(ended) = self.tasks.join_next_with_id() => Some(ended),
            Some(ended) = self.companions.join_next_with_id() => Some(ended),
        };
        let mut outcome = match first {
            Some(ended) => Err(self.ended_early(ended)),
            None => Ok(()),
        };
        self.shutdown.cancel();
        let stopped = self.stop().await;
        if outcome.is_ok() {
            outcome = stopped;
        }
        outcome
    }

    /// Waits for the tasks that are left, and drops those that overrun.
    async fn stop(&mut self) -> Result<(), TaskEnded> {
        let deadline = Instant::now() + STOP_TIMEOUT;
        let mut outcome = Ok(());
        loop {
            match timeout_at(deadline, self.tasks.join_next_with_id()).await {
                Ok(None) => return outcome,
                Ok(Some(Ok((_, Ok(()))))) => {}
                Ok(Some(failed)) => outcome = Err(self.ended_early(failed)),
                Err(_elapsed) => {
                    tracing::warn!(
                        tasks.running = self.tasks.len(),
                        "tasks did not stop in time and are dropped"
                    );
                    self.tasks.abort_all();
                    return outcome;
                }
            }
        }
    }

    /// Says which task ended, and how; logs it, as this is where the error stops.
    fn ended_early(&self, ended: Result<(Id, anyhow::Result<()>), JoinError>) -> TaskEnded {
        let (id, how) = match ended {
            Ok((id, Ok(()))) => (id, Ending::Returned),
            Ok((id, Err(error))) => (id, Ending::Failed(error)),
            Err(error) => (error.id(), Ending::Panicked(error)),
        };
        let task = self.names.get(&id).copied().unwrap_or("unknown");
        let ended = TaskEnded { task, how };
        tracing::error!(task.name = task, error.chain = %ended, "a task has ended, so the process ends");
        ended
    }
}

/// A task ended that should have gone on.
#[derive(Debug)]
pub struct TaskEnded {
    /// The task's name.
    pub task: &'static str,
    /// How it ended.
    pub how: Ending,
}

/// How a task ended.
#[derive(Debug)]
pub enum Ending {
    /// It returned, though nobody had asked it to.
    Returned,
    /// It failed.
    Failed(anyhow::Error),
    /// It panicked.
    Panicked(JoinError),
}

impl fmt::Display for TaskEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let task = self.task;
        match &self.how {
            Ending::Returned => write!(f, "the task {task} returned"),
            Ending::Failed(error) => write!(f, "the task {task} failed: {error:#}"),
            Ending::Panicked(error) => write!(f, "the task {task} panicked: {error}"),
        }
    }
}

impl std::error::Error for TaskEnded {}
