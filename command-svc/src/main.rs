//! The command service: commands over gRPC and HTTP are decided, appended and published.

use std::process::ExitCode;

use daybook_command_svc::Config;
use daybook_service::{config, process};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let config: Config = config::parse_or_exit(Config::check);
    let common = config.common.clone();
    process::run(
        "daybook-command-svc",
        &common,
        |listener, admin_listener, shutdown| {
            daybook_command_svc::run(config, listener, admin_listener, shutdown)
        },
    )
}
