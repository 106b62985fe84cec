//! `cargo xtask bench`: what Daybook does in a second, and how long one takes, beside what the servers underneath can do.
//!
//! Every figure is measured on private servers with fsync on, on this machine, with the load generator on the same cores,
//! [`Options::runs`] times; the median counts. The raw limits (COPY, one INSERT per transaction, plain JetStream
//! publishing) are measured in the same run, so that ratios hold where absolute figures do not.

mod append;
mod batches;
mod black_hole;
mod commands;
mod disk;
mod failover;
mod hostile;
mod http;
mod imports;
mod lists;
mod lives;
mod load;
mod long_stream;
mod one_stream;
mod publishers;
mod queries;
mod races;
mod raw;
mod repeats;
mod replicas;
mod report;
mod snapshot;
mod stale;
mod strangers;
mod streams;
mod sustained;
mod takeover;
mod visible;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use daybook_devstack::PostgresOptions;
use daybook_tests::stack::{Servers, Stack};

use crate::report::Report;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Daybook on private servers, and prints a table.
#[derive(Parser, Debug)]
pub(crate) struct Options {
    /// Only measurements of these groups: raw, append, disk, visible, commands, http, queries, lists, import, imports, snapshot,
    /// replicas, repeats, stale, long-stream, streams, strangers, hostile, network, takeover, failover, publishers; and with `--long` sustained, races.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How long each closed or open loop runs, in seconds. Sizes of data and long runs grow and shrink with it.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How often each measurement is repeated; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Also what takes minutes: a list of 10,000,000 orders, two minutes of full batches, and a million commands on hot orders.
    #[arg(long)]
    long: bool,
    /// Where the figures go as JSON, besides the table.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Orders to import, as NDJSON, gzip or not; without it as many are made up.
    #[arg(long)]
    orders: Option<PathBuf>,
}

impl Options {
    fn wants(&self, group: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == group)
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut report = Report::default();
    log_alone(&options, &mut report).await?;
    services(&options, &mut report).await?;
    whole_system(&options, &mut report).await?;
    crowds(&options, &mut report).await?;
    long(&options, &mut report).await?;
    report.print(&mut std::io::stdout().lock())?;
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report.to_json())?)?;
    }
    Ok(())
}

/// The servers underneath, and the log without a service in front of it.
async fn log_alone(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    if options.wants("raw") || options.wants("append") {
        let servers = servers().await?;
        if options.wants("raw") {
            raw::measure(options, &servers, report)
                .await
                .context("raw limits")?;
        }
        if options.wants("append") {
            append::measure(options, &servers, report)
                .await
                .context("appends")?;
        }
    }
    if options.wants("publishers") {
        publishers::measure(options, &servers().await?, report)
            .await
            .context("publishers")?;
    }
    if options.wants("disk") {
        disk::measure(options, report).await.context("disk")?;
    }
    Ok(())
}

/// Commands, projections and queries together.
async fn services(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    if !["commands", "http", "visible", "queries"]
        .iter()
        .any(|group| options.wants(group))
    {
        return Ok(());
    }
    let stack = Stack::on(servers().await?).await?;
    if options.wants("visible") {
        visible::measure(options, &stack, report)
            .await
            .context("commit to visible")?;
    }
    if options.wants("commands") {
        commands::measure(options, &stack, report)
            .await
            .context("commands")?;
    }
    if options.wants("http") {
        http::measure(options, &stack, report)
            .await
            .context("commands over HTTP")?;
    }
    if options.wants("queries") {
        queries::measure(options, &stack, report)
            .await
            .context("queries")?;
    }
    Ok(())
}

/// The system beside strangers, outages and imports.
async fn whole_system(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    if options.wants("strangers") {
        let stack = Stack::on(servers().await?).await?;
        strangers::measure(options, &stack, report)
            .await
            .context("strangers")?;
    }
    if options.wants("hostile") {
        let stack = Stack::on(servers().await?).await?;
        hostile::measure(options, &stack, report)
            .await
            .context("hostile clients")?;
    }
    if options.wants("import") {
        imports::measure(options, report)
            .await
            .context("import and rebuild")?;
    }
    if options.wants("imports") {
        one_stream::measure(options, report)
            .await
            .context("an import by one stream")?;
    }
    if options.wants("network") {
        black_hole::measure(&servers().await?, report)
            .await
            .context("a silent network")?;
    }
    if options.wants("takeover") {
        takeover::measure(servers().await?, report)
            .await
            .context("takeover")?;
    }
    if options.wants("failover") {
        failover::measure(options, report).await.context("failover")?;
    }
    if options.wants("snapshot") {
        snapshot::measure(options, report)
            .await
            .context("import beside a snapshot")?;
    }
    Ok(())
}

/// Many who want the same thing, and some who want what they should not.
async fn crowds(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    if options.wants("replicas") {
        replicas::measure(options, report).await.context("two replicas")?;
    }
    if options.wants("repeats") {
        repeats::measure(options, report).await.context("repeated keys")?;
    }
    if options.wants("stale") {
        stale::measure(options, report).await.context("stale commands")?;
    }
    if options.wants("long-stream") {
        long_stream::measure(options, report)
            .await
            .context("a long stream")?;
    }
    if options.wants("streams") {
        let stack = Stack::on(servers().await?).await?;
        streams::measure(options, &stack, report)
            .await
            .context("streams that stay open")?;
    }
    Ok(())
}

/// What takes minutes each.
async fn long(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    if (options.long || !options.only.is_empty()) && options.wants("lists") {
        lists::measure(options, &servers().await?, report)
            .await
            .context("long lists")?;
    }
    if options.long && options.wants("sustained") {
        sustained::measure(options, report)
            .await
            .context("sustained appends")?;
    }
    if options.long && options.wants("races") {
        races::measure(options, report).await.context("races")?;
    }
    Ok(())
}

/// Private servers, as if they had run for a while.
async fn servers() -> anyhow::Result<Servers> {
    let servers = Servers::start_own(PostgresOptions::new).await?;
    raw::fill_segments(&servers.database.superuser().await?).await?;
    Ok(servers)
}
