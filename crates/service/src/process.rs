//! The `main` of every binary: runtime, telemetry, signals, listeners, work, exit code.

use std::future::Future;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::{CommonConfig, EXIT_USAGE};
use crate::shutdown::{self, TaskEnded};
use crate::telemetry::{self, TelemetryError};

/// How long blocking calls that are still running may hold up the end.
const RUNTIME_STOP_TIMEOUT: Duration = Duration::from_millis(200);

/// Runs a service until it has stopped, and gives its exit code: 0 after a stop signal, 64 for a configuration that
/// cannot be used, 1 for everything else. The service gets the listeners for its callers and for operators.
///
/// # Panics
/// When the operating system has no threads for the runtime.
pub fn run<F, S>(service_name: &'static str, config: &CommonConfig, service: S) -> ExitCode
where
    S: FnOnce(TcpListener, TcpListener, CancellationToken) -> F,
    F: Future<Output = anyhow::Result<()>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a process can start its threads");
    let code = runtime.block_on(async {
        let telemetry = match telemetry::init(service_name, &config.telemetry()) {
            Ok(telemetry) => telemetry,
            Err(error) => return refuse(&error),
        };
        let code = match listen_and_run(config, service).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        };
        telemetry.flush().await;
        code
    });
    runtime.shutdown_timeout(RUNTIME_STOP_TIMEOUT);
    code
}

async fn listen_and_run<F, S>(config: &CommonConfig, service: S) -> anyhow::Result<()>
where
    S: FnOnce(TcpListener, TcpListener, CancellationToken) -> F,
    F: Future<Output = anyhow::Result<()>>,
{
    let shutdown = shutdown::on_signals(shutdown::exit_deadline(config))?;
    let listener = listen(config.listen).await?;
    let admin_listener = listen(config.admin_listen).await?;
    service(listener, admin_listener, shutdown).await
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listening = TcpListener::bind(address).await;
    listening.with_context(|| format!("cannot listen on {address}"))
}

/// Without telemetry there is only standard error.
fn refuse(error: &TelemetryError) -> ExitCode {
    eprintln!("error: {error}");
    u8::try_from(EXIT_USAGE).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// The supervisor has logged the end of a task where it happened.
fn fail(error: &anyhow::Error) -> ExitCode {
    if !error.is::<TaskEnded>() {
        tracing::error!(error.chain = %format_args!("{error:#}"), "the service cannot go on");
    }
    ExitCode::FAILURE
}
