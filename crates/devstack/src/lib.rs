//! A private Postgres and NATS for whoever needs real ones: `cargo xtask up`, the tests and the benchmarks.
//!
//! The crate finds the servers' programs or installs them ([`find`], [`install`]), starts and stops them
//! ([`Postgres`], [`Nats`]), runs Daybook's own binaries beside them ([`Service`]), and does what fault tests do to
//! them: kill, pause, restart, delete the store.
//!
//! What it guarantees:
//!
//! - Every server listens on 127.0.0.1 only and keeps its data in the directory that it was given.
//! - Durability is never traded for speed: `fsync`, `synchronous_commit` and `full_page_writes` stay on.
//! - As root, servers run as an unprivileged user ([`account`]).
//! - Dropping a handle ends its process; on Linux the kernel does so even when the owner is killed with SIGKILL. The
//!   exception is asked for by name: [`Lifetime::Detached`].
//! - Only processes that were started here, or whose start time proves it, are ever signalled ([`process`]).
//! - An error is one sentence that says what is wrong and what to do ([`DevstackError`]).

pub mod account;
mod cluster;
mod error;
pub mod files;
pub mod find;
mod initdb;
pub mod install;
mod nats;
mod password;
pub mod port;
mod postgres;
pub mod process;
pub mod proxy;
mod server;
mod service;
mod site;
pub mod testing;

pub use cluster::Cluster;
pub use error::DevstackError;
pub use nats::{Nats, NatsOptions, NatsServer, NatsUser};
pub use postgres::{Postgres, PostgresOptions, PostgresServer};
pub use process::Lifetime;
pub use proxy::Proxy;
pub use server::Server;
pub use service::{Service, ServiceOptions};
