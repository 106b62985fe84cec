//! The operators' and auditors' command line.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::stack::program;

/// How long a line is waited for.
const LINE_TIMEOUT: Duration = Duration::from_secs(30);

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

/// A run of `daybook` that goes on until this is dropped.
#[derive(Debug)]
pub struct Running {
    lines: Lines<BufReader<ChildStdout>>,
    _program: Child,
}

impl Running {
    /// Starts `daybook` with these arguments and settings, and nothing else in its environment.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(settings: &[(&str, &str)], arguments: &[&str]) -> anyhow::Result<Self> {
        let mut program = Command::new(program("daybook")?)
            .env_clear()
            .envs(settings.iter().copied())
            .args(arguments)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = program.stdout.take().context("it is piped")?;
        Ok(Self {
            lines: BufReader::new(output).lines(),
            _program: program,
        })
    }

    /// The next line that it writes to standard output.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn line(&mut self) -> anyhow::Result<String> {
        let line = timeout(LINE_TIMEOUT, self.lines.next_line()).await??;
        line.context("it has ended")
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
