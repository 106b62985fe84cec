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
//! - When the token is cancelled nothing more is accepted, and open requests may finish for [`GRACE_PERIOD`]. Those that have
//!   no answer shortly before its end are told so, and then the connections that are left are dropped: [`serve`] returns.
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
use self::access::{PROBES_PER_CONNECTION, REFUSALS_PER_CONNECTION};
pub(crate) use self::budget::Claim;
use self::budget::{Budget, REQUEST_BYTES, STRANGERS_BYTES_MAX};
pub use self::cors::{Cors, InvalidOrigin, Origin};
use self::routes::PROBE_BODY_BYTES_MAX;
pub use self::routes::{Declared, Needs};
use self::seats::{Seat, Seats};
use crate::identity::LOOKUPS_WAITING_MAX;
use crate::metrics::ServerMetrics;

/// How long open requests may go on after the stop signal. It leaves time to flush within the ten seconds after which
/// the process is gone in any case (`EXIT_DEADLINE`).
pub const GRACE_PERIOD: Duration = Duration::from_secs(8);

/// How long before the end of the grace period requests without an answer get `SHUTTING_DOWN`: the answer has to go out.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// How long to wait after an accept that failed for want of something (file descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How many bytes of one HTTP/2 request may arrive before anybody reads them. A request whose key is being looked up holds
/// no more than this.
const STREAM_WINDOW_BYTES: u32 = 32 * 1_024;

/// The same for all requests of one HTTP/2 connection. h2 lets half as many bytes of overhead wait in small frames, 256 for
/// each, and closes the connection after that: this is enough for one in each of [`Limits::streams_max`] requests.
const CONNECTION_WINDOW_BYTES: u32 = 512 * 1_024;

/// How many bytes of one answer may wait for an HTTP/2 connection. The rest waits in the answer's body.
const STREAM_SEND_BYTES: usize = 32 * 1_024;

/// What a connection holds beside its windows and heads: buffers to read and to write, tables of headers.
const CONNECTION_BUFFER_BYTES: u32 = 64 * 1_024;

/// What a caller may use up.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How many connections may be open. When there are as many, the oldest of those that have shown no valid key is closed
    /// for the next one, or, where these are few, the oldest of the tenant that has the most.
    pub connections_max: u32,
    /// How long a request's head may take from its first byte; also the handshake of a new connection.
    pub header_read_timeout: Duration,
    /// How long an HTTP/1 connection may be idle between requests. Longer than a load balancer's own limit (60 s is
    /// usual), so that it is never we who close a connection that the balancer is just about to use.
    pub idle_timeout: Duration,
    /// How long a connection may leave what we send unread: all of it, or the next 16 KiB of one answer. Then it is asked to
    /// go.
    pub write_stall_timeout: Duration,
    /// The size of a request's head, in bytes: request line and headers, each with 32 bytes of its own. One that is larger is
    /// `HEADERS_TOO_LARGE`, up to twice this size; whoever sends more is cut off by the library.
    pub header_bytes_max: u32,
    /// The size of path and query string, in bytes; more is `URI_TOO_LONG`.
    pub uri_bytes_max: u32,
    /// The size of an HTTP request's body, in bytes; a route may have its own `DefaultBodyLimit`. gRPC services have
    /// `max_decoding_message_size`.
    pub body_bytes_max: usize,
    /// How many bytes all requests may hold until their answers are taken, those of each tenant counted up to its share; more
    /// is `OVERLOADED`. Each costs a few KiB with an empty body, so this is a limit of their number, too.
    pub bytes_in_flight_max: usize,
    /// How many of these bytes may be of one tenant; more is `RATE_LIMITED`. Where others hold some, a tenant that holds
    /// something itself finds room for more in half of what they leave only: for a second request, for a body that was not
    /// declared, for an answer that is not small; more is `OVERLOADED`.
    pub tenant_bytes_in_flight_max: usize,
    /// How many requests one HTTP/2 connection may have open.
    pub streams_max: u32,
    /// How often an HTTP/2 connection is asked whether it is still there.
    pub keepalive_interval: Duration,
    /// How long it may take to answer that.
    pub keepalive_timeout: Duration,
    /// How long a request may take until its answer begins, unless the caller's own deadline is shorter.
    pub request_timeout: Duration,
    /// After which age a connection is asked to go, so that callers spread over new replicas.
    pub connection_age_max: Duration,
    /// How long requests may go on after that. Long streams resume by position.
    pub connection_age_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1_280,
            header_read_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_stall_timeout: Duration::from_secs(30),
            header_bytes_max: 16 * 1_024,
            uri_bytes_max: 8 * 1_024,
            body_bytes_max: 1_024 * 1_024,
            bytes_in_flight_max: 64 * 1_024 * 1_024,
            tenant_bytes_in_flight_max: 32 * 1_024 * 1_024,
            streams_max: 1_024,
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            connection_age_max: Duration::from_secs(30 * 60),
            connection_age_grace: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// The most that callers can make the process hold by what they send, in bytes, whoever they are:
    ///
    /// - each connection what may arrive before anybody reads it, a head that is on its way, and its buffers;
    /// - the heads of requests that wait for their key to be looked up, in two queues and under way from each (their bodies
    ///   are in the windows above);
    /// - the budget of callers who are known, the two of callers who are not, and that of refusals;
    /// - a few probes of each connection, and a few refusals.
    ///
    /// Compressed requests are not taken, so nothing grows after it has arrived. Answers count in the same budgets from the
    /// moment when they are made. One that is complete is refused where there is no room for it; a small one, and a part of a
    /// stream, goes out all the same, and keeps later requests of its tenant out.
    #[must_use]
    pub fn caller_bytes_max(&self) -> u64 {
        let connection = CONNECTION_WINDOW_BYTES + self.read_bytes_max() + CONNECTION_BUFFER_BYTES;
        let connections = u64::from(self.connections_max) * u64::from(connection);
        let lookups = 4 * LOOKUPS_WAITING_MAX as u64 * u64::from(self.header_bytes_max);
        let budgets = self.bytes_in_flight_max + 3 * STRANGERS_BYTES_MAX;
        let probe = REQUEST_BYTES + PROBE_BODY_BYTES_MAX + self.header_bytes_max as usize;
        let of_each = PROBES_PER_CONNECTION * probe + REFUSALS_PER_CONNECTION * REQUEST_BYTES;
        connections + lookups + budgets as u64 + u64::from(self.connections_max) * of_each as u64
    }

    /// How much of a head is read, in bytes: more than is allowed, so that we say ourselves that it is too much.
    fn read_bytes_max(&self) -> u32 {
        self.header_bytes_max / 2 * 3
    }
}

/// What is served, and to whom.
#[derive(Debug)]
pub struct Routes {
    /// Everything but gRPC.
    pub http: Declared,
    /// The RPCs.
    pub grpc: Declared,
    /// Who may call.
    pub access: Access,
    /// From which web pages.
    pub cors: Cors,
}

/// What all connections share.
struct Shared {
    http: Router,
    grpc: Declared,
    cors: Cors,
    limits: Limits,
    metrics: ServerMetrics,
    /// Of answers to requests that were not let in.
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
    let (http, grpc) = access::guard(routes, &limits, &metrics);
    let http = answer::note_routes(http.router);
    let shared = Arc::new(Shared {
        http: http.layer(DefaultBodyLimit::max(limits.body_bytes_max)),
        grpc,
        cors,
        http1: http1_builder(&limits),
        http2: http2_builder(&limits),
        limits,
        refusals: Arc::new(Budget::of_strangers(metrics.request_bytes_in_flight.clone())),
        metrics,
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
    if timeout(GRACE_PERIOD - LAST_ANSWERS, connections.wait())
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
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(limits.read_bytes_max())
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout)
        .max_send_buf_size(STREAM_SEND_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_callers_can_make_the_process_hold_fits_into_a_gibibyte() {
        let bytes_max = Limits::default().caller_bytes_max();
        assert!(bytes_max <= 1 << 30, "{bytes_max}");
    }
}
