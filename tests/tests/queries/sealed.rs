//! What callers hold and cannot read: consistency tokens and cursors, over both transports.

use std::collections::HashSet;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use daybook_client::Authorized;
use daybook_proto::common::v1::Freshness;
use daybook_proto::orders::v1::order_query_service_client::OrderQueryServiceClient;
use daybook_proto::orders::v1::{GetOrderRequest, ListOrdersRequest};
use daybook_tests::client::{Answer, Caller, channel, credential};
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::refusal::violations;
use daybook_tests::stack::{Role, Stack};
use daybook_tests::{check, command, log, sealing, stock};

/// An order with two events, another order, and two stock items, so that every list has a second page of one; and all
/// tokens of receipts.
async fn some_data(caller: &Caller) -> anyhow::Result<(String, Vec<String>)> {
    let order_id = new_order_id();
    let receipts = [
        caller.place(&order_id, "customer-1").await?,
        caller.send(command::confirm(&order_id)).await?,
        caller.place(&new_order_id(), "customer-1").await?,
        caller.send(stock::register("PEN-FINE")).await?,
        caller.send(stock::register("PEN-BROAD")).await?,
    ];
    let tokens = receipts.map(|receipt| receipt.consistency_token);
    Ok((order_id, tokens.to_vec()))
}

fn documents(order_id: &str) -> [String; 4] {
    [
        format!("/v1/orders/{order_id}"),
        format!("/v1/orders/{order_id}?as_of=1"),
        "/v1/customers/customer-1/totals".to_owned(),
        format!("/v1/stock-items/{}", stock::stock_item_id("PEN-FINE")),
    ]
}

fn lists(order_id: &str) -> [String; 7] {
    [
        "/v1/orders?limit=1".to_owned(),
        "/v1/orders?limit=1&sort=placed_at".to_owned(),
        "/v1/stock-items?limit=1".to_owned(),
        format!("/v1/orders/{order_id}/events?limit=1"),
        format!("/v1/orders/{order_id}/events?limit=1&order=desc"),
        "/v1/events?limit=1".to_owned(),
        "/v1/events?limit=1&sort=-position".to_owned(),
    ]
}

fn cursor(answer: &Answer) -> anyhow::Result<String> {
    let cursor = answer.json()["pagination"]["next_cursor"]
        .as_str()
        .map(str::to_owned);
    cursor.with_context(|| format!("there is no next page of {}", answer.json()))
}

fn queries(stack: &Stack, key: &str) -> anyhow::Result<OrderQueryServiceClient<Authorized>> {
    Ok(OrderQueryServiceClient::with_interceptor(
        channel(&stack.query.url())?,
        credential(key)?,
    ))
}

/// All that a caller is given to hold, over both transports.
async fn sealed_texts(stack: &Stack, caller: &Caller) -> anyhow::Result<(String, Vec<String>)> {
    let (order_id, mut texts) = some_data(caller).await?;
    check::caught_up(&stack.superuser).await?;
    for path in documents(&order_id).iter().chain(&lists(&order_id)) {
        let answer = caller.get(path).await?;
        assert_eq!(answer.status, 200, "{path}: {}", answer.json());
        texts.push(answer.header("daybook-consistency").to_owned());
        if path.contains("limit") {
            texts.push(cursor(&answer)?);
        }
    }
    let request = ListOrdersRequest {
        page_size: 1,
        ..Default::default()
    };
    let page = caller.queries().list_orders(request).await?.into_inner();
    texts.push(page.next_page_token);
    texts.push(
        page.staleness
            .context("it says how fresh it is")?
            .consistency_token,
    );
    Ok((order_id, texts))
}

#[tokio::test]
async fn nothing_that_a_caller_holds_shows_an_id_a_position_or_a_generation() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (_, texts) = sealed_texts(&stack, &caller).await?;
    let mut secrets = Vec::new();
    for event in log::events(&stack.superuser).await? {
        let (_, suffix) = event.stream_id.split_once('_').context("a TypeID has a prefix")?;
        secrets.push(suffix.as_bytes().to_vec());
        secrets.push(event.event_id.as_bytes().to_vec());
        secrets.push(event.event_id.to_string().into_bytes());
        secrets.push(event.position.to_be_bytes().to_vec());
        secrets.push(event.position.to_le_bytes().to_vec());
    }
    let generation = sealing::token(stack.tenant.tenant_id, &texts[0])?.generation;
    secrets.extend([
        generation.as_bytes().to_vec(),
        b"PEN-FINE".to_vec(),
        b"total".to_vec(),
    ]);
    for text in texts {
        let bytes = URL_SAFE_NO_PAD.decode(&text)?;
        assert!(bytes.len() > 45, "{text}");
        for secret in &secrets {
            let shown = |text: &[u8]| text.windows(secret.len()).any(|part| part == secret);
            assert!(
                !shown(text.as_bytes()) && !shown(&bytes),
                "{text} shows {secret:?}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_plain_position_is_only_for_those_who_may_read_the_log() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (order_id, _) = some_data(&caller).await?;
    let head = check::caught_up(&stack.superuser).await?;
    let (frontend, auditor) = (&stack.tenant.frontend_key, &stack.tenant.auditor_key);
    for path in documents(&order_id).iter().chain(&lists(&order_id)[..3]) {
        let answer = caller.get_as(frontend, path, &[]).await?;
        assert_eq!(
            (answer.status, answer.header("daybook-position")),
            (200, ""),
            "{path}"
        );
        let answer = caller.get_as(auditor, path, &[]).await?;
        let position: u64 = answer.header("daybook-position").parse()?;
        // What is read from the log includes at least what the last look at its head saw, which may be nothing yet.
        assert!(position <= head, "{path}");
    }
    for (key, is_plain) in [(frontend, false), (auditor, true)] {
        let request = GetOrderRequest {
            order_id: order_id.clone(),
            ..Default::default()
        };
        let answer = queries(&stack, key)?.get_order(request).await?.into_inner();
        let position = answer.staleness.context("it says how fresh it is")?.position;
        assert_eq!(position.is_some(), is_plain);
    }
    Ok(())
}

#[tokio::test]
async fn whoever_asks_again_and_again_does_not_see_whether_the_log_has_moved() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (order_id, _) = some_data(&caller).await?;
    check::caught_up(&stack.superuser).await?;
    let mut tokens = HashSet::new();
    for _ in 0..10 {
        let answer = caller.get(&format!("/v1/orders/{order_id}")).await?;
        let token = answer.header("daybook-consistency").to_owned();
        // It is a token like any other.
        let again = caller.get_after(&token, "/v1/orders").await?;
        assert_eq!(again.status, 200, "{}", again.json());
        tokens.insert(token);
    }
    assert_eq!(tokens.len(), 10);
    Ok(())
}

#[tokio::test]
async fn another_tenants_tokens_and_cursors_are_answered_like_garbage() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let owner = stack.caller()?;
    let (order_id, texts) = sealed_texts(&stack, &owner).await?;
    let other_tenant = stack.other_caller().await?;
    let key = other_tenant.tenant.auditor_key.as_str();
    let ask = async |path: &str, token: &str| {
        let headers = [("daybook-consistency", token), ("x-request-id", "the-same")];
        let headers = if token.is_empty() {
            &headers[1..]
        } else {
            &headers[..]
        };
        let answer = other_tenant.get_as(key, path, headers).await?;
        anyhow::Ok((answer.status, answer.body))
    };
    let garbage = ask("/v1/orders", "garbage").await?;
    assert_eq!(garbage.0, 400);
    let no_cursor = ask("/v1/orders?limit=1&cursor=garbage", "").await?;
    assert_eq!(no_cursor.0, 400);
    for text in &texts {
        assert_eq!(ask("/v1/orders", text).await?, garbage);
        for list in lists(&order_id) {
            assert_eq!(ask(&format!("{list}&cursor={text}"), "").await?, no_cursor);
        }
        let request = GetOrderRequest {
            order_id: order_id.clone(),
            freshness: Some(Freshness {
                consistency_token: text.clone(),
            }),
            ..Default::default()
        };
        let refused = queries(&stack, key)?.get_order(request).await;
        let refused = refused.expect_err("it is another tenant's");
        assert_eq!(
            violations(&refused),
            ["/freshness/consistency_token INVALID_TOKEN"]
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_token_with_a_changed_character_is_refused() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (_, tokens) = some_data(&caller).await?;
    for index in 0..tokens[0].len() {
        let mut changed = tokens[0].clone().into_bytes();
        changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
        let answer = caller
            .get_after(&String::from_utf8(changed)?, "/v1/orders")
            .await?;
        assert_eq!(answer.status, 400, "{index}: {}", answer.json());
        assert_eq!(answer.json()["errors"][0]["code"], "INVALID_TOKEN");
    }
    Ok(())
}

/// A new key comes in behind the old one, seals, and is at last alone.
#[tokio::test]
async fn keys_are_exchanged_without_breaking_what_callers_hold() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let (old, new) = (sealing::key(), "a7".repeat(32));
    let with_keys = async |keys: &str| {
        let environment = [("DAYBOOK_SEALING_KEYS", keys)];
        let command = stack.servers.run(Role::Command, &environment).await?;
        let query = stack.servers.run(Role::Query, &environment).await?;
        let caller = Caller::new(
            &command.url(),
            &query.url(),
            &stack.projector.url(),
            stack.tenant.clone(),
        )?;
        anyhow::Ok((command, query, caller))
    };
    let before = stack.caller()?;
    let order = place(&new_order_id(), "customer-1");
    let path = format!("/v1/orders/{}", order.order_id);
    let first = before.send(order.clone()).await?;
    before.place(&new_order_id(), "customer-1").await?;
    check::caught_up(&stack.superuser).await?;
    let next_page = format!(
        "/v1/orders?limit=1&cursor={}",
        cursor(&before.get("/v1/orders?limit=1").await?)?
    );

    let (_command, _query, while_exchanged) = with_keys(&format!("{new},{old}")).await?;
    assert_eq!(
        while_exchanged
            .get_after(&first.consistency_token, &path)
            .await?
            .status,
        200
    );
    assert_eq!(while_exchanged.get(&next_page).await?.status, 200);
    // The receipt of a command that is sent again means the same; its token is sealed with the new key.
    let mut again = while_exchanged.send(order).await?;
    assert_ne!(again.consistency_token, first.consistency_token);
    assert_eq!(
        while_exchanged
            .get_after(&again.consistency_token, &path)
            .await?
            .status,
        200
    );
    assert_eq!(
        before.get_after(&again.consistency_token, &path).await?.status,
        400
    );
    again.consistency_token.clone_from(&first.consistency_token);
    assert_eq!(again, first);

    let (_command, _query, after) = with_keys(&new).await?;
    assert_eq!(
        after.get_after(&first.consistency_token, &path).await?.status,
        400
    );
    assert_eq!(after.get(&next_page).await?.json()["code"], "INVALID_CURSOR");
    Ok(())
}
