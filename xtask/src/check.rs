//! `cargo xtask check`: what has to hold before a commit, and what CI asks first.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Result, bail};

use crate::command::cargo;
use crate::project::say;

/// Runs every check, so that one run shows all that is wrong.
pub(crate) fn run() -> Result<ExitCode> {
    let mut failed = Vec::new();
    for (name, mut command) in checks() {
        say(name);
        if !command.status()?.success() {
            failed.push(name);
        }
    }
    verdict(&failed)
}

/// Success, unless a check failed.
pub(crate) fn verdict(failed: &[&str]) -> Result<ExitCode> {
    if !failed.is_empty() {
        bail!("these checks failed: {}", failed.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

fn checks() -> Vec<(&'static str, Command)> {
    let mut checks = vec![
        ("format", format()),
        ("lints", lints()),
        ("documentation", documentation()),
    ];
    if is_there("deny") {
        checks.push(("dependencies", dependencies()));
    } else {
        skipped("dependencies (cargo deny)", "cargo-deny");
    }
    if is_there("machete") {
        checks.push(("unused dependencies", unused_dependencies()));
    } else {
        skipped("unused dependencies (cargo machete)", "cargo-machete");
    }
    checks
}

fn format() -> Command {
    let mut command = cargo();
    command.args(["fmt", "--all", "--check"]);
    command
}

fn lints() -> Command {
    let mut command = cargo();
    command.args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    command
}

fn documentation() -> Command {
    let mut command = cargo();
    command
        .args(["doc", "--quiet", "--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "-D warnings");
    command
}

fn dependencies() -> Command {
    let mut command = cargo();
    command.args(["deny", "--log-level", "error", "check"]);
    command
}

fn unused_dependencies() -> Command {
    let mut command = cargo();
    command.arg("machete");
    command
}

fn is_there(subcommand: &str) -> bool {
    let status = cargo()
        .args([subcommand, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

fn skipped(check: &str, missing: &str) {
    eprintln!("!! SKIPPED: {check}, because {missing} is not installed");
}
