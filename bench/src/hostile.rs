//! Clients that mean harm, beside a caller who does not: what they take from it.

use std::time::Duration;

use anyhow::ensure;
use daybook_tests::client::Caller;
use daybook_tests::hostile::{Attack, Target};
use daybook_tests::orders::place;
use daybook_tests::stack::Stack;
use futures::FutureExt as _;

use crate::load::Load;
use crate::report::{Goal, Report};
use crate::{Options, load};

/// Requests of the caller who means no harm, per second.
const REQUESTS_PER_SECOND: u64 = 200;

/// The pause of each hostile client between one go and the next.
const PAUSE: Duration = Duration::from_millis(10);

pub(crate) async fn measure(options: &Options, stack: &Stack, report: &mut Report) -> anyhow::Result<()> {
    let caller = stack.caller()?;
    let on_commands = Target::new(&stack.command, &stack.tenant.service_key);
    let on_queries = Target::new(&stack.query, &stack.tenant.auditor_key);
    for attack in Attack::ALL {
        let quiet = commands(options, &caller).await?;
        let attackers = attack.start(&on_commands, PAUSE);
        let beside = commands(options, &caller).await?;
        drop(attackers);
        note(report, "PlaceOrder", attack, &quiet, &beside);

        let quiet = queries(options, &caller).await?;
        let attackers = attack.start(&on_queries, PAUSE);
        let beside = queries(options, &caller).await?;
        drop(attackers);
        note(report, "GET /v1/orders", attack, &quiet, &beside);
    }
    Ok(())
}

fn note(report: &mut Report, what: &str, attack: Attack, quiet: &Load, beside: &Load) {
    let times = beside.quantile_ms(0.99) / quiet.quantile_ms(0.99);
    let name = format!("{what} at {REQUESTS_PER_SECOND}/s beside {attack:?}, p99, of quiet");
    report.note(&name, times, "times", Goal::AtMost(2.0));
}

async fn commands(options: &Options, caller: &Caller) -> anyhow::Result<Load> {
    let send = || {
        let caller = caller.clone();
        async move { Ok(caller.send_place(place("", "customer-1")).await.map(drop)?) }.boxed()
    };
    load::open(REQUESTS_PER_SECOND, options.duration(), send).await
}

async fn queries(options: &Options, caller: &Caller) -> anyhow::Result<Load> {
    let send = || {
        let caller = caller.clone();
        async move {
            let answer = caller.get("/v1/orders?limit=1").await?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        }
        .boxed()
    };
    load::open(REQUESTS_PER_SECOND, options.duration(), send).await
}
