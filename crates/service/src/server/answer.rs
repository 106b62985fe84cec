//! From a request to its answer: what surrounds every handler, of either transport.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::MatchedPath;
use axum::response::IntoResponse as _;
use futures::FutureExt as _;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::{Body as HttpBody, Incoming};
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use tower::{Layer, Service, ServiceExt as _};
use tracing::Instrument as _;

use super::Shared;
use super::access::Connection;
use super::budget::Claim;
use super::grpc_web;
use super::request_log::Line;
use crate::error::{ApiError, Code, grpc, problem};
use crate::metrics::{Operation, Transport};
use crate::request::{self, Context, X_REQUEST_ID};
use crate::telemetry;

/// Which compressions a server takes; it goes with the refusal of one that it does not.
const GRPC_ACCEPT_ENCODING: &str = "grpc-accept-encoding";

/// Answers one request, whatever happens inside its handler.
pub(super) async fn answer(
    shared: &Shared,
    connection: &Arc<Connection>,
    mut request: Request<Incoming>,
) -> Response<Body> {
    request.extensions_mut().insert(Arc::clone(connection));
    let context = Context::from_headers(request.headers());
    let id = context.id().header_value();
    let counted = async { counted(shared, connection, measured(shared, request.map(Body::new)).await) };
    let mut response = context.scope(counted).await;
    response.headers_mut().insert(X_REQUEST_ID, id);
    response
}

/// Has an answer counted until it has been taken. One that is not the handler's own counts with its request, where that was
/// let in, and else among the refusals: of those that nobody takes, one too many has no body.
fn counted(shared: &Shared, connection: &Connection, mut response: Response<Body>) -> Response<Body> {
    if response.extensions().get::<Arc<Claim>>().is_some() || response.body().is_end_stream() {
        return response;
    }
    let claim = request::claim().or_else(|| connection.claim_refusal(&shared.refusals));
    if let Some(claim) = claim {
        let bytes = HttpBody::size_hint(response.body()).lower();
        claim.hold(usize::try_from(bytes).unwrap_or(usize::MAX));
        response.extensions_mut().insert(claim);
    } else {
        // Its head needs no room with the caller.
        *response.body_mut() = Body::empty();
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    response
}

/// Answers, counts and logs.
async fn measured(shared: &Shared, request: Request<Body>) -> Response<Body> {
    let started = Instant::now();
    let _open = shared.metrics.open();
    match transport(request.headers()) {
        Transport::Grpc => {
            let rpc = shared.grpc.method(request.uri().path());
            let line = shared.logs_requests.then(|| Line::of_rpc(rpc.clone(), started));
            let answer = |request| answer_call(shared, request, started);
            let response = shared.cors.answer(request, answer).await;
            let code = grpc_code(&response);
            let operation = rpc.map_or(Operation::Unknown, Operation::Rpc);
            shared
                .metrics
                .answered(Transport::Grpc, operation, code, started.elapsed());
            if let Some(line) = line {
                line.answered(code);
            }
            response
        }
        Transport::Http => {
            let method = request.method().clone();
            let line = shared.logs_requests.then(|| Line::of_http(&method, started));
            let answer = |request| answer_http(shared, request, started);
            let response = shared.cors.answer(request, answer).await;
            let operation = Operation::route(&method, request::route().as_ref());
            let code = response.status().as_u16();
            shared
                .metrics
                .answered(Transport::Http, operation, code, started.elapsed());
            if let Some(line) = line {
                line.answered(code);
            }
            response
        }
    }
}

/// Every resource takes OPTIONS: it is answered with what the others are.
fn with_options(method: &Method, mut response: Response<Body>) -> Response<Body> {
    if response.status() != StatusCode::METHOD_NOT_ALLOWED {
        return response;
    }
    let others = response
        .headers()
        .get(ALLOW)
        .and_then(|methods| methods.to_str().ok());
    let Some(Ok(all)) = others.map(|others| HeaderValue::try_from(format!("{others},OPTIONS"))) else {
        return response;
    };
    if method == Method::OPTIONS {
        response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
    }
    response.headers_mut().insert(ALLOW, all);
    response
}

/// The answer to HEAD is that to GET without its body, whoever made it.
fn without_body(method: &Method, mut response: Response<Body>) -> Response<Body> {
    if method == Method::HEAD && !response.body().is_end_stream() {
        if let Some(bytes) = HttpBody::size_hint(response.body()).exact() {
            response
                .headers_mut()
                .insert(CONTENT_LENGTH, HeaderValue::from(bytes));
        }
        *response.body_mut() = Body::empty();
    }
    response
}

/// gRPC and gRPC-Web name themselves in the content type.
fn transport(headers: &HeaderMap) -> Transport {
    match headers.get(CONTENT_TYPE) {
        Some(value) if value.as_bytes().starts_with(b"application/grpc") => Transport::Grpc,
        _ => Transport::Http,
    }
}

/// Answers a call of gRPC, or of gRPC-Web.
async fn answer_call(shared: &Shared, request: Request<Body>, started: Instant) -> Response<Body> {
    if grpc_web::is_call(&request) {
        let answer = |request| answer_grpc(shared, request, started);
        // On the heap, so that it makes no other call larger: each request that is under way holds as much.
        Box::pin(grpc_web::translated(request, answer)).await
    } else {
        answer_grpc(shared, request, started).await
    }
}

async fn answer_grpc(shared: &Shared, request: Request<Body>, started: Instant) -> Response<Body> {
    match guarded(shared, &shared.grpc.router, request, started).await {
        Ok(response) => match bare_status(&response) {
            Some(error) => in_place_of(&response, error),
            None => response,
        },
        Err(error) => Status::from(error).into_http(),
    }
}

/// An answer that tonic made, with its place in the catalogue. What tonic says about compression is kept.
fn in_place_of(bare: &Response<Body>, error: ApiError) -> Response<Body> {
    let mut response: Response<Body> = Status::from(error).into_http();
    if let Some(encodings) = bare.headers().get(GRPC_ACCEPT_ENCODING) {
        response
            .headers_mut()
            .insert(GRPC_ACCEPT_ENCODING, encodings.clone());
    }
    response
}

async fn answer_http(shared: &Shared, request: Request<Body>, started: Instant) -> Response<Body> {
    let method = request.method().clone();
    let response = match guarded(shared, &shared.http, request, started).await {
        Ok(response) => match problem::from_bare_response(&response) {
            Some(error) => error.into_response(),
            None => response,
        },
        Err(error) => error.into_response(),
    };
    without_body(&method, with_options(&method, response))
}

/// Runs the handler in its span, up to its deadline, and catches its panic.
async fn guarded(
    shared: &Shared,
    router: &Router,
    request: Request<Body>,
    started: Instant,
) -> Result<Response<Body>, ApiError> {
    let latest = started + shared.limits.request_timeout;
    request::set_latest(latest);
    let deadline = request::answer_by().unwrap_or(latest);
    let span = span(&request);
    let mut handled = pin!(
        AssertUnwindSafe(router.clone().oneshot(request))
            .catch_unwind()
            .instrument(span)
    );
    let in_time = async {
        let in_time = timeout_at(deadline, handled.as_mut()).await;
        match in_time {
            // Its handler sees to it that it goes on.
            Err(_elapsed) if request::is_upload() => Ok(handled.await),
            in_time => in_time,
        }
    };
    let handled = tokio::select! {
        biased;
        handled = in_time => handled,
        () = shared.last_answers.cancelled() => return Err(ApiError::shutting_down()),
    };
    match handled {
        Ok(Ok(Ok(response))) => Ok(response),
        Ok(Ok(Err(never))) => match never {},
        // The panic hook has logged it, with this request's id.
        Ok(Err(_panic)) => Err(ApiError::new(
            Code::Internal,
            "an internal error; see the request id",
        )),
        Err(_elapsed) if request::claim().is_some_and(|claim| claim.awaits_body()) => {
            Err(ApiError::request_timeout())
        }
        Err(_elapsed) => Err(ApiError::deadline_exceeded()),
    }
}

/// The request's span, a child of the caller's. Disabled, and so nearly free, unless spans are exported.
fn span(request: &Request<Body>) -> tracing::Span {
    let span = tracing::debug_span!(
        "request",
        otel.name = request.uri().path(),
        otel.kind = "server",
        http.request.method = request.method().as_str(),
        url.path = request.uri().path(),
    );
    if !span.is_disabled()
        && let Some(traceparent) = request::incoming_traceparent()
    {
        telemetry::set_parent(&span, &traceparent);
    }
    span
}

/// The error behind a status that tonic made itself, or behind an answer that is none of gRPC's: to another HTTP method than
/// its own. A success has no `grpc-status` here: it comes in the trailers.
fn bare_status(response: &Response<Body>) -> Option<ApiError> {
    if response.status() != StatusCode::OK {
        return problem::from_bare_response(response);
    }
    response.headers().get(Status::GRPC_STATUS)?;
    let status = Status::from_header_map(response.headers())?;
    grpc::from_bare_status(&status)
}

/// The status of an RPC that ended with its headers; a success has none there.
fn grpc_code(response: &Response<Body>) -> u16 {
    let status = Status::from_header_map(response.headers());
    status.map_or(tonic::Code::Ok, |status| status.code()) as u16
}

/// Makes the route that a request matches known to the metrics.
pub(super) fn note_routes(router: Router) -> Router {
    router.layer(NoteRoute)
}

#[derive(Clone)]
struct NoteRoute;

impl<S> Layer<S> for NoteRoute {
    type Service = NotesRoute<S>;

    fn layer(&self, inner: S) -> NotesRoute<S> {
        NotesRoute(inner)
    }
}

#[derive(Clone)]
struct NotesRoute<S>(S);

impl<S> Service<axum::extract::Request> for NotesRoute<S>
where
    S: Service<axum::extract::Request, Error = Infallible>,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: axum::extract::Request) -> S::Future {
        if let Some(route) = request.extensions().get::<MatchedPath>() {
            request::set_route(route.clone());
        }
        self.0.call(request)
    }
}
