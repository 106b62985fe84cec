//! Who works on imports: one service at a time, another one when that is gone, and nobody for a caller who is gone.

use std::time::Duration;

use anyhow::Context as _;
use daybook_devstack::process::Signal;
use daybook_tests::orders::new_key;
use daybook_tests::stack::Backend;
use daybook_tests::tenant::Tenant;
use daybook_tests::wait;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use crate::operation::{Row, UNKNOWN_KIND, chunks_left, ended, get, orders, placed, rest, taken};

/// An import of which a part is done when its service gets a signal is done by another one.
async fn taken_over(signal: Signal) -> anyhow::Result<()> {
    const ORDERS: usize = 20_000;
    let mut backend = Backend::start(2).await?;
    let (doomed, other) = (rest(&backend, 0), rest(&backend, 1));
    let location = taken(&doomed, &new_key(), &orders(ORDERS)).await?;
    wait::until("some of it is done", async || {
        let operation = get(&other, &location).await?;
        Ok(operation["progress"]["lines_read"].as_u64().unwrap_or_default() > 0)
    })
    .await?;
    let working =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'daybook-operation' AND pid IN
                   (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted)";
    let working: i64 = sqlx::query_scalar(working).fetch_one(&backend.superuser).await?;
    assert_eq!(working, 1, "one of two works on it");
    let process = backend.commands[0].service.process_id().context("it runs")?;
    process.signal(signal);
    if signal == Signal::KILL {
        backend.commands[0].service.stop().await?;
    }
    let operation = ended(&other, &location).await?;
    assert_eq!(operation["state"], "SUCCEEDED");
    assert_eq!(operation["progress"]["succeeded"], ORDERS);
    assert_eq!(operation["progress"]["failed"], 0);
    assert_eq!(placed(&backend).await?, ORDERS);
    assert_eq!(chunks_left(&backend.superuser).await?, 0);
    if signal == Signal::STOP {
        let process = backend.commands[0].service.process_id().context("it is there")?;
        process.signal(Signal::CONT);
        wait::until("it answers again, and has written nothing more", async || {
            Ok(get(&doomed, &location).await.is_ok_and(|seen| seen == operation))
        })
        .await?;
        assert_eq!(placed(&backend).await?, ORDERS);
    }
    Ok(())
}

#[tokio::test]
async fn an_import_whose_service_is_killed_is_done_by_another_one_and_done_once() -> anyhow::Result<()> {
    taken_over(Signal::KILL).await
}

#[tokio::test]
async fn an_import_whose_service_hangs_is_done_by_another_one_and_done_once() -> anyhow::Result<()> {
    taken_over(Signal::STOP).await
}

#[tokio::test]
async fn an_operation_of_a_kind_that_is_not_known_yet_holds_up_no_other() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let rest = rest(&backend, 0);
    Row::waiting(1, 0)
        .insert(&backend.superuser, backend.tenant.tenant_id)
        .await?;
    let location = taken(&rest, &new_key(), &orders(10)).await?;
    let operation = ended(&rest, &location).await?;
    assert_eq!(operation["progress"]["succeeded"], 10);
    Ok(())
}

/// Has every record of progress fail, each counted.
const REFUSE_RECORDS: &str = "
    CREATE SEQUENCE event_store.attempts;
    CREATE FUNCTION event_store.refuse() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        PERFORM nextval('event_store.attempts');
        RAISE EXCEPTION USING ERRCODE = 'disk_full';
    END
    $$;
    CREATE TRIGGER refuse BEFORE INSERT ON event_store.operation_progress FOR EACH ROW EXECUTE FUNCTION event_store.refuse()";

#[tokio::test]
async fn an_operation_whose_record_fails_is_tried_again_after_a_pause() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let (rest, superuser) = (rest(&backend, 0), &backend.superuser);
    sqlx::raw_sql(REFUSE_RECORDS).execute(superuser).await?;
    let location = taken(&rest, &new_key(), &orders(10)).await?;
    let attempted = async |attempts: i64| {
        wait::until("the record was tried", async || {
            let last = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM event_store.attempts";
            let last: i64 = sqlx::query_scalar(last).fetch_one(superuser).await?;
            Ok(last >= attempts)
        })
        .await
    };
    attempted(1).await?;
    let begun = Instant::now();
    attempted(4).await?;
    let took = begun.elapsed();
    assert!(
        took > Duration::from_millis(2_500),
        "three more attempts in {took:?}"
    );
    sqlx::raw_sql("DROP TRIGGER refuse ON event_store.operation_progress")
        .execute(superuser)
        .await?;
    let operation = ended(&rest, &location).await?;
    assert_eq!(operation["progress"]["succeeded"], 10);
    Ok(())
}

#[tokio::test]
async fn an_import_ends_when_the_key_that_asked_for_it_is_gone() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let rest = rest(&backend, 0);
    // Of a key that nobody has.
    let row = Row {
        kind: "orders",
        ..Row::waiting(Uuid::now_v7().as_u128(), 0)
    };
    row.insert(&backend.superuser, backend.tenant.tenant_id).await?;
    let listed = get(&rest, "/v1/operations").await?;
    let id = listed[0]["operation_id"].as_str().context("it is listed")?;
    let operation = ended(&rest, &format!("/v1/operations/{id}")).await?;
    assert_eq!(
        (&operation["state"], &operation["cancelled_with"]),
        (&"CANCELLED".into(), &"UNAUTHENTICATED".into())
    );
    let location = taken(&rest, &new_key(), &orders(10)).await?;
    let operation = ended(&rest, &location).await?;
    assert_eq!(
        (&operation["state"], &operation["cancelled_with"]),
        (&"SUCCEEDED".into(), &Value::Null)
    );
    Ok(())
}

#[tokio::test]
async fn of_tenants_that_wait_the_one_is_next_that_has_waited_longest_since_its_turn() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let superuser = &backend.superuser;
    for (number, yielded_minutes_ago) in [(1, Some(1)), (2, Some(5)), (3, None), (4, None)] {
        let tenant = Tenant::create(superuser).await?;
        let row = Row::waiting(number, 0);
        row.insert(superuser, tenant.tenant_id).await?;
        sqlx::query("UPDATE event_store.operation SET yielded_at = clock_timestamp() - make_interval(mins => $2) WHERE operation_id = $1")
            .bind(row.id())
            .bind(yielded_minutes_ago)
            .execute(superuser)
            .await?;
    }
    // Each holds the lock of what it has claimed.
    let mut sessions = Vec::new();
    let set_aside = vec![Uuid::from_u128(4)];
    for expected in [Some(2), Some(1), Some(3), None] {
        let session = backend.servers.database.superuser().await?;
        let claim = "SELECT operation_id FROM event_store.claim_operation(ARRAY[$1], $2)";
        let claimed: Option<Uuid> = sqlx::query_scalar(claim)
            .bind(UNKNOWN_KIND)
            .bind(&set_aside)
            .fetch_optional(&session)
            .await?;
        assert_eq!(claimed.map(|id| id.as_u128()), expected);
        sessions.push(session);
    }
    Ok(())
}
