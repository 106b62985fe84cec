//! Where things are: the sources, what is built from them, and what the stack keeps.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The root of the checkout.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a directory of the workspace")
}

/// Where the stack keeps its data, logs and secrets.
pub(crate) fn state_directory() -> PathBuf {
    root().join(".daybook")
}

/// Where cargo puts the binaries of a profile: this program is one of them, so its own place tells.
pub(crate) fn binaries(release: bool) -> Result<PathBuf> {
    let own = std::env::current_exe().context("could not find out where this program is")?;
    let target = own
        .ancestors()
        .nth(2)
        .context("this program is not in a target directory of cargo")?;
    Ok(target.join(if release { "release" } else { "debug" }))
}

/// One line about what is being done, on stderr: stdout is for results.
pub(crate) fn say(line: &str) {
    eprintln!("· {line}");
}
