//! The tools: pinned in `contracts/`, and those of a client beside it, by version and hash; installed below the target directory, so that nothing of them is
//! in the tree or in the system.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use daybook_devstack::install;

use super::typescript;
use crate::project::{root, say};

/// The installed tools.
#[derive(Debug)]
pub(crate) struct Tools {
    node: PathBuf,
    python: PathBuf,
    typescript: PathBuf,
    chromium: Option<PathBuf>,
}

impl Tools {
    /// Installs what is not yet installed in these versions. Node.js, Python and the browser come from the system.
    pub(crate) fn install(directory: &Path) -> Result<Self> {
        install::ensure_node(&say)?;
        install::ensure_python(&say)?;
        let (node, python) = (directory.join("node"), directory.join("python"));
        once(&node, "node", "contracts/package-lock.json", npm)?;
        once(&python, "python3", "contracts/requirements.txt", pip)?;
        let tree = directory.join("typescript");
        let typescript = tree.join(typescript::CLIENT);
        once(
            &typescript,
            "node",
            &format!("{}/package-lock.json", typescript::CLIENT),
            npm,
        )?;
        typescript::copy(&tree)?;
        Ok(Self {
            node,
            python,
            typescript,
            chromium: chromium(),
        })
    }

    /// Where the client is made, with what it needs.
    pub(crate) fn typescript(&self) -> &Path {
        &self.typescript
    }

    /// The browser. `None`, said loudly, where there is none and it cannot be installed.
    pub(crate) fn chromium(&self) -> Option<&Path> {
        self.chromium.as_deref()
    }

    /// A program of one of the Node.js packages, to be run in the root of the checkout.
    pub(crate) fn node(&self, program: &str) -> Command {
        let modules = self.node.join("node_modules");
        let mut command = Command::new(modules.join(".bin").join(program));
        command.current_dir(root());
        command
    }

    /// One of our own scripts, which may ask for these packages.
    pub(crate) fn script(&self, name: &str) -> Command {
        let mut command = Command::new("node");
        command
            .arg(root().join("contracts").join(name))
            .env("NODE_PATH", self.node.join("node_modules"))
            .current_dir(root());
        command
    }

    /// Python with all packages, to be run in the root of the checkout, where it leaves nothing.
    pub(crate) fn python(&self) -> Command {
        let mut command = Command::new("python3");
        command
            .env("PYTHONPATH", &self.python)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env(
                "HYPOTHESIS_STORAGE_DIRECTORY",
                self.python.join("hypothesis-storage"),
            )
            .current_dir(root());
        command
    }
}

/// Installs into an empty directory, unless all that `lock` names is there already, installed for this interpreter.
fn once(
    directory: &Path,
    interpreter: &str,
    lock: &str,
    install: fn(&Path, &Path) -> Result<Command>,
) -> Result<()> {
    let lock = root().join(lock);
    let pinned =
        std::fs::read_to_string(&lock).with_context(|| format!("could not read {}", lock.display()))?;
    let wanted = format!("{}{pinned}", version(interpreter)?);
    let stamp = directory.join("installed");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    say(&format!("installing what {} names", lock.display()));
    if directory.exists() {
        std::fs::remove_dir_all(directory)?;
    }
    std::fs::create_dir_all(directory)?;
    let output = install(directory, &lock)?.output()?;
    if !output.status.success() {
        bail!(
            "could not install what {} names: {}",
            lock.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    // Last, so that an installation that was interrupted counts for nothing.
    Ok(std::fs::write(&stamp, wanted)?)
}

fn chromium() -> Option<PathBuf> {
    let found = install::ensure_chromium(&say);
    found
        .inspect_err(|error| eprintln!("!! SKIPPED: the client in a browser: {error}"))
        .ok()
}

fn version(program: &str) -> Result<String> {
    let output = Command::new(program).arg("--version").output();
    let output = output.with_context(|| format!("could not run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `npm ci` refuses what has another hash than the lock file. No package's own script is run.
fn npm(directory: &Path, lock: &Path) -> Result<Command> {
    for file in [lock, &lock.with_file_name("package.json")] {
        let name = file.file_name().context("it is the name of a file")?;
        std::fs::copy(file, directory.join(name))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .current_dir(directory);
    Ok(npm)
}

/// Into a directory, which takes no virtual environment and leaves the system's packages alone.
fn pip(directory: &Path, lock: &Path) -> Result<Command> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--no-deps"])
        .args([
            "--require-hashes",
            "--only-binary=:all:",
            "--root-user-action=ignore",
        ])
        .arg("--target")
        .arg(directory)
        .arg("--requirement")
        .arg(lock);
    Ok(pip)
}
