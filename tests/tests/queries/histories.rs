//! Histories: complete, in order, byte for byte.

use daybook_event_store::{NewEvent, RecordedEvent};
use daybook_proto::history::v1::{self, ListStreamEventsRequest};
use daybook_tests::client::Caller;
use daybook_tests::orders::new_order_id;
use daybook_tests::refusal::code;
use daybook_tests::stack::Stack;
use daybook_tests::{command, log};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::feed::append;

/// How many events the order has: several pages, the last one not full.
const EVENTS: usize = 17;

/// How many events a page has.
const PAGE: usize = 5;

async fn changed_order(caller: &Caller) -> anyhow::Result<String> {
    let id = new_order_id();
    caller.place(&id, "customer-1").await?;
    for quantity in 1..EVENTS {
        let quantity = u32::try_from(quantity + 2)?;
        caller.send(command::change_quantity(&id, quantity)).await?;
    }
    Ok(id)
}

#[derive(serde::Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
    pagination: Value,
}

#[derive(serde::Deserialize)]
struct Event<'a> {
    stream_version: u64,
    position: u64,
    event_id: uuid::Uuid,
    event_type: String,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(borrow)]
    metadata: &'a RawValue,
}

/// Reads page after page, and holds every event against the log.
async fn read_all(caller: &Caller, path: &str, wanted: &[RecordedEvent]) -> anyhow::Result<()> {
    let mut next = Some(String::new());
    let mut wanted = wanted.iter();
    while let Some(cursor) = next {
        let answer = caller.get(&format!("{path}&limit={PAGE}{cursor}")).await?;
        assert_eq!(answer.status, 200, "{}", answer.json());
        let page: Page<'_> = serde_json::from_slice(&answer.body)?;
        for raw in &page.data {
            let event: Event<'_> = serde_json::from_str(raw.get())?;
            let recorded = wanted.next().expect("there are not more than in the log");
            assert_eq!(event.stream_version, recorded.stream_version);
            assert_eq!(event.position, recorded.position);
            assert_eq!(event.event_id, recorded.event_id);
            assert_eq!(event.event_type, recorded.event_type);
            assert_eq!(event.payload.get(), recorded.payload, "not byte for byte");
            assert_eq!(event.metadata.get(), &*recorded.metadata, "not byte for byte");
        }
        let cursor = page.pagination["next_cursor"].as_str();
        assert_eq!(page.pagination["has_more"], cursor.is_some());
        assert!(
            cursor.is_none() || page.data.len() == PAGE,
            "a page in the middle is not full"
        );
        next = cursor.map(|cursor| format!("&cursor={cursor}"));
    }
    assert_eq!(wanted.count(), 0, "the history ends early");
    Ok(())
}

#[tokio::test]
async fn a_history_is_read_page_by_page_either_way_byte_for_byte() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let id = changed_order(&caller).await?;
    let mut events = log::stream(&stack.superuser, &id).await?;
    assert_eq!(events.len(), EVENTS);
    let path = format!("/v1/orders/{id}/events");
    read_all(&caller, &format!("{path}?order=asc"), &events).await?;
    read_all(
        &caller,
        &format!("{path}?from_version=3&to_version=14"),
        &events[2..14],
    )
    .await?;
    events.reverse();
    read_all(&caller, &format!("{path}?order=desc"), &events).await?;
    read_all(
        &caller,
        &format!("{path}?order=desc&from_version=3&to_version=14"),
        &events[EVENTS - 14..EVENTS - 2],
    )
    .await?;
    read_all(&caller, &format!("{path}?from_version=18"), &[]).await
}

async fn read_over_grpc(caller: &Caller, id: &str, descending: bool) -> anyhow::Result<Vec<v1::Event>> {
    let mut page_token = String::new();
    let mut read = Vec::new();
    loop {
        let request = ListStreamEventsRequest {
            stream_id: id.to_owned(),
            page_size: u32::try_from(PAGE)?,
            page_token,
            descending,
            ..Default::default()
        };
        let page = caller.histories().list_stream_events(request).await?.into_inner();
        read.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(read);
        }
    }
}

#[tokio::test]
async fn the_same_history_comes_over_grpc() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let id = changed_order(&caller).await?;
    for descending in [false, true] {
        let mut wanted = log::stream(&stack.superuser, &id).await?;
        if descending {
            wanted.reverse();
        }
        let read = read_over_grpc(&caller, &id, descending).await?;
        assert_eq!(read.len(), wanted.len());
        for (event, recorded) in read.iter().zip(&wanted) {
            assert_eq!(event.payload_json, recorded.payload);
            assert_eq!(event.event_id, recorded.event_id.to_string());
            assert_eq!(event.position, recorded.position);
            assert_eq!(event.stream_version, recorded.stream_version);
            let metadata = event.metadata.as_ref().expect("an event has metadata");
            let recorded = recorded.decoded_metadata();
            assert_eq!(metadata.idempotency_key, recorded.idempotency_key);
            assert_eq!(metadata.command, recorded.command);
            assert_eq!(metadata.principal, recorded.principal);
            assert_eq!(metadata.correlation_id, recorded.correlation_id);
        }
        let other_way = ListStreamEventsRequest {
            stream_id: id.clone(),
            page_size: 5,
            descending,
            ..Default::default()
        };
        let first = caller
            .histories()
            .list_stream_events(other_way.clone())
            .await?
            .into_inner();
        let turned = ListStreamEventsRequest {
            page_token: first.next_page_token,
            descending: !descending,
            ..other_way
        };
        let refused = caller.histories().list_stream_events(turned).await;
        assert_eq!(
            code(&refused.expect_err("the token is for the other way")),
            "INVALID_CURSOR"
        );
    }
    Ok(())
}

/// Applies what an event changed to a document.
fn apply(document: &mut Value, changes: &[Value]) {
    let part = |document: &Value, change: &Value| {
        let pointer = change["pointer"].as_str().expect("a pointer").to_owned();
        assert_eq!(document.pointer(&pointer), change.get("before"), "{change}");
        let (parent, name) = pointer.rsplit_once('/').expect("a part of the document");
        (parent.to_owned(), name.to_owned())
    };
    for change in changes.iter().filter(|change| change.get("after").is_some()) {
        let (parent, name) = part(document, change);
        let after = change["after"].clone();
        match document.pointer_mut(&parent).expect("there is such a part") {
            Value::Array(items) if change.get("before").is_none() => items.push(after),
            parent => match name.parse::<usize>() {
                Ok(index) => parent[index] = after,
                Err(_) => parent[name] = after,
            },
        }
    }
    // The last item first, so that the others keep their places.
    for change in changes
        .iter()
        .rev()
        .filter(|change| change.get("after").is_none())
    {
        let (parent, name) = part(document, change);
        match document.pointer_mut(&parent).expect("there is such a part") {
            Value::Array(items) => drop(items.remove(name.parse().expect("an index"))),
            parent => drop(parent.as_object_mut().expect("an object").remove(&name)),
        }
    }
}

#[tokio::test]
async fn the_changes_of_a_history_lead_from_each_document_to_the_next() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let id = changed_order(&caller).await?;
    caller.send(command::add_line(&id, "tea", 1, 250)).await?;
    caller.send(command::remove_line(&id, 1)).await?;
    caller.send(command::cancel(&id)).await?;
    let all = caller
        .get(&format!("/v1/orders/{id}/events?diff=true&limit=100"))
        .await?
        .json();
    let events = all["data"].as_array().expect("a list").clone();
    assert_eq!(events.len(), EVENTS + 3);
    let mut document = serde_json::json!({});
    for event in &events {
        apply(&mut document, event["changes"].as_array().expect("changes"));
        let version = &event["stream_version"];
        let wanted = caller.get(&format!("/v1/orders/{id}?as_of={version}")).await?;
        assert_eq!(document, wanted.json()["data"], "version {version}");
    }
    let page = format!("/v1/orders/{id}/events?diff=true&order=desc&limit=2&to_version=9");
    let page = caller.get(&page).await?.json();
    assert_eq!(page["data"][0]["changes"], events[8]["changes"]);
    assert_eq!(page["data"][1]["changes"], events[7]["changes"]);
    let request = ListStreamEventsRequest {
        stream_id: id.clone(),
        page_size: 100,
        diff: true,
        ..Default::default()
    };
    let over_grpc = caller.histories().list_stream_events(request).await?.into_inner();
    for (event, over_grpc) in events.iter().zip(over_grpc.events) {
        let changes = over_grpc.changes.iter().map(|change| {
            let json = |text: &Option<String>| {
                let text = text.as_ref()?;
                Some(serde_json::from_str::<Value>(text).expect("it is JSON"))
            };
            let (before, after) = (json(&change.before_json), json(&change.after_json));
            (change.pointer.clone(), before, after)
        });
        let wanted = event["changes"].as_array().into_iter().flatten().map(|change| {
            let pointer = change["pointer"].as_str().expect("a pointer").to_owned();
            (
                pointer,
                change.get("before").cloned(),
                change.get("after").cloned(),
            )
        });
        assert!(changes.eq(wanted));
    }
    let plain = caller.get(&format!("/v1/orders/{id}/events")).await?.json();
    assert!(plain["data"][0].get("changes").is_none());
    Ok(())
}

#[tokio::test]
async fn what_an_event_of_a_newer_program_changed_is_refused_by_its_name_and_the_event_is_shown()
-> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    for (event_type, schema_version) in [("order.imagined", 1), ("order.placed", 9)] {
        let event = NewEvent {
            event_type,
            schema_version,
            ..log::event("{}".to_owned())
        };
        let id = new_order_id();
        append(
            &stack,
            &[log::command(caller.tenant.tenant_id, &id, None, vec![event])],
        )
        .await?;
        let path = format!("/v1/orders/{id}");
        let history = caller.get(&format!("{path}/events")).await?;
        assert_eq!(history.json()["data"][0]["event_type"], event_type);
        for path in [format!("{path}/events?diff=true"), format!("{path}?as_of=1")] {
            let refused = caller.get(&path).await?;
            let problem = refused.json();
            assert_eq!(
                (refused.status, &problem["code"]),
                (503, &"READ_MODEL_BEHIND".into()),
                "{path}"
            );
            assert_eq!(problem["event_type"], event_type, "{problem}");
            assert_eq!(problem["schema_version"], schema_version, "{problem}");
        }
        let request = ListStreamEventsRequest {
            stream_id: id,
            diff: true,
            ..Default::default()
        };
        let refused = caller.histories().list_stream_events(request).await;
        assert_eq!(
            code(&refused.expect_err("nobody knows the event")),
            "READ_MODEL_BEHIND"
        );
    }
    Ok(())
}
