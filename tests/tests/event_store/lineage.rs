//! Epochs of the log: what opens one, and what goes on.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use daybook_event_store::{Appender, AppenderOptions, EventStore, SeenEpoch, Verdict, Witnesses, append};
use daybook_tests::log::append_one;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::{Log, command, with_key};

/// Connects without remembering anything; says why an epoch was opened.
async fn attach(log: &Log) -> anyhow::Result<Option<String>> {
    let store = EventStore::new(log.database.pool("daybook_command").await?);
    Ok(store.attach(0, Witnesses::default(), 0).await?.opened)
}

async fn head(log: &Log) -> anyhow::Result<daybook_event_store::LogHead> {
    let store = EventStore::new(log.database.pool("daybook_publisher").await?);
    Ok(store.head(0).await?)
}

/// Takes the newest events away, as a backup or a disk image of an earlier moment does.
async fn set_back(log: &Log, to: i64) -> anyhow::Result<()> {
    let superuser = log.database.superuser().await?;
    sqlx::raw_sql("ALTER TABLE event_store.event DISABLE TRIGGER event_is_immutable")
        .execute(&superuser)
        .await?;
    for table in ["event", "command"] {
        let delete = format!("DELETE FROM event_store.{table} WHERE position > {to}");
        sqlx::query(sqlx::AssertSqlSafe(delete))
            .execute(&superuser)
            .await?;
    }
    sqlx::raw_sql("ALTER TABLE event_store.event ENABLE TRIGGER event_is_immutable")
        .execute(&superuser)
        .await?;
    Ok(())
}

/// Ends the appenders' sessions, as a server does that goes away.
async fn end_sessions(log: &Log) -> anyhow::Result<()> {
    let superuser = log.database.superuser().await?;
    sqlx::query(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
         WHERE usename = 'daybook_command' AND datname = current_database()",
    )
    .execute(&superuser)
    .await?;
    Ok(())
}

/// An appender of a process that notes the epochs that it meets in `seen`.
async fn appender_with(log: &Log, seen: &SeenEpoch) -> anyhow::Result<Appender> {
    let options = AppenderOptions {
        retry_for: Duration::from_millis(500),
        ..AppenderOptions::default()
    };
    let postgres = log.database.log_with(seen.clone()).await?;
    let (appender, appending) = Appender::new(postgres, 0, options, None);
    tokio::spawn(appending);
    Ok(appender)
}

fn is_appended(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Appended(_))
}

#[tokio::test]
async fn a_copy_of_the_database_goes_on_in_an_epoch_of_its_own() -> anyhow::Result<()> {
    let log = Log::new().await?;
    // As it is where the log was copied from.
    sqlx::query("UPDATE event_store.epoch SET database = 0")
        .execute(&log.database.superuser().await?)
        .await?;
    let before = head(&log).await?;
    let opened = attach(&log).await?;
    ensure!(
        opened.as_deref() == Some("the log was restored in another database"),
        "{opened:?}"
    );
    let after = head(&log).await?;
    assert_eq!(after.epoch.number, before.epoch.number + 1);
    assert_ne!(after.epoch.generation, before.epoch.generation);
    // And whoever comes next finds all as it should be.
    assert_eq!(attach(&log).await?, None);
    Ok(())
}

#[tokio::test]
async fn an_append_on_another_timeline_writes_nothing_and_the_appender_opens_the_next_epoch()
-> anyhow::Result<()> {
    let mut log = Log::new().await?;
    let appender = log.appender(AppenderOptions::default()).await?;
    ensure!(is_appended(&append_one(&appender, command("a", None, 1)).await?));
    let before = head(&log).await?;

    // What a session finds that has lived through a promotion.
    let superuser = log.database.superuser().await?;
    for table in ["log", "epoch"] {
        let update = format!("UPDATE event_store.{table} SET timeline = '000000FF'");
        sqlx::query(sqlx::AssertSqlSafe(update))
            .execute(&superuser)
            .await?;
    }
    let refused = append(&mut log.connection, 0, &[command("b", None, 1)]).await;
    ensure!(
        matches!(refused, Err(daybook_event_store::AppendError::EpochOver(_))),
        "{refused:?}"
    );
    assert_eq!(head(&log).await?.position, 1);

    ensure!(is_appended(&append_one(&appender, command("c", None, 1)).await?));
    let after = head(&log).await?;
    assert_eq!((after.epoch.number, after.position), (before.epoch.number + 1, 2));
    let store = EventStore::new(log.database.pool("daybook_publisher").await?);
    let lineage = store.lineage(0).await?;
    assert_eq!(lineage.valid_up_to(before.epoch.generation), Some(1));
    Ok(())
}

#[tokio::test]
async fn a_receipt_is_the_same_after_the_log_has_gone_on_in_other_epochs() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let appender = log.appender(AppenderOptions::default()).await?;
    let superuser = log.database.superuser().await?;
    let mut commands = Vec::new();
    for name in ["a", "b", "c"] {
        let sent = with_key(command(name, None, 2), name);
        let Verdict::Appended(receipt) = append_one(&appender, sent).await? else {
            panic!("it is new")
        };
        commands.push((name, receipt));
        sqlx::query("SELECT event_store.fork(0, 0, 'a test')")
            .execute(&superuser)
            .await?;
    }
    let epochs: Vec<i32> = commands.iter().map(|(_, receipt)| receipt.epoch.number).collect();
    assert!(
        epochs.iter().zip(epochs[0]..).all(|(epoch, next)| *epoch == next),
        "{epochs:?}"
    );
    for (name, receipt) in commands {
        let again = append_one(&appender, with_key(command(name, None, 2), name)).await?;
        assert_eq!(again, Verdict::Replayed(receipt));
    }
    Ok(())
}

#[tokio::test]
async fn an_appender_that_remembers_more_than_the_log_has_opens_the_next_epoch_at_the_fork()
-> anyhow::Result<()> {
    for grown in [false, true] {
        let log = Log::new().await?;
        let appender = log.appender(AppenderOptions::default()).await?;
        for number in 0..10 {
            let verdict = append_one(&appender, command(&format!("{number}"), None, 1)).await?;
            ensure!(is_appended(&verdict));
        }
        let before = head(&log).await?;
        set_back(&log, 4).await?;
        if grown {
            // Somebody who remembers nothing has gone on since.
            let another = log.appender(AppenderOptions::default()).await?;
            for number in 0..10 {
                append_one(&another, command(&format!("another-{number}"), None, 1)).await?;
            }
        }
        end_sessions(&log).await?;
        ensure!(is_appended(
            &append_one(&appender, command("next", None, 1)).await?
        ));
        let after = head(&log).await?;
        assert_eq!(
            after.epoch.number,
            before.epoch.number + 1,
            "one epoch, whoever finds the fork"
        );
        let store = EventStore::new(log.database.pool("daybook_publisher").await?);
        let lineage = store.lineage(0).await?;
        assert_eq!(lineage.valid_up_to(before.epoch.generation), Some(4));
    }
    Ok(())
}

#[tokio::test]
async fn many_who_find_the_same_fork_open_one_epoch() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let mut appenders = Vec::new();
    for number in 0..8 {
        let appender = log.appender(AppenderOptions::default()).await?;
        ensure!(is_appended(
            &append_one(&appender, command(&format!("before-{number}"), None, 1)).await?
        ));
        appenders.push(appender);
    }
    let before = head(&log).await?;
    set_back(&log, 0).await?;
    end_sessions(&log).await?;
    let appends = appenders.iter().enumerate().map(|(number, appender)| async move {
        append_one(appender, command(&format!("after-{number}"), None, 1)).await
    });
    for verdict in futures::future::join_all(appends).await {
        ensure!(is_appended(&verdict?));
    }
    assert_eq!(head(&log).await?.epoch.number, before.epoch.number + 1);
    Ok(())
}

#[tokio::test]
async fn an_appender_whose_log_was_superseded_writes_nothing() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let seen = SeenEpoch::default();
    let appender = appender_with(&log, &seen).await?;
    ensure!(is_appended(&append_one(&appender, command("a", None, 1)).await?));
    let mut later = head(&log).await?.epoch;
    later.number += 1;
    seen.note(later);
    let refused = append_one(&appender, command("b", None, 1)).await;
    ensure!(refused.is_err(), "{refused:?}");
    assert_eq!(head(&log).await?.position, 1);
    Ok(())
}

/// A server that was left behind, and to which a connection leads once more.
#[tokio::test]
async fn whoever_has_worked_in_a_later_epoch_opens_none_in_a_log_that_was_left_behind() -> anyhow::Result<()>
{
    let log = Log::new().await?;
    let seen = SeenEpoch::default();
    let appender = appender_with(&log, &seen).await?;
    let before = head(&log).await?;
    let superuser = log.database.superuser().await?;
    sqlx::query("SELECT event_store.fork(0, 0, 'a promotion')")
        .execute(&superuser)
        .await?;
    ensure!(is_appended(&append_one(&appender, command("a", None, 1)).await?));
    assert_eq!(seen.latest(), head(&log).await?.epoch);

    // What the old primary has: nothing of the promotion, and nothing that came after it.
    set_back(&log, 0).await?;
    sqlx::query("DELETE FROM event_store.epoch WHERE number > $1")
        .bind(before.epoch.number)
        .execute(&superuser)
        .await?;
    sqlx::query("UPDATE event_store.log SET epoch = $1, generation = $2")
        .bind(before.epoch.number)
        .bind(before.epoch.generation)
        .execute(&superuser)
        .await?;
    end_sessions(&log).await?;
    let refused = append_one(&appender, command("b", None, 1)).await;
    ensure!(refused.is_err(), "{refused:?}");
    let after = head(&log).await?;
    assert_eq!((after.epoch, after.position), (before.epoch, 0));

    // Where it was the administrator who put old data back, the next epoch is above all that were seen.
    let above = seen.latest().number;
    sqlx::query("SELECT event_store.fork(0, $1, 'old data were put back')")
        .bind(above)
        .execute(&superuser)
        .await?;
    ensure!(is_appended(&append_one(&appender, command("c", None, 1)).await?));
    assert_eq!(head(&log).await?.epoch.number, above + 1);
    Ok(())
}

/// A session may attach before somebody else opens the next epoch.
#[tokio::test]
async fn what_was_recorded_in_an_epoch_that_others_opened_is_missed_in_it() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let appender = log.appender(AppenderOptions::default()).await?;
    ensure!(is_appended(&append_one(&appender, command("a", None, 1)).await?));
    let superuser = log.database.superuser().await?;
    sqlx::query("SELECT event_store.fork(0, 0, 'by somebody else')")
        .execute(&superuser)
        .await?;
    for number in 0..10 {
        let verdict = append_one(&appender, command(&format!("{number}"), None, 1)).await?;
        ensure!(is_appended(&verdict));
    }
    let before = head(&log).await?;
    set_back(&log, 6).await?;
    end_sessions(&log).await?;
    ensure!(is_appended(
        &append_one(&appender, command("next", None, 1)).await?
    ));
    assert_eq!(head(&log).await?.epoch.number, before.epoch.number + 1);
    Ok(())
}

/// The publisher knows of the stream, and the appender of nothing.
#[tokio::test]
async fn the_first_append_of_a_process_waits_for_the_publishers_first_look() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let before = head(&log).await?;
    let seen = SeenEpoch::with_publisher();
    let appender = appender_with(&log, &seen).await?;
    let append = tokio::spawn({
        let appender = appender.clone();
        async move { append_one(&appender, command("a", None, 1)).await }
    });
    // What the publisher does when it finds the stream ahead.
    let store = EventStore::new(log.database.pool("daybook_command").await?);
    let witness = Witnesses::of_stream(before.epoch.generation, (7, Uuid::now_v7()), None);
    store.attach(0, witness, 0).await?;
    assert_eq!(head(&log).await?.position, 0);
    seen.note_look();
    ensure!(is_appended(&append.await??));
    let lineage = store.lineage(0).await?;
    assert_eq!(lineage.valid_up_to(before.epoch.generation), Some(0));
    Ok(())
}

#[tokio::test]
async fn an_epoch_is_opened_under_read_committed_only() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let mut connection = PgConnection::connect(&log.database.url("daybook_command")).await?;
    let mut transaction = connection
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ")
        .await?;
    let refused = sqlx::query("SELECT * FROM event_store.attach(0, NULL, '{}', '{}', 0)")
        .execute(&mut *transaction)
        .await;
    let error = refused.err().context("it is refused")?;
    let code = error.as_database_error().and_then(|error| error.code());
    assert_eq!(code.as_deref(), Some("25000"));
    Ok(())
}

#[tokio::test]
async fn only_those_who_write_may_open_an_epoch() -> anyhow::Result<()> {
    let log = Log::new().await?;
    for role in ["daybook_publisher", "daybook_projector", "daybook_query"] {
        let mut connection = PgConnection::connect(&log.database.url(role)).await?;
        let refused = sqlx::query("SELECT * FROM event_store.attach(0, NULL, '{}', '{}', 0)")
            .execute(&mut connection)
            .await;
        ensure!(refused.is_err(), "{role} may");
    }
    Ok(())
}
