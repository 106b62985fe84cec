//! Streams that end and are resumed: nothing is missed and nothing comes twice.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;

use anyhow::ensure;
use daybook_event_store::{NewCommand, RecordedEvent};
use daybook_tests::load::Load;
use daybook_tests::orders::new_order_id;
use daybook_tests::sse::{Event, Source};
use daybook_tests::stack::{Role, Stack};
use daybook_tests::tenant::Tenant;
use daybook_tests::{check, log};
use sqlx::AssertSqlSafe;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{change_until, positions};

/// How many events are read before a stream is left and resumed.
const EVENTS_AT_ONCE: usize = 40;

/// Follows what a path shows from one id on, over and over again on one address after the other, until `is_last`.
async fn follow(
    addresses: [SocketAddr; 2],
    path: String,
    key: String,
    is_last: impl Fn(&Event) -> bool,
) -> anyhow::Result<Vec<Event>> {
    let (mut events, mut last_id) = (Vec::<Event>::new(), String::new());
    for address in addresses.into_iter().cycle() {
        let source = Source::new(address, &path, &key).behind(&last_id);
        // One of them may be gone, or going.
        let Ok(mut stream) = source.open().await else {
            continue;
        };
        for _ in 0..EVENTS_AT_ONCE {
            match stream.poll().await {
                Ok(Some(event)) if event.name.is_empty() => {
                    let is_last = is_last(&event);
                    events.push(event);
                    if is_last {
                        return Ok(events);
                    }
                }
                Ok(Some(event)) => ensure!(event.name == "shutdown", "{event:?}"),
                Ok(None) | Err(_) => break,
            }
        }
        stream.last_id().clone_into(&mut last_id);
    }
    unreachable!("the addresses are repeated for ever")
}

#[tokio::test]
async fn whoever_resumes_again_and_again_on_other_instances_misses_nothing_and_sees_nothing_twice()
-> anyhow::Result<()> {
    const VERSIONS: u64 = 150;
    let mut stack = Stack::start().await?;
    let other = stack.servers.run(Role::Query, &[]).await?;
    let (caller, key) = (stack.caller()?, stack.tenant.auditor_key.clone());
    let load = Load::start(std::slice::from_ref(&caller), 4);
    let id = new_order_id();
    caller.place(&id, "customer-1").await?;
    let addresses = [stack.query.address, other.address];

    let last = new_order_id();
    let of_order = format!("/v1/orders/{id}/events/stream?after_position=0");
    let mut readers = JoinSet::new();
    for path in [
        "/v1/events/stream?after_position=0",
        &of_order,
        "/v1/orders/stream",
    ] {
        let (path, key, last) = (path.to_owned(), key.clone(), last.clone());
        readers.spawn(async move {
            let is_last = |event: &Event| {
                let shown = event.json();
                [&shown["order_id"], &shown["stream_id"]].contains(&&last.as_str().into())
                    || path.contains("ord_") && shown["stream_version"].as_u64() >= Some(VERSIONS)
            };
            let events = follow(addresses, path.clone(), key, is_last).await?;
            anyhow::Ok((path, events))
        });
    }
    change_until(&caller, &id, VERSIONS / 2).await?;
    // Killed in the middle of the streams that it has, and back after a while.
    stack.query.service.kill().await?;
    change_until(&caller, &id, VERSIONS / 2 + 20).await?;
    stack.query.service.restart().await?;
    change_until(&caller, &id, VERSIONS).await?;
    load.stop().await;
    caller.place(&last, "customer-1").await?;

    check::caught_up(&stack.superuser).await?;
    let recorded = log::events(&stack.superuser).await?;
    while let Some(read) = readers.join_next().await {
        let (path, events) = read??;
        if path.contains("orders/stream") {
            every_order_is_shown(&events, &recorded)?;
            continue;
        }
        let last = events.last().map_or(0, Event::position);
        let is_wanted = |stream_id: &str| !path.contains("ord_") || stream_id == id;
        let wanted = recorded
            .iter()
            .filter(|event| event.position <= last && is_wanted(&event.stream_id));
        let wanted: Vec<u64> = wanted.map(|event| event.position).collect();
        let shown: Vec<u64> = events.iter().map(Event::position).collect();
        ensure!(shown == wanted, "{path}: {shown:?} and not {wanted:?}");
        ensure!(shown.len() > 2 * EVENTS_AT_ONCE, "{path} was never resumed");
    }
    Ok(())
}

/// Each order that was placed meanwhile was shown, and none as it was before what had been shown of it.
fn every_order_is_shown(shown: &[Event], recorded: &[RecordedEvent]) -> anyhow::Result<()> {
    let mut versions = HashMap::<String, u64>::new();
    for event in shown {
        let row = event.json();
        let version = row["version"].as_u64().unwrap_or(0);
        let before = versions.insert(super::text(&row["order_id"]), version);
        ensure!(before <= Some(version), "{row} after version {before:?}");
    }
    // The first one that was placed while the stream was open.
    let first = shown
        .iter()
        .map(Event::json)
        .find(|row| row["version"] == 1)
        .map(|row| super::text(&row["order_id"]));
    let placed = recorded
        .iter()
        .filter(|event| event.category == "order" && event.stream_version == 1)
        .skip_while(|event| Some(&event.stream_id) != first.as_ref());
    for event in placed {
        ensure!(
            versions.contains_key(&event.stream_id),
            "{} is missing",
            event.stream_id
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_reader_that_is_too_slow_gets_what_waits_and_is_told_and_misses_nothing_when_it_resumes()
-> anyhow::Result<()> {
    const EVENTS: u64 = 400;
    let stack = Stack::start().await?;
    let (caller, key) = (stack.caller()?, stack.tenant.auditor_key.as_str());
    let buffer = [("DAYBOOK_STREAM_BUFFER_BYTES", "20000")];
    let query = stack.servers.run(Role::Query, &buffer).await?;
    let id = new_order_id();
    caller.place(&id, "customer-1").await?;
    let path = format!("/v1/orders/{id}/events/stream?after_position=0");
    let mut slow = Source::new(query.address, &path, key).open_slow().await?;
    // It has caught up before more comes.
    let shown_slowly = vec![slow.next().await?.position()];
    let mut quick = Source::new(query.address, &path, key).open().await?;
    let writing = change_until(&caller, &id, EVENTS);
    let reading = positions(&mut quick, EVENTS as usize);
    let ((), shown) = tokio::try_join!(writing, reading)?;
    let wanted = log::stream(&stack.superuser, &id).await?;
    let wanted: Vec<u64> = wanted.iter().map(|event| event.position).collect();
    assert_eq!(
        shown, wanted,
        "one who reads is not disturbed by one who does not"
    );

    let mut shown = shown_slowly;
    let last = loop {
        let event = slow.next().await?;
        match event.name.as_str() {
            "" => shown.push(event.position()),
            _ => break event,
        }
    };
    assert_eq!(last.name, "overflow");
    assert_eq!(last.json()["code"], "RATE_LIMITED");
    assert!(slow.poll().await?.is_none(), "it is the end");
    assert!(!shown.is_empty() && shown.len() < wanted.len(), "{}", shown.len());
    let mut resumed = Source::new(query.address, &path, key)
        .behind(&last.id)
        .open()
        .await?;
    shown.extend(positions(&mut resumed, wanted.len() - shown.len()).await?);
    assert_eq!(shown, wanted);
    Ok(())
}

#[tokio::test]
async fn whoever_catches_up_while_more_is_recorded_than_can_wait_for_it_goes_on() -> anyhow::Result<()> {
    const EVENTS: u64 = 400;
    let stack = Stack::start().await?;
    let (caller, key) = (stack.caller()?, stack.tenant.auditor_key.as_str());
    let buffer = [("DAYBOOK_STREAM_BUFFER_BYTES", "20000")];
    let query = stack.servers.run(Role::Query, &buffer).await?;
    let id = new_order_id();
    caller.place(&id, "customer-1").await?;
    change_until(&caller, &id, EVENTS / 2).await?;
    let path = "/v1/events/stream?after_position=0";
    let mut slow = Source::new(query.address, path, key).open_slow().await?;
    change_until(&caller, &id, EVENTS).await?;
    let wanted: Vec<u64> = (1..=EVENTS).collect();
    assert_eq!(positions(&mut slow, wanted.len()).await?, wanted);
    Ok(())
}

/// Records what streams of another tenant pass over.
async fn record_of_another(stack: &Stack, tenant_id: Uuid, numbers: Range<u32>) -> anyhow::Result<()> {
    let pool = stack.servers.database.pool("daybook_command").await?;
    let mut connection = pool.acquire().await?;
    for number in numbers {
        let events = (0..500).map(|_| log::event("{}".to_owned())).collect();
        let command = NewCommand {
            category: "weather",
            ..log::command(tenant_id, &format!("weather_{number}"), None, events)
        };
        daybook_event_store::append(&mut connection, log::PARTITION, &[command]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn whoever_catches_up_does_not_read_what_other_tenants_have_recorded_in_between() -> anyhow::Result<()>
{
    let mut stack = Stack::start().await?;
    let (caller, key) = (stack.caller()?, stack.tenant.auditor_key.clone());
    let (address, path) = (stack.query.address, "/v1/events/stream?after_position=0");
    let other = Tenant::create(&stack.superuser).await?.tenant_id;
    caller.place(&new_order_id(), "customer-1").await?;
    record_of_another(&stack, other, 0..6).await?;
    caller.place(&new_order_id(), "customer-1").await?;
    check::caught_up(&stack.superuser).await?;
    // Whoever reads the log from one position to the next does it with this.
    let may_read = async |verb: &str, preposition: &str| {
        let function = "event_store.read_tail";
        let statement = format!("{verb} EXECUTE ON FUNCTION {function} {preposition} daybook_query");
        sqlx::query(AssertSqlSafe(statement))
            .execute(&stack.superuser)
            .await
    };
    may_read("REVOKE", "FROM").await?;
    let mut stream = Source::new(address, path, &key).open().await?;
    assert_eq!(positions(&mut stream, 2).await?, [1, 3_002]);
    may_read("GRANT", "TO").await?;

    // And then what the read model has not.
    stack.projector.service.stop().await?;
    record_of_another(&stack, other, 6..12).await?;
    caller.place(&new_order_id(), "customer-1").await?;
    let mut stream = Source::new(address, path, &key).open().await?;
    assert_eq!(positions(&mut stream, 3).await?, [1, 3_002, 6_003]);
    Ok(())
}
