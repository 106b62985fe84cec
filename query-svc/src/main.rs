//! The query service: answers reads over REST and gRPC.

use std::process::ExitCode;

use daybook_query_svc::{Config, SERVICE_NAME};
use daybook_service::{config, process};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let config: Config = config::parse_or_exit(Config::check);
    let common = config.common.clone();
    process::run(SERVICE_NAME, &common, |listener, admin_listener, shutdown| {
        daybook_query_svc::run(config, listener, admin_listener, shutdown)
    })
}
