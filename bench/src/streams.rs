//! Many readers of streams, each of one order or of one tenant, while commands come evenly.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use daybook_tests::client::Caller;
use daybook_tests::orders::new_order_id;
use daybook_tests::sse::{Connection, Source, Stream};
use daybook_tests::stack::Stack;
use daybook_tests::tenant::Tenant;
use futures::FutureExt as _;
use hdrhistogram::Histogram;
use serde::Deserialize;
use time::OffsetDateTime;
use time::serde::rfc3339;
use tokio::task::JoinSet;

use crate::report::{Goal, Report};
use crate::{Options, load};

/// Tenants that share the readers.
const TENANTS: usize = 8;

/// Orders of each tenant that are changed and read.
const ORDERS: usize = 45;

/// Readers of each order.
const READERS_OF_ORDER: usize = 5;

/// Readers of each tenant's whole feed: with those of its orders 250, and 2,000 of all.
const READERS_OF_TENANT: usize = 25;

/// Commands per second: each is delivered to 30 readers, so that these are 20,000 deliveries.
const COMMANDS_PER_SECOND: u64 = 667;

/// Streams on one connection.
const STREAMS_PER_CONNECTION: usize = 100;

/// How long before the end of the load deliveries may come late.
const SETTLE: Duration = Duration::from_secs(2);

/// What of an event says how late it comes.
#[derive(Deserialize)]
struct Recorded {
    #[serde(with = "rfc3339")]
    recorded_at: OffsetDateTime,
}

pub(crate) async fn measure(options: &Options, stack: &Stack, report: &mut Report) -> anyhow::Result<()> {
    let tenants = tenants(stack).await?;
    for _ in 0..options.runs {
        let (latencies, mut readers) = (Latencies::default(), JoinSet::new());
        for stream in open(stack, &tenants).await? {
            readers.spawn(read(stream, latencies.clone()));
        }
        let next = AtomicU64::new(0);
        let change = || {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let (caller, orders) = &tenants[number as usize % TENANTS];
            let (caller, id) = (caller.clone(), orders[number as usize / TENANTS % ORDERS].clone());
            let quantity = u32::try_from(number % 900 + 3).expect("it is small");
            async move { Ok(caller.change_quantity(&id, quantity, None).await.map(drop)?) }.boxed()
        };
        let changes = load::open(COMMANDS_PER_SECOND, options.duration(), change).await?;
        let wanted = changes.answered * (READERS_OF_ORDER + READERS_OF_TENANT) as u64;
        tokio::time::timeout(SETTLE, latencies.reach(wanted))
            .await
            .with_context(|| format!("{} of {wanted} deliveries have come", latencies.count()))?;
        let latencies = latencies.take();
        let resident = resident_mib(stack)?;
        readers.shutdown().await;
        report.note(
            "2,000 streams of orders and of 8 tenants, deliveries",
            latencies.len() as f64 / changes.seconds,
            "/s",
            Goal::AtLeast(20_000.0),
        );
        report.note(
            "the same, from commit to arrival, p50",
            latencies.value_at_quantile(0.5) as f64 / 1_000.0,
            "ms",
            Goal::None,
        );
        report.note(
            "the same, from commit to arrival, p99",
            latencies.value_at_quantile(0.99) as f64 / 1_000.0,
            "ms",
            Goal::AtMost(100.0),
        );
        report.note(
            "the same, memory of the query service",
            resident,
            "MiB",
            Goal::AtMost(300.0),
        );
    }
    Ok(())
}

/// Tenants with their callers and orders.
async fn tenants(stack: &Stack) -> anyhow::Result<Vec<(Caller, Vec<String>)>> {
    let mut tenants = Vec::with_capacity(TENANTS);
    for _ in 0..TENANTS {
        let tenant = Tenant::create(&stack.superuser).await?;
        let (command, query) = (stack.command.url(), stack.query.url());
        let caller = Caller::new(&command, &query, &stack.projector.url(), tenant)?;
        let orders: Vec<_> = (0..ORDERS).map(|_| new_order_id()).collect();
        for id in &orders {
            caller.place(id, "reader").await?;
        }
        tenants.push((caller, orders));
    }
    Ok(tenants)
}

async fn open(stack: &Stack, tenants: &[(Caller, Vec<String>)]) -> anyhow::Result<Vec<Stream>> {
    let mut streams = Vec::new();
    let mut connection = Connection::open(stack.query.address).await?;
    for (caller, orders) in tenants {
        let of_orders = orders.iter().map(|id| format!("/v1/orders/{id}/events/stream"));
        let of_orders = of_orders.flat_map(|path| vec![path; READERS_OF_ORDER]);
        let of_tenant = vec!["/v1/events/stream".to_owned(); READERS_OF_TENANT];
        for path in of_orders.chain(of_tenant) {
            if streams.len() % STREAMS_PER_CONNECTION == STREAMS_PER_CONNECTION - 1 {
                connection = Connection::open(stack.query.address).await?;
            }
            let source = Source::new(stack.query.address, &path, &caller.tenant.auditor_key);
            streams.push(source.open_on(&mut connection).await?);
        }
    }
    Ok(streams)
}

/// How long each delivery took, in microseconds. Cheap to clone.
#[derive(Clone)]
struct Latencies(Arc<std::sync::Mutex<Histogram<u64>>>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Arc::new(std::sync::Mutex::new(load::histogram())))
    }
}

impl Latencies {
    fn note(&self, recorded_at: OffsetDateTime) {
        let late = (OffsetDateTime::now_utc() - recorded_at).whole_microseconds();
        let late = u64::try_from(late).unwrap_or(0);
        self.histogram().saturating_record(late.max(1));
    }

    fn count(&self) -> u64 {
        self.histogram().len()
    }

    async fn reach(&self, count: u64) {
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        while self.count() < count {
            looks.tick().await;
        }
    }

    fn take(&self) -> Histogram<u64> {
        self.histogram().clone()
    }

    fn histogram(&self) -> std::sync::MutexGuard<'_, Histogram<u64>> {
        self.0.lock().expect("nobody panics over it")
    }
}

async fn read(mut stream: Stream, latencies: Latencies) -> anyhow::Result<()> {
    loop {
        let event = stream.next().await?;
        anyhow::ensure!(event.name.is_empty(), "{event:?}");
        let recorded: Recorded = serde_json::from_str(&event.data)?;
        latencies.note(recorded.recorded_at);
    }
}

/// What the query service has in memory.
fn resident_mib(stack: &Stack) -> anyhow::Result<f64> {
    let process = stack.query.service.process_id().context("it runs")?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context("the system says it")?.trim().parse::<f64>()? / 1_024.0)
}
