//! A private Postgres: durable, tuned for one machine, and able to be killed, paused and brought back.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sqlx::Connection as _;

use crate::account::{self, Account};
use crate::cluster::Cluster;
use crate::error::DevstackError;
use crate::files;
use crate::find::{self, PostgresPrograms};
use crate::initdb::{self, DATA, PASSWORD};
use crate::port;
use crate::process::{Lifetime, Process, ProcessId, Program};

/// The name of the superuser.
pub const SUPERUSER: &str = "postgres";

/// How long a start may take; after a crash it includes the recovery.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// How often a starting server is asked whether it is ready.
const READY_INTERVAL: Duration = Duration::from_millis(10);

/// How long it may take to let its superuser in once it listens; another process on its port may never answer.
const SIGN_IN_DEADLINE: Duration = Duration::from_secs(5);

/// How long a fast shutdown (SIGINT: sessions are ended, a checkpoint is written) may take.
const FAST_SHUTDOWN_GRACE: Duration = Duration::from_secs(30);

/// How long an immediate shutdown (SIGQUIT: no checkpoint, recovery at the next start) may take.
const IMMEDIATE_SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// How long the server's own processes may take to go after SIGKILL.
const CHILDREN_GONE_DEADLINE: Duration = Duration::from_secs(10);

/// How many ports are tried when any will do.
const PORT_ATTEMPTS_MAX: usize = 5;

/// How a private Postgres is to be run.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// The directory for everything of this server: its data, its log, its superuser's password.
    pub data_dir: PathBuf,
    /// The port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// `shared_buffers`, in MiB.
    pub shared_buffers_mib: u32,
    /// `max_connections`.
    pub max_connections: u32,
    /// Settings of `postgresql.conf` that come after, and so override, those made here.
    pub settings: Vec<(String, String)>,
    /// Copy an initialised cluster from the cache instead of running `initdb`. All such clusters share the password.
    pub from_cache: bool,
    /// How long the server lives.
    pub lifetime: Lifetime,
}

impl PostgresOptions {
    /// For data that stays, and for measuring.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            port: 0,
            shared_buffers_mib: 512,
            max_connections: 300,
            settings: Vec::new(),
            from_cache: false,
            lifetime: Lifetime::Owner,
        }
    }

    /// For a test's own server: smaller, and ready sooner. Just as durable.
    #[must_use]
    pub fn for_tests(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            shared_buffers_mib: 64,
            from_cache: true,
            ..Self::new(data_dir)
        }
    }
}

/// A private Postgres. Databases, roles and addresses are those of its [`Cluster`], to which it dereferences.
#[derive(Debug)]
pub struct Postgres {
    options: PostgresOptions,
    programs: PostgresPrograms,
    account: Option<Account>,
    directory: PathBuf,
    cluster: Cluster,
    port: u16,
    process: Option<Process>,
    /// The length of the log when the process was started: what follows it said itself.
    said_before: u64,
}

impl Deref for Postgres {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Postgres {
    /// Starts a server and returns when it answers. Data that is there is used, else a cluster is made.
    ///
    /// # Errors
    /// Every [`DevstackError`] but those of installing: a missing program, a taken port, a full disk, another server
    /// on the same data, data of another version.
    pub async fn start(options: PostgresOptions) -> Result<Self, DevstackError> {
        let prepared = tokio::task::spawn_blocking(move || Self::prepare(options)).await;
        let mut server = prepared.expect("preparing does not panic and is not cancelled")?;
        server.launch().await?;
        Ok(server)
    }

    /// Starts a standby that streams from this server, to which `through` leads: itself, or a proxy in between. It answers
    /// queries, and may be [promoted](Self::promote).
    ///
    /// # Errors
    /// As [`Self::start`], and [`DevstackError::Program`] when the copy cannot be made.
    pub async fn start_standby(
        &self,
        options: PostgresOptions,
        through: SocketAddr,
    ) -> Result<Self, DevstackError> {
        let (programs, account) = (self.programs.clone(), self.account.clone());
        let password = self.directory.join(PASSWORD);
        let (primary, wanted) = (self.cluster.clone(), options.data_dir.clone());
        let copying = tokio::task::spawn_blocking(move || {
            let wanted = std::path::absolute(&wanted).map_err(DevstackError::file("find", &wanted))?;
            let directory = account::place(&wanted, account.as_ref());
            files::make_directory(&directory, 0o700, account.as_ref())?;
            let primary = primary.superuser_url_through(through, "postgres");
            initdb::copy_primary(&programs, &primary, &directory, account.as_ref())?;
            let password =
                std::fs::read_to_string(&password).map_err(DevstackError::file("read", &password))?;
            files::write_secret(&directory.join(PASSWORD), &password, account.as_ref())
        });
        copying
            .await
            .expect("copying does not panic and is not cancelled")?;
        Self::start(options).await
    }

    /// Makes a standby a primary of its own, on a timeline of its own.
    ///
    /// # Errors
    /// [`DevstackError::Sql`].
    pub async fn promote(&self) -> Result<(), DevstackError> {
        self.cluster.promote().await
    }

    /// Copies the data as they are on the disk, of a server that is stopped.
    ///
    /// # Errors
    /// When there is no room.
    pub fn save_data(&self, to: &Path) -> Result<(), DevstackError> {
        files::copy_tree(&self.directory.join(DATA), to, self.account.as_ref())
    }

    /// Puts saved data in the place of those of a server that is stopped.
    ///
    /// # Errors
    /// When they cannot be moved.
    pub fn restore_data(&self, from: &Path) -> Result<(), DevstackError> {
        let data = self.directory.join(DATA);
        std::fs::remove_dir_all(&data).map_err(DevstackError::file("remove", &data))?;
        files::copy_tree(from, &data, self.account.as_ref())
    }

    fn prepare(options: PostgresOptions) -> Result<Self, DevstackError> {
        let programs = find::postgres()?;
        let account = account::unprivileged()?;
        let wanted =
            std::path::absolute(&options.data_dir).map_err(DevstackError::file("find", &options.data_dir))?;
        let directory = account::place(&wanted, account.as_ref());
        initdb::ensure_cluster(&programs, &directory, account.as_ref(), options.from_cache)?;
        let password = directory.join(PASSWORD);
        let password = std::fs::read_to_string(&password).map_err(DevstackError::file("read", &password))?;
        let cluster = Cluster::private(options.port, &password);
        Ok(Self {
            port: options.port,
            options,
            programs,
            account,
            directory,
            cluster,
            process: None,
            said_before: 0,
        })
    }

    /// The port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of its data and log: as given, or elsewhere when the servers' user could not reach that.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The address, for code that outlives this handle or does not own the server.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The postmaster, when it runs.
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

    /// Stops it in order: sessions are ended and a checkpoint is written. A stopped server is not stopped again.
    ///
    /// # Errors
    /// [`DevstackError::NotStopped`].
    pub async fn stop(&mut self) -> Result<(), DevstackError> {
        if self.process.is_some() {
            self.resume();
        }
        match self.process.take() {
            Some(mut process) => process.end(&shutdown_steps()).await,
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
        // A stopped postmaster makes no more children, so the list is complete.
        process.freeze();
        let children = process.id().children();
        process.end(&[]).await?;
        for child in &children {
            child.signal(Signal::KILL);
        }
        for child in &children {
            child
                .end("a process of Postgres", Signal::KILL, CHILDREN_GONE_DEADLINE)
                .await?;
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
        // A stopped postmaster makes no more children, so the list is complete.
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
        settle_lock_file(&self.directory.join(DATA), &self.directory)?;
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
                server: "Postgres".to_owned(),
                port: 0,
            })?;
        }
        if !port::is_free(self.port) {
            return Err(DevstackError::PortTaken {
                server: "Postgres".to_owned(),
                port: self.port,
            });
        }
        self.cluster.set_port(self.port);
        self.write_configuration()?;
        let log = self.log();
        self.said_before = files::length(&log);
        self.process = Some(Process::spawn(
            "Postgres",
            &self.program(),
            &log,
            self.options.lifetime,
        )?);
        let ready = self.wait_until_ready().await;
        if ready.is_err() {
            self.stop().await?;
        }
        ready
    }

    fn program(&self) -> Program {
        let data = self.directory.join(DATA);
        Program {
            path: self.programs.directory.join("postgres"),
            arguments: vec![OsString::from("-D"), data.clone().into_os_string()],
            environment: Vec::new(),
            directory: data,
            account: self.account.clone(),
        }
    }

    fn log(&self) -> PathBuf {
        self.directory.join("postgres.log")
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
            let connection =
                tokio::time::timeout(SIGN_IN_DEADLINE, self.cluster.try_connect("postgres")).await;
            if let Ok(Ok(connection)) = connection {
                return connection
                    .close()
                    .await
                    .map_err(DevstackError::sql("close a connection"));
            }
            tokio::time::sleep(READY_INTERVAL).await;
        }
        Err(DevstackError::NotReady {
            server: "Postgres".to_owned(),
            seconds: READY_DEADLINE.as_secs(),
            log: self.log(),
        })
    }

    fn start_failure(&self) -> DevstackError {
        let server = "Postgres".to_owned();
        let said = files::read_from(&self.log(), self.said_before);
        if said.contains("Address already in use") {
            return DevstackError::PortTaken {
                server,
                port: self.port,
            };
        }
        if initdb::says_disk_full(&said) {
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

    /// Writes `postgresql.conf` anew, so that a changed option or a newer Daybook takes effect at the next start.
    fn write_configuration(&self) -> Result<(), DevstackError> {
        let own = self.settings();
        let given = self
            .options
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()));
        let lines = own.into_iter().chain(given).map(|(name, value)| {
            let value = value.replace('\'', "''");
            format!("{name} = '{value}'\n")
        });
        let content = ["# Written at every start; changes are lost.\n".to_owned()]
            .into_iter()
            .chain(lines);
        let path = self.directory.join(DATA).join("postgresql.conf");
        files::write_secret(&path, &content.collect::<String>(), self.account.as_ref())
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        let fixed = [
            // Honest: what is acknowledged is on the disk.
            ("fsync", "on"),
            ("synchronous_commit", "on"),
            ("full_page_writes", "on"),
            // Nobody but this machine, and no socket file that could be left behind or have too long a path.
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", ""),
            // An append-only log is write-ahead logging above all: room for it, and few checkpoints.
            ("wal_buffers", "64MB"),
            ("max_wal_size", "4GB"),
            // Old segments are used again: to fill a new one with zeros costs a quarter of an append.
            ("min_wal_size", "2GB"),
            ("checkpoint_timeout", "15min"),
            // Statements are short: compiling them costs more than it saves.
            ("jit", "off"),
            // A client that stops inside a transaction must not hold its locks.
            ("idle_in_transaction_session_timeout", "5s"),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
            ("lc_messages", "C"),
            ("log_line_prefix", "%m [%p] %u@%d "),
        ];
        let chosen = [
            ("port", self.port.to_string()),
            ("shared_buffers", format!("{}MB", self.options.shared_buffers_mib)),
            ("max_connections", self.options.max_connections.to_string()),
        ];
        fixed
            .into_iter()
            .map(|(name, value)| (name, value.to_owned()))
            .chain(chosen)
            .collect()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.resume();
        if let Some(mut process) = self.process.take()
            && let Err(error) = process.end_blocking(&shutdown_steps())
        {
            eprintln!("daybook-devstack: {error}");
        }
    }
}

fn shutdown_steps() -> [(Signal, Duration); 2] {
    [
        (Signal::INT, FAST_SHUTDOWN_GRACE),
        (Signal::QUIT, IMMEDIATE_SHUTDOWN_GRACE),
    ]
}

/// Looks at the lock file that a server left, or holds, in its data.
///
/// Postgres itself takes over the lock of a process that is gone. Where process numbers are reused soon (in a
/// container they start from 1 again), or where nobody waits for the dead, it would find a process and refuse for
/// ever. The file is not removed then, because Postgres also learns from it whether orphans of the old server still
/// use the shared memory: the number in it is replaced by ours, and a lock in its parent's name is one that Postgres
/// ignores.
fn settle_lock_file(data: &Path, directory: &Path) -> Result<(), DevstackError> {
    let path = data.join("postmaster.pid");
    let Ok(content) = std::fs::read_to_string(&path) else {
        return Ok(());
    };
    let (first, rest) = content.split_once('\n').unwrap_or((&content, ""));
    if let Some(holder) = first.trim().parse().ok().and_then(ProcessId::of) {
        match std::fs::read_link(format!("/proc/{}/cwd", holder.pid)) {
            Ok(works_in) if data.canonicalize().is_ok_and(|data| data == works_in) => {
                let server = "Postgres".to_owned();
                let directory = directory.to_path_buf();
                return Err(DevstackError::AlreadyRunning {
                    server,
                    directory,
                    pid: holder.pid,
                });
            }
            Ok(_) => {}
            // An ending process gives up its directory a moment before it counts as dead: it holds nothing any more.
            Err(error) if cfg!(target_os = "linux") && error.kind() == io::ErrorKind::NotFound => {}
            // What we may not look at, Postgres judges.
            Err(_) => return Ok(()),
        }
    }
    // Written in place: the file stays the server's own.
    std::fs::write(&path, format!("{}\n{rest}", std::process::id()))
        .map_err(DevstackError::file("write", &path))
}

/// The last thing that Postgres called fatal, without what precedes it on the line.
fn last_fatal(log: &str) -> Option<String> {
    let marks = ["FATAL:  ", "PANIC:  "];
    log.lines().rev().find_map(|line| {
        let mark = marks.iter().find(|mark| line.contains(**mark))?;
        line.split_once(mark).map(|(_, message)| message.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_failure_is_the_last_fatal_line() {
        let log = "2026-01-01 LOG:  starting\n2026-01-01 [7] @ FATAL:  could not map memory\n2026-01-01 LOG:  down\n";
        assert_eq!(last_fatal(log).as_deref(), Some("could not map memory"));
        assert_eq!(last_fatal("LOG:  all is well"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_that_is_ending_holds_no_lock() {
        let directory = tempfile::tempdir().expect("a directory");
        let lock = directory.path().join("postmaster.pid");
        // Often, to meet the moment between giving up the directory and being dead.
        for _ in 0..200 {
            let mut ending = std::process::Command::new("sleep")
                .arg("600")
                .spawn()
                .expect("sleep starts");
            std::fs::write(&lock, format!("{}\nrest", ending.id())).expect("our own file");
            ending.kill().expect("it runs");
            settle_lock_file(directory.path(), directory.path()).expect("it works elsewhere");
            let settled = std::fs::read_to_string(&lock).expect("our own file");
            assert_eq!(settled, format!("{}\nrest", std::process::id()));
            ending.wait().expect("it was killed");
        }
    }
}
