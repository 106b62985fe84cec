//! Private Postgres servers, for real: started, killed, paused, restarted, and refused for the right reasons.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use daybook_devstack::account::unprivileged;
use daybook_devstack::testing::{temporary_directory, test_cluster};
use daybook_devstack::{Cluster, DevstackError, Postgres, PostgresOptions};
use sqlx::{Connection as _, PgConnection};

async fn scalar(cluster: &Cluster, database: &str, statement: &'static str) -> String {
    let mut connection = cluster.connect(database).await.expect("the server answers");
    sqlx::query_scalar(statement)
        .fetch_one(&mut connection)
        .await
        .expect("the statement is good")
}

async fn execute(cluster: &Cluster, statement: &'static str) {
    let mut connection = cluster.connect("postgres").await.expect("the server answers");
    sqlx::raw_sql(statement)
        .execute(&mut connection)
        .await
        .expect("the statement is good");
}

#[tokio::test]
async fn a_server_is_durable_private_and_ready_soon() {
    let directory = temporary_directory().expect("a directory");
    let postgres = Postgres::start(PostgresOptions::for_tests(directory.path().join("first")))
        .await
        .expect("it starts");
    for (setting, expected) in [
        ("SHOW fsync", "on"),
        ("SHOW synchronous_commit", "on"),
        ("SHOW full_page_writes", "on"),
        ("SHOW listen_addresses", "127.0.0.1"),
        ("SHOW shared_buffers", "64MB"),
        ("SHOW password_encryption", "scram-sha-256"),
        (
            "SELECT pg_encoding_to_char(encoding)::text FROM pg_database WHERE datname = 'postgres'",
            "UTF8",
        ),
    ] {
        assert_eq!(
            scalar(&postgres, "postgres", setting).await,
            expected,
            "{setting}"
        );
    }

    let begun = Instant::now();
    let _second = Postgres::start(PostgresOptions::for_tests(directory.path().join("second")))
        .await
        .expect("it starts");
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "copied, not initialised: {:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn what_was_committed_survives_a_kill_and_the_port_stays() {
    let directory = temporary_directory().expect("a directory");
    let mut postgres = Postgres::start(PostgresOptions::for_tests(directory.path()))
        .await
        .expect("it starts");
    let port = postgres.port();
    execute(
        &postgres,
        "CREATE TABLE kept (value text); INSERT INTO kept VALUES ('still here')",
    )
    .await;

    let mut open = postgres.connect("postgres").await.expect("the server answers");
    let processes = postgres.process_id().expect("it runs").children();
    assert!(!processes.is_empty(), "a server has processes of its own");
    postgres.kill().await.expect("SIGKILL ends it");
    assert!(
        processes.iter().all(|process| !process.is_alive()),
        "all are gone"
    );
    assert!(open.ping().await.is_err(), "the session is gone too");

    postgres.restart().await.expect("it recovers");
    assert_eq!(postgres.port(), port);
    assert_eq!(
        scalar(&postgres, "postgres", "SELECT value FROM kept").await,
        "still here"
    );
}

#[tokio::test]
async fn a_second_start_finds_the_data_again() {
    let directory = temporary_directory().expect("a directory");
    let mut options = PostgresOptions::for_tests(directory.path());
    // As `up` does it: with initdb itself.
    options.from_cache = false;
    let mut postgres = Postgres::start(options.clone()).await.expect("it starts");
    execute(
        &postgres,
        "CREATE TABLE kept (value text); INSERT INTO kept VALUES ('still here')",
    )
    .await;
    postgres.stop().await.expect("it stops");
    drop(postgres);

    let postgres = Postgres::start(options).await.expect("it starts again");
    assert_eq!(
        scalar(&postgres, "postgres", "SELECT value FROM kept").await,
        "still here"
    );
}

#[tokio::test]
async fn a_paused_server_is_silent_until_it_is_resumed() {
    let directory = temporary_directory().expect("a directory");
    let mut postgres = Postgres::start(PostgresOptions::for_tests(directory.path()))
        .await
        .expect("it starts");
    let cluster = postgres.cluster().clone();
    let mut open = cluster.connect("postgres").await.expect("the server answers");

    postgres.pause();
    let mut question = tokio::spawn(async move { open.ping().await });
    let answer = tokio::time::timeout(Duration::from_millis(300), &mut question).await;
    assert!(answer.is_err(), "a stopped process answered");
    postgres.resume();
    question
        .await
        .expect("no panic")
        .expect("the session goes on as if nothing had been");
}

#[tokio::test]
async fn dropping_a_server_ends_it_even_when_it_is_paused() {
    let directory = temporary_directory().expect("a directory");
    let mut postgres = Postgres::start(PostgresOptions::for_tests(directory.path()))
        .await
        .expect("it starts");
    let process = postgres.process_id().expect("it runs").clone();
    postgres.pause();
    drop(postgres);
    assert!(!process.is_alive());
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let directory = temporary_directory().expect("a directory");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let mut options = PostgresOptions::for_tests(directory.path());
    options.port = port;
    let error = Postgres::start(options)
        .await
        .expect_err("somebody listens there");
    assert!(
        matches!(error, DevstackError::PortTaken { port: taken, .. } if taken == port),
        "{error}"
    );
}

#[tokio::test]
async fn a_second_server_on_the_same_data_is_refused_and_the_first_goes_on() {
    let directory = temporary_directory().expect("a directory");
    let options = PostgresOptions::for_tests(directory.path());
    let mut first = Postgres::start(options.clone()).await.expect("it starts");
    let error = Postgres::start(options).await.expect_err("the data is in use");
    let pid = first.process_id().expect("it runs").pid;
    assert!(
        matches!(error, DevstackError::AlreadyRunning { pid: holder, .. } if holder == pid),
        "{error}"
    );
    assert_eq!(first.failure(), None);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_lock_file_with_the_number_of_a_stranger_or_of_the_dead_is_no_obstacle() {
    let directory = temporary_directory().expect("a directory");
    let mut postgres = Postgres::start(PostgresOptions::for_tests(directory.path()))
        .await
        .expect("it starts");
    postgres.kill().await.expect("SIGKILL ends it");

    let lock = postgres.directory().join("data").join("postmaster.pid");
    let left = std::fs::read_to_string(&lock).expect("a killed server leaves its lock");
    let (_, rest) = left.split_once('\n').expect("it has lines");
    // Of the servers' own user: of another user's process Postgres knows by itself that it is none of its own.
    let mut stranger = std::process::Command::new("sleep");
    stranger.arg("600").current_dir("/");
    if let Some(account) = unprivileged().expect("this machine has users") {
        account.run(&mut stranger);
    }
    let mut stranger = stranger.spawn().expect("sleep starts");
    std::fs::write(&lock, format!("{}\n{rest}", stranger.id())).expect("our own file");
    postgres.restart().await.expect("the lock is not the stranger's");

    postgres.kill().await.expect("SIGKILL ends it");
    stranger.kill().expect("it runs");
    std::fs::write(&lock, format!("{}\n{rest}", stranger.id())).expect("our own file");
    postgres
        .restart()
        .await
        .expect("nobody has waited for the stranger, but it is dead");
    stranger.wait().expect("it was killed");
}

#[tokio::test]
async fn a_failing_start_says_what_postgres_said() {
    let directory = temporary_directory().expect("a directory");
    let mut options = PostgresOptions::for_tests(directory.path());
    options.settings.push((
        "shared_preload_libraries".to_owned(),
        "no_such_library".to_owned(),
    ));
    let error = Postgres::start(options)
        .await
        .expect_err("there is no such library");
    assert!(error.to_string().contains("no_such_library"), "{error}");
}

/// A role of its own that can log in, without a password.
async fn new_role(cluster: &Cluster) -> String {
    let role = format!("role_{:08x}", rand::random::<u32>());
    let mut connection = cluster.connect("postgres").await.expect("the server answers");
    let statement = sqlx::AssertSqlSafe(format!("CREATE ROLE {role} LOGIN"));
    sqlx::raw_sql(statement)
        .execute(&mut connection)
        .await
        .expect("a superuser may");
    role
}

#[tokio::test]
async fn a_role_signs_in_with_the_password_that_its_address_holds() {
    let cluster = test_cluster().await.expect("a server");
    let role = new_role(&cluster).await;

    let url = cluster.url(&role, "postgres");
    assert!(
        PgConnection::connect(&url).await.is_err(),
        "it has no password yet"
    );
    cluster.enable_login(&[&role]).await.expect("a superuser may");
    PgConnection::connect(&url).await.expect("now it has");
}

#[tokio::test]
async fn many_may_give_a_role_its_password_at_once() {
    let cluster = test_cluster().await.expect("a server");
    let role = new_role(&cluster).await;
    let roles = [role.as_str()];
    let enable = async || {
        for _ in 0..50 {
            cluster.enable_login(&roles).await?;
        }
        Ok::<_, DevstackError>(())
    };
    let (one, two, three) = tokio::join!(enable(), enable(), enable());
    one.and(two).and(three).expect("they take turns");
}

#[tokio::test]
async fn a_template_is_built_once_however_many_ask_for_it() {
    let cluster = test_cluster().await.expect("a server");
    let template = format!("template_{:08x}", rand::random::<u32>());
    let built = std::sync::atomic::AtomicU32::new(0);
    let ask = || {
        cluster.ensure_template(&template, async |url| -> Result<(), DevstackError> {
            built.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mut connection = PgConnection::connect(&url).await.expect("the database is new");
            sqlx::raw_sql("CREATE TABLE part (id int)")
                .execute(&mut connection)
                .await
                .expect("an empty database");
            connection.close().await.expect("the server answers");
            Ok(())
        })
    };
    let (one, two, three) = tokio::join!(ask(), ask(), ask());
    one.and(two).and(three).expect("all get it");
    assert_eq!(built.into_inner(), 1);

    let copy = format!("{template}_copy");
    cluster
        .create_database(&copy, Some(&template))
        .await
        .expect("nobody is connected to the template");
    assert_eq!(
        scalar(&cluster, &copy, "SELECT count(*)::text FROM part").await,
        "0"
    );
    cluster.drop_database(&copy).await.expect("it is there");
    cluster.drop_database(&copy).await.expect("twice is once");
}

/// Set for a second copy of this test program, which plays the owner that is killed.
#[cfg(target_os = "linux")]
const OWNER_VARIABLE: &str = "DAYBOOK_TEST_OWNER_DIRECTORY";

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_server_ends_with_its_owner_even_when_that_is_killed() {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    use daybook_devstack::process::ProcessId;

    if let Some(directory) = std::env::var_os(OWNER_VARIABLE) {
        let postgres = Postgres::start(PostgresOptions::for_tests(directory))
            .await
            .expect("it starts");
        eprintln!("postmaster {}", postgres.process_id().expect("it runs").pid);
        return std::future::pending().await;
    }
    let directory = temporary_directory().expect("a directory");
    let own_name = "a_server_ends_with_its_owner_even_when_that_is_killed";
    let mut owner = Command::new(std::env::current_exe().expect("this program"));
    owner
        .args(["--exact", own_name, "--nocapture"])
        .env(OWNER_VARIABLE, directory.path())
        .stderr(Stdio::piped());
    let mut owner = owner.spawn().expect("this program runs");
    let lines = BufReader::new(owner.stderr.take().expect("it is piped")).lines();
    let announced = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("postmaster ")?.parse().ok());
    let postmaster = ProcessId::of(announced.expect("the owner started a server")).expect("it runs");

    owner.kill().expect("it waits for ever");
    owner.wait().expect("it was killed");
    assert!(
        postmaster.gone_within(Duration::from_secs(10)).await,
        "the server outlived its owner"
    );
}
