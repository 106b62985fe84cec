//! Commands whose caller expects another version, beside as many that are good, all on one order.

use std::time::{Duration, Instant};

use daybook_tests::client::Caller;
use daybook_tests::command::{self, Command as _};
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::refusal;
use daybook_tests::stack::Backend;
use daybook_tests::tenant::Tenant;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::load::{Refused, histogram};
use crate::report::{Goal, Report};
use crate::{Options, servers};

/// Commands of each kind in flight.
const IN_FLIGHT: usize = 512;

/// How often each caller sends one.
const TIMES: usize = 3;

/// Connections that the callers share.
const CONNECTIONS: usize = 4;

/// A version that the order had before anybody raced.
const STALE_VERSION: u64 = 1;

pub(crate) async fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let backend = Backend::on(servers().await?, 1).await?;
    let callers: Vec<Caller> = (0..CONNECTIONS)
        .map(|_| backend.caller())
        .collect::<Result<_, _>>()?;
    let url = backend.commands[0].url();
    let other = Caller::new(&url, &url, &url, Tenant::create(&backend.superuser).await?)?;
    for _ in 0..options.runs {
        let order_id = new_order_id();
        callers[0].send(place(&order_id, "hot")).await?;
        callers[0].send(command::change_quantity(&order_id, 2)).await?;
        let refused = Refused::default();
        let quiet = beside(&other, &refused, tokio::time::sleep(options.duration()))
            .await?
            .1;
        let (alone, beside_valid) = beside(&other, &refused, burst(&callers, &order_id, 0, &refused)).await?;
        let (both, beside_both) =
            beside(&other, &refused, burst(&callers, &order_id, IN_FLIGHT, &refused)).await?;
        let times = both.as_secs_f64() / alone.as_secs_f64();
        report.note(
            "512 valid commands on one order, three times",
            seconds(alone),
            "s",
            Goal::None,
        );
        report.note("the same beside 512 stale ones", seconds(both), "s", Goal::None);
        report.note(
            "512 + 512 stale, times valid alone",
            times,
            "x",
            Goal::AtMost(1.5),
        );
        let p50 = |latencies: &Histogram<u64>| latencies.value_at_quantile(0.5) as f64;
        let line = "another tenant's p50 beside 512 + 512 stale, times";
        report.note(
            &format!("{line} quiet"),
            p50(&beside_both) / p50(&quiet),
            "x",
            Goal::AtMost(2.0),
        );
        report.note(
            &format!("{line} beside valid alone"),
            p50(&beside_both) / p50(&beside_valid),
            "x",
            Goal::None,
        );
        report.note(
            "512 + 512 stale, refused that are not stale",
            refused.count() as f64,
            "commands",
            Goal::AtMost(0.0),
        );
    }
    Ok(())
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

/// Sends all of it and waits for every answer.
async fn burst(callers: &[Caller], order_id: &str, stale: usize, refused: &Refused) {
    let mut sends = JoinSet::new();
    for number in 0..IN_FLIGHT + stale {
        let (caller, order_id, refused) = (
            callers[number % callers.len()].clone(),
            order_id.to_owned(),
            refused.clone(),
        );
        sends.spawn(async move {
            for _ in 0..TIMES {
                let change = command::change_quantity(&order_id, 3);
                if number < IN_FLIGHT {
                    refused.note(&caller.send(change).await);
                    continue;
                }
                let answer = caller.send(change.expecting(STALE_VERSION)).await;
                if !answer
                    .as_ref()
                    .is_err_and(|status| refusal::code(status) == "VERSION_CONFLICT")
                {
                    refused.note(&answer);
                }
            }
        });
    }
    sends.join_all().await;
}

/// Does something while another tenant places one order after another; gives how long the one took, and what the other
/// waited in microseconds.
async fn beside(
    other: &Caller,
    refused: &Refused,
    work: impl Future<Output = ()>,
) -> anyhow::Result<(Duration, Histogram<u64>)> {
    let stop = CancellationToken::new();
    let placing = tokio::spawn(place_orders(other.clone(), refused.clone(), stop.clone()));
    let started = Instant::now();
    work.await;
    let took = started.elapsed();
    stop.cancel();
    Ok((took, placing.await?))
}

async fn place_orders(caller: Caller, refused: Refused, stop: CancellationToken) -> Histogram<u64> {
    let mut latencies = histogram();
    while !stop.is_cancelled() {
        let sent = Instant::now();
        refused.note(&caller.send(place(&new_order_id(), "customer-1")).await);
        latencies.saturating_record(u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    latencies
}
