//! `daybook state` and `daybook history`: they print what the query service answers.

use daybook_tests::cli::{Said, daybook};
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
