//! `cargo xtask`: everything that a developer runs, in one place and the same on every machine.
//!
//! `up` starts the whole system, `test` runs every test against real servers, `check` is what has to hold before a
//! commit, `contracts` has other people's tools look at what callers see, `bench` measures. None of them needs more than
//! Rust: servers and tools are found or installed.

#![expect(clippy::print_stdout, reason = "what a command prints is its result")]

mod bench;
mod check;
mod command;
mod contracts;
mod down;
mod project;
mod secrets;
mod stack;
mod state;
mod test;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs, tests and measures Daybook.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start Postgres, NATS and the three services with demo data; Ctrl-C stops them
    ///
    /// Data is kept and found again next time. DAYBOOK_DATABASE_URL (a superuser's address) and
    /// DAYBOOK_NATS_URL name servers of your own to be used instead of private ones.
    Up(up::Options),
    /// Stop what `up` started
    Down,
    /// Show what runs
    Status,
    /// Run every test against real servers; arguments go to the test runner
    Test {
        /// For `cargo nextest run`, or `cargo test` where nextest is not installed
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check the format, lints, documentation and dependencies
    Check,
    /// Have outside tools look at the protos, the descriptions and the running services; installs these tools
    Contracts,
    /// Measure, and print a table and JSON
    Bench {
        /// For the benchmark itself: see `cargo xtask bench --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Up(options) => up::run(options).await,
        Task::Down => down::run().await,
        Task::Status => down::status(),
        Task::Test { arguments } => test::run(&arguments).await,
        Task::Check => check::run(),
        Task::Contracts => contracts::run().await,
        Task::Bench { arguments } => bench::run(&arguments).await,
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
