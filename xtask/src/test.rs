//! `cargo xtask test`: every test, against real servers.
//!
//! All tests of a run share one private Postgres, each with a database of its own; tests that kill servers start
//! theirs through `devstack`. The last thing on the screen is the runner's own summary.

use std::process::{Command, ExitCode};

use anyhow::Result;
use daybook_devstack::testing::{POSTGRES_URL_VARIABLE, temporary_directory};
use daybook_devstack::{Postgres, PostgresOptions, find, install};

use crate::command::{self, cargo};
use crate::project::{self, say};

/// Where tests find the services' binaries, for those that kill whole processes.
const BINARIES_VARIABLE: &str = "DAYBOOK_BIN_DIR";

/// Enough for as many tests at once as any machine runs.
const MAX_CONNECTIONS: u32 = 1_000;

/// Runs the tests and passes the runner's exit code on.
pub(crate) async fn run(arguments: &[String]) -> Result<ExitCode> {
    let programs = install::ensure_postgres(&say)?;
    let nats = install::ensure_nats_server(&say)?;
    command::build_binaries(false).await?;

    let directory = temporary_directory()?;
    let options = PostgresOptions {
        max_connections: MAX_CONNECTIONS,
        ..PostgresOptions::for_tests(directory.path())
    };
    let mut postgres = Postgres::start(options).await?;
    let mut runner = runner(arguments);
    runner.env(POSTGRES_URL_VARIABLE, postgres.superuser_url("postgres"));
    runner
        .env(find::POSTGRES_VARIABLE, programs.directory)
        .env(find::NATS_VARIABLE, nats.path);
    runner.env(BINARIES_VARIABLE, project::binaries(false)?);
    let result = tokio::task::spawn_blocking(move || command::run(&mut runner)).await;
    postgres.stop().await?;
    result.expect("running a program does not panic and is not cancelled")
}

/// nextest where it is installed: a process per test, and a summary that names what failed. All packages, unless the
/// arguments name some.
fn runner(arguments: &[String]) -> Command {
    let mut runner = cargo();
    let has_nextest = cargo()
        .args(["nextest", "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    if has_nextest {
        runner.args(["nextest", "run"]);
    } else {
        say(
            "cargo-nextest is not installed: running `cargo test` (for nextest: cargo install cargo-nextest --locked)",
        );
        runner.arg("test");
    }
    if !arguments
        .iter()
        .any(|argument| argument.starts_with("-p") || argument.starts_with("--package"))
    {
        runner.arg("--workspace");
    }
    runner.args(arguments);
    runner
}
