//! Under whose name the servers run, and where that user may keep data.
//!
//! Postgres refuses to run as root. When the caller is root, servers run as the machine's `postgres` user, else as
//! `nobody`. That user must be able to reach the data: a clone below a home that only root may enter is no place for
//! it, so [`place`] moves such data to `/var/lib/daybook/<hash of the path>`.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::error::DevstackError;

/// Where data goes that the servers' user could not reach in its own place.
const FALLBACK_ROOT: &str = "/var/lib/daybook";

/// A user that servers run as, when it is not the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The user's name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
}

/// The user that servers must run as: `None` means as the caller, who is not root.
///
/// # Errors
/// [`DevstackError::File`] when the caller is root and the machine's users cannot be read.
pub fn unprivileged() -> Result<Option<Account>, DevstackError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = Path::new("/etc/passwd");
    let users = std::fs::read_to_string(passwd).map_err(DevstackError::file("read", passwd))?;
    let account = ["postgres", "nobody"]
        .iter()
        .find_map(|name| account_named(&users, name));
    Ok(Some(account.unwrap_or(Account {
        name: "nobody".to_owned(),
        uid: 65_534,
        gid: 65_534,
    })))
}

/// The line of `/etc/passwd` with this name: `name:password:uid:gid:…`.
fn account_named(users: &str, name: &str) -> Option<Account> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account {
            name: name.to_owned(),
            uid,
            gid,
        })
    })
}

impl Account {
    /// Makes the command run as this user. The standard library drops the caller's other groups with it.
    pub fn run(&self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Whether this user may pass through every directory on the way to `path` (which need not exist yet).
    #[must_use]
    pub fn reaches(&self, path: &Path) -> bool {
        path.ancestors()
            .skip(1)
            .filter(|directory| directory.exists())
            .all(|directory| self.may_enter(directory))
    }

    fn may_enter(&self, directory: &Path) -> bool {
        const SEARCH: u32 = 0o1;
        let Ok(metadata) = std::fs::metadata(directory) else {
            return false;
        };
        let shift = if metadata.uid() == self.uid {
            6
        } else if metadata.gid() == self.gid {
            3
        } else {
            0
        };
        metadata.mode() >> shift & SEARCH == SEARCH
    }
}

/// Where a server with this account keeps what it was told to keep in `wanted`: there, or, when the account cannot
/// reach it, below `/var/lib/daybook` under a name that the same `wanted` always gives.
#[must_use]
pub fn place(wanted: &Path, account: Option<&Account>) -> PathBuf {
    match account {
        Some(account) if !account.reaches(wanted) => Path::new(FALLBACK_ROOT).join(short_hash(wanted)),
        _ => wanted.to_path_buf(),
    }
}

/// The first 64 bits of the path's SHA-256, in hex: short enough for the path of a socket.
fn short_hash(path: &Path) -> String {
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    hex::encode(&digest[..8])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const USERS: &str =
        "root:x:0:0:root:/root:/bin/bash\npostgres:x:101:104:admin:/var/lib/postgresql:/bin/bash\n";

    #[test]
    fn an_account_is_read_from_its_line() {
        let account = account_named(USERS, "postgres");
        assert_eq!(
            account,
            Some(Account {
                name: "postgres".to_owned(),
                uid: 101,
                gid: 104
            })
        );
        assert_eq!(account_named(USERS, "post"), None);
    }

    #[test]
    fn data_below_a_closed_directory_is_placed_elsewhere_always_at_the_same_path() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let stranger = Account {
            name: "stranger".to_owned(),
            uid: 4_000_000,
            gid: 4_000_000,
        };
        let wanted = home.path().join("clone").join(".daybook");

        close(home.path());
        let placed = place(&wanted, Some(&stranger));
        assert!(placed.starts_with(FALLBACK_ROOT), "{}", placed.display());
        assert_eq!(placed, place(&wanted, Some(&stranger)));
        assert_eq!(wanted, place(&wanted, None), "the caller needs no other place");

        open(home.path());
        assert_eq!(wanted, place(&wanted, Some(&stranger)));
    }

    fn close(directory: &Path) {
        set_mode(directory, 0o700);
    }

    fn open(directory: &Path) {
        set_mode(directory, 0o755);
    }

    fn set_mode(directory: &Path, mode: u32) {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode))
            .expect("our own directory");
    }
}
