//! A million orders by one NDJSON stream: how fast they are placed, and how much memory the services take for it.

use daybook_tests::stack::Stack;

use crate::imports::{import, make_up};
use crate::report::{Goal, Report};
use crate::{Options, servers};

/// Orders for each second of `--seconds`: 1,000,000 with the default.
const ORDERS_PER_SECOND: usize = 200_000;

pub(crate) async fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let orders = ORDERS_PER_SECOND * usize::try_from(options.seconds)?;
    for _ in 0..options.runs {
        let stack = Stack::on(servers().await?).await?;
        let file = make_up(stack.servers.directory(), 0..orders)?;
        let took = import(&stack, &file).await?;
        let rate = orders as f64 / took.as_secs_f64();
        report.note(
            "import of 1,000,000 orders by one stream",
            rate,
            "orders/s",
            Goal::AtLeast(10_000.0),
        );
        for (name, service) in [
            ("command service", &stack.command),
            ("projector", &stack.projector),
            ("query service", &stack.query),
        ] {
            let mebibytes = service.memory_kib_max()? as f64 / 1_024.0;
            report.note(
                &format!("the same, memory of the {name}"),
                mebibytes,
                "MiB",
                Goal::AtMost(300.0),
            );
        }
    }
    Ok(())
}
