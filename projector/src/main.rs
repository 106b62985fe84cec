//! The projector: events of the log are folded into read models.

use std::process::ExitCode;

use daybook_projector::Config;
use daybook_service::config::parse_or_exit;
use daybook_service::{shutdown, telemetry};
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let config: Config = parse_or_exit();
    let telemetry = telemetry::init("daybook-projector", &config.common.telemetry())?;
    let shutdown = shutdown::on_signals()?;
    let listener = TcpListener::bind(config.common.listen).await?;
    let admin_listener = TcpListener::bind(config.common.admin_listen).await?;
    let ended = daybook_projector::run(config, listener, admin_listener, shutdown).await;
    telemetry.flush().await;
    ended?;
    Ok(ExitCode::SUCCESS)
}
