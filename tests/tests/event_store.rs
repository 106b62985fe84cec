//! The log on a real Postgres: what the append function promises, whoever calls it and in whatever order.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use daybook_devstack::testing::{TestCluster, test_cluster};
use daybook_event_store::{
    Appender, AppenderOptions, Direction, EventStore, NewCommand, NewEvent, RecordedEvent, Verdict, append,
};
use daybook_tests::database::{Database, ROLES};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tokio::task::JoinSet;
use uuid::Uuid;

const TENANT: Uuid = Uuid::from_u128(1);

/// A database and a connection that may append.
struct Log {
    database: Database,
    connection: PgConnection,
    _cluster: TestCluster,
}

impl Log {
    async fn new() -> anyhow::Result<Self> {
        use sqlx::Connection as _;
        let cluster = test_cluster().await?;
        let database = Database::create(&cluster).await?;
        let connection = PgConnection::connect(&database.url("daybook_command")).await?;
        Ok(Self {
            database,
            connection,
            _cluster: cluster,
        })
    }

    async fn append(&mut self, commands: &[NewCommand]) -> anyhow::Result<Vec<Verdict>> {
        Ok(append(&mut self.connection, 0, commands).await?)
    }

    /// Everything that is in the log, in order.
    async fn events(&self) -> anyhow::Result<Vec<RecordedEvent>> {
        let store = EventStore::new(self.database.pool("daybook_publisher").await?);
        Ok(store.read_log(0, 0, 1_000_000).await?)
    }
}

/// A command with `events` events for a stream, under a key of its own.
fn command(stream_id: &str, expected_version: impl Into<Option<u64>>, events: usize) -> NewCommand {
    NewCommand {
        tenant_id: TENANT,
        key: Uuid::now_v7().to_string(),
        fingerprint: [7; 32],
        stream_id: stream_id.to_owned(),
        category: "order",
        expected_version: expected_version.into(),
        metadata: r#"{"command":"Test"}"#.into(),
        events: (0..events).map(event).collect(),
        rejection: None,
    }
}

fn event(index: usize) -> NewEvent {
    NewEvent {
        event_id: Uuid::now_v7(),
        event_type: "test.happened",
        schema_version: 1,
        payload: format!(r#"{{"index":  {index}, "index": 1}}"#),
    }
}

fn with_key(mut command: NewCommand, key: &str) -> NewCommand {
    command.key = key.to_owned();
    command
}

/// The verdicts in short: positions, or why not.
fn short(verdicts: &[Verdict]) -> Vec<String> {
    let one = |verdict: &Verdict| match verdict {
        Verdict::Appended(receipt) => format!("@{}v{}", receipt.first_position, receipt.stream_version),
        Verdict::Conflict { actual_version } => format!("conflict v{actual_version}"),
        Verdict::Replayed(receipt) => {
            format!("replayed @{}v{}", receipt.first_position, receipt.stream_version)
        }
        Verdict::KeyReused => "reused".to_owned(),
        Verdict::Deferred => "deferred".to_owned(),
    };
    verdicts.iter().map(one).collect()
}

fn assert_dense(events: &[RecordedEvent]) {
    let mut versions: HashMap<(Uuid, &str), u64> = HashMap::new();
    for (event, position) in events.iter().zip(1..) {
        assert_eq!(event.position, position, "positions have a hole or an inversion");
        let version = versions.entry((event.tenant_id, &event.stream_id)).or_default();
        *version += 1;
        assert_eq!(
            event.stream_version, *version,
            "versions of {} are not dense",
            event.stream_id
        );
    }
}

#[tokio::test]
async fn events_get_consecutive_positions_and_come_back_byte_for_byte() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let batch = [command("a", 0, 2), command("b", None, 1), command("a", 2, 1)];
    let verdicts = log.append(&batch).await?;
    assert_eq!(short(&verdicts), ["@1v2", "@3v1", "@4v3"]);
    let events = log.events().await?;
    assert_dense(&events);
    assert_eq!(events.len(), 4);
    assert_eq!(events[1].payload, r#"{"index":  1, "index": 1}"#);
    assert_eq!(events[1].event_id, batch[0].events[1].event_id);
    assert_eq!(&*events[1].metadata, r#"{"command":"Test"}"#);
    Ok(())
}

#[tokio::test]
async fn a_wrong_expected_version_is_a_conflict_with_the_actual_one_and_fails_nobody_else()
-> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let verdicts = log
        .append(&[command("a", 0, 3), command("b", 1, 1), command("c", 0, 1)])
        .await?;
    assert_eq!(short(&verdicts), ["@1v3", "conflict v0", "@4v1"]);
    let verdicts = log
        .append(&[command("a", 2, 1), command("a", 4, 1), command("a", 3, 1)])
        .await?;
    assert_eq!(short(&verdicts), ["conflict v3", "deferred", "deferred"]);
    assert_dense(&log.events().await?);
    Ok(())
}

#[tokio::test]
async fn commands_behind_a_refused_one_are_refused_at_once_when_nothing_can_make_them_fit()
-> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let racers: Vec<_> = (0..5).map(|_| command("a", 0, 1)).collect();
    let verdicts = log.append(&racers).await?;
    assert_eq!(
        short(&verdicts),
        ["@1v1", "conflict v1", "conflict v1", "conflict v1", "conflict v1"]
    );
    Ok(())
}

#[tokio::test]
async fn the_same_key_gives_the_first_receipt_and_with_other_content_it_is_refused() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let first = with_key(command("a", 0, 2), "k");
    let again = with_key(command("b", 0, 1), "k");
    let mut other = with_key(command("a", 2, 1), "k");
    other.fingerprint = [8; 32];
    assert_eq!(
        short(&log.append(&[first.clone(), again.clone()]).await?),
        ["@1v2", "deferred"]
    );
    let verdicts = log.append(&[again, other, command("a", 2, 1)]).await?;
    assert_eq!(short(&verdicts), ["replayed @1v2", "reused", "@3v3"]);
    let [Verdict::Replayed(replayed), ..] = &verdicts[..] else {
        panic!("{verdicts:?}")
    };
    assert_eq!(
        replayed.stream_id, "a",
        "the receipt is that of the first command"
    );
    let mut elsewhere = first;
    elsewhere.tenant_id = Uuid::from_u128(2);
    assert_eq!(
        short(&log.append(&[elsewhere]).await?),
        ["@4v2"],
        "keys belong to a tenant"
    );
    Ok(())
}

#[tokio::test]
async fn a_refusal_by_the_domain_is_remembered_without_events() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let mut refusal = with_key(command("a", 0, 0), "k");
    refusal.rejection = Some(r#"{"code":"NO"}"#.to_owned());
    assert_eq!(short(&log.append(&[refusal.clone()]).await?), ["@0v0"]);
    log.append(&[command("a", 0, 1)]).await?;
    let verdicts = log.append(&[refusal]).await?;
    let [Verdict::Replayed(receipt)] = &verdicts[..] else {
        panic!("{verdicts:?}")
    };
    assert_eq!(receipt.rejection.as_deref(), Some(r#"{"code":"NO"}"#));
    assert_eq!((receipt.event_count, receipt.last_position()), (0, None));
    Ok(())
}

/// Sends until every command has a final verdict, as two processes would that know nothing of each other.
#[tokio::test]
async fn of_64_writers_who_race_on_20_streams_through_two_appenders_one_wins_each_version()
-> anyhow::Result<()> {
    const ROUNDS: usize = 40;
    let log = Log::new().await?;
    let pool = log.database.pool("daybook_command").await?;
    let appenders: Vec<Appender> = (0..2).map(|_| start(&pool)).collect();
    let mut writers = JoinSet::new();
    for writer in 0..64_usize {
        let appender = appenders[writer % 2].clone();
        writers.spawn(async move {
            let (mut won, mut lost, mut version) = (Vec::new(), 0_u32, 0);
            for round in 0..ROUNDS {
                let stream = format!("stream-{}", (writer + round) % 20);
                let submitted = appender
                    .submit(command(&stream, version, 1))
                    .expect("the queue has room");
                match submitted.verdict().await.expect("the database answers") {
                    Verdict::Appended(receipt) => {
                        won.push((receipt.stream_id, receipt.stream_version, receipt.first_position));
                    }
                    Verdict::Conflict { actual_version } => {
                        assert_ne!(
                            actual_version, version,
                            "a conflict is between different versions"
                        );
                        version = actual_version;
                        lost += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
            (won, lost)
        });
    }
    let (mut won, mut lost) = (Vec::new(), 0);
    while let Some(writer) = writers.join_next().await {
        let (wins, losses) = writer?;
        won.extend(wins);
        lost += losses;
    }
    assert!(lost > 100, "the writers hardly raced: {lost} conflicts");
    let events = log.events().await?;
    assert_dense(&events);
    assert_eq!(events.len(), won.len());
    let recorded: HashSet<_> = events
        .into_iter()
        .map(|event| (event.stream_id, event.stream_version, event.position))
        .collect();
    assert_eq!(
        recorded,
        won.into_iter().collect(),
        "what the writers were told is not what is in the log"
    );
    Ok(())
}

fn start(pool: &PgPool) -> Appender {
    let (appender, appending) = Appender::new(pool.clone(), 0, AppenderOptions::default(), None);
    tokio::spawn(appending);
    appender
}

#[tokio::test]
async fn a_hundred_sends_of_one_command_at_once_append_it_once() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let pool = log.database.pool("daybook_command").await?;
    let appenders = [start(&pool), start(&pool)];
    let mut sends = JoinSet::new();
    for send in 0..100_usize {
        let appender = appenders[send % 2].clone();
        // Each sender made an id of its own for the new stream: only the first one's counts.
        let command = with_key(command(&format!("stream-{send}"), 0, 1), "the key");
        sends.spawn(async move {
            appender
                .submit(command)
                .expect("the queue has room")
                .verdict()
                .await
        });
    }
    let mut receipts = HashSet::new();
    while let Some(send) = sends.join_next().await {
        match send?? {
            Verdict::Appended(receipt) | Verdict::Replayed(receipt) => {
                receipts.insert((receipt.stream_id, receipt.first_position, receipt.recorded_at));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(receipts.len(), 1);
    assert_eq!(log.events().await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn data_that_postgres_cannot_store_spoils_its_own_command_only() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let pool = log.database.pool("daybook_command").await?;
    let (appender, appending) = Appender::new(pool, 0, AppenderOptions::default(), None);
    let mut bad = command("bad", 0, 1);
    bad.events[0].payload = "{not json".to_owned();
    let submitted: Vec<_> = [command("a", 0, 1), bad, command("b", 0, 1)]
        .into_iter()
        .map(|command| appender.submit(command).expect("the queue has room"))
        .collect();
    // All three are in the queue before the task starts, so they are in one batch.
    tokio::spawn(appending);
    let mut appended = Vec::new();
    for submitted in submitted {
        appended.push(matches!(submitted.verdict().await, Ok(Verdict::Appended(_))));
    }
    assert_eq!(appended, [true, false, true]);
    Ok(())
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let pool = log.database.pool("daybook_command").await?;
    let options = AppenderOptions {
        queue_commands_max: 2,
        ..AppenderOptions::default()
    };
    let (appender, _not_running) = Appender::new(pool, 0, options, None);
    let _first = appender.submit(command("a", 0, 1))?;
    let _second = appender.submit(command("b", 0, 1))?;
    assert!(appender.submit(command("c", 0, 1)).is_err());
    Ok(())
}

#[tokio::test]
async fn a_stream_is_read_both_ways_in_pages_and_by_its_tenant_alone() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    log.append(&[command("a", 0, 25), command("b", 0, 5)]).await?;
    let store = EventStore::new(log.database.pool("daybook_query").await?);
    let read = async |tenant, from, limit, direction| -> anyhow::Result<Vec<u64>> {
        let events = store.read_stream(tenant, 0, "a", from, limit, direction).await?;
        Ok(events.iter().map(|event| event.stream_version).collect())
    };
    assert_eq!(
        read(TENANT, 1..=u64::MAX, 10, Direction::Forward).await?,
        (1..=10).collect::<Vec<_>>()
    );
    assert_eq!(read(TENANT, 11..=12, 10, Direction::Forward).await?, [11, 12]);
    assert_eq!(read(TENANT, 1..=20, 3, Direction::Backward).await?, [20, 19, 18]);
    assert_eq!(
        read(Uuid::from_u128(2), 1..=u64::MAX, 10, Direction::Forward).await?,
        [0_u64; 0]
    );
    Ok(())
}

#[tokio::test]
async fn the_position_of_a_moment_is_found_and_recording_times_never_fall() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let store = EventStore::new(log.database.pool("daybook_query").await?);
    assert_eq!(store.head(0).await?.recorded_at, None);
    for round in 0..20 {
        log.append(&[command("a", round * 3, 3)]).await?;
    }
    let events = log.events().await?;
    assert!(events.is_sorted_by_key(|event| event.recorded_at));
    for event in &events {
        let last_of_its_moment = events
            .iter()
            .rposition(|other| other.recorded_at == event.recorded_at)
            .expect("itself") as u64
            + 1;
        assert_eq!(store.position_at(0, event.recorded_at).await?, last_of_its_moment);
    }
    let before = events[0].recorded_at - time::Duration::HOUR;
    assert_eq!(store.position_at(0, before).await?, 0);
    // A clock that went back: the next event is recorded no earlier than the one before.
    let superuser = log.database.superuser().await?;
    sqlx::query("UPDATE event_store.log SET recorded_at = now() + interval '1 hour'")
        .execute(&superuser)
        .await?;
    log.append(&[command("a", 60, 1)]).await?;
    let newest = log.events().await?.pop().expect("there are events");
    assert!(newest.recorded_at > events[59].recorded_at + time::Duration::minutes(59));
    Ok(())
}

#[tokio::test]
async fn no_login_role_rewrites_events_or_sees_another_tenants() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    log.append(&[command("a", 0, 1)]).await?;
    let writes = [
        "UPDATE event_store.event SET payload = '{}'",
        "DELETE FROM event_store.event",
        "TRUNCATE event_store.event",
        "INSERT INTO event_store.event SELECT * FROM event_store.event",
        "UPDATE event_store.log SET head = 0",
        "DELETE FROM event_store.stream",
        "DELETE FROM event_store.command",
        "DROP TABLE event_store.event",
        "ALTER TABLE event_store.event DISABLE ROW LEVEL SECURITY",
        "CREATE TABLE event_store.mine (id int)",
        "SELECT secret_sha256 FROM event_store.api_key",
    ];
    for role in ROLES {
        let pool = log.database.pool(role).await?;
        for write in writes {
            let refused = sqlx::query(write).execute(&pool).await.expect_err(write);
            let code = refused
                .as_database_error()
                .and_then(|error| error.code().map(String::from));
            assert_eq!(code.as_deref(), Some("42501"), "{role}: {write}: {refused}");
        }
    }
    for role in ["daybook_command", "daybook_query"] {
        let pool = log.database.pool(role).await?;
        let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM event_store.event")
            .fetch_one(&pool)
            .await?;
        assert_eq!(seen, 0, "{role} sees events without a tenant");
    }
    let superuser = log.database.superuser().await?;
    for write in &writes[..3] {
        let refused = sqlx::query(*write).execute(&superuser).await.expect_err(write);
        assert!(
            refused.to_string().contains("never rewritten"),
            "{write}: {refused}"
        );
    }
    assert_eq!(log.events().await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn every_statement_can_be_prepared_against_the_migrated_schema() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let superuser = log.database.superuser().await?;
    let prepare = async |name: &str, statement: String| -> anyhow::Result<()> {
        let prepare = format!("PREPARE \"{name}\" AS {statement}");
        sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&superuser).await?;
        Ok(())
    };
    for (name, statement) in daybook_event_store::STATEMENTS {
        prepare(name, (*statement).to_owned()).await?;
    }
    for (name, statement) in daybook_read_model::statements() {
        use sqlx::SqlSafeStr as _;
        prepare(&name, statement.into_sql_str().as_str().to_owned()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn committed_events_are_handed_on_as_the_log_holds_them() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let pool = log.database.pool("daybook_command").await?;
    let (committed, mut handed_on) = tokio::sync::mpsc::channel(16);
    let (appender, appending) = Appender::new(pool, 0, AppenderOptions::default(), Some(committed));
    tokio::spawn(appending);
    let appender = Arc::new(appender);
    appender.submit(command("a", 0, 2))?.verdict().await?;
    appender.submit(command("b", 0, 1))?.verdict().await?;
    let mut events = Vec::new();
    while events.len() < 3 {
        events.extend(handed_on.recv().await.expect("the appender runs").events);
    }
    assert_eq!(events, log.events().await?);
    Ok(())
}
