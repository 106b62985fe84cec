//! Commands over HTTP, and over gRPC-Web: the same commands as over gRPC, under the same keys.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use daybook_proto::common::v1::{CommandContext, Receipt};
use daybook_proto::convert::from_timestamp;
use daybook_proto::orders::v1::{Address, PlaceOrderRequest, PlaceOrderResponse};
use daybook_tests::client::{Answer, Caller};
use daybook_tests::command::{self, Command};
use daybook_tests::orders::{new_key, new_order_id, place};
use daybook_tests::rest::Rest;
use daybook_tests::stack::{Backend, Role, Stack};
use daybook_tests::{log, refusal, stock, wait};
use http::Method;
use prost::Message as _;
use prost_types::Timestamp;
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tonic::Status;

fn rest(backend: &Backend) -> Rest {
    Rest::new(&backend.commands[0].url(), &backend.tenant.service_key)
}

/// The order of [`place`], as JSON.
fn order(order_id: &str, customer_id: &str) -> Value {
    json!({
        "order_id": order_id,
        "context": {"actor": "agent:jane", "reason": "by phone"},
        "customer_id": customer_id,
        "currency": "USD",
        "lines": [
            {"sku": "CD", "quantity": 2, "unit_price_minor": 1_177},
            {"sku": "LP", "quantity": 1, "unit_price_minor": 1_176},
        ],
        "expected_total_minor": 3_530,
    })
}

/// A receipt over gRPC, as HTTP would show it.
fn shown(receipt: &Receipt) -> anyhow::Result<Value> {
    let recorded_at = receipt.recorded_at.as_ref().and_then(from_timestamp);
    let recorded_at = recorded_at.context("a receipt has a moment")?.format(&Rfc3339)?;
    Ok(json!({"data": {
        "stream_id": receipt.stream_id,
        "stream_version": receipt.stream_version,
        "consistency_token": receipt.consistency_token,
        "recorded_at": recorded_at,
    }}))
}

/// Both ways to send commands, and which addresses were used.
struct Both {
    rest: Rest,
    caller: Caller,
    used: BTreeSet<String>,
}

impl Both {
    fn new(backend: &Backend) -> anyhow::Result<Self> {
        Ok(Self {
            rest: rest(backend),
            caller: backend.caller()?,
            used: BTreeSet::new(),
        })
    }

    /// Sends a command over HTTP, and again over gRPC, under the same key: where a field of the JSON had become another one of
    /// the message, the second one would be refused.
    async fn send<C: Command>(&mut self, mut command: C, body: Value) -> anyhow::Result<Receipt> {
        let collection = match C::NAME {
            name if name.contains("Stock") => "/v1/stock-items",
            _ => "/v1/orders",
        };
        let id = command.aggregate_id().cloned();
        let (path, template) = match (C::ACTION, id) {
            (Some(action), Some(id)) => (
                format!("{collection}/{id}/{}", action.name),
                format!("{collection}/{{{}}}/{}", action.id_field, action.name),
            ),
            _ => (collection.to_owned(), collection.to_owned()),
        };
        self.used.insert(template);
        let answer = self.rest.command(&path, command.request_id(), &body).await?;
        let status = if C::ACTION.is_some() { 200 } else { 201 };
        ensure!(answer.status == status, "{}: {answer:?}", C::NAME);
        ensure!(answer.header("idempotency-replayed").is_empty(), "{answer:?}");
        let receipt = self.caller.send(command).await.context(C::NAME)?;
        ensure!(answer.json() == shown(&receipt)?, "{answer:?} is not {receipt:?}");
        ensure!(answer.header("daybook-consistency") == receipt.consistency_token);
        Ok(receipt)
    }

    /// Checks that every command was sent whose address begins so.
    async fn has_used_all(&self, collection: &str) -> anyhow::Result<()> {
        let description = self
            .rest
            .send(Method::GET, "/openapi.json", &[], "")
            .await?
            .json();
        let paths = description["paths"].as_object().context("it has paths")?.keys();
        let all: BTreeSet<String> = paths
            .filter(|path| path.starts_with(collection) && !path.ends_with("/batch"))
            .cloned()
            .collect();
        ensure!(
            all == self.used,
            "{all:?} are there, and {:?} were sent",
            self.used
        );
        Ok(())
    }
}

/// An order with everything that one can have.
fn full_order(id: &str) -> (PlaceOrderRequest, Value) {
    let mut order = place(id, "customer-1");
    order.reference = "web-17".to_owned();
    order.expected_version = Some(0);
    order.shipping_address = Some(Address {
        name: "Jane Doe".to_owned(),
        lines: vec!["1 Main Street".to_owned(), "Flat 2".to_owned()],
        city: "Springfield".to_owned(),
        postal_code: "12345".to_owned(),
        country: "US".to_owned(),
    });
    order.context = Some(CommandContext {
        actor: "agent:jane".to_owned(),
        reason: "by phone".to_owned(),
        correlation_id: "cart-7".to_owned(),
        causation_id: "click-9".to_owned(),
        occurred_at: Some(Timestamp {
            seconds: 1_714_564_800,
            nanos: 250_000_000,
        }),
    });
    let mut body = self::order(id, "customer-1");
    body["reference"] = json!("web-17");
    body["expected_version"] = json!(0);
    body["shipping_address"] = json!({
        "name": "Jane Doe", "lines": ["1 Main Street", "Flat 2"], "city": "Springfield", "postal_code": "12345",
        "country": "US",
    });
    body["context"] = json!({
        "actor": "agent:jane", "reason": "by phone", "correlation_id": "cart-7", "causation_id": "click-9",
        "occurred_at": "2024-05-01T14:00:00.25+02:00",
    });
    (order, body)
}

async fn reject_one_and_cancel_one(both: &mut Both) -> anyhow::Result<()> {
    let (rejected, cancelled) = (new_order_id(), new_order_id());
    both.send(
        place(&rejected, "customer-1"),
        self::order(&rejected, "customer-1"),
    )
    .await?;
    let reason = json!({"rejection_reason": "out of stock"});
    both.send(command::reject(&rejected), reason).await?;
    both.send(
        place(&cancelled, "customer-1"),
        self::order(&cancelled, "customer-1"),
    )
    .await?;
    let reason = json!({"cancellation_reason": "changed my mind"});
    both.send(command::cancel(&cancelled), reason).await?;
    Ok(())
}

#[tokio::test]
async fn every_command_on_an_order_is_the_same_over_http_as_over_grpc() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let (mut both, id) = (Both::new(&backend)?, new_order_id());
    let (order, body) = full_order(&id);
    both.send(order, body).await?;
    let line = json!({"line": {"sku": "CD", "quantity": 3, "unit_price_minor": 5}});
    both.send(command::add_line(&id, "CD", 3, 5), line).await?;
    both.send(command::remove_line(&id, 2), json!({"line_number": 2}))
        .await?;
    let quantity = json!({"line_number": 1, "quantity": 4});
    both.send(command::change_quantity(&id, 4), quantity).await?;
    let address = json!({"shipping_address": {
        "name": "Jane Doe", "lines": ["1 Main Street"], "city": "Shelbyville", "postal_code": "12345", "country": "US",
    }});
    both.send(command::change_address(&id, "Shelbyville"), address)
        .await?;
    let expecting = json!({"expected_version": 5});
    both.send(command::confirm(&id).expecting(5), expecting).await?;
    let total = 4 * 1_177 + 3 * 5;
    let payment = json!({"payment_id": "pay-1", "amount": {"minor": total, "currency": "USD"}});
    both.send(command::pay(&id, "pay-1", total), payment).await?;
    let shipment = json!({
        "shipment_id": "ship-1", "carrier": "Post",
        "lines": [{"line_number": 1, "quantity": 4}, {"line_number": 3, "quantity": 3}],
    });
    both.send(command::ship(&id, "ship-1", &[(1, 4), (3, 3)]), shipment)
        .await?;
    both.send(command::deliver(&id, "ship-1"), json!({"shipment_id": "ship-1"}))
        .await?;
    let returned = json!({
        "return_id": "ret-1", "return_reason": "scratched", "lines": [{"line_number": 1, "quantity": 1}],
    });
    both.send(command::request_return(&id, "ret-1", &[(1, 1)]), returned)
        .await?;
    both.send(
        command::receive_return(&id, "ret-1"),
        json!({"return_id": "ret-1"}),
    )
    .await?;
    let refund = json!({"refund_id": "ref-1", "amount": {"minor": 1_177, "currency": "USD"}});
    both.send(command::refund(&id, "ref-1", 1_177), refund).await?;

    reject_one_and_cancel_one(&mut both).await?;
    assert_eq!(
        log::head(&backend.superuser).await?,
        12 + 2 + 2,
        "each was done once"
    );
    both.has_used_all("/v1/orders").await
}

#[tokio::test]
async fn every_command_on_a_stock_item_is_the_same_over_http_as_over_grpc() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let (mut both, order_id) = (Both::new(&backend)?, new_order_id());
    let receipt = both.send(stock::register("PEN"), json!({"sku": "PEN"})).await?;
    let id = stock::stock_item_id("PEN");
    assert_eq!(receipt.stream_id, id);
    both.send(stock::receive(&id, 10), json!({"quantity": 10}))
        .await?;
    let reserve = json!({"order_id": order_id, "quantity": 5});
    both.send(stock::reserve(&id, &order_id, 5), reserve).await?;
    let release = json!({"order_id": order_id, "quantity": 2});
    both.send(stock::release(&id, &order_id, Some(2)), release)
        .await?;
    let dispatch = json!({"order_id": order_id});
    both.send(stock::dispatch(&id, &order_id, None), dispatch).await?;
    let adjust = json!({"change": -1, "adjustment_reason": "counted"});
    both.send(stock::adjust(&id, -1), adjust).await?;
    both.has_used_all("/v1/stock-items").await
}

/// What makes an answer: all but the request's own id and whether it was given before.
fn essence(answer: &Answer) -> (u16, String, String, Bytes) {
    let header = |name| answer.header(name).to_owned();
    (
        answer.status,
        header("location"),
        header("daybook-consistency"),
        answer.body.clone(),
    )
}

/// Checks that an answer is the remembered one.
fn is_replay_of(again: &Answer, first: &Answer) -> anyhow::Result<()> {
    ensure!(essence(again) == essence(first), "{again:?} is not {first:?}");
    ensure!(again.header("idempotency-replayed") == "true", "{again:?}");
    Ok(())
}

#[tokio::test]
async fn an_answer_is_repeated_byte_for_byte_by_every_service_and_after_a_restart() -> anyhow::Result<()> {
    let mut backend = Backend::start(2).await?;
    let (rest, id) = (rest(&backend), new_order_id());
    let (key, confirm_key) = (new_key(), new_key());
    let confirm = format!("/v1/orders/{id}/confirm");
    let placed = rest
        .command("/v1/orders", &key, &order(&id, "customer-1"))
        .await?;
    let confirmed = rest.command(&confirm, &confirm_key, &json!({})).await?;
    assert_eq!((placed.status, confirmed.status), (201, 200));
    assert_eq!(placed.header("location"), format!("/v1/orders/{id}"));
    assert_eq!(confirmed.header("location"), "");

    let elsewhere = Rest::new(&backend.commands[1].url(), &backend.tenant.service_key);
    let quoted = format!("\"{key}\"");
    for rest in [&rest, &elsewhere] {
        let mut reordered = order(&id, "customer-1");
        reordered["unknown"] = json!(["ignored"]);
        is_replay_of(&rest.command("/v1/orders", &key, &reordered).await?, &placed)?;
        is_replay_of(&rest.command("/v1/orders", &quoted, &reordered).await?, &placed)?;
        // Without a body, and so without a type of it.
        let headers = [("idempotency-key", confirm_key.as_str()), ("content-type", "")];
        is_replay_of(
            &rest.send(Method::POST, &confirm, &headers, "").await?,
            &confirmed,
        )?;
    }
    backend.commands[0].service.kill().await?;
    backend.commands[0].service.restart().await?;
    is_replay_of(
        &rest.command(&confirm, &confirm_key, &json!({})).await?,
        &confirmed,
    )?;
    is_replay_of(
        &rest
            .command("/v1/orders", &key, &order(&id, "customer-1"))
            .await?,
        &placed,
    )?;
    assert_eq!(log::head(&backend.superuser).await?, 2);
    Ok(())
}

#[tokio::test]
async fn a_command_whose_answer_a_crash_swallowed_is_answered_when_it_comes_again() -> anyhow::Result<()> {
    let mut backend = Backend::start(1).await?;
    let (rest, id, key) = (rest(&backend), new_order_id(), new_key());
    let body = order(&id, "customer-1").to_string();
    let request = format!(
        "POST /v1/orders HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nIdempotency-Key: {key}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        backend.tenant.service_key,
        body.len()
    );
    let mut caller = TcpStream::connect(backend.commands[0].address).await?;
    caller.write_all(request.as_bytes()).await?;
    wait::until("the command is recorded", async || {
        Ok(log::head(&backend.superuser).await? == 1)
    })
    .await?;
    backend.commands[0].service.kill().await?;
    drop(caller);
    backend.commands[0].service.restart().await?;

    let again = rest
        .command("/v1/orders", &key, &order(&id, "customer-1"))
        .await?;
    assert_eq!(again.status, 201);
    assert_eq!(again.header("idempotency-replayed"), "true");
    let and_again = rest
        .command("/v1/orders", &key, &order(&id, "customer-1"))
        .await?;
    is_replay_of(&and_again, &again)?;
    let events = log::events(&backend.superuser).await?;
    assert_eq!(events.len(), 1);
    let recorded_at = events[0].recorded_at.format(&Rfc3339)?;
    assert_eq!(again.json()["data"]["recorded_at"], recorded_at);
    Ok(())
}

#[tokio::test]
async fn a_rules_refusal_is_remembered_and_a_key_is_for_one_content_on_both_transports() -> anyhow::Result<()>
{
    let backend = Backend::start(1).await?;
    let (rest, caller, id) = (rest(&backend), backend.caller()?, new_order_id());
    caller.place(&id, "customer-1").await?;
    caller.cancel(&id).await?;
    let (path, key) = (format!("/v1/orders/{id}/confirm"), new_key());
    let first = rest.command(&path, &key, &json!({})).await?;
    let again = rest.command(&path, &key, &json!({})).await?;
    assert_eq!((first.status, again.status), (422, 422));
    assert_eq!(first.header("idempotency-replayed"), "");
    assert_eq!(again.header("idempotency-replayed"), "true");
    for name in ["code", "detail", "order_status", "resource", "type", "title"] {
        assert_eq!(first.json()[name], again.json()[name], "{name}");
    }
    assert_eq!(first.json()["code"], "ORDER_CLOSED");
    let over_grpc = caller.send(command::confirm(&id).with_key(&key)).await;
    let over_grpc = over_grpc.expect_err("it is closed");
    assert!(over_grpc.metadata().get("idempotency-replayed").is_some());
    assert_eq!(first.json()["detail"], over_grpc.message());

    // The key of a command over gRPC, with other content.
    let placed = place(&new_order_id(), "customer-1");
    let key = placed.request_id.clone();
    caller.send(placed).await?;
    let other = rest.command("/v1/orders", &key, &order("", "customer-2")).await?;
    assert_eq!(
        (other.status, &other.json()["code"]),
        (422, &json!("IDEMPOTENCY_KEY_REUSED"))
    );
    Ok(())
}

#[tokio::test]
async fn a_stale_if_match_fails_as_a_precondition_and_a_stale_expected_version_as_a_conflict()
-> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let (rest, id) = (rest(&backend), new_order_id());
    backend.caller()?.place(&id, "customer-1").await?;
    let path = format!("/v1/orders/{id}/change-line-quantity");
    let change = async |if_match: &str, quantity: u32, expected: Option<u64>| {
        let mut body = json!({"line_number": 1, "quantity": quantity});
        if let Some(version) = expected {
            body["expected_version"] = json!(version);
        }
        let key = format!("change-{quantity}");
        let mut headers = vec![("idempotency-key", key.as_str())];
        headers.extend((!if_match.is_empty()).then_some(("if-match", if_match)));
        rest.command_with(&path, &headers, &body).await
    };
    let changed = change("\"v1-order.1\"", 3, None).await?;
    assert_eq!(
        (changed.status, &changed.json()["data"]["stream_version"]),
        (200, &json!(2))
    );
    is_replay_of(&change("\"v1-order.1\"", 3, None).await?, &changed)?;
    is_replay_of(&change("\"v1-another.form\"", 3, None).await?, &changed)?;
    is_replay_of(&change("", 3, Some(1)).await?, &changed)?;

    for (if_match, expected, status) in [
        ("\"v1-order.1\"", None, 412),
        ("\"v1-x\"", Some(1), 412),
        ("", Some(1), 409),
    ] {
        let stale = change(if_match, 4, expected).await?;
        let problem = stale.json();
        assert_eq!(
            (stale.status, &problem["status"]),
            (status, &json!(status)),
            "{problem}"
        );
        assert_eq!(problem["code"], "VERSION_CONFLICT");
        let versions = (&problem["expected_version"], &problem["actual_version"]);
        assert_eq!(versions, (&json!(1), &json!(2)));
    }
    assert_eq!(change("*", 5, None).await?.status, 200);
    let contradiction = change("\"v3-a\"", 6, Some(2)).await?;
    assert_eq!(
        (
            contradiction.status,
            &contradiction.json()["errors"][0]["pointer"]
        ),
        (400, &json!("/expected_version"))
    );

    let missing = format!("/v1/orders/{}/confirm", new_order_id());
    // What is not there has no version that could be the wrong one, nor the right one (RFC 9110, 13.1.1).
    for (if_match, status) in [("*", 404), ("\"v1-a\"", 412)] {
        let headers = [("idempotency-key", "missing"), ("if-match", if_match)];
        let answer = rest.command_with(&missing, &headers, &json!({})).await?;
        assert_eq!(answer.status, status, "{if_match}: {answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_id_in_the_body_is_that_of_the_address_or_a_mistake() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let (rest, id) = (rest(&backend), new_order_id());
    backend.caller()?.place(&id, "customer-1").await?;
    let path = format!("/v1/orders/{id}/confirm");
    let other = rest
        .command(&path, "other", &json!({"order_id": new_order_id()}))
        .await?;
    assert_eq!(
        (other.status, &other.json()["errors"][0]["code"]),
        (400, &json!("CONTRADICTION"))
    );
    let same = rest.command(&path, "same", &json!({"order_id": id})).await?;
    assert_eq!(same.status, 200);
    let malformed = rest
        .command("/v1/orders/42/confirm", "malformed", &json!({}))
        .await?;
    let problem = malformed.json();
    assert_eq!(
        (malformed.status, &problem["errors"][0]["pointer"]),
        (400, &json!("/order_id"))
    );
    Ok(())
}

#[tokio::test]
async fn what_was_made_is_where_the_location_says() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    // A command service that knows where the other side is; with the slash that people put at the end.
    let public_url = format!("{}/", stack.query.url());
    let settings = [("DAYBOOK_PUBLIC_URL", public_url.as_str())];
    let command = stack.servers.run(Role::Command, &settings).await?;
    let rest = Rest::new(&command.url(), &stack.tenant.service_key);
    let placed = rest
        .command("/v1/orders", "made", &order("", "customer-1"))
        .await?;
    assert_eq!(placed.status, 201, "{placed:?}");
    let location = placed.header("location");
    let path = location
        .strip_prefix(&stack.query.url())
        .context("it begins with the URL")?;
    let token = placed.header("daybook-consistency");
    let read = stack.caller()?.get_after(token, path).await?;
    assert_eq!(read.json()["data"]["customer_id"], "customer-1");
    assert_eq!(
        read.json()["data"]["order_id"],
        placed.json()["data"]["stream_id"]
    );
    Ok(())
}

/// A message as it is framed: a flag, four bytes of length, and itself.
fn framed(message: &impl prost::Message) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).expect("it is small"));
    message.encode(&mut frame).expect("it has room");
    frame.freeze()
}

#[tokio::test]
async fn grpc_web_takes_commands_over_http_1() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let (rest, request) = (rest(&backend), place(&new_order_id(), "customer-1"));
    let path = "/daybook.orders.v1.OrderService/PlaceOrder";
    let headers = [("content-type", "application/grpc-web+proto")];
    let answer = rest.send(Method::POST, path, &headers, framed(&request)).await?;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, "application/grpc-web+proto")
    );
    let mut body = answer.body.clone();
    assert_eq!(body.get_u8(), 0, "a message comes first");
    let length = body.get_u32() as usize;
    let receipt = PlaceOrderResponse::decode(body.split_to(length))?
        .receipt
        .context("a receipt")?;
    assert_eq!(body.get_u8(), 0x80, "then the trailers");
    let trailers = String::from_utf8(body.split_off(4).into())?;
    assert!(trailers.contains("grpc-status:0"), "{trailers}");
    assert_eq!(
        backend.caller()?.send(request).await?,
        receipt,
        "it is one command"
    );

    let stranger = rest.with_key("").send(Method::POST, path, &headers, "").await?;
    assert_eq!((stranger.status, stranger.header("grpc-status")), (200, "16"));
    assert_eq!(stranger.header("content-type"), "application/grpc-web+proto");
    Ok(())
}

#[tokio::test]
async fn a_body_of_grpc_web_that_is_no_base64_is_its_callers_mistake() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let path = "/daybook.orders.v1.OrderService/PlaceOrder";
    let headers = [("content-type", "application/grpc-web-text")];
    for broken in ["!!!!", "AAA", "AAAA!"] {
        let answer = rest(&backend).send(Method::POST, path, &headers, broken).await?;
        let status = Status::from_header_map(&answer.headers).context(broken)?;
        assert_eq!(
            refusal::code(&status),
            "MALFORMED_REQUEST",
            "{broken}: {status:?}"
        );
    }
    let log = format!("daybook-command-svc-{}.log", backend.commands[0].address.port());
    let logged = std::fs::read_to_string(backend.servers.directory().join(log))?;
    assert!(!logged.contains("ERROR"), "{logged}");
    Ok(())
}
