//! Stock items through the whole system: commands, levels over REST and gRPC, history, and what is refused.

use daybook_proto::history::v1::ListStreamEventsRequest;
use daybook_proto::stock::v1::{GetStockItemRequest, ListStockItemsRequest};
use daybook_tests::client::Caller;
use daybook_tests::ledger::Ledger;
use daybook_tests::orders::new_order_id;
use daybook_tests::refusal::{code, value};
use daybook_tests::stack::Stack;
use daybook_tests::{check, log, stock};
use serde_json::json;

/// Registers an article of which so many come in; gives the stock item's id.
async fn stocked(caller: &Caller, sku: &str, quantity: u32) -> anyhow::Result<String> {
    let receipt = caller.send(stock::register(sku)).await?;
    caller.send(stock::receive(&receipt.stream_id, quantity)).await?;
    Ok(receipt.stream_id)
}

#[tokio::test]
async fn levels_follow_every_command_over_rest_and_grpc() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (first, second) = (new_order_id(), new_order_id());
    let id = stocked(&caller, "PEN-FINE", 10).await?;
    assert_eq!(id, stock::stock_item_id("PEN-FINE"));
    caller.send(stock::reserve(&id, &first, 4)).await?;
    caller.send(stock::reserve(&id, &second, 3)).await?;
    caller.send(stock::release(&id, &first, Some(1))).await?;
    caller.send(stock::dispatch(&id, &second, None)).await?;
    let receipt = caller.send(stock::adjust(&id, -1)).await?;
    assert_eq!(receipt.stream_version, 7);

    let path = format!("/v1/stock-items/{id}");
    let answer = caller.get_after(&receipt.consistency_token, &path).await?;
    assert_eq!(answer.status, 200, "{}", answer.json());
    let mut item = answer.json()["data"].clone();
    item.as_object_mut().expect("an object").remove("updated_at");
    let expected = json!({
        "stock_item_id": id, "sku": "PEN-FINE", "version": 7, "on_hand": 6, "reserved": 3, "available": 3,
    });
    assert_eq!(item, expected);

    let known = [("if-none-match", answer.header("etag"))];
    let again = caller.get_as(&caller.tenant.frontend_key, &path, &known).await?;
    assert_eq!(again.status, 304);

    let request = GetStockItemRequest {
        stock_item_id: id,
        ..Default::default()
    };
    let answer = caller.stock_queries().get_stock_item(request).await?.into_inner();
    let item = answer.stock_item.expect("a stock item");
    assert_eq!((item.on_hand, item.reserved, item.available), (6, 3, 3));

    check::caught_up(&stack.superuser).await?;
    let events = log::events(&stack.superuser).await?;
    check::log(&events)?;
    check::read_models(&stack.superuser, &events).await
}

#[tokio::test]
async fn what_a_rule_refuses_is_said_with_its_code_and_values() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let order = new_order_id();
    let id = stocked(&caller, "PEN-FINE", 10).await?;

    let twice = caller.send(stock::register("PEN-FINE")).await;
    assert_eq!(code(&twice.expect_err("it is registered")), "ALREADY_EXISTS");

    let too_many = caller.send(stock::reserve(&id, &order, 11)).await;
    let too_many = too_many.expect_err("there are ten");
    assert_eq!(code(&too_many), "INSUFFICIENT_STOCK");
    assert_eq!(
        (value(&too_many, "quantity"), value(&too_many, "available")),
        ("11".to_owned(), "10".to_owned())
    );

    let unknown = caller.send(stock::receive(&stock::stock_item_id("INK"), 1)).await;
    assert_eq!(
        code(&unknown.expect_err("it is not registered")),
        "RESOURCE_NOT_FOUND"
    );

    let nothing = caller.send(stock::adjust(&id, 0)).await;
    assert_eq!(
        code(&nothing.expect_err("nothing is adjusted")),
        "VALIDATION_FAILED"
    );

    let foreign = caller.send(stock::receive(&order, 1)).await;
    assert_eq!(
        code(&foreign.expect_err("an order is no stock item")),
        "VALIDATION_FAILED"
    );
    Ok(())
}

#[tokio::test]
async fn of_many_orders_that_reserve_at_once_only_as_many_succeed_as_there_are_articles() -> anyhow::Result<()>
{
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (id, ledger) = (stock::stock_item_id("PEN-FINE"), Ledger::default());
    ledger.send(&caller, stock::register("PEN-FINE")).await?;
    ledger.send(&caller, stock::receive(&id, 25)).await?;
    let attempts = (0..64).map(|_| ledger.send(&caller, stock::reserve(&id, &new_order_id(), 1)));
    let outcomes = futures::future::join_all(attempts).await;
    let granted = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(granted, 25);
    for refused in outcomes.into_iter().filter_map(Result::err) {
        assert_eq!(code(&refused), "INSUFFICIENT_STOCK");
    }
    check::everything(&stack.superuser, &stack.servers.nats.url(), &ledger).await
}

#[tokio::test]
async fn the_history_of_a_stock_item_is_read_like_that_of_an_order() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let id = stocked(&caller, "PEN-FINE", 10).await?;
    let recorded = log::stream(&stack.superuser, &id).await?;

    let answer = caller.get(&format!("/v1/stock-items/{id}/events")).await?;
    assert_eq!(answer.status, 200, "{}", answer.json());
    let listed = answer.json();
    let types: Vec<_> = listed["data"]
        .as_array()
        .expect("events")
        .iter()
        .map(|event| &event["event_type"])
        .collect();
    assert_eq!(types, ["stock_item.registered", "stock_item.received"]);

    let request = ListStreamEventsRequest {
        stream_id: id.clone(),
        ..Default::default()
    };
    let events = caller
        .histories()
        .list_stream_events(request)
        .await?
        .into_inner()
        .events;
    let payloads: Vec<_> = events.iter().map(|event| &event.payload_json).collect();
    assert_eq!(
        payloads,
        recorded.iter().map(|event| &event.payload).collect::<Vec<_>>()
    );

    for (path, status) in [
        (format!("/v1/orders/{id}/events"), 400),
        (format!("/v1/weather/{id}/events"), 404),
        (
            format!("/v1/stock-items/{}/events", stock::stock_item_id("INK")),
            404,
        ),
    ] {
        assert_eq!(caller.get(&path).await?.status, status, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn stock_items_are_listed_by_article_page_by_page() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    for sku in ["C", "A", "E", "B", "D"] {
        stocked(&caller, sku, 1).await?;
    }
    check::caught_up(&stack.superuser).await?;

    let (mut skus, mut next) = (Vec::new(), Some(String::new()));
    while let Some(cursor) = next {
        let answer = caller.get(&format!("/v1/stock-items?limit=2{cursor}")).await?;
        assert_eq!(answer.status, 200, "{}", answer.json());
        let page = answer.json();
        let items = page["data"].as_array().expect("items").iter();
        skus.extend(items.map(|item| item["sku"].as_str().unwrap_or_default().to_owned()));
        next = page["pagination"]["next_cursor"]
            .as_str()
            .map(|cursor| format!("&cursor={cursor}"));
    }
    assert_eq!(skus, ["A", "B", "C", "D", "E"]);

    let request = ListStockItemsRequest {
        page_size: 3,
        ..Default::default()
    };
    let page = caller
        .stock_queries()
        .list_stock_items(request)
        .await?
        .into_inner();
    assert_eq!(
        (page.stock_items.len(), page.next_page_token.is_empty()),
        (3, false)
    );
    Ok(())
}
