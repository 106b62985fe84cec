//! The operators' and auditors' command line.

use std::ffi::OsStr;

use anyhow::Context as _;
use serde_json::Value;
use tokio::process::Command;

use crate::stack::program;

/// What a run of `daybook` said.
#[derive(Debug)]
pub struct Said {
    /// The exit code.
    pub code: i32,
    /// What it wrote to standard output.
    pub output: String,
    /// What it wrote to standard error.
    pub errors: String,
}

impl Said {
    /// The output as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.output).with_context(|| format!("not JSON: {self:?}"))
    }
}

/// Runs `daybook` with these arguments and settings, and nothing else in its environment.
///
/// # Errors
/// When the program cannot be started, or was killed.
pub async fn daybook<S: AsRef<OsStr>>(settings: &[(&str, &str)], arguments: &[S]) -> anyhow::Result<Said> {
    let output = Command::new(program("daybook")?)
        .env_clear()
        .envs(settings.iter().copied())
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await?;
    Ok(Said {
        code: output.status.code().context("it was killed")?,
        output: String::from_utf8(output.stdout)?,
        errors: String::from_utf8(output.stderr)?,
    })
}
