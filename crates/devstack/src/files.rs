//! Files that the servers' user owns: directories, secrets, copies of whole trees, and the end of a log.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use crate::account::Account;
use crate::error::DevstackError;

/// How much of the end of a log is read for the reason of a failure.
const LOG_TAIL_BYTES: u64 = 64 * 1024;

/// Where installed tools and initialised clusters are kept between runs: `DAYBOOK_CACHE_DIR`, else `/var/cache/daybook`
/// for root (where the unprivileged user can execute from), else `$XDG_CACHE_HOME/daybook` or `~/.cache/daybook`.
#[must_use]
pub fn cache_directory() -> PathBuf {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(directory) = set("DAYBOOK_CACHE_DIR") {
        return directory;
    }
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/cache/daybook");
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("daybook")
}

/// Makes a directory with its parents and gives it to the servers' user.
pub(crate) fn make_directory(path: &Path, mode: u32, owner: Option<&Account>) -> Result<(), DevstackError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(DevstackError::file("make the directory", parent))?;
    }
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(DevstackError::file("make the directory", path)(error));
        }
        _ => {}
    }
    give(path, owner)
}

/// Gives a file or directory to the servers' user.
pub(crate) fn give(path: &Path, owner: Option<&Account>) -> Result<(), DevstackError> {
    let Some(owner) = owner else { return Ok(()) };
    chown(path, Some(owner.uid), Some(owner.gid)).map_err(DevstackError::file("change the owner of", path))
}

/// Writes a file that only its owner may read, in one step: a reader finds the old content or the new one.
///
/// # Errors
/// [`DevstackError::File`] or [`DevstackError::DiskFull`].
pub fn write_secret(path: &Path, content: &str, owner: Option<&Account>) -> Result<(), DevstackError> {
    let partial = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()
    };
    write().map_err(DevstackError::file("write", path))?;
    give(&partial, owner)?;
    fs::rename(&partial, path).map_err(DevstackError::file("write", path))
}

/// Copies a directory with all that is in it, modes included, and gives the copy to the servers' user.
pub(crate) fn copy_tree(from: &Path, to: &Path, owner: Option<&Account>) -> Result<(), DevstackError> {
    make_directory(to, 0o700, owner)?;
    for entry in fs::read_dir(from).map_err(DevstackError::file("read", from))? {
        let entry = entry.map_err(DevstackError::file("read", from))?;
        let target = to.join(entry.file_name());
        let kind = entry
            .file_type()
            .map_err(DevstackError::file("read", &entry.path()))?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &target, owner)?;
        } else {
            fs::copy(entry.path(), &target).map_err(DevstackError::file("copy to", &target))?;
            give(&target, owner)?;
        }
    }
    Ok(())
}

/// Removes a directory with all that is in it, if it is there.
pub(crate) fn remove_directory(path: &Path) -> Result<(), DevstackError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(DevstackError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Whether a server complained of a full disk: by the system's words, or after a write that was cut short by its own.
pub(crate) fn says_disk_full(said: &str) -> bool {
    let said = said.to_lowercase();
    ["no space left on device", "check free disk space", "wrote only"]
        .iter()
        .any(|words| said.contains(words))
}

/// The length of a log before a start: what comes after it was said by this start.
pub(crate) fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// The text of a log after `offset`, at most its last 64 KiB. Empty for a log that cannot be read.
pub(crate) fn read_from(path: &Path, offset: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let end = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(offset.max(end.saturating_sub(LOG_TAIL_BYTES))))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}
