//! One of Daybook's own services as a process: started, waited for until `/readyz` says yes, stopped in order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::error::DevstackError;
use crate::files;
use crate::process::{Lifetime, Process, ProcessId, Program};

/// How long a service may take until it is ready.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// How often a starting service is asked whether it is ready.
const READY_INTERVAL: Duration = Duration::from_millis(20);

/// How long one answer of `/readyz` may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// How long a service may drain after SIGTERM. Its own deadline is shorter.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// How a service is to be run.
#[derive(Debug, Clone)]
pub struct ServiceOptions {
    /// What it is called in messages.
    pub name: String,
    /// The program.
    pub binary: PathBuf,
    /// Its settings, beside the environment of this process.
    pub environment: Vec<(String, String)>,
    /// Where its output goes.
    pub log: PathBuf,
    /// Where it serves `/readyz`.
    pub admin: SocketAddr,
    /// How long it lives.
    pub lifetime: Lifetime,
}

/// A running service.
#[derive(Debug)]
pub struct Service {
    options: ServiceOptions,
    process: Option<Process>,
    /// The length of the log when the process was started: what follows it said itself.
    said_before: u64,
}

impl Service {
    /// Starts a service and returns when it is ready.
    ///
    /// # Errors
    /// [`DevstackError::Start`] with the last line of its output when it ended, [`DevstackError::NotReady`].
    pub async fn start(options: ServiceOptions) -> Result<Self, DevstackError> {
        let mut service = Self {
            options,
            process: None,
            said_before: 0,
        };
        service.launch().await?;
        Ok(service)
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Its process, when it runs.
    #[must_use]
    pub fn process_id(&self) -> Option<&ProcessId> {
        self.process.as_ref().map(Process::id)
    }

    /// How and why it ended, when it did so without being told to.
    pub fn failure(&mut self) -> Option<String> {
        let status = self.process.as_mut()?.ended()?;
        let last = last_line(&files::read_from(&self.options.log, self.said_before));
        Some(last.map_or_else(
            || status.to_string(),
            |last| format!("{status}, last said: {last}"),
        ))
    }

    /// Stops it in order (SIGTERM), with SIGKILL when it does not end. A stopped service is not stopped again.
    ///
    /// # Errors
    /// [`DevstackError::NotStopped`].
    pub async fn stop(&mut self) -> Result<(), DevstackError> {
        match self.process.take() {
            Some(mut process) => process.end(&[(Signal::TERM, STOP_GRACE)]).await,
            None => Ok(()),
        }
    }

    /// Kills it with SIGKILL and returns when it is gone.
    ///
    /// # Errors
    /// [`DevstackError::NotStopped`].
    pub async fn kill(&mut self) -> Result<(), DevstackError> {
        match self.process.take() {
            Some(mut process) => process.end(&[]).await,
            None => Ok(()),
        }
    }

    /// Starts it again, after [`Self::stop`], [`Self::kill`] or while it runs.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn restart(&mut self) -> Result<(), DevstackError> {
        self.stop().await?;
        self.launch().await
    }

    /// Stops the process in its tracks (SIGSTOP). Connections stay open and silent.
    pub fn pause(&mut self) {
        if let Some(process) = &mut self.process {
            process.freeze();
        }
    }

    /// Lets it go on.
    pub fn resume(&mut self) {
        if let Some(process) = &mut self.process {
            process.signal(Signal::CONT);
        }
    }

    /// Gives the service up: it runs on after this handle, and after this program if it is [`Lifetime::Detached`].
    /// Returns its process, if it runs.
    #[must_use]
    pub fn detach(mut self) -> Option<ProcessId> {
        self.process.take().map(|process| process.id().clone())
    }

    async fn launch(&mut self) -> Result<(), DevstackError> {
        self.said_before = files::length(&self.options.log);
        let program = Program {
            path: self.options.binary.clone(),
            arguments: Vec::new(),
            environment: self.options.environment.clone(),
            directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            account: None,
        };
        let process = Process::spawn(
            &self.options.name,
            &program,
            &self.options.log,
            self.options.lifetime,
        )?;
        self.process = Some(process);
        let ready = self.wait_until_ready().await;
        if ready.is_err() {
            self.kill().await?;
        }
        ready
    }

    async fn wait_until_ready(&mut self) -> Result<(), DevstackError> {
        let deadline = Instant::now() + READY_DEADLINE;
        let server = self.options.name.clone();
        while Instant::now() < deadline {
            if self
                .process
                .as_mut()
                .is_none_or(|process| process.ended().is_some())
            {
                let said = files::read_from(&self.options.log, self.said_before);
                let reason = last_line(&said).unwrap_or_else(|| "it said nothing".to_owned());
                return Err(DevstackError::Start {
                    server,
                    reason,
                    log: self.options.log.clone(),
                });
            }
            if is_ready(self.options.admin).await {
                return Ok(());
            }
            tokio::time::sleep(READY_INTERVAL).await;
        }
        let log = self.options.log.clone();
        Err(DevstackError::NotReady {
            server,
            seconds: READY_DEADLINE.as_secs(),
            log,
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take()
            && let Err(error) = process.end_blocking(&[(Signal::TERM, STOP_GRACE)])
        {
            eprintln!("daybook-devstack: {error}");
        }
    }
}

/// Whether `GET /readyz` answers 200 there.
async fn is_ready(admin: SocketAddr) -> bool {
    let status_line = async {
        let mut stream = TcpStream::connect(admin).await.ok()?;
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.ok()?;
        Some(start)
    };
    let start = tokio::time::timeout(PROBE_DEADLINE, status_line).await;
    start
        .ok()
        .flatten()
        .is_some_and(|start| start == *b"HTTP/1.1 200")
}

fn last_line(text: &str) -> Option<String> {
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .map(|line| line.trim().to_owned())
}
