//! Retries that are safe: one key, one command, one answer.

use daybook_proto::orders::v1::order_service_client::OrderServiceClient;
use daybook_tests::client::{Caller, credential};
use daybook_tests::command::{self, Command};
use daybook_tests::ledger::Ledger;
use daybook_tests::orders::{new_key, new_order_id, place};
use daybook_tests::refusal::{code, value};
use daybook_tests::stack::Backend;
use daybook_tests::tenant::Tenant;
use daybook_tests::{check, client, log, metrics};
use futures::future::{join_all, try_join_all};
use prost::Message as _;

/// How many callers send the same command at once.
const SENDS: usize = 100;

#[tokio::test]
async fn a_command_sent_a_hundred_times_at_once_through_two_services_is_recorded_once() -> anyhow::Result<()>
{
    let backend = Backend::start(2).await?;
    let (callers, ledger) = (backend.callers()?, Ledger::default());
    let order_id = new_order_id();
    send_all(&callers, &ledger, place(&order_id, "customer-1")).await?;
    assert_eq!(log::head(&backend.superuser).await?, 1);
    send_all(&callers, &ledger, command::confirm(&order_id)).await?;
    assert_eq!(check::recorded(&backend.superuser, &ledger).await?.len(), 2);

    let mut replays = 0.0;
    for command in &backend.commands {
        replays += metrics::sum(command.admin, "daybook_append_replays_total").await?;
    }
    assert!(replays > 0.0, "no send was answered from memory of the first");
    Ok(())
}

/// Sends the same command through all services at once; all get the same receipt.
async fn send_all(callers: &[Caller], ledger: &Ledger, command: impl Command) -> anyhow::Result<()> {
    let sends = (0..SENDS).map(|number| ledger.send(&callers[number % callers.len()], command.clone()));
    let receipts = try_join_all(sends).await?;
    let first = receipts[0].encode_to_vec();
    assert!(receipts.iter().all(|receipt| receipt.encode_to_vec() == first));
    Ok(())
}

#[tokio::test]
async fn a_key_that_was_used_for_something_else_is_refused() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let caller = backend.caller()?;
    let first = place(&new_order_id(), "customer-1");
    let key = first.request_id.clone();
    caller.send(first.clone()).await?;

    let another_customer = place(&first.order_id, "customer-2").with_key(&key);
    let another_order = place(&new_order_id(), "customer-1").with_key(&key);
    let another_command = command::confirm(&first.order_id).with_key(&key);
    let another_context = {
        let mut changed = first.clone();
        changed.context = None;
        changed
    };
    let refusals = [
        caller.send(another_customer).await,
        caller.send(another_order).await,
        caller.send(another_command).await,
        caller.send(another_context).await,
    ];
    for refusal in refusals {
        let status = refusal.expect_err("the key is used");
        assert_eq!(code(&status), "IDEMPOTENCY_KEY_REUSED");
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    }

    // At once, while nobody knows yet which of them comes first.
    let key = new_key();
    let sends = (0..SENDS).map(|number| {
        let order = place(&new_order_id(), &format!("customer-{number}"));
        caller.send(order.with_key(&key))
    });
    let answers = join_all(sends).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    for status in answers.into_iter().filter_map(Result::err) {
        assert_eq!(code(&status), "IDEMPOTENCY_KEY_REUSED");
    }
    let events = log::events(&backend.superuser).await?;
    assert_eq!(events.len(), 2);
    check::log(&events)
}

#[tokio::test]
async fn keys_belong_to_their_tenant() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let stranger = Tenant::create(&backend.superuser).await?;
    let channel = client::channel(&backend.commands[0].url())?;
    let mut strangers = OrderServiceClient::with_interceptor(channel, credential(&stranger.service_key)?);
    let order = place(&new_order_id(), "customer-1");
    let ours = backend.caller()?.send(order.clone()).await?;
    let theirs = strangers.place_order(order).await?.into_inner().receipt;
    let theirs = theirs.expect("an accepted command has a receipt");
    assert_eq!((ours.stream_version, theirs.stream_version), (1, 1));
    assert_ne!(ours.consistency_token, theirs.consistency_token);
    Ok(())
}

#[tokio::test]
async fn a_refusal_by_a_rule_is_repeated_with_its_key_even_when_the_rule_would_now_accept()
-> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let caller = backend.caller()?;
    let order_id = new_order_id();
    caller.send(place(&order_id, "customer-1")).await?;
    let early = command::ship(&order_id, "ship-1", &[]);
    let refused = caller.send(early.clone()).await.expect_err("it is not confirmed");
    assert_eq!(code(&refused), "ORDER_NOT_CONFIRMED");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);

    caller.send(command::confirm(&order_id)).await?;
    caller.send(command::pay(&order_id, "pay-1", 3_530)).await?;
    let again = caller.send(early.clone()).await.expect_err("it was refused");
    assert_eq!(again.message(), refused.message());
    assert_eq!(code(&again), "ORDER_NOT_CONFIRMED");
    assert_eq!(log::head(&backend.superuser).await?, 3);

    caller.send(early.with_key(&new_key())).await?;
    assert_eq!(log::head(&backend.superuser).await?, 4);
    Ok(())
}

/// While replicas are replaced, a new one remembers a refusal by a rule that the old ones do not have.
#[tokio::test]
async fn a_refusal_that_another_version_of_the_service_remembered_is_repeated() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let caller = backend.caller()?;
    let order_id = new_order_id();
    caller.send(place(&order_id, "customer-1")).await?;
    let early = command::ship(&order_id, "ship-1", &[]);
    caller.send(early.clone()).await.expect_err("it is not confirmed");
    for (outcome, wanted, day) in [
        (
            r#"{"code":"ORDER_FROM_TOMORROW","day":"Monday"}"#,
            "ORDER_FROM_TOMORROW",
            "Monday",
        ),
        (r#"{"code":"ORDER_NOT_PAID","day":7}"#, "ORDER_NOT_PAID", "7"),
    ] {
        let statement = "UPDATE event_store.command SET outcome = jsonb_set(outcome::jsonb, '{rejection}', $1::jsonb)::json
                         WHERE outcome IS NOT NULL";
        let changed = sqlx::query(statement)
            .bind(outcome)
            .execute(&backend.superuser)
            .await?;
        assert_eq!(changed.rows_affected(), 1);
        let again = caller.send(early.clone()).await.expect_err("it was refused");
        assert_eq!(code(&again), wanted);
        assert_eq!(again.code(), tonic::Code::FailedPrecondition);
        assert_eq!(value(&again, "day"), day);
        assert!(again.metadata().contains_key("idempotency-replayed"));
    }
    Ok(())
}

#[tokio::test]
async fn a_validation_error_a_conflict_and_a_missing_order_leave_the_key_free() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let caller = backend.caller()?;
    let order_id = new_order_id();
    let key = new_key();
    let invalid = place(&order_id, "no spaces allowed").with_key(&key);
    let status = caller
        .send(invalid)
        .await
        .expect_err("a customer id has no spaces");
    assert_eq!(code(&status), "VALIDATION_FAILED");
    let missing = command::confirm(&order_id).with_key(&key);
    let status = caller.send(missing.clone()).await.expect_err("there is no order");
    assert_eq!(code(&status), "RESOURCE_NOT_FOUND");
    caller.send(place(&order_id, "customer-1")).await?;
    let status = caller.send(missing.clone().expecting(7)).await;
    assert_eq!(code(&status.expect_err("the version is 1")), "VERSION_CONFLICT");
    assert_eq!(caller.send(missing).await?.stream_version, 2);
    Ok(())
}

#[tokio::test]
async fn an_expected_version_is_held_and_a_retry_after_success_is_no_conflict() -> anyhow::Result<()> {
    let backend = Backend::start(2).await?;
    let callers = backend.callers()?;
    let order_id = new_order_id();
    let opening = place(&order_id, "customer-1").expecting(0);
    let opened = callers[0].send(opening.clone()).await?;
    let change = command::change_quantity(&order_id, 5).expecting(1);
    let changed = callers[0].send(change.clone()).await?;
    assert_eq!(changed.stream_version, 2);

    // The same service, one that has never seen the order, and once more after the order has moved on.
    for caller in &callers {
        assert_eq!(caller.send(opening.clone()).await?, opened);
        assert_eq!(caller.send(change.clone()).await?, changed);
    }
    callers[1].send(command::confirm(&order_id)).await?;
    for caller in &callers {
        assert_eq!(caller.send(change.clone()).await?, changed);
        let stale = command::cancel(&order_id).expecting(2);
        let status = caller.send(stale).await.expect_err("the version is 3");
        assert_eq!(code(&status), "VERSION_CONFLICT");
        assert_eq!(status.code(), tonic::Code::Aborted);
        assert_eq!(value(&status, "expected_version"), "2");
        assert_eq!(value(&status, "actual_version"), "3");
        let ahead = command::cancel(&order_id).expecting(u64::MAX);
        let status = caller.send(ahead).await.expect_err("the version is 3");
        assert_eq!(code(&status), "VERSION_CONFLICT");
    }
    assert_eq!(log::head(&backend.superuser).await?, 3);
    Ok(())
}
