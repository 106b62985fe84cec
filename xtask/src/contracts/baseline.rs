//! What the contracts were. Callers rely on that, so that no change may break it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::project::{root, say};

/// The file that names the baseline: a tag or a commit. One that a clone does not have holds nothing there.
const FILE: &str = "contracts/baseline";

/// A commit whose contracts have to hold.
#[derive(Debug)]
pub(crate) struct Baseline {
    commit: String,
}

impl Baseline {
    /// The one that the file names. `None`, said loudly, where this clone does not have it.
    pub(crate) fn find() -> Result<Option<Self>> {
        let revision = std::fs::read_to_string(root().join(FILE));
        let revision = revision.with_context(|| format!("could not read {FILE}"))?;
        let revision = revision.trim();
        let commit = git(&["rev-parse", "--verify", &format!("{revision}^{{commit}}")])?;
        if !commit.status.success() {
            eprintln!(
                "!! SKIPPED: changes that break callers, because {revision} ({FILE}) is not in this clone"
            );
            return Ok(None);
        }
        say(&format!("the contracts of {revision} have to hold"));
        let commit = String::from_utf8_lossy(&commit.stdout).trim().to_owned();
        Ok(Some(Self { commit }))
    }

    /// Writes a directory of the sources, as it was, into a tar file.
    pub(crate) fn archive(&self, directory: &str, tar: &Path) -> Result<()> {
        let output = git(&["archive", "--format=tar", &self.commit, directory])?;
        if !output.status.success() {
            bail!("git archive: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        std::fs::write(tar, output.stdout).with_context(|| format!("could not write {}", tar.display()))
    }

    /// A file of the sources, as it was. `None` where there was none.
    pub(crate) fn file(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let output = git(&["show", &format!("{}:{path}", self.commit)])?;
        Ok(output.status.success().then_some(output.stdout))
    }
}

fn git(arguments: &[&str]) -> Result<Output> {
    let mut git = Command::new("git");
    git.args(arguments).current_dir(root()).stdin(Stdio::null());
    git.output().context("could not run git")
}
