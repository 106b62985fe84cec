//! A private Postgres: durable, tuned for one machine, and able to be killed, paused and brought back.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use sqlx::Connection as _;

use crate::account;
use crate::cluster::Cluster;
use crate::error::DevstackError;
use crate::files;
use crate::find::{self, PostgresPrograms};
use crate::initdb::{self, DATA, PASSWORD};
use crate::process::{Lifetime, ProcessId, Program};
use crate::server::{Kind, Server};
use crate::site::Site;

/// The name of the superuser.
pub(crate) const SUPERUSER: &str = "postgres";

/// Its name in messages.
const NAME: &str = "Postgres";

/// How long it may take to let its superuser in once it listens; another process on its port may never answer.
const SIGN_IN_DEADLINE: Duration = Duration::from_secs(5);

/// How long a fast shutdown (SIGINT: sessions are ended, a checkpoint is written) may take.
const FAST_SHUTDOWN_GRACE: Duration = Duration::from_secs(30);

/// How long an immediate shutdown (SIGQUIT: no checkpoint, recovery at the next start) may take.
const IMMEDIATE_SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

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
pub type Postgres = Server<PostgresServer>;

/// The part of a server that only a Postgres has.
#[derive(Debug)]
pub struct PostgresServer {
    options: PostgresOptions,
    programs: PostgresPrograms,
    cluster: Cluster,
    site: Site,
}

impl Deref for PostgresServer {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl PostgresServer {
    /// Starts a standby that streams from this server, to which `through` leads: itself, or a proxy in between. It answers
    /// queries, and may be [promoted](Cluster::promote).
    ///
    /// # Errors
    /// As [`Server::start`], and [`DevstackError::Program`] when the copy cannot be made.
    pub async fn start_standby(
        &self,
        options: PostgresOptions,
        through: SocketAddr,
    ) -> Result<Postgres, DevstackError> {
        let (programs, account) = (self.programs.clone(), self.site.account.clone());
        let primary = self.cluster.superuser_url_through(through, "postgres");
        let (password, wanted) = (self.site.directory.join(PASSWORD), options.data_dir.clone());
        let copying = tokio::task::spawn_blocking(move || {
            let site = Site::prepare(&wanted, 0, account)?;
            initdb::copy_primary(&programs, &primary, &site.directory, site.account.as_ref())?;
            initdb::copy_password(&password, &site.directory, site.account.as_ref())
        });
        copying
            .await
            .expect("copying does not panic and is not cancelled")?;
        Postgres::start(options).await
    }

    /// Copies the data as they are on the disk, of a server that is stopped.
    ///
    /// # Errors
    /// When there is no room.
    pub fn save_data(&self, to: &Path) -> Result<(), DevstackError> {
        files::copy_tree(&self.data(), to, self.site.account.as_ref())
    }

    /// Puts saved data in the place of those of a server that is stopped.
    ///
    /// # Errors
    /// When they cannot be moved.
    pub fn restore_data(&self, from: &Path) -> Result<(), DevstackError> {
        files::remove_directory(&self.data())?;
        files::copy_tree(from, &self.data(), self.site.account.as_ref())
    }

    /// The port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.site.port
    }

    /// The directory of its data and log: as given, or elsewhere when the servers' user could not reach that.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.site.directory
    }

    /// The address, for code that outlives this handle or does not own the server.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn data(&self) -> PathBuf {
        self.site.directory.join(DATA)
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
        let path = self.data().join("postgresql.conf");
        files::write_secret(&path, &content.collect::<String>(), self.site.account.as_ref())
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
            ("port", self.site.port.to_string()),
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

impl Kind for PostgresServer {
    type Options = PostgresOptions;

    const STOP: &'static [(Signal, Duration)] = &[
        (Signal::INT, FAST_SHUTDOWN_GRACE),
        (Signal::QUIT, IMMEDIATE_SHUTDOWN_GRACE),
    ];

    const REASON_MARKS: &'static [&'static str] = &["FATAL:  ", "PANIC:  "];

    fn prepare(options: PostgresOptions) -> Result<Self, DevstackError> {
        let programs = find::postgres()?;
        let site = Site::prepare(&options.data_dir, options.port, account::unprivileged()?)?;
        initdb::ensure_cluster(
            &programs,
            &site.directory,
            site.account.as_ref(),
            options.from_cache,
        )?;
        let password = initdb::password(&site.directory.join(PASSWORD))?;
        Ok(Self {
            cluster: Cluster::private(options.port, &password),
            options,
            programs,
            site,
        })
    }

    fn name(&self) -> &str {
        NAME
    }

    fn log(&self) -> PathBuf {
        self.site.directory.join("postgres.log")
    }

    fn lifetime(&self) -> Lifetime {
        self.options.lifetime
    }

    fn site(&mut self) -> Option<&mut Site> {
        Some(&mut self.site)
    }

    fn configure(&mut self) -> Result<Program, DevstackError> {
        let data = self.data();
        settle_lock_file(&data, &self.site.directory)?;
        self.site.claim_port(NAME)?;
        self.cluster.set_port(self.site.port);
        self.write_configuration()?;
        Ok(Program {
            path: self.programs.directory.join("postgres"),
            arguments: vec![OsString::from("-D"), data.clone().into_os_string()],
            environment: Vec::new(),
            directory: data,
            account: self.site.account.clone(),
        })
    }

    async fn is_ready(&self) -> bool {
        let sign_in = async { self.cluster.try_connect("postgres").await?.close().await };
        let signed_in = tokio::time::timeout(SIGN_IN_DEADLINE, sign_in).await;
        signed_in.is_ok_and(|signed_in| signed_in.is_ok())
    }
}

/// Looks at the lock file that a server left, or holds, in its data.
///
/// Postgres itself takes over the lock of a process that is gone. Where process numbers are reused soon (in a
/// container they start from 1 again), or where nobody waits for the dead, it would find a process and refuse for
/// ever. The file is not removed then, because Postgres also reads from it whether orphans of the old server still
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
                return Err(DevstackError::AlreadyRunning {
                    server: NAME.to_owned(),
                    directory: directory.to_path_buf(),
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

#[cfg(test)]
mod tests {
    use super::*;

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
