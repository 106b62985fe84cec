//! `daybook state`, `daybook history`, `daybook get events` and `daybook trace`: they print what the query service answers.

use daybook_devstack::Proxy;
use daybook_proto::common::v1::CommandContext;
use daybook_tests::cli::{Running, Said, daybook};
use daybook_tests::client::Caller;
use daybook_tests::command;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::stack::Stack;
use serde_json::Value;
use serde_json::value::RawValue;

/// More than the command line asks for at once.
const EVENTS: u32 = 103;

/// An order with that many events; returns its id and the token of the newest receipt.
async fn changed_order(caller: &Caller) -> anyhow::Result<(String, String)> {
    let id = new_order_id();
    let mut receipt = caller.send(place(&id, "customer-1")).await?;
    for quantity in 2..=EVENTS {
        receipt = caller.send(command::change_quantity(&id, quantity)).await?;
    }
    Ok((id, receipt.consistency_token))
}

async fn read(stack: &Stack, arguments: &[&str]) -> anyhow::Result<Said> {
    let url = stack.query.url();
    let settings = [
        ("DAYBOOK_QUERY_URL", url.as_str()),
        ("DAYBOOK_API_KEY", stack.tenant.auditor_key.as_str()),
    ];
    daybook(&settings, arguments).await
}

#[tokio::test]
async fn an_order_is_printed_as_it_is_answered() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (id, token) = changed_order(&caller).await?;
    let path = format!("/v1/orders/{id}");
    let now = caller.get_after(&token, &path).await?.json();
    let said = read(&stack, &["state", &id, "--output", "json"]).await?;
    assert_eq!((said.code, said.json()?), (0, now["data"].clone()), "{said:?}");
    let text = read(&stack, &["state", &id]).await?.output;
    assert!(text.contains("version   103\n") && text.contains("CD"), "{text}");

    let earlier = caller.get(&format!("{path}?as_of=2")).await?.json();
    let said = read(&stack, &["state", &id, "--at", "v2", "--output", "json"]).await?;
    assert_eq!(said.json()?, earlier["data"]);
    let at = now["data"]["updated_at"].as_str().unwrap_or_default();
    let said = read(&stack, &["state", &id, "--at", at, "--output", "json"]).await?;
    assert_eq!(said.json()?["order_id"], id, "{said:?}");
    Ok(())
}

#[tokio::test]
async fn a_history_is_printed_as_it_is_answered_byte_for_byte() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (id, _) = changed_order(&caller).await?;
    let lines = read(&stack, &["history", &id, "--output", "ndjson"])
        .await?
        .output;
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), EVENTS as usize);
    let path = format!("/v1/orders/{id}/events?limit=3&from_version=99");
    let answer = caller.get(&path).await?;
    let body = str::from_utf8(&answer.body)?;
    assert!(
        body.starts_with(&format!(r#"{{"data":[{}]"#, lines[98..101].join(","))),
        "{body}"
    );

    let array = read(
        &stack,
        &["history", &id, "--output", "json", "--to-version", "101"],
    )
    .await?;
    let array: Vec<Box<RawValue>> = serde_json::from_str(&array.output)?;
    assert!(
        array
            .iter()
            .map(|event| event.get())
            .eq(lines[..101].iter().copied())
    );
    let table = read(&stack, &["history", &id, "--from-version", "103"])
        .await?
        .output;
    let event: Value = serde_json::from_str(lines[102])?;
    for shown in ["recorded_at", "event_type"] {
        assert!(table.contains(event[shown].as_str().unwrap_or("-")), "{table}");
    }
    assert_eq!(table.lines().count(), 2, "{table}");
    Ok(())
}

#[tokio::test]
async fn a_history_that_is_followed_has_each_event_once_also_where_the_connection_breaks()
-> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let id = new_order_id();
    caller.place(&id, "customer-1").await?;
    let proxy = Proxy::start(stack.query.address).await?;
    let url = format!("http://{}", proxy.address());
    let settings = [
        ("DAYBOOK_QUERY_URL", url.as_str()),
        ("DAYBOOK_API_KEY", stack.tenant.auditor_key.as_str()),
    ];
    let mut shown = Running::start(&settings, &["history", &id, "--follow", "-o", "ndjson"])?;
    let mut lines = vec![shown.line().await?];
    caller.change_quantity(&id, 5, None).await?;
    lines.push(shown.line().await?);
    proxy.refuse();
    caller.change_quantity(&id, 6, None).await?;
    proxy.heal();
    lines.push(shown.line().await?);
    caller.change_quantity(&id, 7, None).await?;
    lines.push(shown.line().await?);
    let mut history = caller.get(&format!("/v1/orders/{id}/events")).await?.json();
    let history = history["data"].as_array_mut().expect("a list");
    for event in history.iter_mut() {
        // What is measured with is not in the contract of gRPC.
        let metadata = event["metadata"].as_object_mut().expect("an object");
        metadata.remove("received_at_us");
    }
    let shown: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line))
        .collect::<Result<_, _>>()?;
    assert_eq!(&shown, history);
    let missing = read(&stack, &["history", &new_order_id(), "--follow"]).await?;
    assert_eq!(missing.code, 3, "{missing:?}");
    Ok(())
}

#[tokio::test]
async fn events_of_all_aggregates_are_printed_as_they_are_answered() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (id, token) = changed_order(&caller).await?;
    let other = caller.place(&new_order_id(), "customer-2").await?;
    assert_eq!(caller.get_after(&token, "/v1/events").await?.status, 200);
    let seen = caller
        .get_after(&other.consistency_token, "/v1/events?limit=100")
        .await?
        .json();
    let lines = async |arguments: &[&str]| {
        let arguments = [&["get", "events", "-o", "ndjson"], arguments].concat();
        let said = read(&stack, &arguments).await?;
        anyhow::ensure!(said.code == 0, "{said:?}");
        let lines = said
            .output
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<Vec<Value>, _>>()?;
        Ok(lines)
    };
    assert_eq!(Value::from(lines(&[]).await?), seen["data"]);
    assert_eq!(lines(&["--limit", "1000"]).await?.len(), EVENTS as usize + 1);
    let newest = lines(&["--newest-first", "--limit", "2", "--type", "order.placed"]).await?;
    assert_eq!(
        (newest.len(), &newest[1]["stream_id"]),
        (2, &Value::from(id.as_str()))
    );
    assert_eq!(
        lines(&["--stream", &id, "--limit", "1000"]).await?.len(),
        EVENTS as usize
    );
    assert_eq!(lines(&["--actor", "agent:jane", "--after", "1h"]).await?.len(), 2);
    assert_eq!(lines(&["--before", "1h"]).await?, Vec::<Value>::new());

    let json = read(&stack, &["get", "events", "-o", "json", "--limit", "3"])
        .await?
        .json()?;
    assert_eq!(
        json.as_array().map(|events| &events[..]),
        seen["data"].as_array().map(|events| &events[..3])
    );
    let table = read(&stack, &["get", "events", "--limit", "3"]).await?.output;
    assert!(
        table.starts_with("POSITION") && table.lines().count() == 4,
        "{table}"
    );
    let refused = read(&stack, &["get", "events", "--actor", "a", "--type", "b"]).await?;
    assert!(
        refused.code != 0 && refused.errors.contains("NOT_SERVED"),
        "{refused:?}"
    );
    Ok(())
}

#[tokio::test]
async fn what_a_request_caused_is_printed_as_a_tree() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let mut order = place(&new_order_id(), "customer-1");
    let context = |causation_id: &str| CommandContext {
        correlation_id: "checkout/77".to_owned(),
        causation_id: causation_id.to_owned(),
        ..Default::default()
    };
    order.context = Some(context(""));
    let mut confirm = command::confirm(&order.order_id);
    confirm.context = Some(context(&order.request_id));
    caller.send(order).await?;
    let token = caller.send(confirm).await?.consistency_token;
    let tree = caller
        .get_after(&token, "/v1/correlations/checkout%2F77")
        .await?
        .json();

    let said = read(&stack, &["trace", "checkout/77", "-o", "json"]).await?;
    assert_eq!((said.code, said.json()?), (0, tree["data"].clone()), "{said:?}");
    let text = read(&stack, &["trace", "checkout/77"]).await?.output;
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("order.placed of ord_"), "{text}");
    assert!(lines[1].starts_with("└─ order.confirmed of ord_"), "{text}");
    let nothing = read(&stack, &["trace", "checkout/78"]).await?;
    assert!(
        nothing.code == 3 && nothing.errors.contains("RESOURCE_NOT_FOUND"),
        "{nothing:?}"
    );
    Ok(())
}

#[tokio::test]
async fn what_is_not_there_is_refused_with_its_code_and_request_id() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let id = new_order_id();
    for verb in ["state", "history"] {
        let refused = read(&stack, &[verb, &id]).await?;
        assert_eq!(refused.code, 3, "{refused:?}");
        let message = format!("error: RESOURCE_NOT_FOUND: there is no order {id}\n  request id: ");
        assert!(refused.errors.starts_with(&message), "{refused:?}");
        let wrong = read(&stack, &[verb, "ord_1"]).await?;
        assert_eq!((wrong.code, wrong.output.as_str()), (2, ""), "{wrong:?}");
    }
    Ok(())
}
