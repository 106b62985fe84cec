//! What runs, written down: so that a second `up` refuses, `status` can tell, and `down` ends these processes and no
//! others (a process is known by its number *and* its start time).

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use daybook_devstack::process::ProcessId;
use serde::{Deserialize, Serialize};

/// One process of the stack.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) process: ProcessId,
}

/// A running stack.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    /// The `up` that keeps it, unless it was detached.
    pub(crate) owner: Option<ProcessId>,
    /// In the order of their start.
    pub(crate) members: Vec<Member>,
}

impl State {
    /// What was written down last, without what has ended since. `None` when nothing of it runs.
    pub(crate) fn load(directory: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path(directory)).ok()?;
        let mut state: Self = serde_json::from_str(&text).ok()?;
        state.owner = state.owner.filter(ProcessId::is_alive);
        state.members.retain(|member| member.process.is_alive());
        (state.owner.is_some() || !state.members.is_empty()).then_some(state)
    }

    pub(crate) fn save(&self, directory: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("strings and numbers are always JSON");
        Ok(daybook_devstack::files::write_secret(
            &path(directory),
            &text,
            None,
        )?)
    }

    pub(crate) fn remove(directory: &Path) {
        // Whether it goes now or is found stale later is the same.
        let _ = std::fs::remove_file(path(directory));
    }
}

fn path(directory: &Path) -> PathBuf {
    directory.join("stack.json")
}

/// Held while an `up` or `down` is at work. The system releases it with the process, so it cannot be left behind: a
/// file without a holder is not a lock.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    pub(crate) fn take(directory: &Path) -> Result<Self> {
        let path = directory.join("lock");
        std::fs::create_dir_all(directory)
            .with_context(|| format!("could not make {}", directory.display()))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let mut file = file.with_context(|| format!("could not open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("{}", held(&mut file)),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("could not lock {}", path.display()));
            }
        }
        let written = file
            .set_len(0)
            .and_then(|()| write!(file, "{}", std::process::id()));
        written.with_context(|| format!("could not write {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

fn held(file: &mut File) -> String {
    let mut pid = String::new();
    // Only a nicety of the message.
    let _ = file.read_to_string(&mut pid);
    format!(
        "another `cargo xtask up` or `down` is at work here (process {pid}): stop it with Ctrl-C or `cargo xtask down`"
    )
}
