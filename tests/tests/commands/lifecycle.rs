//! Every command of an order, from the call to the log.

use daybook_event_store::{Metadata, RecordedEvent};
use daybook_proto::common::v1::{CommandContext, Receipt};
use daybook_tests::client::Caller;
use daybook_tests::command::{self, Command};
use daybook_tests::orders::{new_key, new_order_id, place};
use daybook_tests::stack::Backend;
use daybook_tests::{check, log, sealing};
use serde_json::Value;

/// Sends a command, holds its receipt against the ones before, and keeps it.
async fn accept(
    caller: &Caller,
    receipts: &mut Vec<Receipt>,
    mut command: impl Command,
) -> anyhow::Result<()> {
    let order_id = command.aggregate_id().cloned();
    let receipt = caller.send(command).await?;
    assert!(order_id.is_none_or(|id| id == receipt.stream_id));
    let before = receipts
        .iter()
        .filter(|earlier| earlier.stream_id == receipt.stream_id)
        .count() as u64;
    assert_eq!(receipt.stream_version, before + 1);
    receipts.push(receipt);
    Ok(())
}

#[tokio::test]
async fn every_command_is_answered_with_a_receipt_for_what_is_in_the_log() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let caller = backend.caller()?;
    let [delivered, rejected, cancelled] = [new_order_id(), new_order_id(), new_order_id()];
    let mut receipts = Vec::new();

    let id = delivered.as_str();
    accept(&caller, &mut receipts, place(id, "customer-1")).await?;
    accept(&caller, &mut receipts, command::add_line(id, "MC", 4, 250)).await?;
    accept(&caller, &mut receipts, command::change_quantity(id, 3)).await?;
    accept(&caller, &mut receipts, command::remove_line(id, 2)).await?;
    accept(&caller, &mut receipts, command::change_address(id, "Springfield")).await?;
    accept(&caller, &mut receipts, command::confirm(id)).await?;
    accept(&caller, &mut receipts, command::pay(id, "pay-1", 4_531)).await?;
    accept(&caller, &mut receipts, command::ship(id, "ship-1", &[(1, 2)])).await?;
    accept(&caller, &mut receipts, command::ship(id, "ship-2", &[])).await?;
    accept(&caller, &mut receipts, command::deliver(id, "ship-1")).await?;
    accept(&caller, &mut receipts, command::deliver(id, "ship-2")).await?;
    accept(
        &caller,
        &mut receipts,
        command::request_return(id, "ret-1", &[(3, 1)]),
    )
    .await?;
    accept(&caller, &mut receipts, command::receive_return(id, "ret-1")).await?;
    accept(&caller, &mut receipts, command::refund(id, "ref-1", 250)).await?;
    accept(&caller, &mut receipts, place(&rejected, "customer-2")).await?;
    accept(&caller, &mut receipts, command::reject(&rejected)).await?;
    accept(&caller, &mut receipts, place(&cancelled, "customer-2")).await?;
    accept(&caller, &mut receipts, command::cancel(&cancelled)).await?;

    let events = log::events(&backend.superuser).await?;
    check::log(&events)?;
    let types: Vec<&str> = events.iter().map(|event| event.event_type.as_str()).collect();
    assert_eq!(
        types,
        [
            "order.placed",
            "order.line_added",
            "order.quantity_changed",
            "order.line_removed",
            "order.shipping_address_changed",
            "order.confirmed",
            "order.payment_recorded",
            "order.shipped",
            "order.shipped",
            "order.delivery_recorded",
            "order.delivery_recorded",
            "order.return_requested",
            "order.return_received",
            "order.refunded",
            "order.placed",
            "order.rejected",
            "order.placed",
            "order.cancelled",
        ]
    );
    for (receipt, event) in receipts.iter().zip(&events) {
        receipt_is_for(receipt, event);
        assert_eq!(event.tenant_id, backend.tenant.tenant_id);
        assert_eq!(event.category, "order");
    }
    Ok(())
}

fn receipt_is_for(receipt: &Receipt, event: &RecordedEvent) {
    assert_eq!(receipt.stream_id, event.stream_id);
    assert_eq!(receipt.stream_version, event.stream_version);
    let recorded_at = receipt.recorded_at.expect("a receipt says when it was recorded");
    assert_eq!(
        daybook_proto::convert::from_timestamp(&recorded_at),
        Some(event.recorded_at)
    );
    let token = sealing::token(event.tenant_id, &receipt.consistency_token).expect("a receipt has a token");
    assert_eq!(
        (token.partition, token.position),
        (event.partition, event.position)
    );
}

#[tokio::test]
async fn an_event_says_what_happened_and_who_did_it_why_and_when() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let order_id = new_order_id();
    let mut request = place(&order_id, "customer-1");
    let key = request.request_id.clone();
    request.context = Some(CommandContext {
        actor: "agent:jane".to_owned(),
        reason: "by phone".to_owned(),
        correlation_id: "call-17".to_owned(),
        causation_id: "ticket-4".to_owned(),
        occurred_at: Some(prost_types::Timestamp {
            seconds: 852_076_800,
            nanos: 0,
        }),
    });
    let mut request = tonic::Request::new(request);
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    request.metadata_mut().insert("traceparent", traceparent.parse()?);
    backend.caller()?.orders().place_order(request).await?;

    let events = log::stream(&backend.superuser, &order_id).await?;
    let [placed] = events.as_slice() else {
        anyhow::bail!("one command has one event");
    };
    let payload: Value = serde_json::from_str(&placed.payload)?;
    assert_eq!(payload["customer_id"], "customer-1");
    assert_eq!(payload["total_minor"], 3_530);
    assert_eq!(payload["currency"], "USD");
    let metadata = placed.decoded_metadata();
    let mark = "dbk_live_".len();
    let prefix = &backend.tenant.service_key[mark..mark + 8];
    assert_eq!(
        Metadata {
            received_at_us: None,
            traceparent: None,
            ..metadata.clone()
        },
        Metadata {
            correlation_id: "call-17".to_owned(),
            causation_id: Some("ticket-4".to_owned()),
            principal: format!("key:{prefix}"),
            actor: Some("agent:jane".to_owned()),
            reason: Some("by phone".to_owned()),
            command: "PlaceOrder".to_owned(),
            idempotency_key: key,
            traceparent: None,
            occurred_at: Some(time::macros::datetime!(1997-01-01 00:00 UTC)),
            received_at_us: None,
        }
    );
    let trace = metadata.traceparent.expect("the trace goes on in the event");
    assert_eq!(trace.split('-').nth(1), traceparent.split('-').nth(1));
    let received = metadata
        .received_at_us
        .expect("an event says when its command came");
    let recorded = placed.recorded_at.unix_timestamp_nanos() / 1_000;
    assert!(
        i128::from(received) <= recorded,
        "it was received before it was recorded"
    );
    Ok(())
}

#[tokio::test]
async fn an_order_without_an_id_gets_one_that_a_repetition_gives_again() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let caller = backend.caller()?;
    let nameless = place("", "customer-1").with_key(&new_key());
    let first = caller.send(nameless.clone()).await?;
    let again = caller.send(nameless).await?;
    assert!(first.stream_id.starts_with("ord_"));
    assert_eq!(first, again);
    assert_eq!(log::head(&backend.superuser).await?, 1);
    Ok(())
}
