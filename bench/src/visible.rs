//! From commit to visible: how long until a read model shows what a command did, at a steady rate.
//!
//! The moment of the commit is the event's `recorded_at`, which the database takes before it commits, so the figure holds
//! the commit itself as well. The moment of visibility is when the projector's signal arrives here, which it sends after
//! its own commit; the slowest of the projections counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use daybook_event_bus::{Bus, Deployment, signal};
use daybook_proto::convert::from_timestamp;
use daybook_tests::client::Caller;
use daybook_tests::orders::place;
use daybook_tests::sealing;
use daybook_tests::stack::Stack;
use futures::StreamExt as _;
use time::OffsetDateTime;

use crate::Options;
use crate::commands::applied;
use crate::load::{self, histogram};
use crate::report::{Goal, Report};

/// Commands in each second.
const COMMANDS_PER_SECOND: u64 = 1_000;

/// Connections that the commands share.
const CONNECTIONS: usize = 4;

/// When each projection had applied everything up to a position, in the order of the signals.
type Signals = HashMap<String, Vec<(u64, OffsetDateTime)>>;

pub(crate) async fn measure(options: &Options, stack: &Stack, report: &mut Report) -> anyhow::Result<()> {
    let bus = Bus::connect(&stack.servers.nats.url(), &Deployment::default(), "bench").await?;
    let callers: Vec<Caller> = (0..CONNECTIONS)
        .map(|_| stack.caller())
        .collect::<Result<_, _>>()?;
    // Connections, plans and caches come first: this is about a system that runs.
    commands(&callers, Duration::from_secs(2)).await?;
    for _ in 0..options.runs {
        let signals = Arc::new(Mutex::new(Signals::new()));
        let mut arriving = signal::subscribe(&bus).await?;
        let noting = Arc::clone(&signals);
        let listener = tokio::spawn(async move {
            while let Some(applied) = arriving.next().await {
                let now = OffsetDateTime::now_utc();
                let mut noting = noting.lock().expect("nobody panics with it");
                noting
                    .entry(applied.projection)
                    .or_default()
                    .push((applied.position, now));
            }
        });
        let committed = commands(&callers, options.duration()).await?;
        applied(stack).await?;
        listener.abort();
        let projections: i64 = sqlx::query_scalar("SELECT count(*) FROM read_model.projection")
            .fetch_one(&stack.superuser)
            .await?;
        let signals = signals.lock().expect("nobody panics with it");
        let count = signals.len();
        anyhow::ensure!(
            count as i64 == projections,
            "{count} of {projections} projections signal"
        );
        let latencies = latencies(&committed, &signals)?;
        let milliseconds = |quantile| latencies.value_at_quantile(quantile) as f64 / 1_000.0;
        report.note(
            "commit to visible at 1,000/s, p50",
            milliseconds(0.5),
            "ms",
            Goal::AtMost(4.0),
        );
        report.note(
            "commit to visible at 1,000/s, p99",
            milliseconds(0.99),
            "ms",
            Goal::AtMost(10.0),
        );
    }
    Ok(())
}

/// Places orders at a steady rate; gives their positions and when they were recorded.
async fn commands(callers: &[Caller], duration: Duration) -> anyhow::Result<Vec<(u64, OffsetDateTime)>> {
    let committed = Arc::new(Mutex::new(Vec::new()));
    let next = std::cell::Cell::new(0);
    load::open(COMMANDS_PER_SECOND, duration, || {
        next.set(next.get() + 1);
        let caller = callers[next.get() % callers.len()].clone();
        let committed = Arc::clone(&committed);
        let customer = format!("customer-{}", next.get() % 1_000);
        async move {
            let receipt = caller.send_place(place("", &customer)).await?;
            let recorded_at = receipt.recorded_at.as_ref().and_then(from_timestamp);
            let token = sealing::token(caller.tenant.tenant_id, &receipt.consistency_token)?;
            committed
                .lock()
                .expect("nobody panics with it")
                .extend(recorded_at.map(|recorded_at| (token.position, recorded_at)));
            Ok(())
        }
    })
    .await?;
    let mut committed = committed.lock().expect("nobody panics with it");
    Ok(std::mem::take(&mut committed))
}

fn latencies(
    committed: &[(u64, OffsetDateTime)],
    signals: &Signals,
) -> anyhow::Result<hdrhistogram::Histogram<u64>> {
    let mut latencies = histogram();
    for (position, recorded_at) in committed {
        let visible = signals.values().map(|signals| {
            let index = signals.partition_point(|(applied, _)| applied < position);
            signals.get(index).map(|(_, at)| *at)
        });
        if let Some(slowest) = visible
            .collect::<Option<Vec<_>>>()
            .and_then(|all| all.into_iter().max())
        {
            let micros = (slowest - *recorded_at).whole_microseconds();
            latencies.saturating_record(u64::try_from(micros).unwrap_or(0));
        }
    }
    anyhow::ensure!(
        latencies.len() * 100 >= committed.len() as u64 * 99,
        "signals were missed: {} of {} commands",
        latencies.len(),
        committed.len()
    );
    Ok(latencies)
}
