//! Commands through the command service over gRPC, with the projections running.

use std::time::Instant;

use daybook_tests::check;
use daybook_tests::client::Caller;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::stack::Stack;

use crate::report::{Goal, Report};
use crate::{Options, load};

/// Callers that place orders at once.
const PLACING_CALLERS: usize = 256;

/// Callers that change one order at once.
pub(crate) const CALLERS_OF_ONE: usize = 64;

/// Connections that the callers share.
const CONNECTIONS: usize = 4;

pub(crate) async fn measure(options: &Options, stack: &Stack, report: &mut Report) -> anyhow::Result<()> {
    let callers: Vec<Caller> = (0..CONNECTIONS)
        .map(|_| stack.caller())
        .collect::<Result<_, _>>()?;
    for _ in 0..options.runs {
        one_aggregate(options, &callers, report).await?;
        applied(stack).await?;
        many_aggregates(options, stack, &callers, report).await?;
    }
    Ok(())
}

async fn one_aggregate(options: &Options, callers: &[Caller], report: &mut Report) -> anyhow::Result<()> {
    let order_id = new_order_id();
    callers[0].place(&order_id, "hot").await?;
    let change = move |(caller, quantity): (Caller, u32)| {
        let order_id = order_id.clone();
        async move {
            caller
                .change_quantity(&order_id, quantity % 1_000 + 1, None)
                .await?;
            Ok((caller, quantity + 1))
        }
    };
    let make = |worker: usize| (callers[worker % callers.len()].clone(), 1);
    let load = load::closed(CALLERS_OF_ONE, options.duration(), make, change).await?;
    report.note(
        "commands on one aggregate, 64 callers, gRPC",
        load.rate(),
        "commands/s",
        Goal::AtLeast(12_000.0),
    );
    report.note(
        "commands on one aggregate, p99",
        load.quantile_ms(0.99),
        "ms",
        Goal::None,
    );
    Ok(())
}

async fn many_aggregates(
    options: &Options,
    stack: &Stack,
    callers: &[Caller],
    report: &mut Report,
) -> anyhow::Result<()> {
    let send = |(caller, number): (Caller, u64)| async move {
        caller
            .send_place(place("", &format!("customer-{}", number % 10_000)))
            .await?;
        Ok((caller, number + 1))
    };
    let make = |worker: usize| (callers[worker % callers.len()].clone(), worker as u64 * 97);
    let load = load::closed(PLACING_CALLERS, options.duration(), make, send).await?;
    let stopped = Instant::now();
    applied(stack).await?;
    report.note(
        "PlaceOrder, gRPC, projections running",
        load.rate(),
        "commands/s",
        Goal::AtLeast(13_000.0),
    );
    report.note(
        "PlaceOrder, p99",
        load.quantile_ms(0.99),
        "ms",
        Goal::AtMost(30.0),
    );
    report.note(
        "PlaceOrder, lag gone after",
        stopped.elapsed().as_secs_f64(),
        "s",
        Goal::AtMost(1.0),
    );
    Ok(())
}

/// Waits until every live projection stands at the head of the log.
pub(crate) async fn applied(stack: &Stack) -> anyhow::Result<()> {
    check::caught_up(&stack.superuser).await.map(drop)
}
