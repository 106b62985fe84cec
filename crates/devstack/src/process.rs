//! Processes: started so that they do not outlive their owner, signalled only when they are surely the right ones.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::error::DevstackError;

/// How often an ending process is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How long the kernel may take to remove a process after SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// How long a thread may be inside the kernel, where it cannot be stopped, before it is no longer waited for.
const FREEZE_DEADLINE: Duration = Duration::from_secs(1);

/// How long a process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lifetime {
    /// It ends when its handle is dropped and, on Linux, when the process that started it ends in any way.
    #[default]
    Owner,
    /// It ends with its handle too, unless the handle is given up with `detach`; then it runs until someone stops it.
    Detached,
}

/// A process that can be recognised later, also by another program: number and start time together are never reused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process number.
    pub pid: i32,
    /// When it started, in a form that is only good for comparison.
    pub started: String,
}

/// What the system says about a process.
struct Status {
    parent: i32,
    state: char,
    started: String,
}

impl ProcessId {
    /// The running process with this number.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let status = status(pid)?;
        (status.state != 'Z').then_some(Self {
            pid,
            started: status.started,
        })
    }

    /// Whether this very process still runs. One that ended and waits for its parent to look does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// Sends a signal if this very process still runs.
    pub fn signal(&self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            // It may end between the look and the signal, which is what a signal to an ended process amounts to.
            let _ = kill_process(pid, signal);
        }
    }

    /// Stops the process in its tracks (SIGSTOP) and returns when all its threads stand still: the signal alone
    /// leaves those on other processors the time to answer one more request.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let deadline = Instant::now() + FREEZE_DEADLINE;
        while self.is_alive() && !is_stopped(self.pid) && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }

    /// The processes that this one started and that still run.
    #[must_use]
    pub fn children(&self) -> Vec<Self> {
        all_pids()
            .into_iter()
            .filter(|pid| status(*pid).is_some_and(|status| status.parent == self.pid))
            .filter_map(Self::of)
            .collect()
    }

    /// Sends the signal, waits, and after the grace period sends SIGKILL.
    ///
    /// # Errors
    /// [`DevstackError::NotStopped`] when not even SIGKILL ends it.
    pub async fn end(&self, server: &str, signal: Signal, grace: Duration) -> Result<(), DevstackError> {
        self.signal(signal);
        // A stopped process takes no signal but SIGKILL.
        self.signal(Signal::CONT);
        if self.gone_within(grace).await {
            return Ok(());
        }
        self.signal(Signal::KILL);
        if self.gone_within(KILL_DEADLINE).await {
            return Ok(());
        }
        Err(DevstackError::NotStopped {
            server: server.to_owned(),
            pid: self.pid,
            seconds: (grace + KILL_DEADLINE).as_secs(),
        })
    }

    /// Waits until the process is gone, at most so long.
    pub async fn gone_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        true
    }
}

#[cfg(target_os = "linux")]
fn is_stopped(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return true;
    };
    let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok());
    stats
        .filter_map(|stat| parse_stat(&stat))
        .all(|thread| matches!(thread.state, 'T' | 'Z' | 'X'))
}

#[cfg(not(target_os = "linux"))]
fn is_stopped(pid: i32) -> bool {
    status(pid).is_none_or(|status| status.state == 'T')
}

#[cfg(target_os = "linux")]
fn status(pid: i32) -> Option<Status> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

#[cfg(target_os = "linux")]
fn parse_stat(stat: &str) -> Option<Status> {
    // The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // proc(5): the start time, in clock ticks since boot, is field 22; the parent was field 4.
    let started = fields.nth(17)?.to_owned();
    Some(Status {
        parent,
        state,
        started,
    })
}

#[cfg(target_os = "linux")]
fn all_pids() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

#[cfg(not(target_os = "linux"))]
fn status(pid: i32) -> Option<Status> {
    let line = ps(&["-o", "ppid=,state=,lstart=", "-p", &pid.to_string()])?;
    let mut fields = line.split_ascii_whitespace();
    let parent = fields.next()?.parse().ok()?;
    let state = fields.next()?.chars().next()?;
    Some(Status {
        parent,
        state,
        started: fields.collect::<Vec<_>>().join(" "),
    })
}

#[cfg(not(target_os = "linux"))]
fn all_pids() -> Vec<i32> {
    let lines = ps(&["-axo", "pid="]).unwrap_or_default();
    lines
        .split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

#[cfg(not(target_os = "linux"))]
fn ps(arguments: &[&str]) -> Option<String> {
    let output = Command::new("ps").args(arguments).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A process that was started here. Dropping it does nothing to it: see [`Self::end`].
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    id: ProcessId,
    server: String,
}

impl Process {
    /// Starts a program in a process group of its own (a Ctrl-C in the terminal reaches only its owner, which then
    /// stops it in order), its output appended to `log`.
    pub(crate) fn spawn(
        server: &str,
        program: &Program,
        log: &Path,
        lifetime: Lifetime,
    ) -> Result<Self, DevstackError> {
        let output = OpenOptions::new().append(true).create(true).open(log);
        let output = output.map_err(DevstackError::file("open the log", log))?;
        let errors = output
            .try_clone()
            .map_err(DevstackError::file("open the log", log))?;
        let mut command = program.command(lifetime);
        command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0);
        let child = spawn_on_lasting_thread(command).map_err(DevstackError::file("run", &program.path))?;
        let pid = i32::try_from(child.id()).expect("process numbers fit into pid_t");
        // Our own child stays in the process table until it is waited for, so it is found even when it ended at once.
        let started = status(pid).map(|status| status.started).unwrap_or_default();
        Ok(Self {
            child,
            id: ProcessId { pid, started },
            server: server.to_owned(),
        })
    }

    pub(crate) fn id(&self) -> &ProcessId {
        &self.id
    }

    /// How the process ended, when it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            self.id.signal(signal);
        }
    }

    pub(crate) fn freeze(&mut self) {
        if self.ended().is_none() {
            self.id.freeze();
        }
    }

    /// As [`Self::end_blocking`], on a thread of its own.
    pub(crate) async fn end(self, steps: &'static [(Signal, Duration)]) -> Result<(), DevstackError> {
        let ending = tokio::task::spawn_blocking(move || self.end_blocking(steps));
        ending.await.expect("ending does not panic and is not cancelled")
    }

    /// Sends each signal in turn and waits its grace period; SIGKILL is the last word.
    #[expect(clippy::disallowed_methods, reason = "a destructor has no runtime")]
    pub(crate) fn end_blocking(mut self, steps: &[(Signal, Duration)]) -> Result<(), DevstackError> {
        for (signal, grace) in steps.iter().copied().chain([(Signal::KILL, KILL_DEADLINE)]) {
            self.signal(signal);
            // A stopped process takes no signal but SIGKILL.
            self.signal(Signal::CONT);
            let deadline = Instant::now() + grace;
            while Instant::now() < deadline {
                if self.ended().is_some() {
                    return Ok(());
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        Err(DevstackError::NotStopped {
            server: self.server,
            pid: self.id.pid,
            seconds: KILL_DEADLINE.as_secs(),
        })
    }
}

/// What to run: the same description starts a server again after it was stopped or killed.
#[derive(Debug, Clone)]
pub struct Program {
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) directory: PathBuf,
    pub(crate) account: Option<Account>,
}

impl Program {
    fn command(&self, lifetime: Lifetime) -> Command {
        let mut command = self.bound_to(lifetime);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(&self.directory);
        if let Some(account) = &self.account {
            account.run(&mut command);
        }
        command
    }

    /// Lets the kernel end the program with its owner. `setpriv` (util-linux) asks for that and becomes the program:
    /// the same process, so its number and signals are the program's. Asking from here would take `unsafe`.
    fn bound_to(&self, lifetime: Lifetime) -> Command {
        if lifetime == Lifetime::Detached || !has_setpriv() {
            return Command::new(&self.path);
        }
        let mut bound = Command::new("setpriv");
        bound.args(["--pdeathsig", "KILL", "--"]).arg(&self.path);
        bound
    }
}

fn has_setpriv() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| cfg!(target_os = "linux") && crate::find::on_path("setpriv").is_some())
}

type SpawnRequest = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Starts the program from a thread that lasts as long as this process: the kernel's "parent" whose death ends the
/// program is a *thread*, and a test's or an executor's thread may end long before the program should.
fn spawn_on_lasting_thread(command: Command) -> io::Result<Child> {
    static REQUESTS: OnceLock<mpsc::Sender<SpawnRequest>> = OnceLock::new();
    let requests = REQUESTS.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<SpawnRequest>();
        std::thread::spawn(move || {
            for (mut command, reply) in receiver {
                // The one who asked is waiting for it just below.
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let (sender, receiver) = mpsc::sync_channel(1);
    requests
        .send((command, sender))
        .expect("the thread lasts as long as the sender, which is static");
    receiver.recv().expect("the thread answers every request")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMINATE: &[(Signal, Duration)] = &[(Signal::TERM, Duration::from_secs(10))];

    fn sleeper(directory: &Path) -> Program {
        Program {
            path: PathBuf::from("/bin/sleep"),
            arguments: vec![OsString::from("600")],
            environment: Vec::new(),
            directory: directory.to_path_buf(),
            account: None,
        }
    }

    #[tokio::test]
    async fn a_process_id_stands_for_one_process_only() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let log = directory.path().join("log");
        let mut process =
            Process::spawn("sleep", &sleeper(directory.path()), &log, Lifetime::Owner).expect("sleep");
        let id = process.id().clone();
        assert!(id.is_alive());
        let another = ProcessId {
            pid: id.pid,
            started: "another time".to_owned(),
        };
        assert!(!another.is_alive(), "the same number, but not the same process");

        another.signal(Signal::KILL);
        assert!(process.ended().is_none(), "a reused number is never signalled");
        process.end(TERMINATE).await.expect("sleep heeds SIGTERM");
        assert!(!id.is_alive());
    }

    #[tokio::test]
    async fn a_stopped_process_ends_too() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let log = directory.path().join("log");
        let mut process =
            Process::spawn("sleep", &sleeper(directory.path()), &log, Lifetime::Owner).expect("sleep");
        process.signal(Signal::STOP);
        let id = process.id().clone();
        process.end(TERMINATE).await.expect("it is continued first");
        assert!(!id.is_alive());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_program_outlives_the_thread_that_asked_for_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let log = directory.path().join("log");
        let program = sleeper(directory.path());
        let asked = std::thread::spawn(move || {
            let process = Process::spawn("sleep", &program, &log, Lifetime::Owner).expect("sleep starts");
            // Until it has become the program, it has not asked the kernel to end it with its parent.
            let name = format!("/proc/{}/comm", process.id().pid);
            let deadline = Instant::now() + Duration::from_secs(10);
            while std::fs::read_to_string(&name).is_ok_and(|name| name.trim() != "sleep") {
                assert!(Instant::now() < deadline, "setpriv never became the program");
                std::thread::yield_now();
            }
            process
        });
        let process = asked.join().expect("no panic");
        let ended = process.id().gone_within(Duration::from_millis(200)).await;
        assert!(!ended, "it was bound to the thread, not to the process");
        process.end_blocking(&[]).expect("SIGKILL ends it");
    }
}
