//! Commands whose content is wrong, or is about another tenant's order.

use daybook_proto::common::v1::{CommandContext, Money};
use daybook_proto::orders::v1::{Address, PlaceOrderRequest};
use daybook_tests::client::Caller;
use daybook_tests::command::{self, Addressed, Command};
use daybook_tests::log;
use daybook_tests::orders::{new_key, new_order_id, place};
use daybook_tests::refusal::{code, request_id, value, violations};
use daybook_tests::stack::Backend;
use daybook_tests::tenant::Tenant;
use prost_types::Timestamp;

/// An order that is wrong in one way, and what is said about it: a violation, or the code of a rule.
fn wrong_orders() -> Vec<(PlaceOrderRequest, &'static str)> {
    let changed = |change: fn(&mut PlaceOrderRequest)| {
        let mut order = place(&new_order_id(), "customer-1");
        order.expected_total_minor = None;
        change(&mut order);
        order
    };
    vec![
        (changed(|order| order.request_id.clear()), "/request_id REQUIRED"),
        (
            changed(|order| order.request_id = "k".repeat(129)),
            "/request_id TOO_LONG",
        ),
        (
            changed(|order| order.request_id = "with space".to_owned()),
            "/request_id FORBIDDEN_CHARACTER",
        ),
        (
            changed(|order| order.order_id = "42".to_owned()),
            "/order_id INVALID_ID",
        ),
        (
            changed(|order| order.order_id = "cus_01h455vb4pex5vsknk084sn02q".to_owned()),
            "/order_id INVALID_ID",
        ),
        (changed(|order| order.customer_id.clear()), "/customer_id EMPTY"),
        (
            changed(|order| order.customer_id = "c".repeat(65)),
            "/customer_id TOO_LONG",
        ),
        (
            changed(|order| order.customer_id = "Robert'); DROP TABLE".to_owned()),
            "/customer_id FORBIDDEN_CHARACTER",
        ),
        (
            changed(|order| order.currency = "usd".to_owned()),
            "/currency UNKNOWN_CODE",
        ),
        (changed(|order| order.currency.clear()), "/currency UNKNOWN_CODE"),
        (
            changed(|order| order.reference = "r".repeat(65)),
            "/reference TOO_LONG",
        ),
        (
            changed(|order| order.reference = "nul\0".to_owned()),
            "/reference FORBIDDEN_CHARACTER",
        ),
        (changed(|order| order.lines[1].sku.clear()), "/lines/1/sku EMPTY"),
        (
            changed(|order| order.lines[0].quantity = 0),
            "/lines/0/quantity OUT_OF_RANGE",
        ),
        (
            changed(|order| order.lines[0].quantity = u32::MAX),
            "/lines/0/quantity OUT_OF_RANGE",
        ),
        (
            changed(|order| order.lines[0].unit_price_minor = -1),
            "/lines/0/unit_price_minor OUT_OF_RANGE",
        ),
        (
            changed(|order| order.lines[0].unit_price_minor = i64::MIN),
            "/lines/0/unit_price_minor OUT_OF_RANGE",
        ),
        (
            changed(|order| order.lines = vec![order.lines[0].clone(); 501]),
            "/lines TOO_MANY",
        ),
        (changed(|order| order.lines.clear()), "/lines EMPTY"),
        (
            changed(|order| order.shipping_address = Some(Address::default())),
            "/shipping_address/name EMPTY",
        ),
        (
            changed(|order| {
                order.context = Some(CommandContext {
                    actor: "a".repeat(129),
                    ..Default::default()
                });
            }),
            "/context/actor TOO_LONG",
        ),
        (
            changed(|order| {
                order.context = Some(CommandContext {
                    reason: "line\nbreak".to_owned(),
                    ..Default::default()
                });
            }),
            "/context/reason FORBIDDEN_CHARACTER",
        ),
        (
            changed(|order| order.context = Some(at(i64::MAX, 0))),
            "/context/occurred_at OUT_OF_RANGE",
        ),
        (
            changed(|order| order.context = Some(at(0, -1))),
            "/context/occurred_at OUT_OF_RANGE",
        ),
        (
            changed(|order| order.context = Some(at(32_503_680_000, 0))),
            "/context/occurred_at OUT_OF_RANGE",
        ),
        (
            changed(|order| order.lines[0].unit_price_minor = i64::MAX),
            "AMOUNT_OVERFLOW",
        ),
        (
            changed(|order| {
                for line in &mut order.lines {
                    line.quantity = 1;
                    line.unit_price_minor = i64::MAX;
                }
            }),
            "AMOUNT_OVERFLOW",
        ),
        (
            changed(|order| order.expected_total_minor = Some(1)),
            "ORDER_TOTAL_MISMATCH",
        ),
        (
            changed(|order| order.expected_version = Some(1)),
            "VERSION_CONFLICT",
        ),
    ]
}

fn at(seconds: i64, nanos: i32) -> CommandContext {
    CommandContext {
        occurred_at: Some(Timestamp { seconds, nanos }),
        ..Default::default()
    }
}

async fn said(caller: &Caller, command: impl Command) -> Vec<String> {
    let status = caller.send(command).await.expect_err("it is wrong");
    assert!(!request_id(&status).is_empty());
    match violations(&status) {
        found if found.is_empty() => vec![code(&status)],
        found => {
            assert_eq!(code(&status), "VALIDATION_FAILED");
            found
        }
    }
}

#[tokio::test]
async fn an_order_that_is_wrong_in_one_way_is_refused_for_that() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let caller = backend.caller()?;
    for (order, wanted) in wrong_orders() {
        let said = said(&caller, order.clone()).await;
        assert!(
            said.iter().any(|said| said == wanted),
            "{wanted}: {said:?} for {order:?}"
        );
    }
    assert_eq!(log::head(&backend.superuser).await?, 0);
    Ok(())
}

#[tokio::test]
async fn all_that_is_wrong_with_a_command_is_said_at_once() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let caller = backend.caller()?;
    let said = said(&caller, PlaceOrderRequest::default()).await;
    for wanted in [
        "/request_id REQUIRED",
        "/customer_id EMPTY",
        "/currency UNKNOWN_CODE",
        "/lines EMPTY",
    ] {
        assert!(said.iter().any(|said| said == wanted), "{wanted}: {said:?}");
    }
    Ok(())
}

#[tokio::test]
async fn wrong_amounts_and_parts_of_an_order_change_nothing() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let caller = backend.caller()?;
    let id = new_order_id();
    caller.place(&id, "customer-1").await?;
    let euros = {
        let mut payment = command::pay(&id, "pay-1", 1);
        payment.amount = Some(Money {
            minor: 1,
            currency: "EUR".to_owned(),
        });
        payment
    };
    let mut nothing = command::pay(&id, "pay-1", 1);
    nothing.amount = None;
    let mut no_address = command::change_address(&id, "Springfield");
    no_address.shipping_address = None;
    let mut no_line = command::add_line(&id, "CD", 1, 1);
    no_line.line = None;

    assert_eq!(said(&caller, euros).await, ["CURRENCY_MISMATCH"]);
    assert_eq!(said(&caller, nothing).await, ["/amount REQUIRED"]);
    assert_eq!(said(&caller, no_address).await, ["/shipping_address REQUIRED"]);
    assert_eq!(said(&caller, no_line).await, ["/line REQUIRED"]);
    assert_eq!(
        said(&caller, command::pay(&id, "pay-1", 0)).await,
        ["/amount/minor OUT_OF_RANGE"]
    );
    assert_eq!(
        said(&caller, command::pay(&id, "pay-1", -1)).await,
        ["/amount/minor OUT_OF_RANGE"]
    );
    assert_eq!(
        said(&caller, command::pay(&id, "pay-1", i64::MAX)).await,
        ["PAYMENT_EXCEEDS_TOTAL"]
    );
    assert_eq!(
        said(&caller, command::pay(&id, "", 1)).await,
        ["/payment_id EMPTY"]
    );
    assert_eq!(
        said(&caller, command::add_line(&id, "CD", 1_000_000, i64::MAX)).await,
        ["AMOUNT_OVERFLOW"]
    );
    assert_eq!(
        said(&caller, command::change_quantity(&id, 0)).await,
        ["/quantity OUT_OF_RANGE"]
    );
    assert_eq!(
        said(&caller, command::remove_line(&id, 9)).await,
        ["LINE_NOT_FOUND"]
    );
    assert_eq!(
        said(&caller, command::ship(&id, "ship-1", &[])).await,
        ["ORDER_NOT_CONFIRMED"]
    );
    assert_eq!(
        said(&caller, command::refund(&id, "ref-1", 1)).await,
        ["REFUND_EXCEEDS_REFUNDABLE"]
    );
    assert_eq!(said(&caller, place(&id, "customer-1")).await, ["ALREADY_EXISTS"]);
    caller.send(command::cancel(&id)).await?;
    let closed = caller.send(command::confirm(&id)).await;
    let closed = closed.expect_err("it is cancelled");
    assert_eq!(code(&closed), "ORDER_CLOSED");
    assert_eq!(value(&closed, "order_status"), "CANCELLED");
    assert_eq!(log::head(&backend.superuser).await?, 2);
    Ok(())
}

/// Sends a command for another tenant's order and the same one for an order that does not exist: the answers differ in
/// nothing but the id that was asked for.
async fn foreign_is_missing<C: Addressed>(stranger: &Caller, command: C) {
    let missing_id = new_order_id();
    let foreign_id = command.stream_id().to_owned();
    let foreign = stranger
        .send(command.clone())
        .await
        .expect_err("it is not theirs");
    let missing = command.for_stream(&missing_id).with_key(&new_key());
    let missing = stranger.send(missing).await.expect_err("it does not exist");
    assert_eq!(code(&foreign), "RESOURCE_NOT_FOUND", "{}", C::NAME);
    assert_eq!(foreign.code(), missing.code());
    assert_eq!(code(&missing), code(&foreign));
    assert_eq!(
        foreign.message().replace(&foreign_id, ""),
        missing.message().replace(&missing_id, "")
    );
}

#[tokio::test]
async fn another_tenants_order_is_answered_like_one_that_does_not_exist() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let id = new_order_id();
    backend.caller()?.place(&id, "customer-1").await?;
    let url = backend.commands[0].url();
    let stranger = Caller::new(&url, &url, &url, Tenant::create(&backend.superuser).await?)?;
    foreign_is_missing(&stranger, command::add_line(&id, "CD", 1, 1)).await;
    foreign_is_missing(&stranger, command::remove_line(&id, 1)).await;
    foreign_is_missing(&stranger, command::change_quantity(&id, 2)).await;
    foreign_is_missing(&stranger, command::change_address(&id, "Springfield")).await;
    foreign_is_missing(&stranger, command::confirm(&id)).await;
    foreign_is_missing(&stranger, command::reject(&id)).await;
    foreign_is_missing(&stranger, command::pay(&id, "pay-1", 1)).await;
    foreign_is_missing(&stranger, command::ship(&id, "ship-1", &[])).await;
    foreign_is_missing(&stranger, command::deliver(&id, "ship-1")).await;
    foreign_is_missing(&stranger, command::cancel(&id)).await;
    foreign_is_missing(&stranger, command::request_return(&id, "ret-1", &[(1, 1)])).await;
    foreign_is_missing(&stranger, command::receive_return(&id, "ret-1")).await;
    foreign_is_missing(&stranger, command::refund(&id, "ref-1", 1)).await;
    // With an expected version, too, which would otherwise tell that there is something.
    let expecting = command::confirm(&id).expecting(1);
    let status = stranger.send(expecting).await.expect_err("it is not theirs");
    let nothing = command::confirm(&new_order_id()).expecting(1);
    let missing = stranger.send(nothing).await.expect_err("it does not exist");
    assert_eq!(code(&status), code(&missing));
    assert_eq!(log::head(&backend.superuser).await?, 1);
    Ok(())
}
