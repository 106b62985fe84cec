//! The command service: commands over gRPC are decided, appended and published.

use std::process::ExitCode;

use anyhow::Context as _;
use daybook_command_svc::Config;
use daybook_service::{config, process};
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let config: Config = config::parse_or_exit();
    let common = config.common.clone();
    process::run("daybook-command-svc", &common, async |shutdown| {
        let bind = async |address| {
            TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}"))
        };
        let listener = bind(config.common.listen).await?;
        let admin_listener = bind(config.common.admin_listen).await?;
        daybook_command_svc::run(config, listener, admin_listener, shutdown).await
    })
}
