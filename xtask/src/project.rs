//! Where things are: the sources, what is built from them, and what the stack keeps.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context as _, Result};

/// The root of the checkout.
///
/// Cargo tells while it runs this program. Where two checkouts share a target directory, the place where the program was
/// compiled can be the other one's.
pub(crate) fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let this =
            std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Path::new(&this)
            .parent()
            .expect("xtask is a directory of the workspace")
            .to_path_buf()
    });
    &ROOT
}

/// Where the stack keeps its data, logs and secrets.
pub(crate) fn state_directory() -> PathBuf {
    root().join(".daybook")
}

/// Cargo's target directory: this program is in it, so its own place tells.
pub(crate) fn target() -> Result<PathBuf> {
    let own = std::env::current_exe().context("could not find out where this program is")?;
    let target = own.ancestors().nth(2);
    Ok(target
        .context("this program is not in a target directory of cargo")?
        .to_path_buf())
}

/// Where cargo puts the binaries of a profile.
pub(crate) fn binaries(release: bool) -> Result<PathBuf> {
    Ok(target()?.join(if release { "release" } else { "debug" }))
}

/// One line about what is being done, on stderr: stdout is for results.
pub(crate) fn say(line: &str) {
    eprintln!("· {line}");
}
