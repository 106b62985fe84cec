//! The errors of servers, worded so that the reader knows what to do.

use std::path::{Path, PathBuf};

/// Why a server could not be found, installed, started or asked.
#[derive(Debug, thiserror::Error)]
pub enum DevstackError {
    /// A program is not on this machine, or only in a version that is too old.
    #[error(
        "{tool} {wanted} or newer was not found{found}: run `cargo xtask up` or `cargo xtask test`, which install it, or set {variable}"
    )]
    MissingTool {
        /// The program, as its users call it.
        tool: &'static str,
        /// The oldest version that does.
        wanted: &'static str,
        /// The program found instead: empty, or ` (only 2.9.10 at /usr/bin/nats-server)`.
        found: String,
        /// The environment variable that points to a copy of one's own.
        variable: &'static str,
    },
    /// The user pointed to a program that is none, or too old.
    #[error("{variable} points to {}, which is no {tool} {wanted} or newer", path.display())]
    WrongTool {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        path: PathBuf,
        /// The program, as its users call it.
        tool: &'static str,
        /// The oldest version that does.
        wanted: &'static str,
    },
    /// An installation was tried and failed.
    #[error("could not install {tool}: {reason}")]
    Install {
        /// The tool to install.
        tool: &'static str,
        /// The cause.
        reason: String,
    },
    /// Somebody else listens where the server should.
    #[error("port {port} on 127.0.0.1 is taken by another process: {server} cannot listen there")]
    PortTaken {
        /// Which server wanted it.
        server: String,
        /// The port.
        port: u16,
    },
    /// The disk that holds the data has no room.
    #[error("the disk is full: {server} could not write to {}", directory.display())]
    DiskFull {
        /// Which server.
        server: String,
        /// Where its data is.
        directory: PathBuf,
    },
    /// Another process already works on this data.
    #[error("{server} is already running on {} as process {pid}: stop that one first", directory.display())]
    AlreadyRunning {
        /// Which server.
        server: String,
        /// Where its data is.
        directory: PathBuf,
        /// The process that holds it.
        pid: i32,
    },
    /// The data was written by another major version.
    #[error("{} holds data of Postgres {found}, but the Postgres found here is {running}: point DAYBOOK_POSTGRES_BIN to version {found}, or delete the directory", directory.display())]
    WrongDataVersion {
        /// Where the data is.
        directory: PathBuf,
        /// The version that wrote it.
        found: String,
        /// The version that would read it.
        running: u32,
    },
    /// The server ended while starting.
    #[error("{server} did not start: {reason} (log: {})", log.display())]
    Start {
        /// Which server.
        server: String,
        /// The last thing that it said.
        reason: String,
        /// Where it said more.
        log: PathBuf,
    },
    /// The server runs but did not become ready in time.
    #[error("{server} was not ready after {seconds} s (log: {})", log.display())]
    NotReady {
        /// Which server.
        server: String,
        /// How long was waited.
        seconds: u64,
        /// Where it said more.
        log: PathBuf,
    },
    /// The process did not end, not even after SIGKILL.
    #[error("process {pid} ({server}) did not end within {seconds} s")]
    NotStopped {
        /// Which server.
        server: String,
        /// Its process.
        pid: i32,
        /// How long was waited.
        seconds: u64,
    },
    /// A program that was called did not succeed.
    #[error("{program} failed: {reason}")]
    Program {
        /// The program.
        program: String,
        /// Its last words.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("could not {action} {}", path.display())]
    File {
        /// The action that failed, as an infinitive.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A statement for administration was refused.
    #[error("could not {action}")]
    Sql {
        /// The action that failed, as an infinitive.
        action: String,
        /// The database's error.
        #[source]
        source: Box<sqlx::Error>,
    },
    /// The address of a cluster could not be understood.
    #[error(
        "not the address of a Postgres superuser (postgres://user:password@host:port/database): {reason}"
    )]
    Address {
        /// The fault.
        reason: String,
    },
}

impl DevstackError {
    /// For `map_err` on a file operation: names what was done to which file, and tells a full disk from the rest.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::DiskFull {
                server: "the stack".to_owned(),
                directory: path,
            },
            _ => Self::File { action, path, source },
        }
    }

    /// For `map_err` on a statement.
    pub(crate) fn sql(action: impl Into<String>) -> impl FnOnce(sqlx::Error) -> Self {
        let action = action.into();
        move |source| Self::Sql {
            action,
            source: Box::new(source),
        }
    }
}
