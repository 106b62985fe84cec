//! `cargo xtask bench`: the benchmark (the crate `bench`) in release, with its servers found or installed before.

use std::process::{Command, ExitCode};

use anyhow::Result;
use daybook_devstack::{find, install};

use crate::command;
use crate::project::{binaries, say};

/// Runs it. It starts servers of its own, so that nothing else has a share in the figures.
pub(crate) async fn run(arguments: &[String]) -> Result<ExitCode> {
    let postgres = install::ensure_postgres(&say)?;
    let nats = install::ensure_nats_server(&say)?;
    command::build_binaries(true).await?;
    let mut bench = Command::new(binaries(true)?.join("bench"));
    bench.args(arguments);
    bench
        .env(find::POSTGRES_VARIABLE, postgres.directory)
        .env(find::NATS_VARIABLE, nats.path);
    command::run(&mut bench)
}
