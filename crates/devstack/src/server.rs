//! A server of any kind over its life: started, waited for until it is ready, stopped in order, killed, paused, brought back.

use std::ops::Deref;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::error::DevstackError;
use crate::files;
use crate::process::{Lifetime, Process, ProcessId, Program};
use crate::site::Site;

/// How long a start may take; after a crash it includes the recovery.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// How often a starting server is asked whether it is ready.
const READY_INTERVAL: Duration = Duration::from_millis(10);

/// How long the server's own processes may take to go after SIGKILL.
const CHILDREN_GONE_DEADLINE: Duration = Duration::from_secs(10);

/// How many ports are tried when any will do.
const PORT_ATTEMPTS_MAX: usize = 5;

/// What tells one kind of server from another.
pub trait Kind: std::fmt::Debug + Sized + Send + 'static {
    /// How it is to be run.
    type Options: Send + 'static;

    /// The signals that stop it in order, each with the time that it is given.
    const STOP: &'static [(Signal, Duration)];

    /// What precedes the reason on a line of its log that tells why it ended.
    const REASON_MARKS: &'static [&'static str];

    /// Makes what it needs on the disk.
    fn prepare(options: Self::Options) -> Result<Self, DevstackError>;

    /// What it is called in messages.
    fn name(&self) -> &str;

    /// Where its output goes.
    fn log(&self) -> PathBuf;

    /// How long its process lives.
    fn lifetime(&self) -> Lifetime;

    /// Where it keeps its data, if it has any.
    fn site(&mut self) -> Option<&mut Site> {
        None
    }

    /// Writes its configuration and says what to run.
    fn configure(&mut self) -> Result<Program, DevstackError>;

    /// Whether it answers.
    fn is_ready(&self) -> impl Future<Output = bool> + Send;
}

/// A server that was started here. What only its kind can do is found on that, to which it dereferences.
#[derive(Debug)]
pub struct Server<K: Kind> {
    kind: K,
    process: Option<Process>,
    /// The length of the log when the process was started: what follows it said itself.
    said_before: u64,
}

impl<K: Kind> Deref for Server<K> {
    type Target = K;

    fn deref(&self) -> &K {
        &self.kind
    }
}

impl<K: Kind> Server<K> {
    /// Starts a server and returns when it is ready. Data that are there are used.
    ///
    /// # Errors
    /// Every [`DevstackError`] but those of installing: a missing program, a taken port, a full disk, another server
    /// on the same data, data of another version.
    pub async fn start(options: K::Options) -> Result<Self, DevstackError> {
        let prepared = tokio::task::spawn_blocking(move || K::prepare(options)).await;
        let mut server = Self {
            kind: prepared.expect("preparing does not panic and is not cancelled")?,
            process: None,
            said_before: 0,
        };
        server.launch().await?;
        Ok(server)
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        self.kind.name()
    }

    /// Its process, when it runs: the first one, where it has several.
    #[must_use]
    pub fn process_id(&self) -> Option<&ProcessId> {
        self.process.as_ref().map(Process::id)
    }

    /// How and why the server ended, when it did so without being told to.
    pub fn failure(&mut self) -> Option<String> {
        let status = self.process.as_mut()?.ended()?;
        Some(match self.last_reason() {
            Some(reason) => format!("{status}, last said: {reason}"),
            None => status.to_string(),
        })
    }

    /// Stops it in order, with SIGKILL when it does not end. A stopped server is not stopped again.
    ///
    /// # Errors
    /// [`DevstackError::NotStopped`].
    pub async fn stop(&mut self) -> Result<(), DevstackError> {
        self.resume();
        match self.process.take() {
            Some(process) => process.end(K::STOP).await,
            None => Ok(()),
        }
    }

    /// Kills it as a crash of the machine would: all its processes at once, with SIGKILL. Returns when all are gone,
    /// so that it can be restarted.
    ///
    /// # Errors
    /// [`DevstackError::NotStopped`].
    pub async fn kill(&mut self) -> Result<(), DevstackError> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        // A stopped process makes no more children, so the list is complete.
        process.freeze();
        let children = process.id().children();
        process.end(&[]).await?;
        for child in &children {
            child.signal(Signal::KILL);
        }
        for child in &children {
            let name = format!("a process of {}", self.name());
            child.end(&name, Signal::KILL, CHILDREN_GONE_DEADLINE).await?;
        }
        Ok(())
    }

    /// Starts it again on the same data and the same port, after [`Self::stop`], [`Self::kill`] or while it runs.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn restart(&mut self) -> Result<(), DevstackError> {
        self.stop().await?;
        self.launch().await
    }

    /// Stops all its processes in their tracks (SIGSTOP). Connections stay open and silent.
    pub fn pause(&mut self) {
        let Some(process) = &mut self.process else { return };
        // A stopped process makes no more children, so the list is complete.
        process.freeze();
        for child in process.id().children() {
            child.freeze();
        }
    }

    /// Lets them go on.
    pub fn resume(&mut self) {
        let Some(process) = &mut self.process else { return };
        for child in process.id().children() {
            child.signal(Signal::CONT);
        }
        process.signal(Signal::CONT);
    }

    /// Gives the server up: it runs on after this handle, and after this program if it is [`Lifetime::Detached`].
    /// Returns its process, if it runs.
    #[must_use]
    pub fn detach(mut self) -> Option<ProcessId> {
        self.process.take().map(|process| process.id().clone())
    }

    async fn launch(&mut self) -> Result<(), DevstackError> {
        for _ in 1..PORT_ATTEMPTS_MAX {
            match (self.launch_once().await, self.kind.site()) {
                (Err(DevstackError::PortTaken { .. }), Some(site)) if site.any_port => site.port = 0,
                (result, _) => return result,
            }
        }
        self.launch_once().await
    }

    async fn launch_once(&mut self) -> Result<(), DevstackError> {
        let program = self.kind.configure()?;
        let log = self.kind.log();
        self.said_before = files::length(&log);
        let lifetime = self.kind.lifetime();
        self.process = Some(Process::spawn(self.name(), &program, &log, lifetime)?);
        let ready = self.wait_until_ready().await;
        if ready.is_err() {
            self.stop().await?;
        }
        ready
    }

    async fn wait_until_ready(&mut self) -> Result<(), DevstackError> {
        let deadline = Instant::now() + READY_DEADLINE;
        while Instant::now() < deadline {
            if self
                .process
                .as_mut()
                .is_none_or(|process| process.ended().is_some())
            {
                return Err(self.start_failure());
            }
            if self.kind.is_ready().await {
                return Ok(());
            }
            tokio::time::sleep(READY_INTERVAL).await;
        }
        Err(DevstackError::NotReady {
            server: self.name().to_owned(),
            seconds: READY_DEADLINE.as_secs(),
            log: self.kind.log(),
        })
    }

    fn start_failure(&mut self) -> DevstackError {
        let (server, said) = (self.name().to_owned(), self.said());
        let known = self.kind.site().and_then(|site| site.failure(&server, &said));
        known.unwrap_or_else(|| DevstackError::Start {
            server,
            reason: self.last_reason().unwrap_or_else(|| "it said nothing".to_owned()),
            log: self.kind.log(),
        })
    }

    fn said(&self) -> String {
        files::read_from(&self.kind.log(), self.said_before)
    }

    fn last_reason(&self) -> Option<String> {
        last_reason(&self.said(), K::REASON_MARKS)
    }
}

impl<K: Kind> Drop for Server<K> {
    fn drop(&mut self) {
        self.resume();
        if let Some(process) = self.process.take()
            && let Err(error) = process.end_blocking(K::STOP)
        {
            eprintln!("daybook-devstack: {error}");
        }
    }
}

/// The last thing that a server said behind one of the marks.
fn last_reason(said: &str, marks: &[&str]) -> Option<String> {
    said.lines().rev().find_map(|line| {
        let (_, reason) = marks.iter().find_map(|mark| line.split_once(mark))?;
        Some(reason.trim().to_owned()).filter(|reason| !reason.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_failure_is_what_follows_the_last_mark() {
        let log = "2026-01-01 LOG:  starting\n2026-01-01 [7] @ FATAL:  could not map memory\n2026-01-01 LOG:  down\n";
        let reason = last_reason(log, &["FATAL:  ", "PANIC:  "]);
        assert_eq!(reason.as_deref(), Some("could not map memory"));
        assert_eq!(last_reason("LOG:  all is well", &["FATAL:  "]), None);
    }

    #[test]
    fn without_a_mark_the_reason_is_the_last_line_with_words() {
        let reason = last_reason("starting\nno such role \n\n", &[""]);
        assert_eq!(reason.as_deref(), Some("no such role"));
    }
}
