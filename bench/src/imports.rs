//! Many orders at once: an import through the public API by the command line, and rebuilds of what it left.

use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use daybook_proto::projections::v1::{GetRebuildRequest, RebuildProjectionRequest, RebuildStatus};
use daybook_read_model::{OrderList, ReadModel as _, each_read_model};
use daybook_tests::stack::{Stack, program};
use daybook_tests::{log, wait};
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::process::Command;

use crate::commands::applied;
use crate::report::{Goal, Report};
use crate::{Options, lives, servers};

/// As many orders as the real set has, where that is not at hand.
const ORDERS: usize = 69_659;

pub(crate) async fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    for _ in 0..options.runs {
        let stack = Stack::on(servers().await?).await?;
        let orders = match &options.orders {
            Some(path) => path.clone(),
            None => make_up(stack.servers.directory(), 0..ORDERS)?,
        };
        let took = import(&stack, &orders).await?;
        report.note(
            "import of 69,659 orders through the public API",
            took.as_secs_f64(),
            "s",
            Goal::AtMost(15.0),
        );
        let stopped = Instant::now();
        applied(&stack).await?;
        report.note(
            "import, lag gone after",
            stopped.elapsed().as_secs_f64(),
            "s",
            Goal::None,
        );
        rebuild(&stack, OrderList::NAME, "placed orders only", report).await?;
        lives::append(&stack).await?;
        applied(&stack).await?;
        for name in each_read_model!(M => M::NAME) {
            rebuild(&stack, name, "orders' whole lives", report).await?;
        }
    }
    Ok(())
}

/// Imports orders by the command line; gives how long it took.
pub(crate) async fn import(stack: &Stack, orders: &Path) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let import = Command::new(program("daybook")?)
        .arg("import")
        .arg(orders)
        .env("DAYBOOK_COMMAND_URL", stack.command.url())
        .env("DAYBOOK_API_KEY", &stack.tenant.service_key)
        .output()
        .await?;
    let took = started.elapsed();
    anyhow::ensure!(
        import.status.success(),
        "{}",
        String::from_utf8_lossy(&import.stderr)
    );
    Ok(took)
}

/// Orders like the real ones: a line or two, three to a customer, zipped.
pub(crate) fn make_up(directory: &Path, orders: Range<usize>) -> anyhow::Result<PathBuf> {
    let path = directory.join(format!("orders-from-{}.ndjson.gz", orders.start));
    let mut file = GzEncoder::new(std::fs::File::create(&path)?, Compression::fast());
    for order in orders {
        let (customer, quantity, price) = (order / 3, order % 4 + 1, order % 2_000 + 500);
        writeln!(
            file,
            r#"{{"order":"made-up-{order:05}","customer":"made-up-{customer:05}","currency":"USD","placed_at":"1997-01-01T00:00:00Z","lines":[{{"sku":"CD","quantity":{quantity},"unit_price_minor":{price}}}]}}"#
        )?;
    }
    file.finish()?;
    Ok(path)
}

async fn rebuild(stack: &Stack, name: &str, orders: &str, report: &mut Report) -> anyhow::Result<()> {
    let mut projections = stack.caller()?.projections();
    let head = log::head(&stack.superuser).await?;
    let started = Instant::now();
    let request = RebuildProjectionRequest {
        name: name.to_owned(),
        reason: "benchmark".to_owned(),
    };
    let response = projections.rebuild_projection(request).await?.into_inner();
    let generation = response.rebuild.context("a rebuild that started")?.generation;
    wait::until("the rebuild is done", async || {
        let request = GetRebuildRequest {
            name: name.to_owned(),
            generation,
        };
        let rebuild = projections
            .get_rebuild(request)
            .await?
            .into_inner()
            .rebuild
            .context("a rebuild")?;
        anyhow::ensure!(rebuild.status() != RebuildStatus::Failed, "{}", rebuild.error);
        Ok(rebuild.status() == RebuildStatus::Done)
    })
    .await?;
    let rate = head as f64 / started.elapsed().as_secs_f64();
    let goal = match name {
        OrderList::NAME => Goal::AtLeast(100_000.0),
        _ => Goal::None,
    };
    report.note(
        &format!("rebuild of {name}, {orders}, to the switch"),
        rate,
        "events/s",
        goal,
    );
    Ok(())
}
