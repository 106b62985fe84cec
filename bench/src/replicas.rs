//! One aggregate that two command services are asked for at once.

use daybook_tests::client::Caller;
use daybook_tests::command;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::stack::Backend;

use crate::commands::CALLERS_OF_ONE;
use crate::load::Refused;
use crate::report::{Goal, Report};
use crate::{Options, load, servers};

pub(crate) async fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let backend = Backend::on(servers().await?, 2).await?;
    let callers = backend.callers()?;
    for _ in 0..options.runs {
        let order_id = new_order_id();
        callers[0].send(place(&order_id, "hot")).await?;
        let refused = Refused::default();
        let counter = refused.clone();
        let change = move |(caller, quantity): (Caller, u32)| {
            let (order_id, counter) = (order_id.clone(), counter.clone());
            async move {
                let change = command::change_quantity(&order_id, quantity % 1_000 + 1);
                counter.note(&caller.send(change).await);
                Ok((caller, quantity + 1))
            }
        };
        let make = |worker: usize| (callers[worker % callers.len()].clone(), 1);
        let load = load::closed(CALLERS_OF_ONE, options.duration(), make, change).await?;
        report.note(
            "commands on one aggregate, 64 callers over two replicas",
            (load.answered - refused.count()) as f64 / load.seconds,
            "commands/s",
            Goal::AtLeast(6_000.0),
        );
        report.note(
            "the same over two replicas, p99",
            load.quantile_ms(0.99),
            "ms",
            Goal::AtMost(50.0),
        );
        report.note(
            "the same over two replicas, refused",
            refused.count() as f64,
            "commands",
            Goal::AtMost(0.0),
        );
    }
    Ok(())
}
