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
use clap::{Parser, ValueEnum};
use daybook_devstack::PostgresOptions;
use daybook_tests::stack::{Servers, Stack};

use crate::report::Report;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Daybook on private servers, and prints a table.
#[derive(Parser, Debug)]
pub(crate) struct Options {
    /// Only these groups of measurements.
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Group>,
    /// How long each closed or open loop runs, in seconds. Sizes of data and long runs grow and shrink with it.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How often each measurement is repeated; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Also the groups that take minutes: a list of 10,000,000 orders, two minutes of full batches, and a million commands on
    /// hot orders.
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
    fn wants(&self, group: Group) -> bool {
        match self.only.as_slice() {
            [] => self.long || !group.is_long(),
            only => only.contains(&group),
        }
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// A group of measurements, on servers of its own. They are measured in this order: ratios need what comes before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    Raw,
    Append,
    Publishers,
    Disk,
    Visible,
    Commands,
    Http,
    Queries,
    Strangers,
    Hostile,
    Import,
    Imports,
    Network,
    Takeover,
    Failover,
    Snapshot,
    Replicas,
    Repeats,
    Stale,
    LongStream,
    Streams,
    Lists,
    Sustained,
    Races,
}

impl Group {
    /// Takes minutes, so it is measured only when that is asked for.
    fn is_long(self) -> bool {
        matches!(self, Self::Lists | Self::Sustained | Self::Races)
    }

    async fn measure(self, options: &Options, report: &mut Report) -> anyhow::Result<()> {
        match self {
            Self::Raw => raw::measure(options, &servers().await?, report).await,
            Self::Append => append::measure(options, &servers().await?, report).await,
            Self::Publishers => publishers::measure(options, &servers().await?, report).await,
            Self::Disk => disk::measure(options, report).await,
            Self::Visible => visible::measure(options, &stack().await?, report).await,
            Self::Commands => commands::measure(options, &stack().await?, report).await,
            Self::Http => http::measure(options, &stack().await?, report).await,
            Self::Queries => queries::measure(options, &stack().await?, report).await,
            Self::Strangers => strangers::measure(options, &stack().await?, report).await,
            Self::Hostile => hostile::measure(options, &stack().await?, report).await,
            Self::Import => imports::measure(options, report).await,
            Self::Imports => one_stream::measure(options, report).await,
            Self::Network => black_hole::measure(&servers().await?, report).await,
            Self::Takeover => takeover::measure(servers().await?, report).await,
            Self::Failover => failover::measure(options, report).await,
            Self::Snapshot => snapshot::measure(options, report).await,
            Self::Replicas => replicas::measure(options, report).await,
            Self::Repeats => repeats::measure(options, report).await,
            Self::Stale => stale::measure(options, report).await,
            Self::LongStream => long_stream::measure(options, report).await,
            Self::Streams => streams::measure(options, &stack().await?, report).await,
            Self::Lists => lists::measure(options, &servers().await?, report).await,
            Self::Sustained => sustained::measure(options, report).await,
            Self::Races => races::measure(options, report).await,
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut report = Report::default();
    for group in Group::value_variants() {
        if options.wants(*group) {
            let measured = group.measure(&options, &mut report).await;
            measured.with_context(|| format!("cannot measure {group:?}"))?;
        }
    }
    report.print(&mut std::io::stdout().lock())?;
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report.to_json())?)?;
    }
    Ok(())
}

/// Private servers, as if they had run for a while.
async fn servers() -> anyhow::Result<Servers> {
    let servers = Servers::start_own(PostgresOptions::new).await?;
    raw::fill_segments(&servers.database.superuser().await?).await?;
    Ok(servers)
}

/// The whole system on such servers.
async fn stack() -> anyhow::Result<Stack> {
    Stack::on(servers().await?).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(arguments: &[&str]) -> Result<Vec<Group>, clap::Error> {
        let options = Options::try_parse_from(["bench"].iter().chain(arguments))?;
        let groups = Group::value_variants().iter().copied();
        Ok(groups.filter(|group| options.wants(*group)).collect())
    }

    #[test]
    fn a_group_that_takes_minutes_is_measured_when_it_is_asked_for() -> Result<(), clap::Error> {
        assert!(wanted(&[])?.iter().all(|group| !group.is_long()));
        assert_eq!(wanted(&["--long"])?, Group::value_variants());
        assert_eq!(
            wanted(&["--only", "sustained,long-stream"])?,
            [Group::LongStream, Group::Sustained]
        );
        Ok(())
    }

    #[test]
    fn a_group_that_there_is_not_is_refused() {
        assert!(wanted(&["--only", "apend"]).is_err());
    }
}
