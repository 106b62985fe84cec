//! What the command service is told.

use clap::Parser;
use daybook_service::config::{CommonConfig, Secret};

/// Takes commands over gRPC, appends what they lead to, and publishes it.
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Config {
    /// What every service is told.
    #[command(flatten)]
    pub common: CommonConfig,

    /// The same database with the role of the publishing task, which sees the events of every tenant and answers no
    /// caller.
    #[arg(
        long,
        env = "DAYBOOK_PUBLISHER_DATABASE_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    pub publisher_database_url: Secret,

    /// How many copies JetStream keeps of the log's streams: 1 on a single server, 3 on a cluster.
    #[arg(
        long,
        env = "DAYBOOK_STREAM_REPLICAS",
        value_name = "NUMBER",
        default_value_t = 1
    )]
    pub stream_replicas: usize,

    /// How many connections to the database this process may have, besides one for each partition that it appends to
    /// and two that look keys up.
    #[arg(
        long,
        env = "DAYBOOK_DATABASE_CONNECTIONS",
        value_name = "NUMBER",
        default_value_t = 8
    )]
    pub database_connections: u32,
}
