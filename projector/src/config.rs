//! Settings of the projector.

use clap::Parser;
use daybook_event_bus::Deployment;
use daybook_service::config::CommonConfig;

/// Folds the events of the log into read models.
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Config {
    /// Settings that every service has.
    #[command(flatten)]
    pub common: CommonConfig,

    /// The prefix of this deployment's streams and subjects, so that several can share one NATS account: a lower-case
    /// letter and up to 31 more letters and digits. All services of a deployment need the same.
    #[arg(long, env = "DAYBOOK_DEPLOYMENT", value_name = "NAME", default_value_t)]
    pub deployment: Deployment,

    /// How many connections this process may have to answer operators, and how many to read the log, besides one for
    /// each projection and partition, two that look keys up and one for readiness.
    #[arg(
        long,
        env = "DAYBOOK_DATABASE_CONNECTIONS",
        value_name = "NUMBER",
        default_value_t = 8
    )]
    pub database_connections: u32,

    /// About how much memory events may take on their way into the read models, in MiB: one budget for all partitions and
    /// rebuilds of this process. More partitions get smaller shares of it, and work in smaller batches; each has 9 MiB at least.
    #[arg(long, env = "DAYBOOK_MEMORY_MIB", value_name = "MIB", default_value_t = 512)]
    pub memory_mib: u32,
}

impl Config {
    /// The budget in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_mib as usize * 1_024 * 1_024
    }
}
