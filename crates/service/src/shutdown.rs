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
pub(crate) const EXIT_DEADLINE: Duration = Duration::from_secs(10);

/// How long tasks may take to stop: the server's grace, and half a second to write down what they did.
const STOP_TIMEOUT: Duration = GRACE_PERIOD.saturating_add(Duration::from_millis(500));

/// How long the last tasks may take to finish after those that overrun; all the time that is left when none does.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// The watchdog comes a little earlier than the deadline, so that the deadline is kept.
const WATCHDOG_MARGIN: Duration = Duration::from_millis(250);

/// The exit code of a process that had to be cut off, as of one that was killed by SIGTERM.
const EXIT_CUT_OFF: i32 = 128 + 15;

/// A token that is cancelled by SIGTERM or SIGINT, with a watchdog: from the signal on, the process ends within
/// [`EXIT_DEADLINE`]. A second signal ends it at once. For `main`, once, inside a runtime.
///
/// # Errors
/// When the handlers cannot be installed.
pub(crate) fn on_signals() -> std::io::Result<CancellationToken> {
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
    finish: CancellationToken,
    tasks: Tasks,
    /// Those that finish when the tasks have stopped.
    last: Tasks,
    /// Those that go on until all others have stopped.
    companions: Tasks,
    stop_timeout: Duration,
}

impl Supervisor {
    /// A supervisor that stops its tasks through this token.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self {
            shutdown,
            finish: CancellationToken::new(),
            tasks: Tasks::default(),
            last: Tasks::default(),
            companions: Tasks::default(),
            stop_timeout: STOP_TIMEOUT,
        }
    }

    /// Starts a task. It watches the token itself, and ends soon after it is cancelled.
    pub fn spawn<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.tasks.spawn(name, task);
    }

    /// Starts a task that serves the others until they have stopped, and ends soon after [`Self::finish`] (what requests
    /// have left behind is still to be written or sent).
    pub fn spawn_last<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.last.spawn(name, task);
    }

    /// Cancelled when the tasks have stopped: those that are last finish now.
    pub fn finish(&self) -> CancellationToken {
        self.finish.clone()
    }

    /// Starts a task that serves the others while they stop (the private listener), and is dropped after them.
    pub fn spawn_companion<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.companions.spawn(name, task);
    }

    /// Waits until the token is cancelled or a task ends, then stops the others.
    ///
    /// # Errors
    /// When a task ended before the stop signal, or failed while stopping.
    pub async fn run(mut self) -> Result<(), TaskEnded> {
        let ended_early = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Ok(()),
            Some(ended) = self.tasks.next() => Err(ended),
            Some(ended) = self.last.next() => Err(ended),
            Some(ended) = self.companions.next() => Err(ended),
        };
        let ended_early = ended_early.inspect_err(report);
        self.shutdown.cancel();
        let deadline = Instant::now() + self.stop_timeout;
        let stopped = self.tasks.stop(deadline).await;
        self.finish.cancel();
        let finished = self.last.stop(deadline + FINISH_TIMEOUT).await;
        ended_early.and(stopped).and(finished)
    }
}

/// Tasks and their names.
#[derive(Debug, Default)]
struct Tasks {
    running: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let handle = self.running.spawn(task);
        self.names.insert(handle.id(), name);
    }

    /// The next task that ends, and how; `None` when none is left.
    async fn next(&mut self) -> Option<TaskEnded> {
        let (id, how) = match self.running.join_next_with_id().await? {
            Ok((id, Ok(()))) => (id, Ending::Returned),
            Ok((id, Err(error))) => (id, Ending::Failed(error)),
            Err(error) => (error.id(), Ending::Panicked(error)),
        };
        let task = self.names.remove(&id).expect("every task has a name");
        Some(TaskEnded { task, how })
    }

    /// Waits for the tasks that are left, and drops those that overrun.
    async fn stop(&mut self, deadline: Instant) -> Result<(), TaskEnded> {
        let mut outcome = Ok(());
        loop {
            match timeout_at(deadline, self.next()).await {
                Ok(None) => return outcome,
                Ok(Some(TaskEnded {
                    how: Ending::Returned,
                    ..
                })) => {}
                Ok(Some(failed)) => outcome = Err(failed).inspect_err(report),
                Err(_elapsed) => return Err(self.overran()),
            }
        }
    }

    /// Drops the tasks that are left, and names one of them.
    fn overran(&mut self) -> TaskEnded {
        self.running.abort_all();
        let left: Vec<_> = self.names.values().copied().collect();
        tracing::warn!(tasks.running = ?left, "tasks did not stop in time and are dropped");
        TaskEnded {
            task: left.first().copied().unwrap_or("unknown"),
            how: Ending::Overran,
        }
    }
}

/// Logs which task ended, and how: this is where its error stops.
fn report(ended: &TaskEnded) {
    tracing::error!(task.name = ended.task, error.chain = %ended, "a task has ended, so the process ends");
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
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering::Relaxed;

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

    #[tokio::test]
    async fn what_is_last_finishes_when_all_others_have_stopped_and_is_waited_for() {
        let (mut supervisor, token) = supervisor();
        let (requests, finished) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (stop, served) = (token.clone(), Arc::clone(&requests));
        supervisor.spawn("server", async move {
            stop.cancelled().await;
            tokio::task::yield_now().await;
            served.store(1, Relaxed);
            Ok(())
        });
        let (finish, sent) = (supervisor.finish(), Arc::clone(&finished));
        supervisor.spawn_last("publisher", async move {
            finish.cancelled().await;
            let left_behind = requests.load(Relaxed);
            tokio::task::yield_now().await;
            sent.store(left_behind, Relaxed);
            Ok(())
        });
        token.cancel();
        supervisor.run().await.expect("a clean stop");
        assert_eq!(finished.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn what_is_last_must_not_end_before_the_others() {
        let (mut supervisor, token) = supervisor();
        supervisor.spawn("obedient", obedient(token));
        supervisor.spawn_last("publisher", async { Ok(()) });
        assert_eq!(
            supervisor.run().await.expect_err("a task has ended").task,
            "publisher"
        );
    }

    #[test]
    fn everything_fits_before_the_watchdog() {
        assert!(GRACE_PERIOD < STOP_TIMEOUT);
        assert!(STOP_TIMEOUT + FINISH_TIMEOUT < EXIT_DEADLINE - WATCHDOG_MARGIN);
    }
}
