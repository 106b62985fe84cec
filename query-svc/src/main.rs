//! The query service: answers reads over REST and gRPC.

use std::process::ExitCode;

use anyhow::Context as _;
use daybook_query_svc::{Config, SERVICE_NAME};
use daybook_service::config::parse_or_exit;
use daybook_service::process;
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let config: Config = parse_or_exit();
    let common = config.common.clone();
    process::run(SERVICE_NAME, &common, async |shutdown| {
        let listener = TcpListener::bind(config.common.listen)
            .await
            .context("cannot listen for callers")?;
        let admin_listener = TcpListener::bind(config.common.admin_listen)
            .await
            .context("cannot listen for operators")?;
        daybook_query_svc::run(config, listener, admin_listener, shutdown).await
    })
}
