//! The client for TypeScript: made as its users make it, in a copy of what it is made of.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::tools::Tools;
use crate::project::root;

/// Where the client is, in the sources and in the copy.
pub(crate) const CLIENT: &str = "clients/typescript";

/// What it is made of. What a user has made in the sources is not.
const SOURCES: [&str; 8] = [
    "proto",
    "command-svc/openapi.json",
    "query-svc/openapi.json",
    "clients/typescript/buf.gen.yaml",
    "clients/typescript/redocly.yaml",
    "clients/typescript/src",
    "clients/typescript/tests",
    "clients/typescript/tsconfig.json",
];

/// What is made.
const MADE: [&str; 2] = ["clients/typescript/gen", "clients/typescript/dist"];

/// Copies what the client is made of into a tree of its own, where nothing is left of what was made before.
pub(crate) fn copy(tree: &Path) -> Result<()> {
    for path in SOURCES.iter().chain(&MADE) {
        remove(&tree.join(path))?;
    }
    for path in SOURCES {
        let (from, to) = (root().join(path), tree.join(path));
        let parent = to.parent().context("it is below the tree")?;
        std::fs::create_dir_all(parent)?;
        let copied = Command::new("cp").arg("-R").arg(&from).arg(&to).status();
        if !copied.context("could not run cp")?.success() {
            bail!("could not copy {}", from.display());
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        std::fs::remove_dir_all(path)
    } else if path.exists() {
        std::fs::remove_file(path)
    } else {
        Ok(())
    };
    removed.with_context(|| format!("could not remove {}", path.display()))
}

/// Generates and compiles it.
pub(crate) fn build(tools: &Tools) -> Command {
    let mut npm = Command::new("npm");
    npm.args(["run", "build"]).current_dir(tools.typescript());
    npm
}

/// Plays the scenario in Node.js.
pub(crate) fn in_node(tools: &Tools) -> Command {
    let mut node = Command::new("node");
    node.arg("tests/node.mjs").current_dir(tools.typescript());
    node
}

/// Plays the scenario on a web page that is served at this port.
pub(crate) fn in_browser(tools: &Tools, chromium: &Path, port: u16) -> Command {
    let mut browser = tools.script("browser.cjs");
    browser
        .arg(tools.typescript())
        .arg(chromium)
        .env("DAYBOOK_PAGE_PORT", port.to_string());
    browser
}
