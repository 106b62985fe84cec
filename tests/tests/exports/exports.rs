//! What is in a file, and who gets it.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use daybook_proto::common::v1::CommandContext;
use daybook_service::identity::Scope;
use daybook_tests::cli::daybook;
use daybook_tests::client::Caller;
use daybook_tests::orders::{new_key, new_order_id, place};
use daybook_tests::rest::Rest;
use daybook_tests::stack::{Backend, Stack};
use daybook_tests::tenant::Tenant;
use daybook_tests::{check, command};
use http::Method;
use serde_json::{Value, json};

use crate::support::{ask, ended, exported, get, lines, taken};

/// What an actor may be called who thinks of spreadsheets.
const FORMULA: &str = "=cmd|' /C calc'!A0";

fn auditor(stack: &Stack) -> Rest {
    Rest::new(&stack.command.url(), &stack.tenant.auditor_key)
}

/// Three orders, each of a request of its own, one by somebody else; one of them confirmed. Gives their ids.
async fn some_events(caller: &Caller) -> anyhow::Result<Vec<String>> {
    let mut ids = Vec::new();
    for number in 0..3 {
        let mut order = place(&new_order_id(), "customer-1");
        order.context = Some(CommandContext {
            actor: if number == 2 { FORMULA } else { "agent:jane" }.to_owned(),
            correlation_id: format!("checkout-{number}"),
            ..Default::default()
        });
        ids.push(order.order_id.clone());
        caller.send(order).await?;
    }
    caller.send(command::confirm(&ids[0])).await?;
    Ok(ids)
}

/// A tenant with some events, among those of another one.
async fn two_tenants(stack: &Stack) -> anyhow::Result<Vec<String>> {
    let other = Tenant::create(&stack.superuser).await?;
    let urls = [&stack.command, &stack.query, &stack.projector].map(|service| service.url());
    let other = Caller::new(&urls[0], &urls[1], &urls[2], other)?;
    some_events(&other).await?;
    let ids = some_events(&stack.caller()?).await?;
    some_events(&other).await?;
    check::caught_up(&stack.superuser).await?;
    Ok(ids)
}

/// The events of the feed as they come over the wire, all of its pages.
async fn feed(stack: &Stack, query: &str) -> anyhow::Result<Vec<String>> {
    let queries = Rest::new(&stack.query.url(), &stack.tenant.auditor_key);
    let (mut events, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = get(&queries, &format!("/v1/events?limit=2{query}{cursor}")).await?;
        ensure!(page.status == 200, "{page:?}");
        let text = std::str::from_utf8(&page.body)?;
        let data = text.strip_prefix("{\"data\":[").context("a page is a list")?;
        let (data, pagination) = data
            .rsplit_once("],\"pagination\":")
            .context("and says how it goes on")?;
        // Two objects; nothing else begins with an event's id.
        let objects = data
            .split(",{\"event_id\"")
            .enumerate()
            .map(|(index, object)| match index {
                0 => object.to_owned(),
                _ => format!("{{\"event_id\"{object}"),
            });
        events.extend(objects.filter(|object| !object.is_empty()));
        let pagination: Value = serde_json::from_str(pagination.strip_suffix('}').context("and ends")?)?;
        match pagination["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(events),
        }
    }
}

#[tokio::test]
async fn a_file_is_the_feed_of_its_tenant_line_by_line_and_its_manifest_counts_it() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    two_tenants(&stack).await?;
    let feed = feed(&stack, "").await?;
    assert_eq!(feed.len(), 4);
    let (operation, file) = exported(&auditor(&stack), &json!({"format": "ndjson"})).await?;
    assert_eq!(lines(&file)?, feed, "byte for byte");
    let position = |line: &String| serde_json::from_str::<Value>(line).map(|event| event["position"].clone());
    let manifest = &operation["manifest"];
    assert_eq!(manifest["events"], 4);
    assert_eq!(manifest["first_position"], position(&feed[0])?);
    assert_eq!(manifest["last_position"], position(&feed[3])?);
    assert_eq!(manifest["up_to_position"], 12, "it is of the whole log");
    assert_eq!(
        (&manifest["format"], &manifest["filters"]),
        (&json!("ndjson"), &json!({}))
    );
    let epoch: i32 = sqlx::query_scalar("SELECT epoch FROM event_store.log")
        .fetch_one(&stack.superuser)
        .await?;
    assert_eq!(manifest["epoch"], epoch);
    assert_eq!(
        (&operation["kind"], &operation["progress"]["lines_read"]),
        (&json!("event-exports"), &json!(4))
    );
    let of_log = &operation["export"];
    assert_eq!(
        (&of_log["positions_done"], &of_log["positions_total"]),
        (&json!(12), &json!(12))
    );
    assert_eq!(file.header("content-type"), "application/x-ndjson");
    let id = operation["operation_id"].as_str().context("it has an id")?;
    let name = format!("attachment; filename=\"events-{id}.ndjson\"");
    assert_eq!(file.header("content-disposition"), name);
    Ok(())
}

#[tokio::test]
async fn a_file_has_what_the_feed_has_under_the_same_filters_and_what_meets_several_of_them()
-> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let ids = two_tenants(&stack).await?;
    let auditor = auditor(&stack);
    let all = feed(&stack, "").await?;
    let third: Value = serde_json::from_str(&all[2])?;
    let third = third["recorded_at"].as_str().context("it has a moment")?;
    for (name, value, count) in [
        ("event_type", "order.placed", 3),
        ("stream_id", &*ids[0], 2),
        ("actor", "agent:jane", 2),
        ("correlation_id", "checkout-1", 1),
        ("correlation_id", "checkout-7", 0),
        ("recorded_after", third, 2),
        ("recorded_before", third, 2),
        ("recorded_after", "2999-01-01T00:00:00Z", 0),
        ("recorded_before", "1999-01-01T00:00:00Z", 0),
    ] {
        let (operation, file) = exported(&auditor, &json!({"format": "ndjson", name: value})).await?;
        assert_eq!(
            lines(&file)?,
            feed(&stack, &format!("&{name}={value}")).await?,
            "{name}={value}"
        );
        assert_eq!(operation["manifest"]["events"], count, "{name}={value}");
        assert_eq!(operation["manifest"]["filters"], json!({name: value}));
    }
    let several = json!({
        "format": "ndjson", "event_type": "order.placed", "actor": "agent:jane", "recorded_before": third, "stream_id": ids[1],
    });
    let (_, file) = exported(&auditor, &several).await?;
    assert_eq!(lines(&file)?, [&all[1]]);
    Ok(())
}

#[tokio::test]
async fn a_file_of_csv_has_a_row_for_each_event_and_no_cell_that_is_a_formula() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    two_tenants(&stack).await?;
    let (_, file) = exported(&auditor(&stack), &json!({"format": "csv"})).await?;
    let rows = lines(&file)?;
    let names = "position,event_id,event_type,schema_version,stream_id,stream_version,recorded_at,occurred_at,actor,\
                 correlation_id,causation_id,payload";
    assert_eq!((rows.len(), rows[0]), (5, names));
    assert!(
        rows[3].contains(&format!(",'{FORMULA},checkout-2,,\"{{")),
        "{}",
        rows[3]
    );
    for (row, event) in rows[1..].iter().zip(feed(&stack, "").await?) {
        let event: Value = serde_json::from_str(&event)?;
        let text = |name: &str| event[name].as_str().unwrap_or_default();
        let begin = format!(
            "{},{},{},",
            event["position"],
            text("event_id"),
            text("event_type")
        );
        assert!(row.starts_with(&begin), "{row}");
        assert!(row.contains(&format!(",{},", text("recorded_at"))), "{row}");
    }
    assert_eq!(
        file.header("content-type"),
        "text/csv; charset=utf-8; header=present"
    );
    let (operation, empty) = exported(&auditor(&stack), &json!({"format": "csv", "actor": "nobody"})).await?;
    assert_eq!(lines(&empty)?, [names]);
    assert_eq!(operation["manifest"]["first_position"], Value::Null);
    Ok(())
}

#[tokio::test]
async fn an_export_needs_the_scope_of_histories_and_is_its_tenants_alone() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    some_events(&backend.caller()?).await?;
    let auditor = Rest::new(&backend.commands[0].url(), &backend.tenant.auditor_key);
    let location = taken(&auditor, &json!({"format": "csv"})).await?;
    ended(&auditor, &location).await?;
    let service = auditor.with_key(&backend.tenant.service_key);
    let refused = ask(&service, &json!({"format": "csv"})).await?;
    assert_eq!(
        (refused.status, &refused.json()["missing_scope"]),
        (403, &"events:read".into())
    );
    assert_eq!(get(&service, &format!("{location}/output")).await?.status, 403);
    assert_eq!(
        get(&service, &location).await?.status,
        404,
        "imports alone are for this key"
    );

    let stranger = Tenant::create(&backend.superuser).await?;
    let stranger = auditor.with_key(&stranger.auditor_key);
    let cancel = format!("{location}/cancel");
    for (method, path) in [
        (Method::GET, location.clone()),
        (Method::GET, format!("{location}/output")),
        (Method::POST, cancel),
    ] {
        let answer = stranger.send(method, &path, &[], "").await?;
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (404, &"RESOURCE_NOT_FOUND".into()),
            "{path}"
        );
    }
    assert_eq!(get(&stranger, "/v1/operations").await?.json()["data"], json!([]));
    let only = backend
        .tenant
        .key_with(&backend.superuser, Scope::EventsRead)
        .await?;
    let listed = get(&auditor.with_key(&only), "/v1/operations").await?.json();
    assert_eq!(listed["data"][0]["manifest"]["events"], 4, "{listed}");
    Ok(())
}

#[tokio::test]
async fn the_same_key_is_the_same_export_and_what_is_wrong_with_one_is_said_at_once() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let auditor = Rest::new(&backend.commands[0].url(), &backend.tenant.auditor_key);
    let key = new_key();
    let ask = async |body: Value| auditor.command("/v1/event-exports", &key, &body).await;
    let first = ask(json!({"format": "csv", "actor": "a"})).await?;
    ended(&auditor, first.header("location")).await?;
    let again = ask(json!({"actor": "a", "format": "csv"})).await?;
    assert_eq!(
        (again.status, again.header("location")),
        (202, first.header("location"))
    );
    assert_eq!(
        (
            first.header("idempotency-replayed"),
            again.header("idempotency-replayed")
        ),
        ("", "true")
    );
    let other = ask(json!({"format": "ndjson", "actor": "a"})).await?;
    assert_eq!(
        (other.status, &other.json()["code"]),
        (422, &"IDEMPOTENCY_KEY_REUSED".into())
    );

    let wrong = ask(json!({"format": "xml", "actor": "", "recorded_after": "soon"}))
        .await?
        .json();
    let errors = wrong["errors"].as_array().context("it says what is wrong")?;
    let pointers: BTreeSet<_> = errors
        .iter()
        .filter_map(|error| error["pointer"].as_str())
        .collect();
    assert_eq!(pointers, BTreeSet::from(["/actor", "/format", "/recorded_after"]));
    let keyless = auditor.send(Method::POST, "/v1/event-exports", &[], "{}").await?;
    assert_eq!(keyless.json()["errors"][0]["pointer"], "Idempotency-Key");
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM event_store.operation")
        .fetch_one(&backend.superuser)
        .await?;
    assert_eq!(kept, 1);
    Ok(())
}

#[tokio::test]
async fn the_command_line_leaves_a_file_that_is_what_the_manifest_says() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    some_events(&backend.caller()?).await?;
    let url = backend.commands[0].url();
    let settings = [
        ("DAYBOOK_COMMAND_URL", &*url),
        ("DAYBOOK_API_KEY", &*backend.tenant.auditor_key),
    ];
    let file = backend.servers.directory().join("events.csv");
    let path = file.to_str().context("the path is text")?;
    let arguments = [
        "export",
        "events",
        "--format",
        "csv",
        "--type",
        "order.placed",
        "--output",
        path,
    ];
    let said = daybook(&settings, &arguments).await?;
    assert_eq!(said.code, 0, "{said:?}");
    let manifest = said.json()?;
    let written = std::fs::read(&file)?;
    assert_eq!(manifest["bytes"], written.len());
    assert_eq!(
        (&manifest["events"], String::from_utf8(written)?.lines().count()),
        (&json!(3), 4)
    );
    let said = daybook(
        &[
            settings[0],
            ("DAYBOOK_API_KEY", backend.tenant.service_key.as_str()),
        ],
        &arguments,
    )
    .await?;
    assert!(said.code != 0 && said.errors.contains("events:read"), "{said:?}");
    Ok(())
}
