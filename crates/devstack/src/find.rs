//! Where the servers' programs are on this machine, and whether they are new enough.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::DevstackError;
use crate::files::cache_directory;
use crate::install;

/// The environment variable for the directory that holds `postgres` and `initdb`.
pub const POSTGRES_VARIABLE: &str = "DAYBOOK_POSTGRES_BIN";

/// The environment variable for the program `nats-server`.
pub const NATS_VARIABLE: &str = "DAYBOOK_NATS_SERVER";

/// The oldest Postgres that Daybook runs on.
const POSTGRES_MIN: Version = Version(15, 0);

/// The oldest nats-server: `first_sequence` came with it, and Debian 12 still ships 2.9.
const NATS_MIN: Version = Version(2, 10);

/// Major and minor version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The programs of one Postgres.
#[derive(Debug, Clone)]
pub struct PostgresPrograms {
    /// The directory that holds `postgres`, `initdb` and the rest.
    pub directory: PathBuf,
    /// Their version.
    pub version: Version,
}

/// A nats-server.
#[derive(Debug, Clone)]
pub struct NatsProgram {
    /// The program.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
}

/// The newest Postgres (15 or newer) of this machine; `DAYBOOK_POSTGRES_BIN` goes before all others.
///
/// # Errors
/// [`DevstackError::MissingTool`] when there is none, [`DevstackError::WrongTool`] when the variable points to none.
pub fn postgres() -> Result<PostgresPrograms, DevstackError> {
    let (tool, wanted, variable) = ("Postgres", "15", POSTGRES_VARIABLE);
    if let Some(path) = set_path(variable) {
        let programs = postgres_in(&path).filter(|programs| programs.version >= POSTGRES_MIN);
        return programs.ok_or(DevstackError::WrongTool {
            variable,
            path,
            tool,
            wanted,
        });
    }
    let directories = postgres_directories();
    let found = directories.iter().filter_map(|directory| postgres_in(directory));
    match found.max_by_key(|programs| programs.version) {
        Some(newest) if newest.version >= POSTGRES_MIN => Ok(newest),
        old => {
            let found = old.map_or_else(String::new, |old| only(old.version, &old.directory));
            Err(DevstackError::MissingTool {
                tool,
                wanted,
                found,
                variable,
            })
        }
    }
}

/// The first nats-server (2.10 or newer) of this machine; `DAYBOOK_NATS_SERVER` goes before all others.
///
/// # Errors
/// [`DevstackError::MissingTool`] when there is none, [`DevstackError::WrongTool`] when the variable points to none.
pub fn nats_server() -> Result<NatsProgram, DevstackError> {
    let (tool, wanted, variable) = ("nats-server", "2.10", NATS_VARIABLE);
    if let Some(path) = set_path(variable) {
        let program = nats_at(&path).filter(|program| program.version >= NATS_MIN);
        return program.ok_or(DevstackError::WrongTool {
            variable,
            path,
            tool,
            wanted,
        });
    }
    let found: Vec<_> = nats_paths().iter().filter_map(|path| nats_at(path)).collect();
    let good = found.iter().find(|program| program.version >= NATS_MIN);
    good.cloned().ok_or_else(|| {
        let found = found
            .first()
            .map_or_else(String::new, |old| only(old.version, &old.path));
        DevstackError::MissingTool {
            tool,
            wanted,
            found,
            variable,
        }
    })
}

/// The program with this name in one of the directories of `PATH`.
#[must_use]
pub fn on_path(program: &str) -> Option<PathBuf> {
    path_directories()
        .into_iter()
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

fn path_directories() -> Vec<PathBuf> {
    std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect())
        .unwrap_or_default()
}

fn only(version: Version, path: &Path) -> String {
    format!(" (only {version} at {})", path.display())
}

fn set_path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

fn postgres_directories() -> Vec<PathBuf> {
    let configured = output("pg_config", &["--bindir"]).map(|line| PathBuf::from(line.trim()));
    let linked = path_directories().into_iter().filter_map(|directory| {
        // A link on the PATH stands apart from the libraries and programs that it needs beside it.
        Some(
            directory
                .join("postgres")
                .canonicalize()
                .ok()?
                .parent()?
                .to_path_buf(),
        )
    });
    let versioned = subdirectories(Path::new("/usr/lib/postgresql"), "");
    let brewed = ["/opt/homebrew/opt", "/usr/local/opt"]
        .into_iter()
        .flat_map(|opt| subdirectories(Path::new(opt), "postgresql"));
    let packaged = subdirectories(Path::new("/usr"), "pgsql-");
    let kept = versioned
        .into_iter()
        .chain(brewed)
        .chain(packaged)
        .chain([PathBuf::from("/usr/local/pgsql")]);
    configured
        .into_iter()
        .chain(linked)
        .chain(kept.map(|directory| directory.join("bin")))
        .collect()
}

fn subdirectories(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return Vec::new();
    };
    let named = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    named.map(|entry| entry.path()).collect()
}

fn nats_paths() -> Vec<PathBuf> {
    let usual = ["/usr/local/bin", "/opt/homebrew/bin", "/usr/bin", "/usr/sbin"];
    let usual = usual
        .into_iter()
        .map(|directory| Path::new(directory).join("nats-server"));
    on_path("nats-server")
        .into_iter()
        .chain([install::nats_path(&cache_directory())])
        .chain(usual)
        .collect()
}

fn postgres_in(directory: &Path) -> Option<PostgresPrograms> {
    if !directory.join("initdb").is_file() {
        return None;
    }
    let version = parse_version(&output(directory.join("postgres"), &["--version"])?)?;
    Some(PostgresPrograms {
        directory: directory.to_path_buf(),
        version,
    })
}

pub(crate) fn nats_at(path: &Path) -> Option<NatsProgram> {
    let version = parse_version(&output(path, &["--version"])?)?;
    Some(NatsProgram {
        path: path.to_path_buf(),
        version,
    })
}

fn output(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The version in `postgres (PostgreSQL) 15.18 (Debian …)`, `postgres (PostgreSQL) 19beta1` or `nats-server: v2.14.6`.
fn parse_version(line: &str) -> Option<Version> {
    let words = line
        .split_ascii_whitespace()
        .map(|word| word.trim_start_matches('v'));
    let number = words
        .into_iter()
        .find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    let mut parts = number.split(|character: char| !character.is_ascii_digit());
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
    Some(Version(major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_programs_print_them() {
        let cases = [
            (
                "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)",
                Some(Version(15, 18)),
            ),
            ("postgres (PostgreSQL) 19beta1", Some(Version(19, 0))),
            ("nats-server: v2.14.6", Some(Version(2, 14))),
            ("command not found", None),
        ];
        for (line, version) in cases {
            assert_eq!(parse_version(line), version, "{line}");
        }
    }

    #[test]
    fn nine_is_older_than_ten() {
        assert!(Version(2, 9) < NATS_MIN);
        assert!(Version(2, 10) >= NATS_MIN);
    }
}
