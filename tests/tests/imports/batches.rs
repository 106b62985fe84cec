//! Batches: all or nothing, or each by itself; the same answer however often, whichever replica is asked, whatever crashes.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use daybook_devstack::process::Signal;
use daybook_proto::common::v1::{BatchMode, batch_result::Outcome};
use daybook_proto::orders::v1::BatchPlaceOrdersRequest;
use daybook_proto::stock::v1::stock_service_client::StockServiceClient;
use daybook_proto::stock::v1::{BatchRegisterStockItemsRequest, RegisterStockItemRequest};
use daybook_service::identity::Scope;
use daybook_tests::client::Answer;
use daybook_tests::orders::{new_key, new_order_id, place};
use daybook_tests::rest::Rest;
use daybook_tests::stack::Backend;
use daybook_tests::{check, log, refusal};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic_types::{ErrorDetails, StatusExt as _};

const ORDERS: &str = "/v1/orders/batch";

fn rest(backend: &Backend, replica: usize) -> Rest {
    Rest::new(&backend.commands[replica].url(), &backend.tenant.service_key)
}

fn order(order_id: &str) -> Value {
    json!({
        "order_id": order_id,
        "customer_id": "ada",
        "currency": "USD",
        "lines": [{"sku": "CD", "quantity": 2, "unit_price_minor": 1_177}],
    })
}

fn batch(mode: &str, items: &[Value]) -> Value {
    json!({"mode": mode, "items": items})
}

fn new_orders(count: usize) -> Vec<Value> {
    (0..count).map(|_| order(&new_order_id())).collect()
}

/// Total, succeeded, failed.
fn summary(answer: &Answer) -> anyhow::Result<[u64; 3]> {
    ensure!(answer.status == 200, "{answer:?}");
    let json = answer.json();
    let count = |name: &str| json["data"]["summary"][name].as_u64();
    let all = [count("total"), count("succeeded"), count("failed")].map(|count| count.context("a count"));
    let [total, succeeded, failed] = all;
    Ok([total?, succeeded?, failed?])
}

/// The code of each item, "" where it was done.
fn codes(answer: &Answer) -> Vec<String> {
    let json = answer.json();
    let results = json["data"]["results"].as_array().cloned().unwrap_or_default();
    let code = |(index, result): (usize, &Value)| {
        assert_eq!(result["index"], index);
        assert!(
            result["receipt"].is_object() != result["error"].is_object(),
            "{result}"
        );
        result["error"]["code"].as_str().unwrap_or_default().to_owned()
    };
    results.iter().enumerate().map(code).collect()
}

#[tokio::test]
async fn a_batch_needs_a_key_with_the_scope_of_its_commands() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let rest = rest(&backend, 0);
    for (path, scope) in [
        (ORDERS, Scope::OrdersWrite),
        ("/v1/stock-items/batch", Scope::StockWrite),
    ] {
        let stranger = rest.with_key("").command(path, "k", &json!({})).await?;
        assert_eq!(stranger.status, 401);
        for key in backend.tenant.keys_without(&backend.superuser, scope).await? {
            let answer = rest.with_key(&key).command(path, "k", &json!({})).await?;
            assert_eq!(
                (answer.status, &answer.json()["missing_scope"]),
                (403, &scope.as_str().into())
            );
        }
    }
    Ok(())
}

async fn recorded(backend: &Backend) -> anyhow::Result<usize> {
    let events = log::events(&backend.superuser).await?;
    check::log(&events)?;
    Ok(events.len())
}

#[tokio::test]
async fn a_batch_is_done_once_and_answered_with_the_same_bytes_by_every_replica() -> anyhow::Result<()> {
    let backend = Backend::start(2).await?;
    for (mode, key, count) in [("ATOMIC", new_key(), 100), ("partial", "a-key".to_owned(), 3)] {
        let (before, body) = (recorded(&backend).await?, batch(mode, &new_orders(count)));
        let first = rest(&backend, 0).command(ORDERS, &key, &body).await?;
        assert_eq!(summary(&first)?, [count as u64, count as u64, 0]);
        assert_eq!(first.header("idempotency-replayed"), "");
        assert!(!first.header("daybook-consistency").is_empty());
        for replica in [0, 1] {
            let again = rest(&backend, replica).command(ORDERS, &key, &body).await?;
            assert_eq!(again.body, first.body);
            assert_eq!(again.header("idempotency-replayed"), "true");
        }
        assert_eq!(recorded(&backend).await?, before + count);
        let events = log::events(&backend.superuser).await?;
        let moments: BTreeSet<_> = events[before..].iter().map(|event| event.recorded_at).collect();
        assert_eq!(moments.len(), 1, "one transaction");
    }
    Ok(())
}

#[tokio::test]
async fn of_an_atomic_batch_with_a_refused_item_nothing_is_done_now_or_later() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let rest = rest(&backend, 0);
    let there = order(&new_order_id());
    rest.command("/v1/orders", &new_key(), &there).await?;
    let mut overflow = order(&new_order_id());
    overflow["lines"][0] = json!({"sku": "CD", "quantity": 1_000_000, "unit_price_minor": i64::MAX});
    let mut invalid = order(&new_order_id());
    invalid["currency"] = "dollars".into();
    let mut stale = there.clone();
    stale["expected_version"] = 0.into();
    for (done, (refused, code)) in (1..).zip([
        (there.clone(), "ALREADY_EXISTS"),
        (overflow, "AMOUNT_OVERFLOW"),
        (invalid, "VALIDATION_FAILED"),
        (stale, "VERSION_CONFLICT"),
    ]) {
        let mut items = new_orders(3);
        items.insert(1, refused);
        let (key, body) = (new_key(), batch("ATOMIC", &items));
        let first = rest.command(ORDERS, &key, &body).await?;
        assert_eq!(summary(&first)?, [4, 0, 4]);
        assert_eq!(
            codes(&first),
            ["BATCH_REFUSED", code, "BATCH_REFUSED", "BATCH_REFUSED"]
        );
        assert_eq!(first.json()["data"]["results"][0]["error"]["refused_index"], 1);
        let again = rest.command(ORDERS, &key, &body).await?;
        assert_eq!(again.body, first.body, "{code}");
        assert_eq!(recorded(&backend).await?, done, "{code}");
        if ["ALREADY_EXISTS", "AMOUNT_OVERFLOW"].contains(&code) {
            let other = rest.command(ORDERS, &key, &batch("ATOMIC", &items[..1])).await?;
            assert_eq!(other.json()["code"], "IDEMPOTENCY_KEY_REUSED", "{code}");
        }
        // What was not done can be done by itself.
        let alone = rest.command("/v1/orders", &new_key(), &items[0]).await?;
        assert_eq!(alone.status, 201, "{alone:?}");
        let again = rest.command(ORDERS, &key, &body).await?;
        if code != "VERSION_CONFLICT" {
            assert_eq!(again.body, first.body, "{code}: a refusal is remembered");
        }
    }
    Ok(())
}

#[tokio::test]
async fn in_a_partial_batch_each_item_is_by_itself_and_says_where_it_is_wrong() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let rest = rest(&backend, 0);
    let there = order(&new_order_id());
    rest.command("/v1/orders", &new_key(), &there).await?;
    let [good, another] = [order(&new_order_id()), order(&new_order_id())];
    let mut invalid = order(&new_order_id());
    invalid["lines"][0]["quantity"] = 0.into();
    invalid["customer_id"] = "".into();
    let mut mistyped = order(&new_order_id());
    mistyped["lines"][0]["quantity"] = "2".into();
    let mut with_version = order(&new_order_id());
    with_version["expected_version"] = 3.into();
    let items = [
        good.clone(),
        there,
        invalid,
        mistyped,
        json!([]),
        good,
        with_version,
        another,
    ];
    let (key, body) = (new_key(), batch("PARTIAL", &items));
    let first = rest.command(ORDERS, &key, &body).await?;
    assert_eq!(summary(&first)?, [8, 2, 6]);
    let invalid = "VALIDATION_FAILED";
    let expected = [
        "",
        "ALREADY_EXISTS",
        invalid,
        invalid,
        invalid,
        invalid,
        invalid,
        "",
    ];
    assert_eq!(codes(&first), expected);
    let json = first.json();
    let pointers = |index: usize| -> Vec<&str> {
        let violations = json["data"]["results"][index]["error"]["errors"].as_array();
        let pointers = violations.into_iter().flatten();
        pointers
            .filter_map(|violation| violation["pointer"].as_str())
            .collect()
    };
    assert_eq!(pointers(2), ["/customer_id", "/lines/0/quantity"]);
    assert_eq!(pointers(3), ["/lines/0/quantity"]);
    assert_eq!(pointers(5), [""], "it is the same order as the first item's");
    assert_eq!(pointers(6), ["/expected_version"]);
    let again = rest.command(ORDERS, &key, &body).await?;
    assert_eq!(again.body, first.body);
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(recorded(&backend).await?, 3);
    Ok(())
}

#[tokio::test]
async fn a_batch_that_is_wrong_as_a_whole_is_refused_as_a_whole() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let rest = rest(&backend, 0);
    for (body, pointer) in [
        (batch("ATOMIC", &[]), "/items"),
        (batch("PARTIAL", &new_orders(101)), "/items"),
        (batch("MOSTLY", &new_orders(1)), "/mode"),
        (json!({"items": new_orders(1)}), "/mode"),
        (json!({"mode": "ATOMIC", "items": {}}), "/items"),
    ] {
        let answer = rest.command(ORDERS, &new_key(), &body).await?;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer);
    }
    let one = batch("ATOMIC", &new_orders(1));
    let answer = rest.command_with(ORDERS, &[], &one).await?;
    assert_eq!(answer.json()["errors"][0]["pointer"], "Idempotency-Key");
    let headers = [("idempotency-key", "k"), ("if-match", "\"v1-1\"")];
    let answer = rest.command_with(ORDERS, &headers, &one).await?;
    assert_eq!(answer.json()["errors"][0]["pointer"], "If-Match");
    assert_eq!(recorded(&backend).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_key_means_one_batch_whatever_of_it_is_other_and_no_single_command() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let rest = rest(&backend, 0);
    let items = new_orders(3);
    for (key, single) in [(new_key(), None), ("k".to_owned(), Some("k/01"))] {
        let first = rest.command(ORDERS, &key, &batch("PARTIAL", &items)).await?;
        assert_eq!(first.status, 200, "{first:?}");
        let before = recorded(&backend).await?;
        let more = [&items[..], &new_orders(2)].concat();
        for other in [
            batch("ATOMIC", &items),
            batch("PARTIAL", &items[..2]),
            batch("PARTIAL", &more),
            batch("PARTIAL", &[items[1].clone(), items[0].clone(), items[2].clone()]),
            batch("PARTIAL", &[json!({}), order(&new_order_id())]),
        ] {
            let answer = rest.command(ORDERS, &key, &other).await?;
            assert_eq!(
                (answer.status, &answer.json()["code"]),
                (422, &"IDEMPOTENCY_KEY_REUSED".into())
            );
        }
        for single in single.into_iter().chain([key.as_str()]) {
            let answer = rest
                .command("/v1/orders", single, &order(&new_order_id()))
                .await?;
            assert_eq!(answer.json()["code"], "IDEMPOTENCY_KEY_REUSED");
        }
        assert_eq!(recorded(&backend).await?, before);
    }
    Ok(())
}

/// The code of an item's error over gRPC.
fn item_code(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Receipt(_) => String::new(),
        Outcome::Error(status) => {
            let details = tonic::Status::with_details(
                tonic::Code::from(status.code),
                status.message.clone(),
                status.encode_to_vec().into(),
            )
            .get_error_details();
            let reason = |details: &ErrorDetails| Some(details.error_info()?.reason.clone());
            reason(&details).unwrap_or_default()
        }
    }
}

#[tokio::test]
async fn a_batch_is_the_same_over_grpc() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let caller = backend.caller()?;
    let ids = [new_order_id(), new_order_id()];
    let (key, rest) = (new_key(), rest(&backend, 0));
    let http = rest
        .command(ORDERS, &key, &batch("ATOMIC", &ids.clone().map(|id| order(&id))))
        .await?;
    let item = |id: &String| {
        let mut place = place(id, "ada");
        place.request_id.clear();
        place.expected_total_minor = None;
        place.context = None;
        place.lines.truncate(1);
        place
    };
    let request = BatchPlaceOrdersRequest {
        request_id: key,
        mode: BatchMode::Atomic.into(),
        items: ids.iter().map(item).collect(),
    };
    let response = caller.orders().batch_place_orders(request.clone()).await?;
    assert_eq!(
        response
            .metadata()
            .get("idempotency-replayed")
            .map(|value| value.as_bytes()),
        Some(&b"true"[..])
    );
    let response = response.into_inner();
    for (index, result) in response.results.iter().enumerate() {
        let Some(Outcome::Receipt(receipt)) = &result.outcome else {
            panic!("{result:?}");
        };
        let shown = &http.json()["data"]["results"][index]["receipt"];
        assert_eq!(shown["consistency_token"], receipt.consistency_token);
    }
    let mut unspecified = request.clone();
    unspecified.mode = 0;
    let refused = caller
        .orders()
        .batch_place_orders(unspecified)
        .await
        .expect_err("it has no mode");
    assert_eq!(refusal::code(&refused), "VALIDATION_FAILED");
    Ok(())
}

#[tokio::test]
async fn articles_are_registered_in_batches_too() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let (caller, rest) = (backend.caller()?, rest(&backend, 0));
    let skus = ["PEN", "INK", "PEN", ""];
    let article = |sku: &str| RegisterStockItemRequest {
        sku: sku.to_owned(),
        ..Default::default()
    };
    let mut stock = StockServiceClient::new(caller.commands());
    let mut register = async |mode: BatchMode, key: &str| {
        let items = skus.map(article).into();
        let (request_id, mode) = (key.to_owned(), mode.into());
        let request = BatchRegisterStockItemsRequest {
            request_id,
            mode,
            items,
        };
        let response = stock.batch_register_stock_items(request).await?.into_inner();
        let outcomes = response
            .results
            .iter()
            .filter_map(|result| result.outcome.as_ref());
        anyhow::Ok((outcomes.map(item_code).collect::<Vec<_>>(), response.summary))
    };
    let (codes, _) = register(BatchMode::Atomic, "s").await?;
    assert_eq!(
        codes,
        [
            "BATCH_REFUSED",
            "BATCH_REFUSED",
            "VALIDATION_FAILED",
            "VALIDATION_FAILED"
        ]
    );
    let (codes, summary) = register(BatchMode::Partial, "t").await?;
    assert_eq!(codes, ["", "", "VALIDATION_FAILED", "VALIDATION_FAILED"]);
    let summary = summary.context("it has one")?;
    assert_eq!([summary.total, summary.succeeded, summary.failed], [4, 2, 2]);
    let body = batch("PARTIAL", &[json!({"sku": "PEN"}), json!({"sku": "WAX"})]);
    let answer = rest.command("/v1/stock-items/batch", &new_key(), &body).await?;
    assert_eq!(self::codes(&answer), ["ALREADY_EXISTS", ""]);
    assert_eq!(recorded(&backend).await?, 2 + 1);
    Ok(())
}

#[tokio::test]
async fn whichever_replica_is_killed_an_atomic_batch_is_there_as_a_whole_or_not_at_all() -> anyhow::Result<()>
{
    let mut backend = Backend::start(2).await?;
    let batches: Vec<(String, Vec<Value>)> = (0..40).map(|_| (new_key(), new_orders(20))).collect();
    let mut sending = JoinSet::new();
    for (number, (key, items)) in batches.iter().enumerate() {
        let (rest, key, body) = (rest(&backend, number % 2), key.clone(), batch("ATOMIC", items));
        sending.spawn(async move { rest.command(ORDERS, &key, &body).await.ok() });
    }
    // Some are answered, some are on their way, and some have not begun.
    let first = sending.join_next().await.context("there are some")??;
    assert_eq!(summary(&first.context("nothing was killed yet")?)?, [20, 20, 0]);
    let process = backend.commands[0].service.process_id().context("it runs")?;
    process.signal(Signal::KILL);
    while sending.join_next().await.is_some() {}
    backend.commands[0].service.stop().await?;
    let ids = |items: &[Value]| -> BTreeSet<String> {
        let ids = items.iter().filter_map(|item| item["order_id"].as_str());
        ids.map(str::to_owned).collect()
    };
    let there: BTreeSet<String> = log::events(&backend.superuser)
        .await?
        .into_iter()
        .map(|event| event.stream_id)
        .collect();
    for (_, items) in &batches {
        let of_batch = ids(items).intersection(&there).count();
        ensure!(of_batch == 0 || of_batch == 20, "{of_batch} of 20 are there");
    }
    for (key, items) in &batches {
        let again = rest(&backend, 1)
            .command(ORDERS, key, &batch("ATOMIC", items))
            .await?;
        assert_eq!(summary(&again)?, [20, 20, 0]);
    }
    assert_eq!(recorded(&backend).await?, 40 * 20);
    Ok(())
}
