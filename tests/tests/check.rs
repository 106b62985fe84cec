//! The check that fault tests end with finds what it is there to find.

use daybook_event_store::RecordedEvent;
use daybook_proto::common::v1::Receipt;
use daybook_tests::client::Caller;
use daybook_tests::command::{self, Command as _};
use daybook_tests::ledger::Ledger;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::stack::Backend;
use daybook_tests::{check, log, nats};
use tonic::Status;

/// How many orders there are, each of two events.
const ORDERS: usize = 5;

/// Orders that are placed and confirmed, and the ledger of it.
async fn some_orders(caller: &Caller) -> anyhow::Result<Ledger> {
    let ledger = Ledger::default();
    for _ in 0..ORDERS {
        let id = new_order_id();
        ledger.send(caller, place(&id, "customer-1")).await?;
        ledger.send(caller, command::confirm(&id)).await?;
    }
    Ok(ledger)
}

#[tokio::test]
async fn holes_inversions_and_lost_or_doubled_events_are_found() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let ledger = some_orders(&backend.caller()?).await?;
    let events = log::events(&backend.superuser).await?;
    check::log(&events)?;
    check::ledger(&ledger, &events)?;

    let broken = |change: fn(&mut Vec<RecordedEvent>)| {
        let mut events = events.clone();
        change(&mut events);
        events
    };
    assert!(
        check::log(&broken(|events| drop(events.remove(3)))).is_err(),
        "a hole"
    );
    assert!(
        check::log(&broken(|events| events.swap(2, 3))).is_err(),
        "an inversion"
    );
    assert!(
        check::log(&broken(|events| events[5].stream_version = 3)).is_err(),
        "a version that is not next"
    );
    assert!(
        check::log(&broken(|events| events[5].event_id = events[4].event_id)).is_err(),
        "an event that is there twice"
    );
    assert!(
        check::ledger(&ledger, &broken(|events| drop(events.pop()))).is_err(),
        "an acknowledged command whose event is lost"
    );
    let doubled = broken(|events| {
        let mut again = events[0].clone();
        again.position = events.len() as u64 + 1;
        events.push(again);
    });
    assert!(
        check::ledger(&ledger, &doubled).is_err(),
        "a command with two events"
    );
    assert!(
        check::ledger(&Ledger::default(), &events).is_err(),
        "events that nobody asked for"
    );
    outcomes_that_contradict_the_log_are_found(&events)
}

fn outcomes_that_contradict_the_log_are_found(events: &[RecordedEvent]) -> anyhow::Result<()> {
    let unknown = Ledger::default();
    let lost = place(&new_order_id(), "customer-1");
    unknown.note(&lost, &Err::<Receipt, _>(Status::unavailable("no answer")));
    check::ledger(&unknown, &[])?;
    let refused = Ledger::default();
    let id = events[0].stream_id.clone();
    let key = events[0].decoded_metadata().idempotency_key;
    let said = place(&id, "customer-1").with_key(&key);
    refused.note(&said, &Err::<Receipt, _>(Status::invalid_argument("no")));
    assert!(
        check::ledger(&refused, &events[..1]).is_err(),
        "a refused command that has an event"
    );
    let other = Ledger::default();
    other.note(
        &place(&id, "customer-2").with_key(&key),
        &Err::<Receipt, _>(Status::unavailable("no answer")),
    );
    assert!(
        check::ledger(&other, &events[..1]).is_err(),
        "an event that is not of the command that was sent"
    );
    Ok(())
}

#[tokio::test]
async fn a_stream_that_differs_from_the_log_is_found() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    some_orders(&backend.caller()?).await?;
    let events = log::events(&backend.superuser).await?;
    let nats = backend.servers.nats.url();
    check::bus(&backend.superuser, &nats, &events).await?;

    let mut other = events.clone();
    other[4].payload.push(' ');
    assert!(
        check::bus(&backend.superuser, &nats, &other).await.is_err(),
        "a payload that is not the same byte for byte"
    );
    assert!(
        check::bus(&backend.superuser, &nats, &events[..events.len() - 1])
            .await
            .is_err(),
        "a stream that is longer than the log"
    );
    let context = nats::jetstream(&nats).await?;
    let stream = context.get_stream(nats::STREAM).await?;
    stream.delete_message(3).await?;
    assert!(
        check::bus(&backend.superuser, &nats, &events).await.is_err(),
        "a stream with a hole"
    );
    Ok(())
}

#[tokio::test]
async fn a_row_that_is_not_what_the_log_folds_to_is_found() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?.with_projector().await?;
    some_orders(&backend.caller()?).await?;
    check::caught_up(&backend.superuser).await?;
    let events = log::events(&backend.superuser).await?;
    check::read_models(&backend.superuser, &events).await?;
    for (damage, repair) in [
        (
            "UPDATE read_model.customer_totals_g1 SET ordered_minor = ordered_minor + 1",
            "UPDATE read_model.customer_totals_g1 SET ordered_minor = ordered_minor - 1",
        ),
        (
            "UPDATE read_model.order_list_g1 SET position = position + 1",
            "UPDATE read_model.order_list_g1 SET position = position - 1",
        ),
        (
            "INSERT INTO read_model.order_details_g1 SELECT tenant_id, 'another', version, position, document
             FROM read_model.order_details_g1 LIMIT 1",
            "DELETE FROM read_model.order_details_g1 WHERE order_id = 'another'",
        ),
    ] {
        sqlx::query(damage).execute(&backend.superuser).await?;
        assert!(
            check::read_models(&backend.superuser, &events).await.is_err(),
            "{damage}"
        );
        sqlx::query(repair).execute(&backend.superuser).await?;
        check::read_models(&backend.superuser, &events).await?;
    }
    sqlx::query("DELETE FROM read_model.order_list_g1")
        .execute(&backend.superuser)
        .await?;
    assert!(
        check::read_models(&backend.superuser, &events).await.is_err(),
        "no rows"
    );
    Ok(())
}
