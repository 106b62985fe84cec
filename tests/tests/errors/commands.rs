//! Commands whose content is wrong, or is about another tenant's order.

use daybook_proto::common::v1::{CommandContext, Money};
use daybook_proto::orders::v1::{Address, PlaceOrderRequest};
use daybook_tests::client::Caller;
use daybook_tests::command::{self, Command, add_line, change_quantity, refund};
use daybook_tests::log;
use daybook_tests::orders::{new_key, new_order_id, place};
use daybook_tests::refusal::{code, request_id, value, violations};
use daybook_tests::stack::Backend;
use daybook_tests::tenant::Tenant;
use prost_types::Timestamp;

/// An order that is wrong in one way, and what is said about it: a violation, or the code of a rule.
type Wrong = (&'static str, PlaceOrderRequest);

fn wrong(said: &'static str, change: fn(&mut PlaceOrderRequest)) -> Wrong {
    let mut order = place(&new_order_id(), "customer-1");
    order.expected_total_minor = None;
    change(&mut order);
    (said, order)
}

fn wrong_names() -> Vec<Wrong> {
    vec![
        wrong("/request_id REQUIRED", |order| order.request_id.clear()),
        wrong("/request_id TOO_LONG", |order| order.request_id = "k".repeat(129)),
        wrong("/request_id FORBIDDEN_CHARACTER", |order| {
            order.request_id = "with space".to_owned()
        }),
        wrong("/order_id INVALID_ID", |order| order.order_id = "42".to_owned()),
        wrong("/order_id INVALID_ID", |order| {
            order.order_id = "cus_01h455vb4pex5vsknk084sn02q".to_owned()
        }),
        wrong("/customer_id EMPTY", |order| order.customer_id.clear()),
        wrong("/customer_id TOO_LONG", |order| {
            order.customer_id = "c".repeat(65)
        }),
        wrong("/customer_id FORBIDDEN_CHARACTER", |order| {
            order.customer_id = "Robert'); DROP TABLE".to_owned()
        }),
        wrong("/currency UNKNOWN_CODE", |order| {
            order.currency = "usd".to_owned()
        }),
        wrong("/currency UNKNOWN_CODE", |order| order.currency.clear()),
        wrong("/reference TOO_LONG", |order| order.reference = "r".repeat(65)),
        wrong("/reference FORBIDDEN_CHARACTER", |order| {
            order.reference = "nul\0".to_owned()
        }),
    ]
}

fn wrong_contents() -> Vec<Wrong> {
    vec![
        wrong("/lines/1/sku EMPTY", |order| order.lines[1].sku.clear()),
        wrong("/lines/0/quantity OUT_OF_RANGE", |order| {
            order.lines[0].quantity = 0
        }),
        wrong("/lines/0/quantity OUT_OF_RANGE", |order| {
            order.lines[0].quantity = u32::MAX
        }),
        wrong("/lines/0/unit_price_minor OUT_OF_RANGE", |order| {
            order.lines[0].unit_price_minor = -1
        }),
        wrong("/lines/0/unit_price_minor OUT_OF_RANGE", |order| {
            order.lines[0].unit_price_minor = i64::MIN
        }),
        wrong("/lines TOO_MANY", |order| {
            order.lines = vec![order.lines[0].clone(); 501]
        }),
        wrong("/lines EMPTY", |order| order.lines.clear()),
        wrong("/shipping_address/name EMPTY", |order| {
            order.shipping_address = Some(Address::default())
        }),
        wrong("/context/actor TOO_LONG", |order| {
            order.context = Some(acting(&"a".repeat(129), ""))
        }),
        wrong("/context/reason FORBIDDEN_CHARACTER", |order| {
            order.context = Some(acting("", "line\nbreak"))
        }),
        wrong("/context/occurred_at OUT_OF_RANGE", |order| {
            order.context = Some(at(i64::MAX, 0))
        }),
        wrong("/context/occurred_at OUT_OF_RANGE", |order| {
            order.context = Some(at(0, -1))
        }),
        wrong("/context/occurred_at OUT_OF_RANGE", |order| {
            order.context = Some(at(32_503_680_000, 0))
        }),
        wrong("AMOUNT_OVERFLOW", |order| {
            order.lines[0].unit_price_minor = i64::MAX
        }),
        wrong("AMOUNT_OVERFLOW", |order| {
            for line in &mut order.lines {
                line.quantity = 1;
                line.unit_price_minor = i64::MAX;
            }
        }),
        wrong("ORDER_TOTAL_MISMATCH", |order| {
            order.expected_total_minor = Some(1)
        }),
        wrong("VERSION_CONFLICT", |order| order.expected_version = Some(1)),
    ]
}

fn acting(actor: &str, reason: &str) -> CommandContext {
    CommandContext {
        actor: actor.to_owned(),
        reason: reason.to_owned(),
        ..Default::default()
    }
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
    for (wanted, order) in wrong_names().into_iter().chain(wrong_contents()) {
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

async fn refused(caller: &Caller, command: impl Command, wanted: &str) {
    assert_eq!(said(caller, command).await, [wanted]);
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
    let pay = |payment: &str, minor| command::pay(&id, payment, minor);

    refused(&caller, euros, "CURRENCY_MISMATCH").await;
    refused(&caller, nothing, "/amount REQUIRED").await;
    refused(&caller, no_address, "/shipping_address REQUIRED").await;
    refused(&caller, no_line, "/line REQUIRED").await;
    refused(&caller, pay("pay-1", 0), "/amount/minor OUT_OF_RANGE").await;
    refused(&caller, pay("pay-1", -1), "/amount/minor OUT_OF_RANGE").await;
    refused(&caller, pay("pay-1", i64::MAX), "PAYMENT_EXCEEDS_TOTAL").await;
    refused(&caller, pay("", 1), "/payment_id EMPTY").await;
    refused(
        &caller,
        add_line(&id, "CD", 1_000_000, i64::MAX),
        "AMOUNT_OVERFLOW",
    )
    .await;
    refused(&caller, change_quantity(&id, 0), "/quantity OUT_OF_RANGE").await;
    refused(&caller, command::remove_line(&id, 9), "LINE_NOT_FOUND").await;
    refused(&caller, command::ship(&id, "ship-1", &[]), "ORDER_NOT_CONFIRMED").await;
    refused(&caller, refund(&id, "ref-1", 1), "REFUND_EXCEEDS_REFUNDABLE").await;
    refused(&caller, place(&id, "customer-1"), "ALREADY_EXISTS").await;
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
async fn foreign_is_missing<C: Command>(stranger: &Caller, command: C) {
    let missing_id = new_order_id();
    let mut missing = command.clone().with_key(&new_key());
    let id = missing.aggregate_id().expect("it names its order");
    let foreign_id = std::mem::replace(id, missing_id.clone());
    let foreign = stranger.send(command).await.expect_err("it is not theirs");
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
