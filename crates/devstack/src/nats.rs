//! A private nats-server with JetStream on disk, able to be killed, paused, brought back and robbed of its store. Its users
//! are those of `deploy/nats/users.conf`, with random passwords.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::account::{self, Account};
use crate::error::DevstackError;
use crate::files;
use crate::find;
use crate::password;
use crate::process::{Lifetime, Program};
use crate::server::{Kind, Server};
use crate::site::Site;

/// Its name in messages.
const NAME: &str = "NATS";

/// How long the server may take to answer a connection with its greeting.
const GREETING_DEADLINE: Duration = Duration::from_secs(1);

/// How long it may take to close its store in order.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Who may sign in, and what each may do.
const USERS: &str = include_str!("../../../deploy/nats/users.conf");

/// The file of the secret that the users' passwords are derived from, within the server's directory.
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
pub type Nats = Server<NatsServer>;

/// The part of a server that only a nats-server has.
#[derive(Debug)]
pub struct NatsServer {
    options: NatsOptions,
    program: PathBuf,
    secret: String,
    site: Site,
}

impl Server<NatsServer> {
    /// Kills the server and deletes all that JetStream kept, as a lost disk would. [`Self::restart`] starts it empty.
    ///
    /// # Errors
    /// [`DevstackError::NotStopped`] or [`DevstackError::File`].
    pub async fn delete_store(&mut self) -> Result<(), DevstackError> {
        self.kill().await?;
        files::remove_directory(&self.site.directory.join("store"))
    }
}

impl NatsServer {
    /// Where the administrator connects.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(NatsUser::Admin)
    }

    /// Where a user connects, with its password.
    #[must_use]
    pub fn url_of(&self, user: NatsUser) -> String {
        let (name, password, port) = (user.name(), self.password(user), self.site.port);
        format!("nats://daybook-{name}:{password}@127.0.0.1:{port}")
    }

    fn password(&self, user: NatsUser) -> String {
        password::derived(&self.secret, user.name())
    }

    /// The port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.site.port
    }

    /// The directory of its store and log: as given, or elsewhere when the servers' user could not reach that.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.site.directory
    }

    /// JetStream's own files, for tests that damage them.
    #[must_use]
    pub fn jetstream_directory(&self) -> PathBuf {
        self.site.directory.join("store").join("jetstream")
    }

    fn configuration(&self) -> PathBuf {
        self.site.directory.join("nats.conf")
    }

    /// JetStream's sync interval stays at its default: the log is in Postgres, and what a crash takes from JetStream
    /// is published again.
    fn write_configuration(&self) -> Result<(), DevstackError> {
        let store = self.site.directory.join("store");
        let mut content = format!(
            "# Written at every start; changes are lost.\n\
             server_name: daybook-{port}\n\
             listen: \"127.0.0.1:{port}\"\n\
             max_payload: 1MB\n\
             jetstream {{\n  store_dir: \"{store}\"\n  max_memory_store: 64MB\n  max_file_store: {max_file}MB\n}}\n",
            port = self.site.port,
            store = store.display(),
            max_file = self.options.max_file_mib,
        );
        for user in NatsUser::ALL {
            let (name, password) = (user.name().to_uppercase(), self.password(user));
            writeln!(content, "DAYBOOK_NATS_{name}_PASSWORD: \"{password}\"")
                .expect("a String accepts all that is written to it");
        }
        content.push_str(USERS);
        files::write_secret(&self.configuration(), &content, self.site.account.as_ref())
    }
}

impl Kind for NatsServer {
    type Options = NatsOptions;

    const STOP: &'static [(Signal, Duration)] = &[(Signal::INT, STOP_GRACE)];

    const REASON_MARKS: &'static [&'static str] = &["[FTL] ", "[ERR] ", "nats-server: "];

    fn prepare(options: NatsOptions) -> Result<Self, DevstackError> {
        let program = find::nats_server()?.path;
        // nats-server does not mind root: where the unprivileged user cannot reach the program, it runs as the caller.
        let account = account::unprivileged()?.filter(|account| account.reaches(&program));
        let site = Site::prepare(&options.store_dir, options.port, account)?;
        Ok(Self {
            secret: kept_secret(&site.directory.join(SECRET), site.account.as_ref())?,
            options,
            program,
            site,
        })
    }

    fn name(&self) -> &str {
        NAME
    }

    fn log(&self) -> PathBuf {
        self.site.directory.join("nats.log")
    }

    fn lifetime(&self) -> Lifetime {
        self.options.lifetime
    }

    fn site(&mut self) -> Option<&mut Site> {
        Some(&mut self.site)
    }

    fn configure(&mut self) -> Result<Program, DevstackError> {
        self.site.claim_port(NAME)?;
        self.write_configuration()?;
        Ok(Program {
            path: self.program.clone(),
            arguments: vec![OsString::from("--config"), self.configuration().into_os_string()],
            environment: Vec::new(),
            directory: self.site.directory.clone(),
            account: self.site.account.clone(),
        })
    }

    async fn is_ready(&self) -> bool {
        greets(self.site.port).await
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
