//! The log on a real Postgres: what the append function promises, whoever calls it and in whatever order.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use daybook_devstack::testing::{TestCluster, test_cluster};
use daybook_event_store::{
    AppendError, Appender, AppenderOptions, BatchLimits, Decision, Direction, EventStore, Intent, Judgement,
    NewCommand, NewEvent, NotAdmitted, PostgresLog, RecordedEvent, Unanswered, Verdict, append, chains, keys,
};
use daybook_tests::database::{Database, ROLES};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};
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

    /// Appends one batch, and says in short what became of each of its commands.
    async fn append(&mut self, commands: &[NewCommand]) -> anyhow::Result<Vec<String>> {
        let judgement = append(&mut self.connection, 0, commands).await?;
        Ok(short(&judgement, commands))
    }

    /// An appender of its own, running.
    async fn appender(&self, options: AppenderOptions) -> anyhow::Result<Appender> {
        let (appender, appending) = Appender::new(self.database.log().await?, 0, options, None);
        tokio::spawn(appending);
        Ok(appender)
    }

    /// Everything that is in the log, in order.
    async fn events(&self) -> anyhow::Result<Vec<RecordedEvent>> {
        let store = EventStore::new(self.database.pool("daybook_publisher").await?);
        Ok(store.read_log(0, 0, 1_000_000).await?)
    }
}

/// A command with `events` events, decided on `decided_on`, under a key of its own.
fn command(stream_id: &str, decided_on: Option<Uuid>, events: usize) -> NewCommand {
    NewCommand {
        tenant_id: TENANT,
        key: Uuid::now_v7().to_string().into(),
        fingerprints: vec![7],
        stream_id: stream_id.into(),
        category: "order",
        intent: Intent::Write(Decision {
            decided_on,
            metadata: r#"{"command":"Test"}"#.into(),
            events: (0..events).map(event).collect(),
            rejection: None,
        }),
    }
}

/// A command that was decided on what this one leads to.
fn after(command: &NewCommand, events: usize) -> NewCommand {
    self::command(&command.stream_id, leads_to(command), events)
}

fn question(stream_id: &str, key: &str) -> NewCommand {
    let mut question = with_key(command(stream_id, None, 0), key);
    question.intent = Intent::Ask;
    question
}

fn event(index: usize) -> NewEvent {
    NewEvent {
        event_id: Uuid::from_u128(rand::random()),
        event_type: "test.happened",
        schema_version: 1,
        payload: format!(r#"{{"index":  {index}, "index": 1}}"#),
    }
}

fn with_key(mut command: NewCommand, key: &str) -> NewCommand {
    command.key = key.into();
    command
}

fn decision(command: &NewCommand) -> &Decision {
    match &command.intent {
        Intent::Write(decision) => decision,
        Intent::Ask => panic!("a question decides nothing"),
    }
}

fn decision_mut(command: &mut NewCommand) -> &mut Decision {
    match &mut command.intent {
        Intent::Write(decision) => decision,
        Intent::Ask => panic!("a question decides nothing"),
    }
}

fn leads_to(command: &NewCommand) -> Option<Uuid> {
    decision(command).leads_to()
}

/// What became of each command: the first position of its chain and how it stands, or why not.
fn short(judgement: &Judgement, commands: &[NewCommand]) -> Vec<String> {
    let mut of_each = Vec::new();
    for (range, chain) in chains(commands).into_iter().zip(&judgement.chains) {
        for index in range {
            of_each.push(if judgement.known.contains(&index) {
                "known".to_owned()
            } else if index < chain.written_end {
                format!("written@{}", chain.first_position)
            } else {
                format!("not written, newest v{}", chain.newest.version)
            });
        }
    }
    of_each
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
    let first = command("a", None, 2);
    let batch = [first.clone(), after(&first, 1), command("b", None, 1)];
    assert_eq!(log.append(&batch).await?, ["written@1", "written@1", "written@4"]);
    let events = log.events().await?;
    assert_dense(&events);
    assert_eq!(events.len(), 4);
    assert_eq!(events[1].payload, r#"{"index":  1, "index": 1}"#);
    assert_eq!(Some(events[1].event_id), leads_to(&batch[0]));
    assert_eq!(Some(events[2].event_id), leads_to(&batch[1]));
    assert_eq!(&*events[1].metadata, r#"{"command":"Test"}"#);
    Ok(())
}

#[tokio::test]
async fn what_was_decided_on_another_event_is_not_written_and_fails_nobody_else() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let first = command("a", None, 3);
    let on_nothing_known = command("b", Some(Uuid::from_u128(9)), 1);
    let written = log
        .append(&[first.clone(), on_nothing_known, command("c", None, 1)])
        .await?;
    assert_eq!(written, ["written@1", "not written, newest v0", "written@4"]);
    // The whole chain falls with its root, also where the versions would fit.
    let on_the_second = command("a", Some(decision(&first).events[1].event_id), 1);
    let behind = after(&on_the_second, 1);
    assert_eq!(
        log.append(&[on_the_second, behind]).await?,
        ["not written, newest v3"; 2]
    );
    assert_eq!(log.append(&[after(&first, 1)]).await?, ["written@5"]);
    assert_dense(&log.events().await?);
    Ok(())
}

/// Two that decide ahead reach one version by different events: a count would let both in.
#[tokio::test]
async fn two_chains_of_one_length_on_one_stream_do_not_mix() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let (ours, theirs) = (command("a", None, 1), command("a", None, 1));
    assert_eq!(log.append(&[ours]).await?, ["written@1"]);
    assert_eq!(
        log.append(&[after(&theirs, 1)]).await?,
        ["not written, newest v1"]
    );
    assert_eq!(log.events().await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_chain_stands_up_to_its_first_known_key() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    assert_eq!(
        log.append(&[with_key(command("other", None, 2), "k")]).await?,
        ["written@1"]
    );
    let first = command("a", None, 1);
    let refusal = after(&first, 0);
    let known = with_key(after(&refusal, 1), "k");
    let behind = after(&known, 1);
    let elsewhere = command("b", None, 1);
    let verdicts = log
        .append(&[first.clone(), refusal, known, behind, elsewhere])
        .await?;
    assert_eq!(
        verdicts,
        [
            "written@3",
            "written@3",
            "known",
            "not written, newest v0",
            "written@4"
        ]
    );
    assert_eq!(log.append(&[after(&first, 1)]).await?, ["written@5"]);
    assert_dense(&log.events().await?);
    Ok(())
}

#[tokio::test]
async fn a_question_writes_nothing_and_holds_nobody_up() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let first = with_key(command("a", None, 1), "k");
    let batch = [question("a", "x"), first.clone(), question("a", "y")];
    assert_eq!(
        log.append(&batch).await?,
        ["not written, newest v0", "written@1", "not written, newest v0"]
    );
    let batch = [question("a", "x"), question("b", "k"), after(&first, 1)];
    assert_eq!(
        log.append(&batch).await?,
        ["not written, newest v1", "known", "written@2"]
    );
    assert_eq!(log.events().await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn an_append_under_another_isolation_is_refused() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    for isolation in ["REPEATABLE READ", "SERIALIZABLE"] {
        log.connection
            .execute(AssertSqlSafe(format!("BEGIN ISOLATION LEVEL {isolation}")))
            .await?;
        let refused = append(&mut log.connection, 0, &[command("a", None, 1)]).await;
        assert!(matches!(refused, Err(AppendError::Unknown(_))), "{refused:?}");
        log.connection.execute("ROLLBACK").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_commit_is_flushed_whatever_the_database_has_for_a_default() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    log.connection.execute("SET synchronous_commit = off").await?;
    log.connection.execute("BEGIN").await?;
    log.append(&[command("a", None, 1)]).await?;
    let setting: String = sqlx::query_scalar("SHOW synchronous_commit")
        .fetch_one(&mut log.connection)
        .await?;
    assert_eq!(setting, "on");
    Ok(())
}

#[tokio::test]
async fn the_same_key_gives_the_first_receipt_and_with_other_content_it_is_refused() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let appender = log.appender(AppenderOptions::default()).await?;
    let first = with_key(command("a", None, 2), "k");
    let Verdict::Appended(receipt) = appender.append(first.clone()).await? else {
        panic!("it is new")
    };
    let again = appender.append(with_key(command("b", None, 1), "k")).await?;
    assert_eq!(
        again,
        Verdict::Replayed(receipt.clone()),
        "the receipt is that of the first command"
    );
    assert_eq!(
        appender.append(question("b", "k")).await?,
        Verdict::Replayed(receipt)
    );
    let mut other = with_key(after(&first, 1), "k");
    other.fingerprints = vec![8];
    assert_eq!(appender.append(other.clone()).await?, Verdict::KeyReused);
    // Under a new fingerprint key, what was remembered under the one before is still found.
    other.fingerprints.push(7);
    assert!(matches!(appender.append(other).await?, Verdict::Replayed(_)));
    let mut elsewhere = with_key(command("a", None, 2), "k");
    elsewhere.tenant_id = Uuid::from_u128(2);
    let elsewhere = appender.append(elsewhere).await?;
    assert!(
        matches!(elsewhere, Verdict::Appended(_)),
        "keys belong to a tenant: {elsewhere:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_refusal_by_the_domain_is_remembered_with_the_position_that_it_was_decided_on() -> anyhow::Result<()>
{
    let log = Log::new().await?;
    let appender = log.appender(AppenderOptions::default()).await?;
    appender.append(command("first", None, 3)).await?;
    let placed = command("a", None, 2);
    appender.append(placed.clone()).await?;
    let mut refusal = after(&placed, 0);
    decision_mut(&mut refusal).rejection = Some(r#"{"code":  "NO"}"#.to_owned());
    let Verdict::Appended(receipt) = appender.append(refusal.clone()).await? else {
        panic!("it is new")
    };
    appender.append(after(&placed, 1)).await?;
    assert_eq!(receipt.rejection.as_deref(), Some(r#"{"code":  "NO"}"#));
    assert_eq!((receipt.event_count, receipt.stream_version), (0, 2));
    assert_eq!(receipt.last_position(), Some(5));
    assert_eq!(appender.append(refusal).await?, Verdict::Replayed(receipt));
    Ok(())
}

/// The answer to a batch got lost, and it is sent again unchanged.
#[tokio::test]
async fn a_batch_that_was_committed_and_is_sent_again_is_recognised_by_its_events() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let first = command("a", None, 2);
    let batch = [first.clone(), after(&first, 1), command("b", None, 1)];
    log.append(&batch).await?;
    assert_eq!(log.append(&batch).await?, ["known"; 3]);
    let appender = log.appender(AppenderOptions::default()).await?;
    for (again, versions) in batch.into_iter().zip([2, 3, 1]) {
        let Verdict::Appended(receipt) = appender.append(again).await? else {
            panic!("it is this very decision that was recorded")
        };
        assert_eq!(receipt.stream_version, versions);
    }
    assert_eq!(log.events().await?.len(), 4);
    Ok(())
}

#[tokio::test]
async fn of_64_writers_who_race_on_20_streams_through_two_appenders_one_wins_each_version()
-> anyhow::Result<()> {
    const ROUNDS: usize = 40;
    let log = Log::new().await?;
    let appenders = [
        log.appender(AppenderOptions::default()).await?,
        log.appender(AppenderOptions::default()).await?,
    ];
    let mut writers = JoinSet::new();
    for writer in 0..64_usize {
        let appender = appenders[writer % 2].clone();
        writers.spawn(async move {
            let (mut won, mut lost) = (Vec::new(), 0_u32);
            let mut newest = HashMap::<String, Option<Uuid>>::new();
            for round in 0..ROUNDS {
                let stream = format!("stream-{}", (writer + round) % 20);
                let decided_on = newest.get(&stream).copied().flatten();
                let command = command(&stream, decided_on, 1);
                let leads_to = leads_to(&command);
                match appender.append(command).await.expect("the database answers") {
                    Verdict::Appended(receipt) => {
                        newest.insert(stream, leads_to);
                        won.push((
                            receipt.stream_id.to_string(),
                            receipt.stream_version,
                            receipt.first_position,
                        ));
                    }
                    Verdict::Conflict(actual) => {
                        assert_ne!(
                            actual.event_id, decided_on,
                            "a conflict is between different events"
                        );
                        newest.insert(stream, actual.event_id);
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

#[tokio::test]
async fn a_hundred_sends_of_one_command_at_once_append_it_once() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let appenders = [
        log.appender(AppenderOptions::default()).await?,
        log.appender(AppenderOptions::default()).await?,
    ];
    let mut sends = JoinSet::new();
    for send in 0..100_usize {
        let appender = appenders[send % 2].clone();
        // Each sender made an id of its own for the new stream: only the first one's counts.
        let command = with_key(command(&format!("stream-{send}"), None, 1), "the key");
        sends.spawn(async move { appender.append(command).await });
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

/// Submits all of them before the appender starts, so that they wait side by side; then what became of each.
async fn append_together(
    log: PostgresLog,
    options: AppenderOptions,
    commands: Vec<NewCommand>,
) -> Vec<Result<Verdict, Unanswered>> {
    let (appender, appending) = Appender::new(log, 0, options, None);
    let (sender, mut verdicts) = tokio::sync::mpsc::unbounded_channel();
    let count = commands.len();
    for (index, command) in commands.into_iter().enumerate() {
        let sender = sender.clone();
        appender.submit(
            command,
            Box::new(move |verdict| drop(sender.send((index, verdict)))),
        );
    }
    tokio::spawn(appending);
    let mut in_order = HashMap::new();
    while in_order.len() < count {
        let (index, verdict) = verdicts.recv().await.expect("the appender runs");
        in_order.insert(index, verdict);
    }
    (0..count).filter_map(|index| in_order.remove(&index)).collect()
}

/// The verdicts in short.
fn names(verdicts: &[Result<Verdict, Unanswered>]) -> Vec<&'static str> {
    let name = |verdict: &Result<Verdict, Unanswered>| match verdict {
        Ok(Verdict::Appended(_)) => "appended",
        Ok(Verdict::Conflict(_)) => "conflict",
        Ok(Verdict::Replayed(_)) => "replayed",
        Ok(Verdict::KeyReused) => "reused",
        Ok(Verdict::KeyIsNew(_)) => "new",
        Err(Unanswered::Refused(_)) => "refused",
        Err(Unanswered::Unknown(_) | Unanswered::Stopped) => "unknown",
    };
    verdicts.iter().map(name).collect()
}

fn spoil(command: &mut NewCommand) {
    decision_mut(command).events[0].payload = "{not json".to_owned();
}

#[tokio::test]
async fn data_that_postgres_cannot_store_spoils_its_own_command_only() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let mut bad = command("bad", None, 1);
    spoil(&mut bad);
    let commands = vec![command("a", None, 1), bad, command("b", None, 1)];
    let verdicts = append_together(log.database.log().await?, AppenderOptions::default(), commands).await;
    assert_eq!(names(&verdicts), ["appended", "refused", "appended"]);
    Ok(())
}

#[tokio::test]
async fn of_a_chain_that_cannot_be_stored_only_the_culprit_is_refused_and_all_behind_it_is_in_conflict()
-> anyhow::Result<()> {
    for culprit in 0..5 {
        let log = Log::new().await?;
        let mut chain = vec![command("a", None, 1)];
        while chain.len() < 5 {
            let next = after(chain.last().expect("there is one"), 1);
            chain.push(next);
        }
        spoil(&mut chain[culprit]);
        let verdicts = append_together(log.database.log().await?, AppenderOptions::default(), chain).await;
        let expected: Vec<_> = (0..5_usize)
            .map(|index| match index.cmp(&culprit) {
                std::cmp::Ordering::Less => "appended",
                std::cmp::Ordering::Equal => "refused",
                std::cmp::Ordering::Greater => "conflict",
            })
            .collect();
        assert_eq!(names(&verdicts), expected);
        assert_eq!(log.events().await?.len(), culprit);
    }
    Ok(())
}

#[tokio::test]
async fn a_chain_that_a_batch_cannot_hold_is_cut_at_its_tail_and_goes_on_in_the_next() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let mut chain = vec![command("a", None, 2)];
    while chain.len() < 7 {
        let next = after(chain.last().expect("there is one"), 2);
        chain.push(next);
    }
    let options = AppenderOptions {
        batch: BatchLimits {
            events_max: 5,
            ..AppenderOptions::default().batch
        },
        ..AppenderOptions::default()
    };
    let verdicts = append_together(log.database.log().await?, options, chain).await;
    assert_eq!(names(&verdicts), ["appended"; 7]);
    assert_dense(&log.events().await?);
    Ok(())
}

/// Two decisions that open one stream wait side by side: a second chain of a stream is for the next batch.
#[tokio::test]
async fn of_two_that_open_one_stream_at_once_one_is_in_conflict_and_nothing_else_is_harmed()
-> anyhow::Result<()> {
    let log = Log::new().await?;
    let (one, other) = (command("a", None, 1), command("a", None, 1));
    let commands = vec![
        one.clone(),
        other.clone(),
        command("b", None, 1),
        after(&one, 1),
        after(&other, 1),
    ];
    let verdicts = append_together(log.database.log().await?, AppenderOptions::default(), commands).await;
    // Behind the one that stays for the next batch all of its stream stays; by then the first is recorded.
    assert_eq!(
        names(&verdicts),
        ["appended", "conflict", "appended", "appended", "conflict"]
    );
    assert_dense(&log.events().await?);
    Ok(())
}

#[tokio::test]
async fn a_tenant_has_at_most_half_of_what_the_others_leave_and_is_refused_at_once() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let options = AppenderOptions {
        commands_max: 8,
        bytes_max: 1_000,
        ..AppenderOptions::default()
    };
    let appender = log.appender(options).await?;
    let (other, third) = (Uuid::from_u128(2), Uuid::from_u128(3));
    let refused = |tenant, bytes| appender.admit(tenant, bytes).err();
    let mut permits = Vec::new();
    for _ in 0..4 {
        permits.push(appender.admit(TENANT, 10)?);
    }
    assert_eq!(refused(TENANT, 10), Some(NotAdmitted::TenantShareFull));
    for _ in 0..2 {
        permits.push(appender.admit(other, 10)?);
    }
    assert_eq!(refused(other, 10), Some(NotAdmitted::TenantShareFull));
    permits.push(appender.admit(third, 10)?);
    assert_eq!(refused(third, 10), Some(NotAdmitted::TenantShareFull));
    permits.push(appender.admit(Uuid::from_u128(4), 10)?);
    assert_eq!(refused(Uuid::from_u128(5), 10), Some(NotAdmitted::Full));
    permits.clear();
    permits.push(appender.admit(TENANT, 450)?);
    assert_eq!(refused(TENANT, 100), Some(NotAdmitted::TenantShareFull));
    assert_eq!(refused(other, 600), Some(NotAdmitted::Full));
    permits.push(appender.admit(other, 270)?);
    Ok(())
}

/// A tenant whose commands fill each batch by their bytes keeps nobody else out.
#[tokio::test]
async fn a_tenant_that_fills_every_batch_lets_the_next_one_begin_with_another() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let quiet = Uuid::from_u128(2);
    let mut commands: Vec<_> = (0..12)
        .map(|number| command(&format!("loud-{number}"), None, 1))
        .collect();
    let mut last = command("quiet", None, 1);
    last.tenant_id = quiet;
    commands.push(last);
    let options = AppenderOptions {
        batch: BatchLimits {
            payload_bytes_max: 3 * 26,
            ..AppenderOptions::default().batch
        },
        ..AppenderOptions::default()
    };
    append_together(log.database.log().await?, options, commands).await;
    let events = log.events().await?;
    let of_quiet = events
        .iter()
        .find(|event| event.tenant_id == quiet)
        .expect("it was appended");
    assert!(
        of_quiet.position <= 6,
        "it waited behind {} others",
        of_quiet.position - 1
    );
    Ok(())
}

#[tokio::test]
async fn a_batch_takes_from_each_tenant_in_turn() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let quiet = Uuid::from_u128(2);
    let mut commands: Vec<_> = (0..20)
        .map(|number| command(&format!("loud-{number}"), None, 1))
        .collect();
    for number in 0..2 {
        let mut command = command(&format!("quiet-{number}"), None, 1);
        command.tenant_id = quiet;
        commands.push(command);
    }
    let options = AppenderOptions {
        batch: BatchLimits {
            commands_max: 4,
            ..AppenderOptions::default().batch
        },
        ..AppenderOptions::default()
    };
    append_together(log.database.log().await?, options, commands).await;
    let events = log.events().await?;
    let of_quiet: Vec<_> = events.iter().filter(|event| event.tenant_id == quiet).collect();
    assert!(
        of_quiet.iter().all(|event| event.position <= 4),
        "the quiet tenant waited for the loud one"
    );
    Ok(())
}

#[tokio::test]
async fn a_stream_is_read_both_ways_in_pages_and_by_its_tenant_alone() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    log.append(&[command("a", None, 25), command("b", None, 5)])
        .await?;
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
        log.append(&[command(&format!("a-{round}"), None, 3)]).await?;
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
    sqlx::raw_sql(
        "ALTER TABLE event_store.event DISABLE TRIGGER event_is_immutable;
         UPDATE event_store.event SET recorded_at = now() + interval '1 hour' WHERE position = 60",
    )
    .execute(&superuser)
    .await?;
    log.append(&[command("b", None, 1)]).await?;
    let newest = log.events().await?.pop().expect("there are events");
    assert!(newest.recorded_at > events[59].recorded_at + time::Duration::minutes(59));
    Ok(())
}

/// Whether a key is remembered.
async fn is_known(log: &mut Log, key: &str) -> anyhow::Result<bool> {
    Ok(log.append(&[question("nobody", key)]).await? == ["known"])
}

/// What a mark says that so much of the retention time has passed.
async fn pass(log: &Log, time: &str) -> anyhow::Result<()> {
    let mark = format!(
        "INSERT INTO event_store.key_mark (number, counted) SELECT max(number) + 1, '{time}' FROM event_store.key_mark"
    );
    sqlx::query(AssertSqlSafe(mark))
        .execute(&log.database.superuser().await?)
        .await?;
    Ok(())
}

#[tokio::test]
async fn keys_are_kept_for_the_retention_time_at_least_and_forgotten_after_two_turns() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let pool = log.database.pool("daybook_command").await?;
    log.append(&[with_key(command("a", None, 1), "first")]).await?;
    assert!(!keys::tend(&pool, 30).await?, "no time has passed");
    pass(&log, "30 days").await?;
    assert!(keys::tend(&pool, 30).await?);
    assert!(
        is_known(&mut log, "first").await?,
        "it may be no older than a moment"
    );
    log.append(&[with_key(command("b", None, 1), "second")]).await?;
    assert!(!keys::tend(&pool, 30).await?, "the count begins anew");
    pass(&log, "30 days").await?;
    assert!(keys::tend(&pool, 30).await?);
    assert!(!is_known(&mut log, "first").await?);
    assert!(is_known(&mut log, "second").await?);
    Ok(())
}

/// Both found that it is time; the one that waited for the other must not turn again.
#[tokio::test]
async fn two_who_turn_at_once_turn_once() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    log.append(&[with_key(command("a", None, 1), "young")]).await?;
    pass(&log, "30 days").await?;
    let superuser = log.database.superuser().await?;
    let mut first = superuser.begin().await?;
    let turn = "SELECT event_store.turn_keys(interval '30 days')";
    let turned: bool = sqlx::query_scalar(turn).fetch_one(&mut *first).await?;
    assert!(turned);
    let pool = superuser.clone();
    let second = tokio::spawn(async move {
        sqlx::query_scalar::<_, bool>("SELECT set_config('lock_timeout', '50ms', false) IS NOT NULL AND event_store.turn_keys(interval '30 days')")
            .fetch_one(&pool)
            .await
    });
    tokio::task::yield_now().await;
    first.commit().await?;
    assert!(!second.await??, "whoever came second had nothing to turn");
    assert!(is_known(&mut log, "young").await?);
    Ok(())
}

#[tokio::test]
async fn a_jump_of_the_clock_and_a_retention_that_is_none_empty_nothing() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let pool = log.database.pool("daybook_command").await?;
    log.append(&[with_key(command("a", None, 1), "k")]).await?;
    let superuser = log.database.superuser().await?;
    sqlx::query("UPDATE event_store.key_mark SET marked_at = marked_at - interval '10 years'")
        .execute(&superuser)
        .await?;
    assert!(
        !keys::tend(&pool, 30).await?,
        "ten years passed without a mark: two hours count"
    );
    assert!(keys::tend(&pool, 0).await.is_err());
    let nothing = sqlx::query("SELECT event_store.tend_keys(NULL)")
        .execute(&pool)
        .await;
    assert!(nothing.is_err());
    assert!(
        sqlx::query("SELECT event_store.turn_keys()")
            .execute(&pool)
            .await
            .is_err(),
        "not for services"
    );
    assert!(is_known(&mut log, "k").await?);
    Ok(())
}

#[tokio::test]
async fn no_login_role_rewrites_events_or_sees_another_tenants() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    log.append(&[command("a", None, 1)]).await?;
    let writes = [
        "UPDATE event_store.event SET payload = '{}'",
        "DELETE FROM event_store.event",
        "TRUNCATE event_store.event",
        "INSERT INTO event_store.event SELECT * FROM event_store.event",
        "UPDATE event_store.log SET generation = gen_random_uuid()",
        "TRUNCATE event_store.command_0",
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
    let (committed, mut handed_on) = tokio::sync::mpsc::channel(16);
    let options = AppenderOptions::default();
    let (appender, appending) = Appender::new(log.database.log().await?, 0, options, Some(committed));
    tokio::spawn(appending);
    let appender = Arc::new(appender);
    appender.append(command("a", None, 2)).await?;
    appender.append(command("b", None, 1)).await?;
    let mut events = Vec::new();
    while events.len() < 3 {
        events.extend(handed_on.recv().await.expect("the appender runs").events);
    }
    assert_eq!(events, log.events().await?);
    Ok(())
}
