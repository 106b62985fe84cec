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

#[expect(
    clippy::disallowed_methods,
    reason = "whoever asks twice does not want to wait"
)]
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
#[expect(
    clippy::disallowed_methods,
    reason = "it is there for when the runtime does not stop"
)]
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
    names: HashMap<Id, &'static str>,
    /// Those that go on until all others have stopped.
    companions: JoinSet<anyhow::Result<()>>,
    companion_names: HashMap<Id, &'static str>,
    stop_timeout: Duration,
}

impl Supervisor {
    /// A supervisor that stops its tasks through this token.
    #[must_use]
    pub fn new(shutdown: CancellationToken) -> Self {
        Self {
            shutdown,
            tasks: JoinSet::new(),
            names: HashMap::new(),
            companions: JoinSet::new(),
            companion_names: HashMap::new(),
            stop_timeout: STOP_TIMEOUT,
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
        self.companion_names.insert(handle.id(), name);
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
        let deadline = Instant::now() + self.stop_timeout;
        let mut outcome = Ok(());
        loop {
            match timeout_at(deadline, self.tasks.join_next_with_id()).await {
                Ok(None) => return outcome,
                Ok(Some(Ok((id, Ok(()))))) => drop(self.names.remove(&id)),
                Ok(Some(failed)) => outcome = Err(self.ended_early(failed)),
                Err(_elapsed) => return Err(self.overran()),
            }
        }
    }

    /// Says which task ended, and how; logs it, as this is where the error stops.
    fn ended_early(&mut self, ended: Result<(Id, anyhow::Result<()>), JoinError>) -> TaskEnded {
        let (id, how) = match ended {
            Ok((id, Ok(()))) => (id, Ending::Returned),
            Ok((id, Err(error))) => (id, Ending::Failed(error)),
            Err(error) => (error.id(), Ending::Panicked(error)),
        };
        let companion = self.companion_names.remove(&id);
        let task = self.names.remove(&id).or(companion).unwrap_or("unknown");
        let ended = TaskEnded { task, how };
        tracing::error!(task.name = task, error.chain = %ended, "a task has ended, so the process ends");
        ended
    }

    /// Drops the tasks that are left, and names one of them.
    fn overran(&mut self) -> TaskEnded {
        self.tasks.abort_all();
        let left: Vec<_> = self.names.values().copied().collect();
        tracing::warn!(tasks.running = ?left, "tasks did not stop in time and are dropped");
        TaskEnded {
            task: left.first().copied().unwrap_or("unknown"),
            how: Ending::Overran,
        }
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
    /// It did not stop in time and was dropped.
    Overran,
}

impl fmt::Display for TaskEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let task = self.task;
        match &self.how {
            Ending::Returned => write!(f, "the task {task} returned"),
            Ending::Failed(error) => write!(f, "the task {task} failed: {error:#}"),
            Ending::Panicked(error) => write!(f, "the task {task} panicked: {error}"),
            Ending::Overran => write!(f, "the task {task} did not stop in time"),
        }
    }
}

impl std::error::Error for TaskEnded {}

#[cfg(test)]
mod tests {
    use super::*;

    fn supervisor() -> (Supervisor, CancellationToken) {
        let token = CancellationToken::new();
        (Supervisor::new(token.clone()), token)
    }

    /// A task as it should be: it ends when it is told to.
    async fn obedient(token: CancellationToken) -> anyhow::Result<()> {
        token.cancelled().await;
        Ok(())
    }

    #[tokio::test]
    async fn a_task_that_ends_in_any_way_ends_the_process() {
        let endings: [fn() -> anyhow::Result<()>; 3] =
            [|| Ok(()), || anyhow::bail!("no luck"), || panic!("a bug")];
        for ending in endings {
            let (mut supervisor, token) = supervisor();
            supervisor.spawn("obedient", obedient(token.clone()));
            supervisor.spawn("publisher", async move { ending() });
            let ended = supervisor.run().await.expect_err("a task has ended");
            assert_eq!(ended.task, "publisher");
            assert!(token.is_cancelled(), "the other tasks were told to stop");
        }
    }

    #[tokio::test]
    async fn a_companion_that_ends_ends_the_process_as_well() {
        let (mut supervisor, token) = supervisor();
        supervisor.spawn("obedient", obedient(token));
        supervisor.spawn_companion("admin", async { Ok(()) });
        assert_eq!(
            supervisor.run().await.expect_err("a task has ended").task,
            "admin"
        );
    }

    #[tokio::test]
    async fn after_the_signal_ending_is_what_tasks_should_do() {
        let (mut supervisor, token) = supervisor();
        supervisor.spawn("obedient", obedient(token.clone()));
        supervisor.spawn_companion("admin", std::future::pending());
        token.cancel();
        supervisor.run().await.expect("a clean stop");
    }

    #[tokio::test]
    async fn a_failure_while_stopping_is_still_a_failure() {
        let (mut supervisor, token) = supervisor();
        let stop = token.clone();
        supervisor.spawn("publisher", async move {
            stop.cancelled().await;
            anyhow::bail!("the last batch was lost")
        });
        token.cancel();
        assert_eq!(supervisor.run().await.expect_err("it failed").task, "publisher");
    }

    #[tokio::test]
    async fn a_task_that_does_not_stop_is_dropped_and_named() {
        let (mut supervisor, token) = supervisor();
        supervisor.stop_timeout = Duration::from_millis(20);
        supervisor.spawn("obedient", obedient(token.clone()));
        supervisor.spawn("stuck", std::future::pending());
        token.cancel();
        let ended = supervisor.run().await.expect_err("a task was cut off");
        assert!(
            matches!(
                ended,
                TaskEnded {
                    task: "stuck",
                    how: Ending::Overran
                }
            ),
            "{ended}"
        );
    }

    #[test]
    fn everything_fits_before_the_watchdog() {
        assert!(GRACE_PERIOD < STOP_TIMEOUT);
        assert!(STOP_TIMEOUT < EXIT_DEADLINE - WATCHDOG_MARGIN);
    }
}
