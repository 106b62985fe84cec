//! `cargo xtask up`: the whole system on this machine, from nothing to ready, until Ctrl-C.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use daybook_devstack::Lifetime;
use daybook_devstack::files::write_secret;
use daybook_devstack::process::ProcessId;
use tokio::signal::unix::{SignalKind, signal};

use crate::command::build_binaries;
use crate::project::{self, say, state_directory};
use crate::secrets::{Keys, Secrets};
use crate::stack::{self, Place, Stack};
use crate::state::{Lock, State};

/// How often a running stack is looked at for a process that ended.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// How the stack is to be started.
#[derive(Args)]
pub(crate) struct Options {
    /// Build and run the services in release mode
    #[arg(long)]
    release: bool,
    /// Leave the stack running and return; `cargo xtask down` stops it
    #[arg(long)]
    detach: bool,
}

/// Starts the stack; unless detached, keeps it until Ctrl-C, SIGTERM or SIGHUP and then stops it.
pub(crate) async fn run(options: Options) -> Result<ExitCode> {
    let directory = state_directory();
    let _lock = Lock::take(&directory)?;
    if State::load(&directory).is_some() {
        bail!(
            "the stack is already running (detached): `cargo xtask status` shows it, `cargo xtask down` stops it"
        );
    }
    stack::require_free_ports()?;
    let mut stop = StopSignals::listen()?;
    let started = tokio::select! {
        started = start(&options, &directory) => started,
        // Dropping the half-started stack ends what it has.
        () = stop.received() => bail!("stopped while starting"),
    };
    let mut stack = started?;
    if options.detach {
        stack.detach();
        return Ok(ExitCode::SUCCESS);
    }
    println!("Ctrl-C stops everything; the data stays.");
    let failure = tokio::select! {
        () = stop.received() => None,
        failure = watch(&mut stack) => Some(failure),
    };
    say("stopping");
    let stopped = stack.stop().await;
    State::remove(&directory);
    match failure {
        Some(reason) => bail!("{reason}"),
        None => stopped.map(|()| ExitCode::SUCCESS),
    }
}

async fn start(options: &Options, directory: &Path) -> Result<Stack> {
    let begun = Instant::now();
    let lifetime = if options.detach {
        Lifetime::Detached
    } else {
        Lifetime::Owner
    };
    Place::Usual.ensure_programs()?;
    let mut secrets = Secrets::load(directory)?;
    let binaries = project::binaries(options.release)?;

    say("building the services, starting the servers");
    let servers = Stack::start_servers(Place::Usual, directory, &mut secrets, lifetime);
    let ((), mut stack) = tokio::try_join!(build_binaries(options.release), servers)?;
    remember(&stack, options, directory)?;
    let keys = stack.prepare(&binaries, &mut secrets).await?;
    stack
        .start_services(&binaries, directory, &secrets, lifetime, None)
        .await?;
    remember(&stack, options, directory)?;
    stack.load_demo(&binaries, &keys, &mut secrets).await?;

    let environment = stack.environment(&keys);
    write_environment(&directory.join("dev.env"), &environment)?;
    print_summary(&stack, &keys, directory, begun.elapsed());
    Ok(stack)
}

/// Writes down what runs, so that `down` finds it even when this program is killed.
fn remember(stack: &Stack, options: &Options, directory: &Path) -> Result<()> {
    let owner = if options.detach { None } else { own_process() };
    State {
        owner,
        members: stack.members(),
    }
    .save(directory)
}

fn own_process() -> Option<ProcessId> {
    ProcessId::of(i32::try_from(std::process::id()).ok()?)
}

/// Lines that both a shell (`set -a; . .daybook/dev.env`) and a container's `--env-file` understand: no value needs
/// quotes.
fn write_environment(path: &Path, environment: &[(String, String)]) -> Result<()> {
    let lines = environment
        .iter()
        .fold(String::new(), |mut lines, (name, value)| {
            writeln!(lines, "{name}={value}").expect("a String accepts all that is written to it");
            lines
        });
    Ok(write_secret(path, &lines, None)?)
}

fn print_summary(stack: &Stack, keys: &Keys, directory: &Path, took: Duration) {
    println!("\nDaybook is ready ({:.1} s).\n", took.as_secs_f64());
    for member in stack.members() {
        println!("  {:<18} {}", member.name, member.address);
    }
    println!("\n  tenant             {}", keys.tenant_id);
    println!("  internal services  {}", keys.service_key);
    println!("  frontends          {}", keys.frontend_key);
    println!("  auditors           {}", keys.auditor_key);
    println!("  operators          {}", keys.operator_key);
    println!("\n  all of it          set -a; . .daybook/dev.env; set +a");
    println!("  logs               {}\n", stack::logs(directory).display());
}

/// Returns when a process of the stack has ended by itself.
async fn watch(stack: &mut Stack) -> String {
    loop {
        if let Some(failure) = stack.failure() {
            return failure;
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// What ends a running `up`: Ctrl-C, `kill` (and so `cargo xtask down`), a closed terminal.
struct StopSignals {
    signals: [tokio::signal::unix::Signal; 3],
}

impl StopSignals {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("could not listen for signals");
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let [interrupt, terminate, hangup] = kinds.map(listen);
        Ok(Self {
            signals: [interrupt?, terminate?, hangup?],
        })
    }

    async fn received(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
