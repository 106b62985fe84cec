//! The projector: events of the log are folded into read models.

use std::process::ExitCode;

use daybook_projector::Config;
use daybook_service::{config, process};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let config: Config = config::parse_or_exit(|_| Ok(()));
    let common = config.common.clone();
    process::run(
        "daybook-projector",
        &common,
        |listener, admin_listener, shutdown| {
            daybook_projector::run(config, listener, admin_listener, shutdown)
        },
    )
}
