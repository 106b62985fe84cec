//! `cargo xtask down` and `status`: what `up` left running.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use daybook_devstack::process::Signal;

use crate::project::state_directory;
use crate::state::{Member, State};

/// How long an `up` may take to stop all that it keeps.
const OWNER_GRACE: Duration = Duration::from_secs(60);

/// How long one server or service may take.
const MEMBER_GRACE: Duration = Duration::from_secs(30);

/// Stops the stack: through the `up` that keeps it, or one process after the other, last started first.
pub(crate) async fn run() -> Result<ExitCode> {
    let directory = state_directory();
    let Some(state) = State::load(&directory) else {
        println!("nothing is running");
        return Ok(ExitCode::SUCCESS);
    };
    if let Some(owner) = &state.owner {
        owner.end("cargo xtask up", Signal::TERM, OWNER_GRACE).await?;
    }
    for member in state.members.iter().rev() {
        member
            .process
            .end(&member.name, stop_signal(member), MEMBER_GRACE)
            .await?;
        println!("stopped {}", member.name);
    }
    State::remove(&directory);
    Ok(ExitCode::SUCCESS)
}

/// For Postgres SIGTERM means to wait for every client; SIGINT ends their sessions, and suits NATS as well.
fn stop_signal(member: &Member) -> Signal {
    match member.name.as_str() {
        crate::stack::POSTGRES | crate::stack::NATS => Signal::INT,
        _ => Signal::TERM,
    }
}

/// Shows what runs, where, as which process. The exit code says whether anything does.
pub(crate) fn status() -> Result<ExitCode> {
    let Some(state) = State::load(&state_directory()) else {
        println!("nothing is running");
        return Ok(ExitCode::FAILURE);
    };
    for member in &state.members {
        println!(
            "{:<16} {:<24} process {}",
            member.name, member.address, member.process.pid
        );
    }
    match &state.owner {
        Some(owner) => println!("kept by `cargo xtask up`, process {}", owner.pid),
        None => println!("detached; `cargo xtask down` stops it"),
    }
    Ok(ExitCode::SUCCESS)
}
