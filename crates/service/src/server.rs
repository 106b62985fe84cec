//! gRPC, gRPC-Web and HTTP on one port, with a limit on everything and a stop that ends.
//!
//! The accept loop is our own, because the libraries' loops have no limits by default and their graceful stops can wait
//! for ever (axum#2673, hyper#4170). It guarantees:
//!
//! - A connection sends a whole request head within [`Limits::header_read_timeout`], or is cut; one that is idle, silent
//!   or does not take its answers is cut, too.
//! - At most [`Limits::connections_max`] connections are open. For one more the oldest is closed that has shown no valid
//!   key; where few have not, the oldest of a tenant that has more than half of what the others leave; where there is
//!   neither, it is closed at once itself.
//! - Who calls is settled from the headers, before a byte of the body is read, and all requests share one budget of bytes.
//!   What callers can make the process hold by what they send is bounded: [`Limits::caller_bytes_max`].
//! - Every answer has `X-Request-Id`, every refusal is in the catalogue of [`crate::error`], and a panic is `INTERNAL`.
//! - When the token is cancelled nothing more is accepted, and open requests may finish for [`Limits::grace_period`]. Those that
//!   have no answer shortly before its end are told so, and then the connections that are left are dropped: [`serve`] returns.
//!
//! A handler's future is dropped when its caller goes away or its time is up. Database work belongs into a task of its
//! own, which takes [`crate::request::hold`] along.

mod access;
mod answer;
mod body;
mod budget;
mod connection;
mod cors;
mod grpc_web;
mod limits;
mod request_log;
mod routes;
mod seats;
mod stall;
mod unread;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::access::Access;
use self::budget::Budget;
pub(crate) use self::budget::Claim;
pub use self::budget::UPLOAD_BYTES;
pub use self::cors::{Cors, InvalidOrigin, Origin};
use self::limits::CONNECTION_WINDOW_BYTES;
pub use self::limits::Limits;
pub use self::routes::{ANONYMOUS, Declared, Needs};
use self::seats::{Seat, Seats};
use crate::metrics::ServerMetrics;

/// How long before the end of the grace period requests without an answer get `SHUTTING_DOWN`: the answer has to go out.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// How long to wait after an accept that failed for want of something (file descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How many bytes of one HTTP/2 request may arrive before anybody reads them. A request whose key is being looked up holds
/// no more than this.
const STREAM_WINDOW_BYTES: u32 = 32 * 1_024;

/// How many bytes of one answer may wait for an HTTP/2 connection. The rest waits in the answer's body.
const STREAM_SEND_BYTES: usize = 32 * 1_024;

/// The routes to serve, and who may call them.
#[derive(Debug)]
pub struct Routes {
    /// Everything but gRPC.
    pub http: Declared,
    /// The RPCs.
    pub grpc: Declared,
    /// The callers that are let in.
    pub access: Access,
    /// From which web pages.
    pub cors: Cors,
}

/// Shared by all connections.
struct Shared {
    http: Router,
    grpc: Declared,
    cors: Cors,
    limits: Limits,
    metrics: ServerMetrics,
    /// Whether each request has its line in the log.
    logs_requests: bool,
    /// Budget of answers to requests that were not let in.
    refusals: Arc<Budget>,
    http1: hyper::server::conn::http1::Builder,
    http2: hyper::server::conn::http2::Builder<TokioExecutor>,
    /// The stop signal.
    shutdown: CancellationToken,
    /// Requests that have no answer yet get none of their own any more.
    last_answers: CancellationToken,
    /// The end of the grace period.
    abort: CancellationToken,
}

/// Serves both routers on the listener until the token is cancelled and the open requests are done, or their grace is
/// over. A request whose content type begins with `application/grpc` is for `grpc`, those of gRPC-Web included; any other one
/// is for `http`, which gets `/healthz` besides its own routes.
pub async fn serve(
    listener: TcpListener,
    mut routes: Routes,
    limits: Limits,
    metrics: ServerMetrics,
    shutdown: CancellationToken,
) {
    let health = Router::new().route("/healthz", get(async || "ok\n"));
    routes.http = routes
        .http
        .merge(Declared::new(health, [("/healthz", Needs::probe())]));
    let cors = routes.cors.clone();
    let logs_requests = matches!(routes.access, Access::Identified(_));
    let (http, grpc) = access::guard(routes, &limits, &metrics);
    let http = answer::note_routes(http.router);
    let shared = Arc::new(Shared {
        http: http.layer(DefaultBodyLimit::max(limits.body_bytes_max)),
        grpc,
        cors,
        http1: http1_builder(&limits),
        http2: http2_builder(&limits),
        limits,
        refusals: Arc::new(Budget::anonymous(metrics.request_bytes_in_flight.clone())),
        metrics,
        logs_requests,
        shutdown,
        last_answers: CancellationToken::new(),
        abort: CancellationToken::new(),
    });
    let connections = TaskTracker::new();
    tracing::info!(callers.bytes_max = shared.limits.caller_bytes_max(), "serving");
    tokio::select! {
        () = shared.shutdown.cancelled() => {}
        never = accept_all(&listener, &shared, &connections) => match never {},
    }
    drop(listener);
    drain(&shared, &connections).await;
}

/// Accepts connections until it is dropped.
async fn accept_all(
    listener: &TcpListener,
    shared: &Arc<Shared>,
    connections: &TaskTracker,
) -> std::convert::Infallible {
    let connections_max = usize::try_from(shared.limits.connections_max).unwrap_or(usize::MAX);
    let seats = Seats::new(connections_max, shared.metrics.connections.clone());
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => match seats.take().await {
                Some(seat) => drop(connections.spawn(serve_connection(stream, seat, Arc::clone(shared)))),
                None => drop(shared.metrics.connections_refused.inc()),
            },
            Err(error) if is_callers(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Errors of a connection that was gone before it was accepted are no reason to pause.
fn is_callers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

async fn serve_connection(stream: TcpStream, seat: Seat, shared: Arc<Shared>) {
    tokio::select! {
        () = seat.is_needed() => tracing::debug!("connection closed: others need the place"),
        served = connection::serve(stream, seat.holder(), &shared) => if let Err(error) = served {
            tracing::debug!(error = %error, "connection ended");
        }
    }
}

/// Lets the open requests finish, up to the end of the grace period.
async fn drain(shared: &Shared, connections: &TaskTracker) {
    connections.close();
    if timeout(
        shared.limits.grace_period.saturating_sub(LAST_ANSWERS),
        connections.wait(),
    )
    .await
    .is_ok()
    {
        return;
    }
    shared.last_answers.cancel();
    if timeout(LAST_ANSWERS, connections.wait()).await.is_err() {
        tracing::warn!(
            connections.open = connections.len(),
            "the grace period is over; connections are dropped"
        );
        shared.abort.cancel();
        connections.wait().await;
    }
}

fn http1_builder(limits: &Limits) -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // hyper's timer runs while a connection is idle, too; the time of a head is measured in `stall`.
        .header_read_timeout(limits.idle_timeout)
        .max_buf_size((limits.read_bytes_max() as usize).max(8_192))
        .pipeline_flush(true);
    builder
}

fn http2_builder(limits: &Limits) -> hyper::server::conn::http2::Builder<TokioExecutor> {
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.connection_streams_max)
        .max_header_list_size(limits.read_bytes_max())
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout)
        .max_send_buf_size(STREAM_SEND_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    builder
}
