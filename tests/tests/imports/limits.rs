//! What imports may take: how many may be open, how many bytes may wait, and for how long anything is kept.

use anyhow::ensure;
use daybook_tests::client::Answer;
use daybook_tests::orders::new_key;
use daybook_tests::rest::Rest;
use daybook_tests::stack::{Backend, Role};
use daybook_tests::tenant::Tenant;
use sqlx::{Connection as _, PgPool};

use crate::operation::{Row, chunks_left, ended, import, operations, orders, rest, taken};

/// How many operations of a tenant may be open.
const OPEN_MAX: u128 = 8;

/// Holds a refusal against its code and its quota.
fn is_refused(answer: &Answer, code: &str, quota: &str) {
    let problem = answer.json();
    assert_eq!(
        (&problem["code"], &problem["quota"]),
        (&code.into(), &quota.into()),
        "{answer:?}"
    );
}

#[tokio::test]
async fn inputs_that_broke_off_keep_nobody_from_importing() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let rest = rest(&backend, 0);
    for number in 1..=OPEN_MAX {
        Row::arriving(number)
            .insert(&backend.superuser, backend.tenant.tenant_id)
            .await?;
    }
    let location = taken(&rest, &new_key(), &orders(10)).await?;
    assert_eq!(ended(&rest, &location).await?["progress"]["succeeded"], 10);
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_known_is_answered_however_many_operations_are_open() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let rest = rest(&backend, 0);
    let (key, input) = (new_key(), orders(10));
    let location = taken(&rest, &key, &input).await?;
    ended(&rest, &location).await?;
    for number in 1..=OPEN_MAX {
        Row::waiting(number, 0)
            .insert(&backend.superuser, backend.tenant.tenant_id)
            .await?;
    }
    let refused = import(&rest, "/v1/imports", &new_key(), &input).await?;
    is_refused(&refused, "RATE_LIMITED", "operations that have not ended");
    let again = import(&rest, "/v1/imports", &key, &input).await?;
    ensure!(again.status == 202, "{again:?}");
    assert_eq!(again.header("location"), location);
    assert_eq!(again.header("idempotency-replayed"), "true");
    Ok(())
}

#[tokio::test]
async fn operations_that_are_submitted_together_are_no_more_than_may_be_open() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let (superuser, tenant_id) = (&backend.superuser, backend.tenant.tenant_id);
    for number in 1..OPEN_MAX {
        Row::waiting(number, 0).insert(superuser, tenant_id).await?;
    }
    for number in [OPEN_MAX, OPEN_MAX + 1] {
        Row::arriving(number).insert(superuser, tenant_id).await?;
    }
    let submit = "SELECT operation_id FROM event_store.submit_operation($1, $2, '', 0, 0, 0, 8)";
    for (number, is_taken) in [(OPEN_MAX, true), (OPEN_MAX + 1, false)] {
        let submitted: Option<uuid::Uuid> = sqlx::query_scalar(submit)
            .bind(tenant_id)
            .bind(Row::arriving(number).id())
            .fetch_optional(superuser)
            .await?;
        assert_eq!(submitted.is_some(), is_taken, "{number}");
    }
    Ok(())
}

#[tokio::test]
async fn inputs_take_no_more_bytes_than_they_may_and_leave_room_for_the_next_tenant() -> anyhow::Result<()> {
    const BYTES_MAX: i64 = 1_000_000;
    let backend = Backend::start(0).await?;
    let superuser = &backend.superuser;
    let limit = BYTES_MAX.to_string();
    let service = backend
        .servers
        .run(Role::Command, &[("DAYBOOK_IMPORT_BYTES_MAX", &*limit)])
        .await?;
    let rest = Rest::new(&service.url(), &backend.tenant.service_key);
    // More than half of it, which is found out once it has arrived.
    let too_much = import(&rest, "/v1/imports", &new_key(), &orders(5_000)).await?;
    is_refused(&too_much, "RATE_LIMITED", "bytes of imports that have not ended");
    assert_eq!(
        (operations(superuser).await?, chunks_left(superuser).await?),
        (0, 0)
    );

    Row::waiting(1, BYTES_MAX / 2)
        .insert(superuser, backend.tenant.tenant_id)
        .await?;
    let refused = import(&rest, "/v1/imports", &new_key(), &orders(1)).await?;
    is_refused(&refused, "RATE_LIMITED", "bytes of imports that have not ended");
    let other = Tenant::create(superuser).await?;
    let other_rest = rest.with_key(&other.service_key);
    taken(&other_rest, &new_key(), &orders(1)).await?;
    Row::waiting(2, BYTES_MAX / 2)
        .insert(superuser, other.tenant_id)
        .await?;
    let refused = import(&other_rest, "/v1/imports", &new_key(), &orders(1)).await?;
    assert_eq!(refused.json()["code"], "OVERLOADED", "{refused:?}");
    Ok(())
}

/// Whether the sweep found something.
async fn sweep(superuser: &PgPool) -> anyhow::Result<bool> {
    let mut session = superuser.acquire().await?;
    let mut transaction = session.begin().await?;
    sqlx::query("SET LOCAL statement_timeout = '2s'")
        .execute(&mut *transaction)
        .await?;
    let sweep = "SELECT event_store.sweep_operations('30 days', '2 hours')";
    let is_more = sqlx::query_scalar(sweep).fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(is_more)
}

#[tokio::test]
async fn what_is_too_old_is_swept_but_for_what_is_submitted_meanwhile() -> anyhow::Result<()> {
    let backend = Backend::start(0).await?;
    let (superuser, tenant_id) = (&backend.superuser, backend.tenant.tenant_id);
    let old = Row {
        created_days_ago: 31,
        ..Row::arriving(1)
    };
    let rows = [
        old,
        Row {
            number: 2,
            input_bytes: Some(0),
            ended_days_ago: Some(31),
            ..old
        },
        Row {
            number: 3,
            input_bytes: Some(0),
            ended_days_ago: Some(29),
            ..old
        },
        Row {
            number: 4,
            input_bytes: Some(0),
            ..old
        },
        Row::arriving(5),
    ];
    for row in rows {
        row.insert(superuser, tenant_id).await?;
    }
    let mut session = superuser.acquire().await?;
    let mut submitting = session.begin().await?;
    sqlx::query(
        "UPDATE event_store.operation SET input_sha256 = '', input_chunks = 0 WHERE operation_id = $1",
    )
    .bind(old.id())
    .execute(&mut *submitting)
    .await?;
    ensure!(sweep(superuser).await?, "one has ended long ago");
    ensure!(!sweep(superuser).await?, "the other one is being submitted");
    submitting.commit().await?;
    ensure!(!sweep(superuser).await?, "it was submitted");
    let left: Vec<uuid::Uuid> =
        sqlx::query_scalar("SELECT operation_id FROM event_store.operation ORDER BY 1")
            .fetch_all(superuser)
            .await?;
    let left: Vec<_> = left.into_iter().map(|id| id.as_u128()).collect();
    assert_eq!(left, [1, 3, 4, 5]);
    Ok(())
}

#[tokio::test]
async fn an_input_of_which_a_part_was_swept_cannot_be_submitted() -> anyhow::Result<()> {
    let backend = Backend::start(0).await?;
    let (superuser, tenant_id) = (&backend.superuser, backend.tenant.tenant_id);
    Row::arriving(1).insert(superuser, tenant_id).await?;
    let submit = "SELECT operation_id FROM event_store.submit_operation($1, $2, '', 0, 0, 2, 8)";
    let submitted = sqlx::query(submit)
        .bind(tenant_id)
        .bind(Row::arriving(1).id())
        .fetch_optional(superuser)
        .await;
    ensure!(submitted.is_err(), "none of its two parts is there");
    Ok(())
}
