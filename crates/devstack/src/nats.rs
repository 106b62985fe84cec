//! A private nats-server with JetStream on disk, able to be killed, paused, brought back and robbed of its store. Its users
//! are those of `deploy/nats/users.conf`, with random passwords.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::account::{self, Account};
use crate::error::DevstackError;
use crate::files;
use crate::find::{self, NatsProgram};
use crate::password;
use crate::port;
use crate::process::{Lifetime, Process, ProcessId, Program};

/// How long a start may take; it includes reading the store.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// How often a starting server is asked whether it is ready.
const READY_INTERVAL: Duration = Duration::from_millis(10);

/// How long the server may take to answer a connection with its greeting.
const GREETING_DEADLINE: Duration = Duration::from_secs(1);

/// How long it may take to close its store in order.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// How many ports are tried when any will do.
const PORT_ATTEMPTS_MAX: usize = 5;

/// Who may sign in, and what each may do.
const USERS: &str = include_str!("../../../deploy/nats/users.conf");

/// What the users' passwords are derived from, within the server's directory.
const SECRET: &str = "password-secret";

/// A user of the server, as `USERS` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatsUser {
    /// May do everything.
    Admin,
    /// The command service.
    Command,
    /// The projector.
    Projector,
    /// The query service.
    Query,
}

impl NatsUser {
    const ALL: [Self; 4] = [Self::Admin, Self::Command, Self::Projector, Self::Query];

    fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Command => "command",
            Self::Projector => "projector",
            Self::Query => "query",
        }
    }
}

/// How a private nats-server is to be run.
#[derive(Debug, Clone)]
pub struct NatsOptions {
    /// The directory for everything of this server: its configuration, its log, JetStream's files.
    pub store_dir: PathBuf,
    /// The port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// The most that JetStream may keep on disk, in MiB.
    pub max_file_mib: u32,
    /// How long the server lives.
    pub lifetime: Lifetime,
}

impl NatsOptions {
    /// The usual ones.
    #[must_use]
    pub fn new(store_dir: impl Into<PathBuf>) -> Self {
        Self {
            store_dir: store_dir.into(),
            port: 0,
            max_file_mib: 16 * 1024,
            lifetime: Lifetime::Owner,
        }
    }
}

/// A private nats-server.
#[derive(Debug)]
pub struct Nats {
    options: NatsOptions,
    program: NatsProgram,
    account: Option<Account>,
    directory: PathBuf,
    secret: String,
    port: u16,
    process: Option<Process>,
    /// The length of the log when the process was started: what follows it said itself.
    said_before: u64,
}

impl Nats {
    /// Starts a server and returns when it greets. A store that is there is used.
    ///
    /// # Errors
    /// A missing program, a taken port, a full disk, a store that cannot be read.
    pub async fn start(options: NatsOptions) -> Result<Self, DevstackError> {
        let mut server = Self::prepare(options)?;
        server.launch().await?;
        Ok(server)
    }

    fn prepare(options: NatsOptions) -> Result<Self, DevstackError> {
        let program = find::nats_server()?;
        // nats-server does not mind root: where the unprivileged user cannot reach the program, it runs as the caller.
        let account = account::unprivileged()?.filter(|account| account.reaches(&program.path));
        let wanted = std::path::absolute(&options.store_dir)
            .map_err(DevstackError::file("find", &options.store_dir))?;
        let directory = account::place(&wanted, account.as_ref());
        files::make_directory(&directory, 0o700, account.as_ref())?;
        Ok(Self {
            port: options.port,
            options,
            program,
            secret: kept_secret(&directory.join(SECRET), account.as_ref())?,
            account,
            directory,
            process: None,
            said_before: 0,
        })
    }

    /// Where the administrator connects.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(NatsUser::Admin)
    }

    /// Where a user connects, with its password.
    #[must_use]
    pub fn url_of(&self, user: NatsUser) -> String {
        let password = self.password(user);
        format!(
            "nats://daybook-{}:{password}@127.0.0.1:{}",
            user.name(),
            self.port
        )
    }

    fn password(&self, user: NatsUser) -> String {
        password::derived(&self.secret, user.name())
    }

    /// The port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of its store and log: as given, or elsewhere when the servers' user could not reach that.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// JetStream's own files, for tests that damage them.
    #[must_use]
    pub fn jetstream_directory(&self) -> PathBuf {
        self.directory.join("store").join("jetstream")
    }

    /// Its process, when it runs.
    #[must_use]
    pub fn process_id(&self) -> Option<&ProcessId> {
        self.process.as_ref().map(Process::id)
    }

    /// How and why the server ended, when it did so without being told to.
    pub fn failure(&mut self) -> Option<String> {
        let status = self.process.as_mut()?.ended()?;
        let last = last_fatal(&files::read_from(&self.log(), self.said_before));
        Some(last.map_or_else(
            || status.to_string(),
            |last| format!("{status}, last said: {last}"),
        ))
    }

    /// Stops it in order. A stopped server is not stopped again.
    ///
    /// # Errors
    /// [`DevstackError::NotStopped`].
    pub async fn stop(&mut self) -> Result<(), DevstackError> {
        match self.process.take() {
            Some(mut process) => process.end(&[(Signal::INT, STOP_GRACE)]).await,
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

    /// Starts it again on the same store and the same port, after [`Self::stop`], [`Self::kill`] or while it runs.
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

    /// Kills the server and deletes all that JetStream kept, as a lost disk would. [`Self::restart`] starts it empty.
    ///
    /// # Errors
    /// [`DevstackError::NotStopped`] or [`DevstackError::File`].
    pub async fn delete_store(&mut self) -> Result<(), DevstackError> {
        self.kill().await?;
        let store = self.directory.join("store");
        match std::fs::remove_dir_all(&store) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(DevstackError::file("remove", &store)(error))
            }
            _ => Ok(()),
        }
    }

    /// Gives the server up: it runs on after this handle, and after this program if it is [`Lifetime::Detached`].
    /// Returns its process, if it runs.
    #[must_use]
    pub fn detach(mut self) -> Option<ProcessId> {
        self.process.take().map(|process| process.id().clone())
    }

    async fn launch(&mut self) -> Result<(), DevstackError> {
        for _ in 1..PORT_ATTEMPTS_MAX {
            match self.launch_once().await {
                Err(DevstackError::PortTaken { .. }) if self.options.port == 0 => self.port = 0,
                result => return result,
            }
        }
        self.launch_once().await
    }

    async fn launch_once(&mut self) -> Result<(), DevstackError> {
        if self.port == 0 {
            self.port = port::free().ok_or(DevstackError::PortTaken {
                server: "NATS".to_owned(),
                port: 0,
            })?;
        }
        if !port::is_free(self.port) {
            return Err(DevstackError::PortTaken {
                server: "NATS".to_owned(),
                port: self.port,
            });
        }
        self.write_configuration()?;
        let log = self.log();
        self.said_before = files::length(&log);
        self.process = Some(Process::spawn(
            "NATS",
            &self.command(),
            &log,
            self.options.lifetime,
        )?);
        let ready = self.wait_until_ready().await;
        if ready.is_err() {
            self.stop().await?;
        }
        ready
    }

    fn command(&self) -> Program {
        Program {
            path: self.program.path.clone(),
            arguments: vec![OsString::from("--config"), self.configuration().into_os_string()],
            environment: Vec::new(),
            directory: self.directory.clone(),
            account: self.account.clone(),
        }
    }

    fn log(&self) -> PathBuf {
        self.directory.join("nats.log")
    }

    fn configuration(&self) -> PathBuf {
        self.directory.join("nats.conf")
    }

    /// JetStream's sync interval stays at its default: the log is in Postgres, and what a crash takes from JetStream
    /// is published again.
    fn write_configuration(&self) -> Result<(), DevstackError> {
        let store = self.directory.join("store");
        let mut content = format!(
            "# Written at every start; changes are lost.\n\
             server_name: daybook-{port}\n\
             listen: \"127.0.0.1:{port}\"\n\
             max_payload: 1MB\n\
             jetstream {{\n  store_dir: \"{store}\"\n  max_memory_store: 64MB\n  max_file_store: {max_file}MB\n}}\n",
            port = self.port,
            store = store.display(),
            max_file = self.options.max_file_mib,
        );
        for user in NatsUser::ALL {
            let (name, password) = (user.name().to_uppercase(), self.password(user));
            writeln!(content, "DAYBOOK_NATS_{name}_PASSWORD: \"{password}\"")
                .expect("a String accepts all that is written to it");
        }
        content.push_str(USERS);
        files::write_secret(&self.configuration(), &content, self.account.as_ref())
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
            if greets(self.port).await {
                return Ok(());
            }
            tokio::time::sleep(READY_INTERVAL).await;
        }
        Err(DevstackError::NotReady {
            server: "NATS".to_owned(),
            seconds: READY_DEADLINE.as_secs(),
            log: self.log(),
        })
    }

    fn start_failure(&self) -> DevstackError {
        let server = "NATS".to_owned();
        let said = files::read_from(&self.log(), self.said_before);
        if said.contains("address already in use") {
            return DevstackError::PortTaken {
                server,
                port: self.port,
            };
        }
        if said.contains("no space left on device") {
            return DevstackError::DiskFull {
                server,
                directory: self.directory.clone(),
            };
        }
        let reason = last_fatal(&said).unwrap_or_else(|| "it said nothing".to_owned());
        DevstackError::Start {
            server,
            reason,
            log: self.log(),
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take()
            && let Err(error) = process.end_blocking(&[(Signal::INT, STOP_GRACE)])
        {
            eprintln!("daybook-devstack: {error}");
        }
    }
}

/// The secret in this file, which is made if there is none: passwords stay the same as long as the store does.
fn kept_secret(path: &Path, owner: Option<&Account>) -> Result<String, DevstackError> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secret = password::random();
            files::write_secret(path, &secret, owner)?;
            Ok(secret)
        }
        read => read.map_err(DevstackError::file("read", path)),
    }
}

/// Whether a NATS server with JetStream answers on this port: it speaks first, `INFO {…}`.
async fn greets(port: u16) -> bool {
    let greeting = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).await.ok()?;
        Some(String::from_utf8_lossy(&bytes[..read]).into_owned())
    };
    let greeting = tokio::time::timeout(GREETING_DEADLINE, greeting).await;
    greeting
        .ok()
        .flatten()
        .is_some_and(|text| text.starts_with("INFO ") && text.contains("\"jetstream\":true"))
}

/// The last thing that the server called fatal or an error, without what precedes it on the line.
fn last_fatal(log: &str) -> Option<String> {
    let marks = ["[FTL] ", "[ERR] ", "nats-server: "];
    log.lines().rev().find_map(|line| {
        let mark = marks.iter().find(|mark| line.contains(**mark))?;
        line.split_once(mark).map(|(_, message)| message.to_owned())
    })
}
