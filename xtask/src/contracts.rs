//! `cargo xtask contracts`: the promises on the wire, held by tools that we did not write.
//!
//! The tools are pinned in `contracts/` and installed below the target directory; building and running
//! Daybook needs none of them. They read the documents, compare them with what they were, and call the
//! running services.

mod baseline;
mod services;
mod tools;
mod typescript;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use self::baseline::Baseline;
use self::tools::Tools;
use crate::check;
use crate::project::{root, say, target};

/// The description of the messages on NATS.
const EVENTS: &str = "proto/asyncapi.yaml";

/// A tool and what it looks at.
type Check = (&'static str, Command);

/// Runs every tool, so that one run shows all that is wrong.
pub(crate) async fn run() -> Result<ExitCode> {
    let directory = target()?.join("contracts");
    let tools = Tools::install(&directory)?;
    let descriptions = descriptions()?;
    let mut checks = documents(&tools, &descriptions);
    if let Some(baseline) = Baseline::find()? {
        checks.extend(changes(&tools, &baseline, &descriptions, &directory)?);
    }
    checks.push((
        "client for TypeScript (openapi-typescript, protoc-gen-es, tsc)",
        typescript::build(&tools),
    ));
    let mut failed = failures(checks)?;
    failed.extend(services::failing(&tools, &descriptions).await?);
    check::verdict(&failed)
}

/// What each document has to be by itself.
fn documents(tools: &Tools, descriptions: &[String]) -> Vec<Check> {
    let mut lint = tools.node("buf");
    lint.args(["lint", "proto"]);
    let mut format = tools.node("buf");
    format.args(["format", "proto", "--diff", "--exit-code"]);
    let mut spectral = tools.node("spectral");
    spectral
        .args([
            "lint",
            "--ruleset",
            "contracts/spectral.yaml",
            "--fail-severity",
            "warn",
        ])
        .args(descriptions)
        .arg(EVENTS);
    let mut redocly = tools.node("redocly");
    redocly
        .args(["lint", "--config", "contracts/redocly.yaml"])
        .args(descriptions)
        .arg(EVENTS)
        .env("REDOCLY_TELEMETRY", "off")
        .env("REDOCLY_SUPPRESS_UPDATE_NOTICE", "true");
    vec![
        ("protos (buf lint)", lint),
        ("protos (buf format)", format),
        ("descriptions (Spectral)", spectral),
        ("descriptions (Redocly)", redocly),
    ]
}

/// The OpenAPI descriptions: each service that has one commits it as `openapi.json` in its crate.
fn descriptions() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root()).context("could not read the sources")? {
        let description = entry?.path().join("openapi.json");
        if description.is_file() {
            let path = description.strip_prefix(root()).unwrap_or(&description);
            found.push(path.display().to_string());
        }
    }
    found.sort();
    Ok(found)
}

/// What the documents may have become since the baseline.
fn changes(
    tools: &Tools,
    baseline: &Baseline,
    descriptions: &[String],
    directory: &Path,
) -> Result<Vec<Check>> {
    // Each as one image, because buf compares module by module, and modules may be added.
    let (image, before) = (directory.join("protos.binpb"), directory.join("baseline.binpb"));
    let mut build = tools.node("buf");
    build.args(["build", "proto", "--output"]).arg(&image);
    let archive = directory.join("baseline.tar");
    baseline.archive("proto", &archive)?;
    let mut build_before = tools.node("buf");
    build_before
        .arg("build")
        .arg(format!("{}#subdir=proto", archive.display()))
        .arg("--output")
        .arg(&before);
    let mut breaking = tools.node("buf");
    breaking.arg("breaking").arg(&image).arg("--against").arg(&before);
    let mut openapi = tools.script("openapi-breaking.cjs");
    for (number, description) in descriptions.iter().enumerate() {
        if let Some(before) = baseline.file(description)? {
            let path = directory.join(format!("baseline-{number}.json"));
            std::fs::write(&path, before)?;
            openapi.arg(path).arg(description);
        }
    }
    Ok(vec![
        ("protos (buf build)", build),
        ("protos of the baseline (buf build)", build_before),
        ("changes of protos (buf breaking)", breaking),
        ("changes of descriptions (api-smart-diff)", openapi),
    ])
}

/// Runs the checks and returns the names of those that failed. What a tool says is shown only then.
fn failures(checks: Vec<Check>) -> Result<Vec<&'static str>> {
    let mut failed = Vec::new();
    for (name, mut command) in checks {
        say(name);
        let output = command
            .output()
            .with_context(|| format!("could not run {}", command.get_program().display()))?;
        if !output.status.success() {
            failed.push(name);
            let mut stderr = std::io::stderr();
            stderr.write_all(&output.stdout)?;
            stderr.write_all(&output.stderr)?;
        }
    }
    Ok(failed)
}
