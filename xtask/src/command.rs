//! Running other programs: cargo for its output, the `daybook` command line for its result.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::project::root;

/// The cargo that runs this program, to be run in the root of the checkout.
///
/// It does not inherit what `cargo run` says of this package: the build script of `ring` looks at such variables, so that
/// it and all that depends on it would be built anew whenever `cargo xtask` follows a plain `cargo build`, and back again.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Builds the services and the command line. Cargo shows its progress; a build that fails has said why.
pub(crate) async fn build_binaries(release: bool) -> Result<()> {
    let mut build = cargo();
    // The whole workspace, as the tests are built: with a choice of packages cargo would choose other features of the
    // dependencies, and build most of them twice.
    build.args(["build", "--quiet", "--workspace", "--bins"]);
    if release {
        build.arg("--release");
    }
    let status = tokio::process::Command::from(build)
        .kill_on_drop(true)
        .status()
        .await;
    if !status.context("could not run cargo")?.success() {
        bail!("the services could not be built");
    }
    Ok(())
}

/// Runs a program with this terminal and passes its exit code on.
pub(crate) fn run(command: &mut Command) -> Result<ExitCode> {
    let status = command
        .status()
        .with_context(|| format!("could not run {}", name(command)))?;
    // A program that was ended by a signal has no code.
    let code = status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1);
    Ok(ExitCode::from(code))
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// Runs the `daybook` command line and returns what it printed. When it fails, the last line that it said is the reason.
pub(crate) async fn daybook(
    binaries: &Path,
    arguments: &[&str],
    environment: &[(String, String)],
) -> Result<String> {
    let mut command = tokio::process::Command::new(binaries.join("daybook"));
    command
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).kill_on_drop(true);
    let task = format!("daybook {}", arguments.first().copied().unwrap_or_default());
    let output = command
        .output()
        .await
        .with_context(|| format!("could not run `{task}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let reason = said
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("it said nothing");
        bail!("`{task}` failed: {}", reason.trim().trim_start_matches("error: "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
