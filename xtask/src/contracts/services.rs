//! The running system, played and looked at from outside: on servers of its own, beside whatever else runs here.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use daybook_devstack::testing::temporary_directory;
use daybook_devstack::{Lifetime, port};

use super::tools::Tools;
use super::{Check, failures, typescript};
use crate::command::build_binaries;
use crate::project::{binaries, say};
use crate::secrets::Secrets;
use crate::stack::{Place, Stack};

/// Starts the system, runs every check against it, and stops it. Returns the names of those that failed.
pub(crate) async fn failing(tools: &Tools, descriptions: &[String]) -> Result<Vec<&'static str>> {
    Place::Beside.ensure_programs()?;
    say("building the services");
    build_binaries(false).await?;
    let directory = temporary_directory()?;
    let page = port::free().context("there is no free port")?;
    let (stack, environment) = start(directory.path(), page).await?;
    let checks = checks(tools, descriptions, &environment, page)?;
    let failed = tokio::task::spawn_blocking(move || failures(checks)).await;
    stack.stop().await?;
    failed.expect("running a program does not panic and is not cancelled")
}

/// The system with its demo data, and what its clients have to know. The page at this port of `localhost` may call it.
async fn start(directory: &Path, page: u16) -> Result<(Stack, Vec<(String, String)>)> {
    say("starting the system");
    let (binaries, lifetime) = (binaries(false)?, Lifetime::Owner);
    let mut secrets = Secrets::load(directory)?;
    let mut stack = Stack::start_servers(Place::Beside, directory, &mut secrets, lifetime).await?;
    let keys = stack.prepare(&binaries, &mut secrets).await?;
    let origin = format!("http://localhost:{page}");
    stack
        .start_services(&binaries, directory, &secrets, lifetime, Some(&origin))
        .await?;
    stack.load_demo(&binaries, &keys, &mut secrets).await?;
    let environment = stack.environment(&keys);
    Ok((stack, environment))
}

/// The scenario comes first: the others need something of everything.
fn checks(
    tools: &Tools,
    descriptions: &[String],
    environment: &[(String, String)],
    page: u16,
) -> Result<Vec<Check>> {
    let mut scenario = tools.python();
    scenario.arg("contracts/scenario.py");
    let mut events = tools.python();
    events.arg("contracts/events.py");
    let mut checks = vec![
        ("gRPC (a client that grpcio makes from reflection)", scenario),
        ("messages (nats-py, CloudEvents SDK)", events),
        ("HTTP and gRPC-Web in Node.js", typescript::in_node(tools)),
    ];
    if let Some(chromium) = tools.chromium() {
        let browser = typescript::in_browser(tools, chromium, page);
        checks.push(("HTTP and gRPC-Web on a web page (Chromium)", browser));
    }
    for description in descriptions {
        let (url, key) = if description.starts_with("command-svc") {
            ("DAYBOOK_COMMAND_URL", "DAYBOOK_SERVICE_KEY")
        } else {
            ("DAYBOOK_QUERY_URL", "DAYBOOK_AUDITOR_KEY")
        };
        let value = |name| value(environment, name);
        let authorization = format!("Authorization: Bearer {}", value(key)?);
        let mut known = schemathesis(tools, description, value(url)?);
        known.args(["--header", &authorization]);
        checks.push(("HTTP with a key (Schemathesis)", known));
        let stranger = schemathesis(tools, description, value(url)?);
        checks.push(("HTTP without a key (Schemathesis)", stranger));
    }
    for (_, command) in &mut checks {
        command.envs(environment.iter().map(|(name, value)| (name, value)));
    }
    Ok(checks)
}

fn schemathesis(tools: &Tools, description: &str, url: &str) -> Command {
    let mut command = tools.python();
    command
        .args([
            "-m",
            "schemathesis.cli",
            "--config-file",
            "contracts/schemathesis.toml",
        ])
        .args(["run", description, "--url", url, "--no-color"])
        // It waits for the end of each answer, and a stream has none.
        .args(["--exclude-path-regex", "/stream$"]);
    command
}

fn value<'a>(environment: &'a [(String, String)], name: &str) -> Result<&'a str> {
    let variable = environment.iter().find(|(variable, _)| variable == name);
    variable
        .map(|(_, value)| value.as_str())
        .with_context(|| format!("the stack has no {name}"))
}
