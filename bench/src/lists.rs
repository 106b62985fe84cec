//! Pages of a long list: every list of orders that the contract allows, deep in it, with statistics from before the newest
//! orders, and a walk of 10,000 pages over HTTP.

use std::time::{Duration, Instant};

use daybook_tests::client::Caller;
use daybook_tests::skewed::{self, Orders};
use daybook_tests::stack::{Role, Servers};
use daybook_tests::tenant::Tenant;
use hdrhistogram::Histogram;
use sqlx::{Connection as _, PgConnection, PgPool};

use crate::Options;
use crate::load::histogram;
use crate::report::{Goal, Report};

/// Orders for each second of `--seconds`: 10,000,000 with the default.
const ORDERS_PER_SECOND: u64 = 2_000_000;

/// How many orders a page has.
const PAGE: u32 = 20;

/// How often each page is read.
const READS: usize = 20;

/// How many pages are walked through.
const PAGES: usize = 10_000;

pub(crate) async fn measure(options: &Options, servers: &Servers, report: &mut Report) -> anyhow::Result<()> {
    let superuser = servers.database.superuser().await?;
    let tenant = Tenant::create(&superuser).await?;
    let orders = Orders {
        tenant_id: tenant.tenant_id,
        count: ORDERS_PER_SECOND * options.seconds,
    };
    let started = Instant::now();
    let mut filling = PgConnection::connect(&servers.database.superuser_url()).await?;
    orders.fill(&mut filling).await?;
    sqlx::raw_sql("CHECKPOINT").execute(&mut filling).await?;
    eprintln!("  {} orders after {:?}", orders.count, started.elapsed());

    every_list(orders, &servers.database.pool("daybook_query").await?, report).await?;
    walk(servers, tenant, report).await
}

async fn every_list(orders: Orders, pool: &PgPool, report: &mut Report) -> anyhow::Result<()> {
    let mut places = Vec::new();
    for number in orders.places() {
        places.push(orders.order(pool, number).await?);
    }
    let (mut all, mut slowest) = (histogram(), Duration::ZERO);
    for list in orders.lists() {
        let begins = places.iter().map(|place| Some(list.1.keyset(place)));
        let mut of_list = histogram();
        for after in begins.chain([None]) {
            for _ in 0..READS {
                let started = Instant::now();
                skewed::page(pool, orders, &list, after.as_ref(), PAGE).await?;
                note(&mut of_list, started)?;
            }
        }
        let p99 = Duration::from_micros(of_list.value_at_quantile(0.99));
        if p99 > slowest {
            eprintln!("  {p99:?}: {} with {:?}", list.1.order(), list.0);
            slowest = p99;
        }
        all.add(of_list)?;
    }
    report.note(
        "page of any list of 10,000,000 orders, first and deep in it, p50",
        milliseconds(all.value_at_quantile(0.5)),
        "ms",
        Goal::None,
    );
    report.note(
        "the same, p99",
        milliseconds(all.value_at_quantile(0.99)),
        "ms",
        Goal::AtMost(20.0),
    );
    report.note(
        "the same, p99 of the slowest list",
        slowest.as_secs_f64() * 1_000.0,
        "ms",
        Goal::AtMost(20.0),
    );
    Ok(())
}

async fn walk(servers: &Servers, tenant: Tenant, report: &mut Report) -> anyhow::Result<()> {
    let query = servers.run(Role::Query, &[]).await?;
    let url = query.url();
    let caller = Caller::new(&url, &url, &url, tenant)?;
    let (mut latencies, mut cursor) = (histogram(), String::new());
    for _ in 0..PAGES {
        let started = Instant::now();
        let page = caller.get(&format!("/v1/orders?limit={PAGE}{cursor}")).await?;
        note(&mut latencies, started)?;
        let page = page.json();
        let next = page["pagination"]["next_cursor"].as_str();
        cursor = format!("&cursor={}", next.ok_or_else(|| anyhow::anyhow!("{page}"))?);
    }
    report.note(
        "GET /v1/orders, 10,000 pages one after another, p99",
        milliseconds(latencies.value_at_quantile(0.99)),
        "ms",
        Goal::AtMost(20.0),
    );
    Ok(())
}

fn note(latencies: &mut Histogram<u64>, started: Instant) -> anyhow::Result<()> {
    let micros = u64::try_from(started.elapsed().as_micros())?;
    Ok(latencies.record(micros)?)
}

fn milliseconds(micros: u64) -> f64 {
    micros as f64 / 1_000.0
}
