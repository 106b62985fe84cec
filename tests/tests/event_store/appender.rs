//! The appender: many commands in few batches, sent again, divided and cut, fair between tenants.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use daybook_devstack::{Postgres, PostgresOptions};
use daybook_event_store::{
    Answer, Appender, AppenderOptions, BatchLimits, NewCommand, NotAdmitted, PostgresLog, RecordedEvent,
    Unanswered, Verdict,
};
use daybook_tests::database::Database;
use daybook_tests::log::append_one;
use daybook_tests::wait;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use time::OffsetDateTime;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Log, TENANT, after, assert_dense, command, decision_mut, leads_to, with_key};

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
        let Verdict::Appended(receipt) = append_one(&appender, again).await? else {
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
                let verdict = append_one(&appender, command).await;
                match verdict.expect("the database answers") {
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
    assert_eq!(recorded, won.into_iter().collect(), "the writers were told");
    Ok(())
}

/// Submits all of them before the appender starts, so that they wait side by side; then what became of each.
async fn append_together(
    log: PostgresLog,
    options: AppenderOptions,
    commands: Vec<NewCommand>,
) -> Vec<Result<Verdict, Unanswered>> {
    let (appender, appending) = Appender::new(log, 0, options, None);
    let count = commands.len();
    let (sender, mut verdicts) = tokio::sync::mpsc::channel(count);
    for (index, command) in commands.into_iter().enumerate() {
        let sender = sender.clone();
        appender.submit(
            command,
            Box::new(move |verdict| drop(sender.try_send((index, verdict)))),
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

/// Submits commands all of which open streams of their own; the second, third and fourth are to stand together.
async fn append_with_group(
    log: PostgresLog,
    options: AppenderOptions,
    mut commands: Vec<NewCommand>,
) -> Vec<Result<Verdict, Unanswered>> {
    let (appender, appending) = Appender::new(log, 0, options, None);
    let (sender, mut verdicts) = tokio::sync::mpsc::channel(commands.len());
    let count = commands.len();
    let answer = |index: usize| -> Box<dyn Answer> {
        let sender = sender.clone();
        Box::new(move |verdict| drop(sender.try_send((index, verdict))))
    };
    let behind = commands.split_off(4);
    let group = commands.split_off(1);
    commands
        .into_iter()
        .for_each(|first| appender.submit(first, answer(0)));
    appender.submit_together(
        (1..)
            .zip(group)
            .map(|(index, one)| (one, answer(index)))
            .collect(),
    );
    for (index, one) in (4..).zip(behind) {
        appender.submit(one, answer(index));
    }
    tokio::spawn(appending);
    let mut in_order = HashMap::new();
    while in_order.len() < count {
        let (index, verdict) = verdicts.recv().await.expect("the appender runs");
        in_order.insert(index, verdict);
    }
    (0..count).filter_map(|index| in_order.remove(&index)).collect()
}

fn openers() -> Vec<NewCommand> {
    let streams = ["a", "b", "c", "d", "e", "f"];
    streams.map(|stream| command(stream, None, 1)).into()
}

#[tokio::test]
async fn a_group_goes_into_one_batch_however_small_batches_are_and_is_never_divided() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let small = AppenderOptions {
        batch: BatchLimits {
            commands_max: 2,
            ..AppenderOptions::default().batch
        },
        ..AppenderOptions::default()
    };
    let verdicts = append_with_group(log.database.log().await?, small.clone(), openers()).await;
    assert_eq!(names(&verdicts), ["appended"; 6]);
    let recorded_at = |stream: &str, events: &[RecordedEvent]| {
        let event = events.iter().find(|event| event.stream_id == stream);
        event.map(|event| event.recorded_at)
    };
    let events = log.events().await?;
    let of_group = ["b", "c", "d"].map(|stream| recorded_at(stream, &events));
    assert!(
        of_group[0].is_some() && of_group.iter().all(|at| *at == of_group[0]),
        "one transaction"
    );

    for options in [small, AppenderOptions::default()] {
        let log = Log::new().await?;
        let mut commands = openers();
        spoil(&mut commands[2]);
        let verdicts = append_with_group(log.database.log().await?, options, commands).await;
        assert_eq!(
            names(&verdicts),
            [
                "appended", "refused", "refused", "refused", "appended", "appended"
            ]
        );
        assert_eq!(log.events().await?.len(), 3);
    }
    Ok(())
}

#[tokio::test]
async fn a_group_with_a_known_key_or_a_stream_that_is_there_waits_for_nobody_and_writes_nothing()
-> anyhow::Result<()> {
    let log = Log::new().await?;
    let mut commands = openers();
    commands[0] = with_key(command("c", None, 1), "k");
    let verdicts = append_with_group(log.database.log().await?, AppenderOptions::default(), commands).await;
    let expected = [
        "appended", "conflict", "conflict", "conflict", "appended", "appended",
    ];
    assert_eq!(
        names(&verdicts),
        expected,
        "the stream that came before it in the queue"
    );
    let mut commands = openers();
    commands[0].stream_id = "z".into();
    // Another decision than the one that is known: this is no attempt of the same append.
    commands[2] = with_key(command("y", None, 1), "k");
    commands[4].stream_id = "x".into();
    commands[5].stream_id = "w".into();
    let verdicts = append_with_group(log.database.log().await?, AppenderOptions::default(), commands).await;
    let expected = [
        "appended", "conflict", "replayed", "conflict", "appended", "appended",
    ];
    assert_eq!(names(&verdicts), expected);
    assert_eq!(log.events().await?.len(), 6);
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
    assert_eq!(appender.metrics().free.get(), 0);
    permits.clear();
    assert_eq!(appender.metrics().free.get(), 8);
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
async fn committed_events_are_handed_on_as_the_log_holds_them() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let (committed, mut handed_on) = tokio::sync::mpsc::channel(16);
    let options = AppenderOptions::default();
    let (appender, appending) = Appender::new(log.database.log().await?, 0, options, Some(committed));
    tokio::spawn(appending);
    let appender = Arc::new(appender);
    append_one(&appender, command("a", None, 2)).await?;
    append_one(&appender, command("b", None, 1)).await?;
    let mut events = Vec::new();
    while events.len() < 3 {
        events.extend(handed_on.recv().await.expect("the appender runs").events);
    }
    assert_eq!(events, log.events().await?);
    Ok(())
}

/// The sessions that are appending: since when they are there, and since when they have had this batch.
async fn appending(superuser: &PgPool) -> sqlx::Result<Vec<(OffsetDateTime, OffsetDateTime)>> {
    sqlx::query_as(
        "SELECT backend_start, query_start FROM pg_stat_activity
         WHERE usename = 'daybook_command' AND datname = current_database()
           AND state = 'active' AND query LIKE '%event_store.append(%'",
    )
    .fetch_all(superuser)
    .await
}

/// An attempt that was given up must not be committed after something was answered on the strength of another one.
#[tokio::test]
async fn before_a_batch_is_sent_again_the_session_that_had_it_is_ended() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let superuser = log.database.superuser().await?;
    // Who has the lock and does not come to an end is not answered in time.
    sqlx::raw_sql(
        "CREATE TABLE slow AS SELECT;
         CREATE FUNCTION wait_while_slow() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
         BEGIN
             WHILE EXISTS (SELECT FROM public.slow) LOOP PERFORM pg_sleep(0.01); END LOOP;
             RETURN NULL;
         END $$;
         CREATE TRIGGER wait_while_slow AFTER INSERT ON event_store.event
         FOR EACH STATEMENT EXECUTE FUNCTION wait_while_slow()",
    )
    .execute(&superuser)
    .await?;
    let appender = log.appender(AppenderOptions::default()).await?;
    let answer = tokio::spawn({
        let appender = appender.clone();
        async move { append_one(&appender, command("a", None, 1)).await }
    });
    let (first, _) = wait::value("a session has the batch", async || {
        Ok(appending(&superuser).await?.pop())
    })
    .await?;
    wait::until("it is sent again, and nobody else has it", async || {
        let sessions = appending(&superuser).await?;
        anyhow::ensure!(sessions.len() <= 1, "two sessions have it: {sessions:?}");
        let session = sessions.first();
        Ok(session.is_some_and(|(since, _)| *since != first))
    })
    .await?;
    sqlx::raw_sql("DELETE FROM slow").execute(&superuser).await?;
    assert!(matches!(answer.await??, Verdict::Appended(_)));
    assert_eq!(log.events().await?.len(), 1);
    Ok(())
}

/// Behind the batches of many replicas the lock takes its time. Whoever began anew for that would never get it.
#[tokio::test]
async fn a_batch_that_does_not_get_the_lock_in_time_is_sent_again_through_the_same_session()
-> anyhow::Result<()> {
    let log = Log::new().await?;
    let superuser = log.database.superuser().await?;
    let mut connection = superuser.acquire().await?;
    let mut holder = connection.begin().await?;
    sqlx::raw_sql(
        "SET LOCAL idle_in_transaction_session_timeout = 0; SELECT FROM event_store.log FOR UPDATE",
    )
    .execute(&mut *holder)
    .await?;
    let appender = log.appender(AppenderOptions::default()).await?;
    let answer = tokio::spawn({
        let appender = appender.clone();
        async move { append_one(&appender, command("a", None, 1)).await }
    });
    let first = wait::value("the batch waits for the lock", async || {
        Ok(appending(&superuser).await?.pop())
    })
    .await?;
    let mut sent = HashSet::new();
    wait::until("it is sent again and again", async || {
        for (session, sent_at) in appending(&superuser).await? {
            anyhow::ensure!(session == first.0, "its session was ended");
            sent.insert(sent_at);
        }
        Ok(sent.len() >= 4)
    })
    .await?;
    holder.rollback().await?;
    assert!(matches!(answer.await??, Verdict::Appended(_)));
    assert_eq!(appender.metrics().retries.get(), 0);
    assert_eq!(log.events().await?.len(), 1);
    Ok(())
}

/// A batch that waits for the synchronous standby is committed on the primary alone. Ending its session would show it.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_waits_for_the_standby_is_not_shown_before_the_standby_has_it() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let postgres = Postgres::start(PostgresOptions::new(directory.path().join("postgres"))).await?;
    let database = Database::create_on(postgres.cluster().clone()).await?;
    database.add_tenants(&[TENANT]).await?;
    let superuser = database.superuser().await?;
    let events =
        || sqlx::query_scalar::<_, i64>("SELECT count(*) FROM event_store.event").fetch_one(&superuser);
    let set_standby = async |name: &str| {
        let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&superuser).await?;
        sqlx::query("SELECT pg_reload_conf()").execute(&superuser).await
    };
    let (appender, appending) = Appender::new(database.log().await?, 0, AppenderOptions::default(), None);
    tokio::spawn(appending);
    assert!(matches!(
        append_one(&appender, command("a", None, 1)).await?,
        Verdict::Appended(_)
    ));
    set_standby("nobody").await?;
    // A reload is in force some time later: once a commit waits.
    let commits = tokio::spawn({
        let superuser = superuser.clone();
        let commit = "CREATE TABLE probe (); DROP TABLE probe";
        async move { while sqlx::raw_sql(commit).execute(&superuser).await.is_ok() {} }
    });
    wait::until("a commit waits for the standby", async || {
        let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let waits: bool = sqlx::query_scalar(waits).fetch_one(&superuser).await?;
        Ok(waits)
    })
    .await?;
    commits.abort();
    let waiting = tokio::spawn({
        let appender = appender.clone();
        async move { append_one(&appender, command("b", None, 1)).await }
    });
    wait::until("it could not be sent again three times", async || {
        anyhow::ensure!(events().await? == 1, "it is shown");
        let retries = appender.metrics().retries.get();
        Ok(retries >= 3 || waiting.is_finished())
    })
    .await?;
    set_standby("").await?;
    assert!(matches!(waiting.await??, Verdict::Appended(_)));
    assert_eq!(events().await?, 2);
    Ok(())
}

#[tokio::test]
async fn appends_succeed_whatever_isolation_a_database_has_as_its_default() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let pin = "DO $$ BEGIN EXECUTE format(
        'ALTER DATABASE %I SET default_transaction_isolation = ''repeatable read''', current_database()); END $$";
    sqlx::raw_sql(pin)
        .execute(&log.database.superuser().await?)
        .await?;
    let appender = log.appender(AppenderOptions::default()).await?;
    assert!(matches!(
        append_one(&appender, command("a", None, 1)).await?,
        Verdict::Appended(_)
    ));
    // Where nobody pins it the function refuses: it would judge by a snapshot from before it had the lock.
    log.connection = PgConnection::connect(&log.database.url("daybook_command")).await?;
    assert!(log.append(&[command("b", None, 1)]).await.is_err());
    Ok(())
}
