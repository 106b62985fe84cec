//! Idempotency keys: what is remembered under them, and for how long.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use daybook_event_store::keys::{self, KeyTurn};
use daybook_event_store::{AppenderOptions, Verdict};
use daybook_tests::log::append_one;
use daybook_tests::wait;
use sqlx::{AssertSqlSafe, Connection as _};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Log, after, assert_dense, command, decision_mut, question, with_key};

#[tokio::test]
async fn the_same_key_gives_the_first_receipt_and_with_other_content_it_is_refused() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let appender = log.appender(AppenderOptions::default()).await?;
    let first = with_key(command("a", None, 2), "k");
    let Verdict::Appended(receipt) = append_one(&appender, first.clone()).await? else {
        panic!("it is new")
    };
    let again = append_one(&appender, with_key(command("b", None, 1), "k")).await?;
    assert_eq!(
        again,
        Verdict::Replayed(receipt.clone()),
        "the receipt is that of the first command"
    );
    assert_eq!(
        append_one(&appender, question("b", "k")).await?,
        Verdict::Replayed(receipt)
    );
    let mut other = with_key(after(&first, 1), "k");
    other.fingerprints = vec![8];
    assert_eq!(append_one(&appender, other.clone()).await?, Verdict::KeyReused);
    // Under a new fingerprint key, what was remembered under the one before is still found.
    other.fingerprints.push(7);
    assert!(matches!(
        append_one(&appender, other).await?,
        Verdict::Replayed(_)
    ));
    let mut elsewhere = with_key(command("a", None, 2), "k");
    elsewhere.tenant_id = Uuid::from_u128(2);
    let elsewhere = append_one(&appender, elsewhere).await?;
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
    append_one(&appender, command("first", None, 3)).await?;
    let placed = command("a", None, 2);
    append_one(&appender, placed.clone()).await?;
    let mut refusal = after(&placed, 0);
    decision_mut(&mut refusal).rejection = Some(r#"{"code":  "NO"}"#.to_owned());
    let Verdict::Appended(receipt) = append_one(&appender, refusal.clone()).await? else {
        panic!("it is new")
    };
    append_one(&appender, after(&placed, 1)).await?;
    assert_eq!(receipt.rejection.as_deref(), Some(r#"{"code":  "NO"}"#));
    assert_eq!((receipt.event_count, receipt.stream_version), (0, 2));
    assert_eq!(receipt.last_position(), Some(5));
    assert_eq!(append_one(&appender, refusal).await?, Verdict::Replayed(receipt));
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
        sends.spawn(async move { append_one(&appender, command).await });
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
    assert_eq!(keys::tend(&pool, 30).await?, KeyTurn::Early);
    pass(&log, "30 days").await?;
    let mut connection = log.database.superuser().await?.acquire().await?;
    let mut reader = connection.begin().await?;
    sqlx::query("SELECT FROM event_store.command_1 LIMIT 1")
        .execute(&mut *reader)
        .await?;
    assert_eq!(keys::tend(&pool, 30).await?, KeyTurn::InUse);
    reader.rollback().await?;
    assert_eq!(keys::tend(&pool, 30).await?, KeyTurn::Turned);
    assert!(
        is_known(&mut log, "first").await?,
        "it may be no older than a moment"
    );
    log.append(&[with_key(command("b", None, 1), "second")]).await?;
    assert_eq!(
        keys::tend(&pool, 30).await?,
        KeyTurn::Early,
        "the count begins anew"
    );
    pass(&log, "30 days").await?;
    assert_eq!(keys::tend(&pool, 30).await?, KeyTurn::Turned);
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
    let mut connection = superuser.acquire().await?;
    let mut first = connection.begin().await?;
    let turn = "SELECT event_store.turn_keys(interval '30 days')";
    let turned: KeyTurn = sqlx::query_scalar(turn).fetch_one(&mut *first).await?;
    assert_eq!(turned, KeyTurn::Turned);
    let pool = superuser.clone();
    let second = tokio::spawn(async move {
        let turned = sqlx::query_scalar::<_, KeyTurn>(turn);
        turned.fetch_one(&pool).await
    });
    tokio::task::yield_now().await;
    first.commit().await?;
    assert_ne!(
        second.await??,
        KeyTurn::Turned,
        "whoever came second had nothing to turn"
    );
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
    assert_eq!(
        keys::tend(&pool, 30).await?,
        KeyTurn::Early,
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

/// A command that is recorded is answered, although the first read of its receipt fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_that_could_not_be_read_is_read_again() -> anyhow::Result<()> {
    let log = Log::new().await?;
    let appender = log.appender(AppenderOptions::default()).await?;
    let command = with_key(command("one", None, 1), "key");
    let Verdict::Appended(first) = append_one(&appender, command.clone()).await? else {
        panic!("it is new");
    };
    let superuser = log.database.superuser().await?;
    sqlx::raw_sql("REVOKE EXECUTE ON FUNCTION event_store.receipts FROM daybook_command")
        .execute(&superuser)
        .await?;
    let again = tokio::spawn({
        let (appender, mut again) = (appender.clone(), command);
        // Another decision, so that it is the key that is known.
        decision_mut(&mut again).events[0].event_id = Uuid::from_u128(7);
        async move { append_one(&appender, again).await }
    });
    wait::until("the receipt could not be read", async || {
        let retries = appender.metrics().receipt_retries.get();
        Ok(retries > 0 || again.is_finished())
    })
    .await?;
    sqlx::raw_sql("GRANT EXECUTE ON FUNCTION event_store.receipts TO daybook_command")
        .execute(&superuser)
        .await?;
    assert_eq!(again.await??, Verdict::Replayed(first));
    let resent = appender.metrics().retries.get();
    assert_eq!(
        resent, 0,
        "a receipt that is read again is no batch that is sent again"
    );
    Ok(())
}

/// Appends go on while the tables take turns, and each key is in the table that was current when it was written.
#[tokio::test(flavor = "multi_thread")]
async fn tables_take_turns_under_load_and_no_key_since_the_turn_before_is_lost() -> anyhow::Result<()> {
    const TURNS: usize = 12;
    let log = Log::new().await?;
    let stop = CancellationToken::new();
    let mut writers = JoinSet::new();
    for _ in 0..2 {
        let appender = log.appender(AppenderOptions::default()).await?;
        for writer in 0..8 {
            let (appender, stop) = (appender.clone(), stop.clone());
            writers.spawn(async move {
                let mut keys = Vec::new();
                while !stop.is_cancelled() {
                    let command = command(&format!("{writer}-{}", Uuid::now_v7()), None, 1);
                    keys.push((Instant::now(), Arc::clone(&command.key)));
                    append_one(&appender, command).await?;
                }
                anyhow::Ok(keys)
            });
        }
    }
    let pool = log.database.pool("daybook_command").await?;
    let mut turned_at = Vec::new();
    wait::until("the tables take turns under load", async || {
        pass(&log, "30 days").await?;
        if keys::tend(&pool, 30).await? == KeyTurn::Turned {
            turned_at.push(Instant::now());
        }
        Ok(turned_at.len() == TURNS)
    })
    .await?;
    // The last turn emptied the table that had no new keys since the one before.
    let kept_since = turned_at[TURNS - 2];
    stop.cancel();
    let mut log = log;
    let mut young = 0;
    for written in writers.join_all().await {
        for (_, key) in written?.into_iter().filter(|(at, _)| *at >= kept_since) {
            assert!(is_known(&mut log, &key).await?, "{key} is forgotten");
            young += 1;
        }
    }
    assert!(young > 0, "nothing was written between the last two turns");
    let in_both: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM event_store.command_0 JOIN event_store.command_1 USING (partition, tenant_number, key)",
    )
    .fetch_one(&log.database.superuser().await?)
    .await?;
    assert_eq!(in_both, 0);
    assert_dense(&log.events().await?);
    Ok(())
}
