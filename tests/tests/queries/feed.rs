//! The tenant's event feed, and all that one request caused, over both transports.

use anyhow::{Context as _, ensure};
use daybook_event_store::{Decision, Intent, NewCommand, NewEvent, RecordedEvent};
use daybook_proto::common::v1::{CommandContext, Freshness};
use daybook_proto::history::v1::{self, GetCorrelationRequest, ListEventsRequest};
use daybook_tests::client::Caller;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::refusal::code;
use daybook_tests::stack::Stack;
use daybook_tests::{check, command, log, stock, wait};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::lists::{all, not_served};

/// How many events a page has: several pages, the last one not full.
const PAGE: u32 = 5;

/// A command that records one event of any type and category, as another program may.
fn recorded(
    tenant_id: Uuid,
    category: &'static str,
    event_type: &'static str,
    metadata: &Value,
) -> NewCommand {
    let stream_id = format!("{category}_{}", Uuid::now_v7().simple());
    let event = NewEvent {
        event_type,
        ..log::event(json!({"degrees": 21}).to_string())
    };
    NewCommand {
        category,
        intent: Intent::Write(Decision {
            decided_on: None,
            metadata: metadata.to_string().into(),
            events: vec![event],
            rejection: None,
        }),
        ..log::command(tenant_id, &stream_id, None, Vec::new())
    }
}

/// Appends commands that no service has decided.
pub(crate) async fn append(stack: &Stack, commands: &[NewCommand]) -> anyhow::Result<()> {
    let pool = stack.servers.database.pool("daybook_command").await?;
    let mut connection = pool.acquire().await?;
    for commands in commands.chunks(500) {
        let judgement = daybook_event_store::append(&mut connection, 0, commands).await?;
        ensure!(log::is_written_whole(commands, &judgement), "{judgement:?}");
    }
    Ok(())
}

/// Three orders by an actor, each of a request of its own, two of them confirmed by nobody; a stock item; and what no program
/// here knows.
async fn some_events(stack: &Stack, caller: &Caller) -> anyhow::Result<Vec<String>> {
    let mut ids = Vec::new();
    for number in 0..3 {
        let mut order = place(&new_order_id(), "customer-1");
        order.context = Some(CommandContext {
            actor: "agent:jane".to_owned(),
            correlation_id: format!("checkout-{number}"),
            ..Default::default()
        });
        ids.push(order.order_id.clone());
        caller.send(order).await?;
    }
    caller.send(command::confirm(&ids[0])).await?;
    caller.send(stock::register("PEN-FINE")).await?;
    let metadata = json!({"actor": "station:4", "correlation_id": "checkout-1"});
    let weather = recorded(caller.tenant.tenant_id, "weather", "weather.changed", &metadata);
    append(stack, &[weather]).await?;
    caller.send(command::confirm(&ids[1])).await?;
    check::caught_up(&stack.superuser).await?;
    Ok(ids)
}

/// The tenant's events as the log has them, those that pass.
async fn of_log(
    stack: &Stack,
    caller: &Caller,
    passes: impl Fn(&RecordedEvent) -> bool,
) -> anyhow::Result<Vec<RecordedEvent>> {
    let mut events = log::events(&stack.superuser).await?;
    events.retain(|event| event.tenant_id == caller.tenant.tenant_id && passes(event));
    Ok(events)
}

fn position(event: &Value) -> u64 {
    event["position"].as_u64().expect("an event has a position")
}

/// All pages of the feed over REST.
async fn feed(caller: &Caller, query: &str) -> anyhow::Result<Vec<Value>> {
    all(caller, &format!("/v1/events?limit={PAGE}&{query}")).await
}

/// All pages of the feed over gRPC.
async fn feed_over_grpc(caller: &Caller, request: ListEventsRequest) -> anyhow::Result<Vec<v1::Event>> {
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListEventsRequest {
            page_token,
            ..request.clone()
        };
        let page = caller.histories().list_events(request).await?.into_inner();
        found.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(found);
        }
    }
}

type Passes = Box<dyn Fn(&RecordedEvent) -> bool>;

/// Filters as callers write them, and as rules.
fn filters(order_id: &str) -> Vec<(ListEventsRequest, Passes)> {
    let filter = |name: &str, value: &str| {
        let mut request = ListEventsRequest::default();
        match name {
            "event_type" => &mut request.event_type,
            "stream_id" => &mut request.stream_id,
            "actor" => &mut request.actor,
            _ => &mut request.correlation_id,
        }
        .push_str(value);
        request
    };
    let id = order_id.to_owned();
    vec![
        (ListEventsRequest::default(), Box::new(|_| true)),
        (
            filter("event_type", "order.placed"),
            Box::new(|event| event.event_type == "order.placed"),
        ),
        (
            filter("event_type", "weather.changed"),
            Box::new(|event| event.category == "weather"),
        ),
        (filter("event_type", "order.vanished"), Box::new(|_| false)),
        (
            filter("stream_id", order_id),
            Box::new(move |event| event.stream_id == id),
        ),
        (
            filter("actor", "agent:jane"),
            Box::new(|event| event.decoded_metadata().actor.as_deref() == Some("agent:jane")),
        ),
        (
            filter("actor", "station:4"),
            Box::new(|event| event.category == "weather"),
        ),
        (
            filter("correlation_id", "checkout-1"),
            Box::new(|event| event.decoded_metadata().correlation_id == "checkout-1"),
        ),
    ]
}

fn as_query(request: &ListEventsRequest) -> String {
    let ListEventsRequest {
        event_type,
        stream_id,
        actor,
        correlation_id,
        ..
    } = request;
    let given = [
        ("event_type", event_type),
        ("stream_id", stream_id),
        ("actor", actor),
        ("correlation_id", correlation_id),
    ];
    let given = given.into_iter().filter(|(_, value)| !value.is_empty());
    given.map(|(name, value)| format!("{name}={value}&")).collect()
}

#[tokio::test]
async fn every_filter_gives_the_tenants_events_as_they_were_recorded_in_either_direction()
-> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    stack
        .other_caller()
        .await?
        .place(&new_order_id(), "customer-1")
        .await?;
    let ids = some_events(&stack, &caller).await?;
    for (request, passes) in filters(&ids[0]) {
        let mut wanted = of_log(&stack, &caller, &passes).await?;
        for sort in ["position", "-position"] {
            let query = format!("{}sort={sort}", as_query(&request));
            let found = feed(&caller, &query).await?;
            let positions: Vec<_> = found.iter().map(position).collect();
            let in_log: Vec<_> = wanted.iter().map(|event| event.position).collect();
            assert_eq!(positions, in_log, "{query}");
            for (event, recorded) in found.iter().zip(&wanted) {
                assert_eq!(event["event_id"], recorded.event_id.to_string());
                assert_eq!(event["stream_id"], recorded.stream_id);
                for (part, text) in [("payload", &*recorded.payload), ("metadata", &*recorded.metadata)] {
                    assert_eq!(event[part], serde_json::from_str::<Value>(text)?);
                }
            }
            let request = ListEventsRequest {
                page_size: PAGE,
                order_by: sort.to_owned(),
                ..request.clone()
            };
            let over_grpc = feed_over_grpc(&caller, request).await?;
            let over_grpc: Vec<_> = over_grpc
                .iter()
                .map(|event| (event.position, &event.payload_json))
                .collect();
            let in_log: Vec<_> = wanted
                .iter()
                .map(|event| (event.position, &event.payload))
                .collect();
            assert_eq!(over_grpc, in_log, "{query} over gRPC");
            wanted.reverse();
        }
    }
    for refused in [
        "event_type=order.placed&actor=agent:jane",
        "stream_id=ord_1&correlation_id=checkout-1",
    ] {
        not_served(&caller.get(&format!("/v1/events?{refused}")).await?);
    }
    Ok(())
}

#[tokio::test]
async fn a_period_is_what_was_recorded_from_its_beginning_on_and_before_its_end() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    some_events(&stack, &caller).await?;
    let events = of_log(&stack, &caller, |_| true).await?;
    let mut moments: Vec<_> = events.iter().map(|event| event.recorded_at).collect();
    moments.push(events[2].recorded_at + time::Duration::MICROSECOND);
    moments.push(OffsetDateTime::UNIX_EPOCH);
    moments.push(events[2].recorded_at + time::Duration::DAY);
    for moment in moments {
        let text = moment.format(&Rfc3339)?;
        let before = |event: &RecordedEvent| event.recorded_at < moment;
        let (older, newer): (Vec<_>, Vec<_>) = events.iter().partition(|event| before(event));
        for (parameter, wanted) in [("recorded_before", older), ("recorded_after", newer)] {
            let mut wanted: Vec<_> = wanted.iter().map(|event| event.position).collect();
            for sort in ["position", "-position"] {
                let found = feed(&caller, &format!("{parameter}={text}&sort={sort}")).await?;
                let found: Vec<_> = found.iter().map(position).collect();
                assert_eq!(found, wanted, "{parameter}={text}&sort={sort}");
                wanted.reverse();
            }
        }
    }
    let (from, to) = (
        events[1].recorded_at.format(&Rfc3339)?,
        events[4].recorded_at.format(&Rfc3339)?,
    );
    let query = format!("event_type=order.placed&recorded_after={from}&recorded_before={to}");
    let found = feed(&caller, &query).await?;
    let found: Vec<_> = found.iter().map(position).collect();
    assert_eq!(found, [events[1].position, events[2].position]);
    Ok(())
}

#[tokio::test]
async fn an_event_of_a_type_that_nobody_knows_is_listed_and_stops_no_feed() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    caller.place(&new_order_id(), "customer-1").await?;
    // It stops the read models of orders, of which it is.
    let unknown = recorded(caller.tenant.tenant_id, "order", "order.exploded", &json!({}));
    append(&stack, &[unknown]).await?;
    let receipt = caller.place(&new_order_id(), "customer-1").await?;
    let answer = caller.get_after(&receipt.consistency_token, "/v1/events").await?;
    assert_eq!(answer.status, 200, "{}", answer.json());
    assert_eq!(answer.header("daybook-position"), "3");
    let types: Vec<_> = answer.json()["data"]
        .as_array()
        .context("a list")?
        .iter()
        .map(|event| event["event_type"].clone())
        .collect();
    assert_eq!(types, ["order.placed", "order.exploded", "order.placed"]);
    Ok(())
}

#[tokio::test]
async fn a_page_of_large_events_ends_early_and_the_next_one_goes_on() -> anyhow::Result<()> {
    /// How many bytes the text of an event has: about as many as a command may have.
    const BYTES: usize = 450_000;

    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let large = (0..12).map(|_| {
        let event = log::event(json!({"text": "x".repeat(BYTES)}).to_string());
        log::command(caller.tenant.tenant_id, &new_order_id(), None, vec![event])
    });
    append(&stack, &large.collect::<Vec<_>>()).await?;
    let wanted: Vec<_> = of_log(&stack, &caller, |_| true).await?;
    let wanted: Vec<_> = wanted.iter().map(|event| event.position).collect();
    let reached = Freshness {
        consistency_token: {
            let receipt = caller.send(stock::register("PEN-FINE")).await?;
            receipt.consistency_token
        },
    };
    let answer = caller.get_after(&reached.consistency_token, "/v1/events").await?;
    let page = answer.json();
    let count = page["data"].as_array().map_or(0, Vec::len);
    assert!(count > 1 && count < wanted.len(), "{count} of {}", wanted.len());
    assert_eq!(page["pagination"]["has_more"], true);
    for sort in ["position", "-position"] {
        let request = ListEventsRequest {
            event_type: "test.happened".to_owned(),
            order_by: sort.to_owned(),
            ..Default::default()
        };
        let over_grpc = feed_over_grpc(&caller, request).await?;
        let mut found: Vec<_> = over_grpc.iter().map(|event| event.position).collect();
        if sort == "-position" {
            found.reverse();
        }
        assert_eq!(found, wanted, "{sort}");
    }
    Ok(())
}

/// Walks through the feed, which has to have everything up to where it ended, or from where it began.
async fn walk(stack: &Stack, caller: &Caller, filter: &str, sort: &str) -> anyhow::Result<()> {
    let found = feed(caller, &format!("{filter}sort={sort}")).await?;
    let mut found: Vec<_> = found.iter().map(position).collect();
    if sort == "-position" {
        found.reverse();
    }
    let newest = *found.last().context("there are events")?;
    let passes = |event: &RecordedEvent| {
        event.position <= newest && (filter.is_empty() || event.event_type == "order.placed")
    };
    let wanted = of_log(stack, caller, passes).await?;
    let wanted: Vec<_> = wanted.iter().map(|event| event.position).collect();
    assert_eq!(found, wanted, "{filter}sort={sort}");
    Ok(())
}

#[tokio::test]
async fn walking_the_feed_while_writers_write_neither_repeats_nor_skips() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    some_events(&stack, &caller).await?;
    let before = log::head(&stack.superuser).await?;
    let mut writers = JoinSet::new();
    for _ in 0..3 {
        let caller = caller.clone();
        writers.spawn(async move {
            for _ in 0..30 {
                caller.place(&new_order_id(), "customer-1").await?;
            }
            anyhow::Ok(())
        });
    }
    let is_written = async || Ok(log::head(&stack.superuser).await? > before);
    wait::until("something is written", is_written).await?;
    while !writers.is_empty() {
        for sort in ["position", "-position"] {
            for filter in ["", "event_type=order.placed&", "actor=agent:jane&"] {
                walk(&stack, &caller, filter, sort).await?;
            }
        }
        while let Some(written) = writers.try_join_next() {
            written??;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_cursor_is_good_for_its_tenant_its_filters_and_its_log_alone() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    some_events(&stack, &caller).await?;
    let other_tenant = stack.other_caller().await?;
    assert_eq!(feed(&other_tenant, "").await?, Vec::<Value>::new());
    let nothing = other_tenant.get("/v1/correlations/checkout-1").await?;
    assert_eq!(
        (nothing.status, &nothing.json()["code"]),
        (404, &json!("RESOURCE_NOT_FOUND"))
    );

    let first = caller.get("/v1/events?limit=2").await?.json();
    let cursor = first["pagination"]["next_cursor"].as_str().context("a cursor")?;
    for (caller, list) in [
        (&other_tenant, "/v1/events?limit=2"),
        (&caller, "/v1/events?limit=2&sort=-position"),
        (&caller, "/v1/events?limit=2&event_type=order.placed"),
        (&caller, "/v1/events?limit=2&recorded_after=2020-01-01T00:00:00Z"),
        (&caller, "/v1/orders?limit=2"),
    ] {
        let refused = caller.get(&format!("{list}&cursor={cursor}")).await?.json();
        assert_eq!(refused["code"], "INVALID_CURSOR", "{list}");
    }
    let of_orders = caller.get("/v1/orders?limit=2").await?.json();
    let of_orders = of_orders["pagination"]["next_cursor"]
        .as_str()
        .context("a cursor")?;
    let refused = caller
        .get(&format!("/v1/events?limit=2&cursor={of_orders}"))
        .await?
        .json();
    assert_eq!(refused["code"], "INVALID_CURSOR");

    // Another event in its place: the log's history forked.
    let second = position(&first["data"][1]);
    let forked = "ALTER TABLE event_store.event DISABLE TRIGGER event_is_immutable";
    sqlx::query(forked).execute(&stack.superuser).await?;
    sqlx::query("UPDATE event_store.event SET event_id = gen_random_uuid() WHERE position = $1")
        .bind(second.cast_signed())
        .execute(&stack.superuser)
        .await?;
    let refused = caller
        .get(&format!("/v1/events?limit=2&cursor={cursor}"))
        .await?
        .json();
    assert_eq!(refused["code"], "POSITION_UNKNOWN");
    let left = feed(&caller, "").await?;
    assert!(
        left.iter().all(|event| position(event) != second),
        "the index is of another history"
    );
    Ok(())
}

/// Commands that cause each other: an order that reserves goods, which confirms it; and a note that is of no other's making.
async fn caused(caller: &Caller, correlation_id: &str) -> anyhow::Result<String> {
    let context = |causation_id: &str| {
        Some(CommandContext {
            correlation_id: correlation_id.to_owned(),
            causation_id: causation_id.to_owned(),
            ..Default::default()
        })
    };
    let mut order = place(&new_order_id(), "customer-1");
    order.context = context("");
    let (order_id, place_key) = (order.order_id.clone(), order.request_id.clone());
    caller.send(order).await?;
    let history = caller.get(&format!("/v1/orders/{order_id}/events")).await?.json();
    let placed = history["data"][0]["event_id"]
        .as_str()
        .context("an id")?
        .to_owned();
    let mut quantity = command::change_quantity(&order_id, 3);
    quantity.context = context(&place_key);
    let quantity_key = quantity.request_id.clone();
    caller.send(quantity).await?;
    let mut register = stock::register("PEN-FINE");
    register.context = context(&placed);
    caller.send(register).await?;
    let mut confirm = command::confirm(&order_id);
    confirm.context = context(&quantity_key);
    caller.send(confirm).await?;
    let mut register = stock::register("PEN-BROAD");
    register.context = context("a request of somebody else");
    Ok(caller.send(register).await?.consistency_token)
}

#[tokio::test]
async fn all_that_one_request_caused_is_a_tree() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    caller.place(&new_order_id(), "customer-1").await?;
    let token = caused(&caller, "checkout 77/ä").await?;
    let path = "/v1/correlations/checkout%2077%2F%C3%A4";
    let answer = caller.get_after(&token, path).await?;
    assert_eq!(answer.status, 200, "{}", answer.json());
    let tree = answer.json()["data"].clone();
    assert_eq!(tree["correlation_id"], "checkout 77/ä");
    assert_eq!(tree["truncated"], false);
    let nodes = tree["nodes"].as_array().context("nodes")?;
    let shape: Vec<_> = nodes
        .iter()
        .map(|node| {
            (
                node["event"]["event_type"].as_str().unwrap_or_default(),
                node["depth"].as_u64(),
            )
        })
        .collect();
    let expected = [
        ("order.placed", Some(0)),
        ("order.quantity_changed", Some(1)),
        ("order.confirmed", Some(2)),
        ("stock_item.registered", Some(1)),
        ("stock_item.registered", Some(0)),
    ];
    assert_eq!(shape, expected);
    let id = |index: usize| nodes[index]["event"]["event_id"].clone();
    assert_eq!(nodes[0]["children"], json!([id(1), id(3)]));
    assert_eq!(nodes[2]["children"], json!([]));
    let tag = answer.header("etag").to_owned();
    let again = caller
        .get_as(&caller.tenant.auditor_key, path, &[("if-none-match", &tag)])
        .await?;
    assert_eq!(again.status, 304);

    let request = GetCorrelationRequest {
        correlation_id: "checkout 77/ä".to_owned(),
        ..Default::default()
    };
    let over_grpc = caller.histories().get_correlation(request).await?.into_inner();
    assert!(over_grpc.staleness.is_some() && !over_grpc.truncated);
    for (node, of_rest) in over_grpc.nodes.iter().zip(nodes) {
        assert_eq!(
            json!(node.event.as_ref().context("an event")?.event_id),
            of_rest["event"]["event_id"]
        );
        assert_eq!(json!(node.depth), of_rest["depth"]);
        assert_eq!(json!(node.children), of_rest["children"]);
    }
    let request = GetCorrelationRequest {
        correlation_id: "checkout-78".to_owned(),
        ..Default::default()
    };
    let unknown = caller.histories().get_correlation(request).await;
    assert_eq!(code(&unknown.expect_err("there is none")), "RESOURCE_NOT_FOUND");
    Ok(())
}

#[tokio::test]
async fn of_a_request_that_caused_more_than_a_thousand_events_the_oldest_are_shown() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let metadata = json!({"correlation_id": "import-1"});
    let tenant_id = caller.tenant.tenant_id;
    let commands: Vec<_> = (0..1_001)
        .map(|_| recorded(tenant_id, "weather", "weather.changed", &metadata))
        .collect();
    append(&stack, &commands[..1_000]).await?;
    check::caught_up(&stack.superuser).await?;
    let tree = async || anyhow::Ok(caller.get("/v1/correlations/import-1").await?.json()["data"].clone());
    let whole = tree().await?;
    assert_eq!(
        (whole["nodes"].as_array().map(Vec::len), &whole["truncated"]),
        (Some(1_000), &json!(false))
    );
    append(&stack, &commands[1_000..]).await?;
    check::caught_up(&stack.superuser).await?;
    let truncated = tree().await?;
    assert_eq!(truncated["nodes"], whole["nodes"]);
    assert_eq!(truncated["truncated"], true);
    Ok(())
}

#[tokio::test]
async fn a_feed_shows_nothing_of_a_history_that_is_gone_and_no_position_of_it() -> anyhow::Result<()> {
    let mut stack = Stack::start().await?;
    let caller = stack.caller()?;
    for _ in 0..3 {
        caller.place(&new_order_id(), "customer-1").await?;
    }
    check::caught_up(&stack.superuser).await?;
    stack.projector.service.stop().await?;
    log::set_back(&stack.superuser, 1).await?;
    wait::until(
        "the query service knows that the index is of a lost history",
        async || {
            let orders = caller.get("/v1/orders").await?;
            Ok(orders.header("daybook-position") == "0")
        },
    )
    .await?;
    let newest_first = caller.get("/v1/events?sort=-position").await?;
    ensure!(newest_first.status == 200, "{}", newest_first.json());
    ensure!(newest_first.json()["data"].as_array().map(Vec::len) == Some(1));
    ensure!(newest_first.header("daybook-position") == "0", "{newest_first:?}");
    let gone = caller.get("/v1/events?sort=-position&limit=1").await?;
    let problem = gone.json();
    ensure!(
        gone.status == 503
            && problem["code"] == "READ_MODEL_BEHIND"
            && problem["wanted_position"].is_string(),
        "{problem}"
    );
    Ok(())
}
