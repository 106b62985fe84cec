//! `daybook import`: real orders through the public API, exactly, and once however often it is run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use daybook_devstack::Proxy;
use daybook_devstack::proxy::Direction;
use daybook_tests::cli::{Said, daybook};
use daybook_tests::stack::Backend;
use daybook_tests::{check, log, wait};
use sqlx::PgPool;
use tokio::time::timeout;

/// What is counted of orders, in the log and in each read model.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
struct Totals {
    orders: i64,
    customers: i64,
    items: i64,
    minor: i64,
}

const IN_THE_LOG: &str = "
    SELECT count(*) AS orders, count(DISTINCT payload ->> 'customer_id') AS customers,
           sum((payload ->> 'item_count')::bigint)::bigint AS items,
           sum((payload ->> 'total_minor')::bigint)::bigint AS minor
    FROM event_store.event WHERE event_type = 'order.placed'
";

const IN_ORDER_DETAILS: &str = "
    SELECT count(*) AS orders, count(DISTINCT document ->> 'customer_id') AS customers,
           (SELECT sum((line ->> 'quantity')::bigint)::bigint
            FROM read_model.order_details, json_array_elements(document -> 'lines') AS line) AS items,
           sum((document -> 'total' ->> 'minor')::bigint)::bigint AS minor
    FROM read_model.order_details
";

const IN_ORDER_LIST: &str = "
    SELECT count(*) AS orders, count(DISTINCT customer_id) AS customers, sum(item_count)::bigint AS items,
           sum(total_minor)::bigint AS minor
    FROM read_model.order_list
";

const IN_CUSTOMER_TOTALS: &str = "
    SELECT sum(orders_placed)::bigint AS orders, count(DISTINCT customer_id) AS customers,
           sum(items_ordered)::bigint AS items, sum(ordered_minor)::bigint AS minor
    FROM read_model.customer_totals
";

async fn import(backend: &Backend, file: &Path) -> anyhow::Result<Said> {
    import_through(&backend.commands[0].url(), backend, file).await
}

async fn import_through(url: &str, backend: &Backend, file: &Path) -> anyhow::Result<Said> {
    let settings = [
        ("DAYBOOK_COMMAND_URL", url),
        ("DAYBOOK_API_KEY", backend.tenant.service_key.as_str()),
    ];
    let file = file.to_str().context("the path is text")?;
    daybook(&settings, &["import", file, "--output", "json"]).await
}

/// Holds the log and every read model against these totals.
async fn holds(superuser: &PgPool, totals: &Totals) -> anyhow::Result<()> {
    check::caught_up(superuser).await?;
    for counted in [IN_THE_LOG, IN_ORDER_DETAILS, IN_ORDER_LIST, IN_CUSTOMER_TOTALS] {
        let found: Totals = sqlx::query_as(counted).fetch_one(superuser).await?;
        assert_eq!(found, *totals, "{counted}");
    }
    Ok(())
}

/// Cargo runs tests in the directory of their crate.
fn workspace() -> PathBuf {
    let this = std::env::current_dir().expect("the directory of this crate");
    this.parent().expect("this crate is in a workspace").to_path_buf()
}

#[tokio::test]
async fn an_import_of_all_real_orders_is_exact_and_a_second_one_changes_nothing() -> anyhow::Result<()> {
    let file: PathBuf = workspace().join("../shared/data/cdnow.ndjson.gz");
    if !file.exists() {
        eprintln!("SKIPPED: {} is not there", file.display());
        return Ok(());
    }
    let backend = Backend::start(1).await?.with_projector().await?;
    let wanted = Totals {
        orders: 69_659,
        customers: 23_570,
        items: 167_881,
        minor: 250_031_563,
    };
    let first = import(&backend, &file).await?;
    assert_eq!(first.code, 0, "{first:?}");
    assert_eq!(first.json()?["succeeded"], wanted.orders);
    assert_eq!(first.json()?["failed"], 0);
    holds(&backend.superuser, &wanted).await?;
    let events = log::events(&backend.superuser).await?;
    check::log(&events)?;
    check::read_models(&backend.superuser, &events).await?;

    let second = import(&backend, &file).await?;
    assert_eq!(second.code, 0, "{second:?}");
    assert_eq!(second.json()?["succeeded"], wanted.orders);
    assert_eq!(log::head(&backend.superuser).await?, events.len() as u64);
    holds(&backend.superuser, &wanted).await
}

#[tokio::test]
async fn a_bad_line_refuses_itself_and_nothing_else() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?.with_projector().await?;
    let demo = std::fs::read_to_string(workspace().join("deploy/demo/orders.ndjson"))?;
    let good = demo.lines().filter(|line| !line.trim().is_empty()).count();
    let bad = [
        "not JSON",
        "{}",
        "[]",
        r#"{"order":"","customer":"c","currency":"USD","placed_at":"1997-01-01T00:00:00Z","lines":[]}"#,
        r#"{"order":"b1","customer":"c","currency":"USD","placed_at":"yesterday","lines":[]}"#,
        r#"{"order":"b2","customer":"c","currency":"USD","placed_at":"1997-01-01T00:00:00Z","lines":[]}"#,
        r#"{"order":"b3","customer":"c c","currency":"usd","placed_at":"1997-01-01T00:00:00Z","lines":[{"sku":"CD","quantity":1,"unit_price_minor":1}]}"#,
        r#"{"order":"b4","customer":"c","currency":"USD","placed_at":"1997-01-01T00:00:00Z","lines":[{"sku":"CD","quantity":-1,"unit_price_minor":1}]}"#,
        r#"{"order":"b5","customer":"c","currency":"USD","placed_at":"1997-01-01T00:00:00Z","lines":[{"sku":"CD","quantity":1,"unit_price_minor":1.5}]}"#,
        r#"{"order":"b6","customer":"c","currency":"USD","placed_at":"1997-01-01T00:00:00Z","lines":[{"sku":"CD","quantity":1000000,"unit_price_minor":9223372036854775807}]}"#,
    ];
    let mut lines: Vec<&str> = demo.lines().collect();
    for (index, line) in bad.iter().enumerate() {
        lines.insert(index * 3, line);
    }
    let file = backend.servers.directory().join("orders.ndjson");
    std::fs::write(&file, lines.join("\n"))?;

    let first = import(&backend, &file).await?;
    assert_eq!(first.code, 1, "{first:?}");
    let summary = first.json()?;
    assert_eq!(summary["succeeded"], good);
    assert_eq!(summary["failed"], bad.len());
    let errors = summary["errors"]
        .as_array()
        .context("it shows the first of them")?;
    let codes = errors.iter().filter_map(|error| error["error"]["code"].as_str());
    let mut codes: Vec<_> = codes.collect();
    codes.sort_unstable();
    let (malformed, rest) = codes.split_at(2);
    assert_eq!(malformed, ["AMOUNT_OVERFLOW", "MALFORMED_REQUEST"]);
    assert_eq!(rest, ["VALIDATION_FAILED"; 8]);
    let head = log::head(&backend.superuser).await?;
    assert_eq!(head, good as u64);
    check::caught_up(&backend.superuser).await?;
    let events = log::events(&backend.superuser).await?;
    check::read_models(&backend.superuser, &events).await?;

    let second = import(&backend, &file).await?;
    assert_eq!(second.json()?["succeeded"], good);
    assert_eq!(log::head(&backend.superuser).await?, head);
    Ok(())
}

/// The service is gone, and nobody says so: what was sent is not answered, nor is the connection closed.
#[tokio::test]
async fn an_import_whose_connection_falls_silent_is_handed_over_again_under_its_key() -> anyhow::Result<()> {
    const ORDERS: usize = 20_000;
    let backend = Backend::start(1).await?;
    let line = |number| {
        format!(
            r#"{{"order":"o{number}","customer":"ada","currency":"USD","placed_at":"1997-01-01T00:00:00Z","lines":[{{"sku":"CD","quantity":1,"unit_price_minor":1}}]}}"#
        )
    };
    let lines: Vec<String> = (0..ORDERS).map(line).collect();
    let file = backend.servers.directory().join("orders.ndjson");
    std::fs::write(&file, lines.join("\n"))?;

    let (proxy, url) = Proxy::in_front_of(&backend.commands[0].url()).await?;
    proxy.delay(Duration::from_millis(20));
    let silence = async {
        wait::until("the file is on its way", async || {
            let arriving = "SELECT EXISTS (SELECT FROM event_store.operation)";
            Ok(sqlx::query_scalar(arriving).fetch_one(&backend.superuser).await?)
        })
        .await?;
        proxy.black_hole(Direction::ToClient);
        wait::until("something is lost", async || Ok(proxy.swallowed() > 0)).await?;
        proxy.heal();
        anyhow::Ok(())
    };
    let imported = timeout(wait::DEADLINE, import_through(&url, &backend, &file));
    let (imported, silenced) = tokio::join!(imported, silence);
    silenced?;
    let said = imported.context("it waits for ever")??;
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(said.json()?["succeeded"], ORDERS);
    assert_eq!(log::head(&backend.superuser).await?, ORDERS as u64);
    Ok(())
}
