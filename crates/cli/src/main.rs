//! `daybook`: the command line of operators and auditors.
//!
//! One file for each verb. Everything goes through the services' own APIs with the same scopes as anyone else; only
//! `migrate`, `bootstrap` and `idempotency` touch the database. Data goes to standard output and progress to standard error; the exit
//! codes are those of [`exit::Exit`], and every refusal of a service shows its code, its violations and its request id.

mod bootstrap;
mod client;
mod completion;
mod database;
mod doctor;
mod events;
mod exit;
mod explain;
mod export;
mod failure;
mod history;
mod idempotency;
mod import;
mod migrate;
mod moment;
mod money;
mod operation;
mod output;
mod projections;
mod rebuild;
mod refusal;
mod settings;
mod state;
mod trace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::Failure;
use crate::settings::{Connection, Settings};

/// Daybook's command line: for operators, auditors and imports.
///
/// Inside a checkout whose development stack is up (`cargo xtask up`) it needs no settings: addresses and the key that
/// fits the verb come from .daybook/dev.env.
#[derive(Parser)]
#[command(name = "daybook", version, propagate_version = true)]
struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Migrate(migrate::Arguments),
    Bootstrap(bootstrap::Arguments),
    Import(import::Arguments),
    /// Writes what there is into a file.
    #[command(subcommand)]
    Export(Export),
    History(history::Arguments),
    State(state::Arguments),
    Trace(trace::Arguments),
    /// Shows what there is.
    #[command(subcommand)]
    Get(Get),
    Rebuild(rebuild::Arguments),
    Idempotency(idempotency::Arguments),
    Doctor(doctor::Arguments),
    Explain(explain::Arguments),
    Completion(completion::Arguments),
}

#[derive(Subcommand)]
enum Export {
    Events(export::Arguments),
}

#[derive(Subcommand)]
enum Get {
    Projections(projections::Arguments),
    Events(events::Arguments),
}

/// One thread: the work is waiting for servers, which may well run on the same two cores.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Arguments { connection, verb } = Arguments::parse();
    match run(connection, verb).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(connection: Connection, verb: Verb) -> Result<(), Failure> {
    let settings = Settings::load(connection)?;
    match verb {
        Verb::Migrate(arguments) => migrate::run(&settings, &arguments).await,
        Verb::Bootstrap(arguments) => bootstrap::run(&settings, &arguments).await,
        Verb::Import(arguments) => import::run(&settings, &arguments).await,
        Verb::Export(Export::Events(arguments)) => export::run(&settings, &arguments).await,
        Verb::History(arguments) => history::run(&settings, &arguments).await,
        Verb::State(arguments) => state::run(&settings, &arguments).await,
        Verb::Trace(arguments) => trace::run(&settings, &arguments).await,
        Verb::Get(Get::Projections(arguments)) => projections::run(&settings, &arguments).await,
        Verb::Get(Get::Events(arguments)) => events::run(&settings, &arguments).await,
        Verb::Rebuild(arguments) => rebuild::run(&settings, &arguments).await,
        Verb::Idempotency(arguments) => idempotency::run(&settings, &arguments).await,
        Verb::Doctor(arguments) => doctor::run(&settings, &arguments).await,
        Verb::Explain(arguments) => explain::run(&arguments),
        Verb::Completion(arguments) => completion::run::<Arguments>(&arguments),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Arguments;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
