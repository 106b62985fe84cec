//! How a process ends: on a signal, or because one of its tasks did; within its drain delay, its grace period and
//! [`EXIT_MARGIN`] in any case.
//!
//! It stops in two steps ([`Stop`]). When it is asked to, it is not ready any more, and goes on accepting for as long as load
//! balancers take to notice. Then it drains.
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
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::config::CommonConfig;

/// So long after the grace period of open requests the process is gone, whatever hangs.
const EXIT_MARGIN: Duration = Duration::from_secs(2);

/// How much longer than the grace period tasks may take to stop: to write down what they did.
const STOP_MARGIN: Duration = Duration::from_millis(500);

/// How long the last tasks may take to finish after those that overrun; all the time that is left when none does.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// The watchdog comes a little earlier than the deadline, so that the deadline is kept.
const WATCHDOG_MARGIN: Duration = Duration::from_millis(250);

/// The exit code of a process that had to be cut off, as of one that was killed by SIGTERM.
const EXIT_CUT_OFF: i32 = 128 + 15;

/// The two steps of a stop.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    /// Cancelled by the stop signal: the process is not ready any more.
    pub(crate) asked: CancellationToken,
    /// Cancelled when nothing is accepted any more: what is open finishes.
    pub(crate) drains: CancellationToken,
}

impl Stop {
    /// Drains so long after the stop signal. Whoever cancels one of the tokens has the other cancelled.
    pub(crate) fn after(asked: CancellationToken, delay: Duration) -> Self {
        let stop = Self {
            asked,
            drains: CancellationToken::new(),
        };
        tokio::spawn(stop.clone().relay(delay));
        stop
    }

    async fn relay(self, delay: Duration) {
        let Self { asked, drains } = self;
        tokio::select! {
            () = drains.cancelled() => asked.cancel(),
            () = asked.cancelled() => {
                if !delay.is_zero() {
                    let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(drain.delay_ms = delay_ms, "not ready any more, and accepting still");
                    // A task may end meanwhile, and the process with it.
                    let _ = timeout(delay, drains.cancelled()).await;
                }
                drains.cancel();
            }
        }
    }
}

/// How long after the stop signal a process with these settings is gone.
pub(crate) fn exit_deadline(config: &CommonConfig) -> Duration {
    config.drain_delay + config.limits.grace_period + EXIT_MARGIN
}

/// A token that is cancelled by SIGTERM or SIGINT, with a watchdog: from the signal on, the process ends within the
/// deadline. A second signal ends it at once. For `main`, once, inside a runtime.
///
/// # Errors
/// When the handlers cannot be installed.
pub(crate) fn on_signals(deadline: Duration) -> std::io::Result<CancellationToken> {
    let terminate = signal(SignalKind::terminate())?;
    let interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    tokio::spawn(watch(terminate, interrupt, token.clone(), deadline));
    Ok(token)
}

#[expect(
    clippy::disallowed_methods,
    reason = "whoever asks twice does not want to wait"
)]
async fn watch(mut terminate: Signal, mut interrupt: Signal, token: CancellationToken, deadline: Duration) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = token.cancelled() => {}
    }
    tracing::info!("stopping");
    start_watchdog(deadline);
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
fn start_watchdog(deadline: Duration) {
    let spawned = std::thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || {
            std::thread::sleep(deadline.saturating_sub(WATCHDOG_MARGIN));
            tracing::error!("the process did not stop in time and is cut off");
            // Another thread writes that.
            std::thread::sleep(WATCHDOG_MARGIN / 2);
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
    /// Tasks that finish when the others have stopped.
    last: Tasks,
    /// Tasks that go on until all others have stopped.
    companions: Tasks,
    stop_timeout: Duration,
}

impl Supervisor {
    /// A supervisor that stops its tasks through this token, and lets open requests go on for the grace period.
    pub fn new(shutdown: CancellationToken, grace_period: Duration) -> Self {
        Self {
            shutdown,
            finish: CancellationToken::new(),
            tasks: Tasks::default(),
            last: Tasks::default(),
            companions: Tasks::default(),
            stop_timeout: grace_period + STOP_MARGIN,
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
        (Supervisor::new(token.clone(), Duration::from_secs(5)), token)
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
        assert!(STOP_MARGIN + FINISH_TIMEOUT < EXIT_MARGIN - WATCHDOG_MARGIN);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_to_stop_drains_after_the_delay() {
        let started = Instant::now();
        let stop = Stop::after(CancellationToken::new(), Duration::from_secs(5));
        stop.asked.cancel();
        stop.drains.cancelled().await;
        let delay = started.elapsed().as_secs_f64();
        assert!((5.0..5.1).contains(&delay), "{delay} s");
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_by_itself_waits_for_no_load_balancer() {
        for is_asked in [false, true] {
            let started = Instant::now();
            let stop = Stop::after(CancellationToken::new(), Duration::from_secs(5));
            if is_asked {
                stop.asked.cancel();
            }
            tokio::task::yield_now().await;
            stop.drains.cancel();
            stop.asked.cancelled().await;
            assert_eq!(started.elapsed(), Duration::ZERO);
        }
    }
}
