//! Commands over HTTP beside the same over gRPC, in turn, with the projections running.

use anyhow::ensure;
use daybook_tests::client::Caller;
use daybook_tests::orders::{new_key, place};
use daybook_tests::rest::Rest;
use daybook_tests::stack::Stack;
use serde_json::{Value, json};

use crate::commands::applied;
use crate::load::Load;
use crate::report::{Goal, Report};
use crate::{Options, load};

/// Callers that place orders at once.
const CALLERS: usize = 256;

/// Connections that the callers of gRPC share. Those of HTTP have one each.
const CONNECTIONS: usize = 4;

pub(crate) async fn measure(options: &Options, stack: &Stack, report: &mut Report) -> anyhow::Result<()> {
    for _ in 0..options.runs {
        let grpc = over_grpc(options, stack).await?;
        applied(stack).await?;
        let http = over_http(options, stack).await?;
        applied(stack).await?;
        report.note(
            "PlaceOrder, HTTP, projections running",
            http.rate(),
            "commands/s",
            Goal::None,
        );
        report.note("PlaceOrder, HTTP, p99", http.quantile_ms(0.99), "ms", Goal::None);
        let of_grpc = 100.0 * http.rate() / grpc.rate();
        report.note(
            "PlaceOrder, HTTP, of gRPC in turn",
            of_grpc,
            "%",
            Goal::AtLeast(70.0),
        );
    }
    Ok(())
}

async fn over_grpc(options: &Options, stack: &Stack) -> anyhow::Result<Load> {
    let callers = (0..CONNECTIONS)
        .map(|_| stack.caller())
        .collect::<Result<Vec<Caller>, _>>()?;
    let send = |(caller, number): (Caller, u64)| async move {
        caller.send_place(place("", &customer(number))).await?;
        Ok((caller, number + 1))
    };
    let make = |worker: usize| (callers[worker % callers.len()].clone(), worker as u64 * 97);
    load::closed(CALLERS, options.duration(), make, send).await
}

async fn over_http(options: &Options, stack: &Stack) -> anyhow::Result<Load> {
    let rest = Rest::new(&stack.command.url(), &stack.tenant.service_key);
    let send = |(rest, number): (Rest, u64)| async move {
        let answer = rest
            .command("/v1/orders", &new_key(), &order(&customer(number)))
            .await?;
        ensure!(answer.status == 201, "{answer:?}");
        Ok((rest, number + 1))
    };
    let make = |worker: usize| (rest.clone(), worker as u64 * 97);
    load::closed(CALLERS, options.duration(), make, send).await
}

fn customer(number: u64) -> String {
    format!("customer-{}", number % 10_000)
}

/// The order of [`place`], as JSON.
fn order(customer_id: &str) -> Value {
    json!({
        "context": {"actor": "agent:jane", "reason": "by phone"},
        "customer_id": customer_id,
        "currency": "USD",
        "lines": [
            {"sku": "CD", "quantity": 2, "unit_price_minor": 1_177},
            {"sku": "LP", "quantity": 1, "unit_price_minor": 1_176},
        ],
        "expected_total_minor": 3_530,
    })
}
