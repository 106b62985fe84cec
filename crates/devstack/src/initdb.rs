//! A new cluster's directory: from `initdb`, or for tests as a copy of one that `initdb` made before.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::account::Account;
use crate::error::DevstackError;
use crate::files::{
    cache_directory, copy_tree, make_directory, remove_directory, says_disk_full, write_secret,
};
use crate::find::PostgresPrograms;
use crate::password::random;
use crate::postgres::SUPERUSER;

/// The cluster itself, what Postgres calls PGDATA, within the server's directory.
pub(crate) const DATA: &str = "data";

/// The superuser's password, beside it.
pub(crate) const PASSWORD: &str = "superuser-password";

/// Makes `directory/data` and `directory/superuser-password` unless they are there. A crash half-way leaves a
/// `data.partial` that the next call begins anew.
pub(crate) fn ensure_cluster(
    programs: &PostgresPrograms,
    directory: &Path,
    account: Option<&Account>,
    from_cache: bool,
) -> Result<(), DevstackError> {
    make_directory(directory, 0o700, account)?;
    let data = directory.join(DATA);
    if data.join("PG_VERSION").exists() {
        return check_version(&data, programs);
    }
    let template = template_directory(programs);
    if from_cache && template.exists() {
        return copy_cluster(&template, directory, account);
    }
    initialise(programs, directory, account, from_cache)?;
    if from_cache {
        keep_as_template(directory, &template)
    } else {
        Ok(())
    }
}

fn check_version(data: &Path, programs: &PostgresPrograms) -> Result<(), DevstackError> {
    let file = data.join("PG_VERSION");
    let found = std::fs::read_to_string(&file).map_err(DevstackError::file("read", &file))?;
    if found.trim() == programs.version.0.to_string() {
        return Ok(());
    }
    Err(DevstackError::WrongDataVersion {
        directory: data.to_path_buf(),
        found: found.trim().to_owned(),
        running: programs.version.0,
    })
}

fn initialise(
    programs: &PostgresPrograms,
    directory: &Path,
    account: Option<&Account>,
    throw_away: bool,
) -> Result<(), DevstackError> {
    let partial = directory.join("data.partial");
    remove_directory(&partial)?;
    let password = directory.join(PASSWORD);
    write_secret(&password, &random(), account)?;

    let mut command = Command::new(programs.directory.join("initdb"));
    command
        .arg("--pgdata")
        .arg(&partial)
        .arg("--pwfile")
        .arg(&password);
    // The C locale compares bytes: the same order on every machine, and the fastest.
    command.args([
        "--username",
        SUPERUSER,
        "--auth",
        "scram-sha-256",
        "--encoding",
        "UTF8",
        "--locale",
        "C",
    ]);
    if throw_away {
        command.arg("--no-sync");
    }
    let failed = run(command, directory, account)?;
    if let Some(said) = failed {
        return Err(initdb_failure(&said, directory));
    }
    rename(&partial, &directory.join(DATA))
}

/// Copies a primary that runs, with what a standby needs to stream from it.
pub(crate) fn copy_primary(
    programs: &PostgresPrograms,
    primary_url: &str,
    directory: &Path,
    account: Option<&Account>,
) -> Result<(), DevstackError> {
    let mut command = Command::new(programs.directory.join("pg_basebackup"));
    command.args([
        "--write-recovery-conf",
        "--checkpoint=fast",
        "--no-sync",
        "--dbname",
    ]);
    command.arg(primary_url).arg("--pgdata").arg(directory.join(DATA));
    match run(command, directory, account)? {
        None => Ok(()),
        Some(said) => Err(DevstackError::Program {
            program: "pg_basebackup".to_owned(),
            reason: said.trim().to_owned(),
        }),
    }
}

/// Runs one of Postgres's programs as the servers' user. Returns what it said when it failed.
fn run(
    mut command: Command,
    directory: &Path,
    account: Option<&Account>,
) -> Result<Option<String>, DevstackError> {
    if let Some(account) = account {
        account.run(&mut command);
    }
    let output = command
        .current_dir(directory)
        .output()
        .map_err(DevstackError::file("run", Path::new(command.get_program())))?;
    Ok((!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// Reads a superuser's password.
pub(crate) fn password(path: &Path) -> Result<String, DevstackError> {
    std::fs::read_to_string(path).map_err(DevstackError::file("read", path))
}

/// Gives a copied cluster the password that it was made with.
pub(crate) fn copy_password(
    from: &Path,
    directory: &Path,
    account: Option<&Account>,
) -> Result<(), DevstackError> {
    write_secret(&directory.join(PASSWORD), &password(from)?, account)
}

fn initdb_failure(said: &str, directory: &Path) -> DevstackError {
    if says_disk_full(said) {
        return DevstackError::DiskFull {
            server: "Postgres".to_owned(),
            directory: directory.to_path_buf(),
        };
    }
    let line = said
        .lines()
        .find(|line| line.contains("error:") || line.contains("FATAL"));
    let reason = line
        .or(said.lines().last())
        .unwrap_or("it said nothing")
        .trim()
        .to_owned();
    DevstackError::Program {
        program: "initdb".to_owned(),
        reason,
    }
}

fn template_directory(programs: &PostgresPrograms) -> PathBuf {
    cache_directory().join(format!("postgres-{}-cluster", programs.version))
}

fn copy_cluster(template: &Path, directory: &Path, account: Option<&Account>) -> Result<(), DevstackError> {
    let partial = directory.join("data.partial");
    remove_directory(&partial)?;
    copy_tree(&template.join(DATA), &partial, account)?;
    copy_password(&template.join(PASSWORD), directory, account)?;
    rename(&partial, &directory.join(DATA))
}

/// Copies the new cluster, which has not run yet, to where the next ones are copied from. Processes may race for it:
/// the first complete copy stays.
fn keep_as_template(directory: &Path, template: &Path) -> Result<(), DevstackError> {
    let partial = template.with_extension(format!("partial-{}", std::process::id()));
    make_directory(&partial, 0o700, None)?;
    copy_cluster(directory, &partial, None)?;
    if std::fs::rename(&partial, template).is_err() {
        remove_directory(&partial)?;
    }
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<(), DevstackError> {
    std::fs::rename(from, to).map_err(DevstackError::file("rename to", to))
}
