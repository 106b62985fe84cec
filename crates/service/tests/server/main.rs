//! The server on a real socket: what it answers, whom it cuts, how it stops.

mod access;
mod connections;
mod pages;
mod requests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::routing::{get, post};
use axum::{Json, Router};
use daybook_service::error::{ApiError, Code, FieldViolation};
use daybook_service::identity::{Authenticator, KeyAges, Scope};
use daybook_service::metrics::{Registry, ServerMetrics};
use daybook_service::request;
use daybook_service::server::{Access, Cors, Declared, Limits, Needs, Routes, serve};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use sqlx::postgres::PgPoolOptions;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic_types::StatusExt as _;

/// No test waits longer than this for something that should happen.
const PATIENCE: Duration = Duration::from_secs(5);

struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    registry: Registry,
    /// Ends what requests to `/v1/work` leave behind.
    work_ends: CancellationToken,
    ended: JoinHandle<()>,
}

type HttpClient = Client<HttpConnector, Full<Bytes>>;

impl Server {
    /// A server that lets everybody in.
    async fn start(limits: Limits) -> Self {
        Self::start_for(Access::Anybody, limits).await
    }

    /// A server that needs to know its callers. Nobody is known, and no database is there to be asked.
    async fn start_closed() -> Self {
        let pool = PgPoolOptions::new().connect_lazy("postgres://nobody@127.0.0.1:1/nothing");
        let (authenticator, lookups) = Authenticator::new(pool.expect("a valid URL"), KeyAges::default());
        tokio::spawn(lookups);
        Self::start_for(Access::Identified(authenticator), Limits::default()).await
    }

    async fn start_for(access: Access, limits: Limits) -> Self {
        Self::start_with(access, limits, Cors::default()).await
    }

    async fn start_with(access: Access, limits: Limits, cors: Cors) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (shutdown, registry) = (CancellationToken::new(), Registry::new());
        let metrics = ServerMetrics::new(&registry);
        let work_ends = CancellationToken::new();
        let orders = Needs::scope(Scope::OrdersRead);
        let http = [
            ("/problems", Needs::nothing()),
            ("/v1/stream", Needs::nothing()),
            ("/v1/breaks", Needs::nothing()),
            ("/v1/collect", Needs::scope(Scope::OrdersWrite)),
            ("/v1/orders/{id}", orders),
        ];
        let grpc = [
            ("/t.v1.T/Refuse", orders),
            ("/t.v1.T/Garbled", orders),
            ("/t.v1.T/Slow", orders),
            ("/t.v1.T/Collect", Needs::scope(Scope::OrdersWrite)),
            ("/t.v1.T/Watch", Needs::nothing().streaming()),
            ("/t.v1.T/Probe", Needs::probe()),
        ];
        let routes = Routes {
            http: Declared::new(http_routes(work_ends.clone()), http),
            grpc: Declared::new(grpc_routes(), grpc),
            access,
            cors,
        };
        let serving = serve(listener, routes, limits, metrics, shutdown.clone());
        Self {
            address,
            shutdown,
            registry,
            work_ends,
            ended: tokio::spawn(serving),
        }
    }

    async fn request(&self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        send(&Client::builder(TokioExecutor::new()).build_http(), request).await
    }

    async fn get(&self, path: &str) -> Response<Bytes> {
        let request = Request::get(self.url(path)).body(Full::default());
        self.request(request.expect("a valid request")).await
    }

    async fn post(&self, path: &str, content_type: &str, body: impl Into<Bytes>) -> Response<Bytes> {
        let request = Request::post(self.url(path)).header("content-type", content_type);
        self.request(request.body(Full::from(body.into())).expect("a valid request"))
            .await
    }

    /// Calls an RPC over HTTP/2 and gives the status that came in the headers.
    async fn call(&self, path: &str, timeout: Option<&str>) -> Status {
        let mut client = Client::builder(TokioExecutor::new());
        let client: HttpClient = client.http2_only(true).build_http();
        let mut request = Request::post(self.url(path)).header("content-type", "application/grpc");
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", timeout);
        }
        let response = send(&client, request.body(Full::default()).expect("a valid request")).await;
        assert!(response.headers().contains_key("x-request-id"));
        Status::from_header_map(response.headers()).expect("a status in the headers")
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address)
            .await
            .expect("the server listens")
    }

    async fn has_ended_within(self, limit: Duration) -> Duration {
        let started = Instant::now();
        tokio::time::timeout(limit, self.ended)
            .await
            .expect("the server ends in time")
            .expect("without a panic");
        started.elapsed()
    }
}

async fn send(client: &HttpClient, request: Request<Full<Bytes>>) -> Response<Bytes> {
    let response = client.request(request).await.expect("an answer");
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    Response::from_parts(parts, body)
}

fn http_routes(work_ends: CancellationToken) -> Router {
    Router::new()
        .route("/v1/work", get(async move || works_on(work_ends).await))
        .route("/v1/breaks", get(async || Body::from_stream(breaks())))
        .route("/v1/orders/{id}", get(async |Path(id): Path<String>| id))
        .route(
            "/v1/orders",
            post(async |Json(body): Json<Vec<u32>>| body.len().to_string()),
        )
        .route(
            "/v1/refused",
            get(async || ApiError::domain_rule("ORDER_ALREADY_SHIPPED", "it is on its way")),
        )
        .route("/v1/broken", get(async || ApiError::internal("password=hunter2")))
        .route("/v1/panic", get(panics))
        .route("/v1/slow", get(std::future::pending::<()>))
        .route("/v1/collect", post(collect))
        .route("/problems", get(async || "public"))
        .route("/v1/large", get(async || large()))
        .route("/v1/stream", get(async || Body::from_stream(endless())))
}

/// Never answers, and leaves work behind that goes on.
async fn works_on(ends: CancellationToken) {
    let hold = request::hold();
    tokio::spawn(async move {
        ends.cancelled().await;
        drop(hold);
    });
    std::future::pending().await
}

/// An answer that panics when it is to go out.
fn breaks() -> impl futures::Stream<Item = Result<Bytes, Infallible>> {
    futures::stream::poll_fn(|_| panic!("at the disco"))
}

/// Reads a whole body, as most handlers do.
async fn collect(body: Body) -> String {
    match body.collect().await {
        Ok(collected) => collected.to_bytes().len().to_string(),
        Err(error) => format!("the body broke off: {error}"),
    }
}

/// The size of the large answer.
const LARGE_BYTES: usize = 1_024 * 1_024;

/// An answer that no caller's window takes at once.
fn large() -> Vec<u8> {
    let mut answer = vec![b'x'; LARGE_BYTES];
    answer[LARGE_BYTES - 1] = b'y';
    answer
}

/// The same as a message of gRPC: its size is not known before, and trailers follow.
fn large_message() -> Body {
    let status = HeaderMap::from_iter([(
        HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let frames = [Frame::data(Bytes::from(large())), Frame::trailers(status)];
    Body::new(StreamBody::new(futures::stream::iter(
        frames.map(Ok::<_, Infallible>),
    )))
}

/// A handler with a bug.
async fn panics() -> String {
    panic!("at the disco")
}

/// A stream that says one thing and then nothing more, and never ends.
fn endless() -> impl futures::Stream<Item = Result<Bytes, Infallible>> {
    use futures::StreamExt as _;
    futures::stream::iter([Ok(Bytes::from_static(b"hello"))]).chain(futures::stream::pending())
}

fn grpc_routes() -> Router {
    Router::new()
        .route(
            "/t.v1.T/Refuse",
            post(async || Status::from(refusal()).into_http::<Body>()),
        )
        .route(
            "/t.v1.T/Garbled",
            post(async || {
                Status::internal("failed to decode Protobuf message: buffer underflow").into_http::<Body>()
            }),
        )
        .route("/t.v1.T/Slow", post(std::future::pending::<()>))
        .route("/t.v1.T/Collect", post(collect))
        .route("/t.v1.T/Probe", post(collect))
        .route("/t.v1.T/Large", post(async || large_message()))
        .route("/t.v1.T/Watch", post(async || Body::from_stream(endless())))
        .route(
            "/t.v1.Other/{*method}",
            post(async || Status::from(refusal()).into_http::<Body>()),
        )
        .fallback(async || Status::unimplemented("").into_http::<Body>())
}

fn refusal() -> ApiError {
    ApiError::validation(vec![FieldViolation::new(
        "/lines/0/quantity",
        "OUT_OF_RANGE",
        "must be at least 1",
    )])
}

/// Checks that it is a problem of this code, tied to its request, and gives its body.
fn problem(response: &Response<Bytes>, status: StatusCode, code: &str) -> Value {
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let body: Value = serde_json::from_slice(response.body()).expect("a problem is JSON");
    assert_eq!(body["code"], code);
    assert_eq!(body["status"], status.as_u16());
    assert_eq!(
        body["request_id"],
        response.headers()["x-request-id"]
            .to_str()
            .expect("visible ASCII")
    );
    body
}

/// Waits for a level, with a deadline.
async fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not happen in time");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_route_that_does_not_exist_is_a_problem() {
    let server = Server::start(Limits::default()).await;
    let response = server.get("/v2/nothing").await;
    problem(&response, StatusCode::NOT_FOUND, "RESOURCE_NOT_FOUND");
}

#[tokio::test]
async fn a_method_that_is_not_allowed_is_a_problem_that_lists_the_others() {
    let server = Server::start(Limits::default()).await;
    let response = server.post("/v1/orders/7", "application/json", "{}").await;
    problem(&response, StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED");
    assert_eq!(response.headers()["allow"], "GET,HEAD,OPTIONS");
}

#[tokio::test]
async fn every_route_says_which_methods_it_takes_without_a_key() {
    let server = Server::start_closed().await;
    let options = async |path: &str| {
        let request = Request::options(server.url(path)).body(Full::default());
        server.request(request.expect("a valid request")).await
    };
    for (path, methods) in [
        ("/v1/orders/7", "GET,HEAD,OPTIONS"),
        ("/v1/collect", "POST,OPTIONS"),
        ("/healthz", "GET,HEAD,OPTIONS"),
    ] {
        let response = options(path).await;
        assert_eq!(response.status(), StatusCode::NO_CONTENT, "{path}");
        assert_eq!(response.headers()["allow"], methods, "{path}");
        assert!(response.body().is_empty());
    }
    for path in ["/v2/nothing", "/t.v1.T/Refuse"] {
        problem(&options(path).await, StatusCode::UNAUTHORIZED, "UNAUTHENTICATED");
    }
}

#[tokio::test]
async fn the_answer_to_head_is_that_to_get_without_its_body() {
    let server = Server::start(Limits::default()).await;
    for path in ["/problems", "/healthz", "/v2/nothing", "/v1/panic"] {
        let get = server.get(path).await;
        for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
            let client = Client::builder(TokioExecutor::new())
                .http2_only(version == http::Version::HTTP_2)
                .build_http();
            let request = Request::head(server.url(path)).body(Full::default());
            let head = send(&client, request.expect("a valid request")).await;
            assert_eq!(head.status(), get.status(), "{path}");
            for name in ["content-type", "content-length"] {
                assert_eq!(head.headers().get(name), get.headers().get(name), "{path} {name}");
            }
            assert!(head.body().is_empty(), "{path} {version:?}");
        }
    }
}

#[tokio::test]
async fn bodies_that_cannot_be_read_are_problems() {
    let server = Server::start(Limits {
        body_bytes_max: 100,
        ..Limits::default()
    })
    .await;
    let response = server.post("/v1/orders", "text/plain", "[]").await;
    problem(
        &response,
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "UNSUPPORTED_MEDIA_TYPE",
    );
    let response = server.post("/v1/orders", "application/json", "[1,").await;
    problem(&response, StatusCode::BAD_REQUEST, "MALFORMED_REQUEST");
    let response = server.post("/v1/orders", "application/json", "[-1]").await;
    problem(&response, StatusCode::BAD_REQUEST, "MALFORMED_REQUEST");
    let response = server
        .post("/v1/orders", "application/json", format!("[{}]", "1,".repeat(60)))
        .await;
    problem(&response, StatusCode::PAYLOAD_TOO_LARGE, "PAYLOAD_TOO_LARGE");
}

#[tokio::test]
async fn a_domain_rule_answers_with_its_own_code() {
    let server = Server::start(Limits::default()).await;
    let response = server.get("/v1/refused").await;
    let body = problem(
        &response,
        StatusCode::UNPROCESSABLE_ENTITY,
        "ORDER_ALREADY_SHIPPED",
    );
    assert_eq!(body["type"], "/problems/order-already-shipped");
}

#[tokio::test]
async fn an_internal_error_and_a_panic_show_nothing_but_the_request_id() {
    let server = Server::start(Limits::default()).await;
    for path in ["/v1/broken", "/v1/panic"] {
        let response = server.get(path).await;
        let body = problem(&response, StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL").to_string();
        assert!(!body.contains("hunter2") && !body.contains("disco"), "{body}");
    }
}

#[tokio::test]
async fn a_good_request_id_is_kept_and_a_bad_one_replaced() {
    let server = Server::start(Limits::default()).await;
    for (sent, kept) in [
        ("order-import/17", true),
        ("a b", false),
        (&*"x".repeat(129), false),
    ] {
        let request = Request::get(server.url("/v1/orders/7")).header("x-request-id", sent);
        let response = server
            .request(request.body(Full::default()).expect("a valid request"))
            .await;
        let returned = response.headers()["x-request-id"]
            .to_str()
            .expect("visible ASCII");
        assert_eq!(returned == sent, kept, "{sent} gave {returned}");
        assert!(!returned.is_empty());
    }
}

#[tokio::test]
async fn a_handler_that_takes_too_long_is_a_problem() {
    let limits = Limits {
        request_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    let response = server.get("/v1/slow").await;
    problem(&response, StatusCode::GATEWAY_TIMEOUT, "DEADLINE_EXCEEDED");
}

#[tokio::test]
async fn a_grpc_refusal_carries_its_violations_and_the_request_id() {
    let server = Server::start(Limits::default()).await;
    let status = server.call("/t.v1.T/Refuse", None).await;
    let details = status.get_error_details();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert_eq!(
        details.error_info().expect("an ErrorInfo").reason,
        "VALIDATION_FAILED"
    );
    let violation = &details.bad_request().expect("a BadRequest").field_violations[0];
    assert_eq!(
        (&*violation.field, &*violation.reason),
        ("/lines/0/quantity", "OUT_OF_RANGE")
    );
    assert!(details.request_info().is_some());
}

#[tokio::test]
async fn what_tonic_refuses_by_itself_is_in_the_catalogue_too() {
    let server = Server::start(Limits::default()).await;
    let cases = [
        (
            "/t.v1.T/Nothing",
            tonic::Code::Unimplemented,
            Code::MethodNotAllowed,
        ),
        (
            "/t.v1.T/Garbled",
            tonic::Code::InvalidArgument,
            Code::MalformedRequest,
        ),
    ];
    for (path, grpc, code) in cases {
        let status = server.call(path, None).await;
        assert_eq!(status.code(), grpc);
        let details = status.get_error_details();
        assert_eq!(details.error_info().expect("an ErrorInfo").reason, code.name());
    }
}

#[tokio::test]
async fn the_callers_grpc_timeout_is_kept() {
    let server = Server::start(Limits::default()).await;
    let status = server.call("/t.v1.T/Slow", Some("50m")).await;
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    assert_eq!(
        status
            .get_error_details()
            .error_info()
            .expect("an ErrorInfo")
            .reason,
        "DEADLINE_EXCEEDED"
    );
}

#[tokio::test]
async fn requests_are_counted_by_route_and_never_by_what_the_caller_invents() {
    let server = Server::start(Limits::default()).await;
    server.get("/v1/orders/7").await;
    server.get("/v1/orders/8").await;
    server.get("/wp-login.php").await;
    let metrics = server.registry.encode();
    let counted = r#"daybook_requests_total{transport="http",method="GET /v1/orders/{id}",code="200"} 2"#;
    assert!(metrics.contains(counted), "{metrics}");
    assert!(metrics.contains(r#"method="unknown",code="404"} 1"#), "{metrics}");
    assert!(!metrics.contains("wp-login"), "{metrics}");
}

/// The number of time series in the registry.
fn series(registry: &Registry) -> usize {
    registry
        .encode()
        .lines()
        .filter(|line| !line.starts_with('#'))
        .count()
}

/// A method on a route that exists, a path, an RPC of a service that exists and one of none, all of them invented.
async fn send_invented(server: &Server, client: &HttpClient, number: usize) {
    let method = Method::from_bytes(format!("ODD{number}").as_bytes()).expect("a valid method");
    let requests = [
        Request::builder().method(method).uri(server.url("/v1/orders/7")),
        Request::get(server.url(&format!("/odd/{number}"))),
        Request::post(server.url(&format!("/t.v1.Other/Odd{number}")))
            .header("content-type", "application/grpc"),
        Request::post(server.url(&format!("/odd.v1.T/Odd{number}")))
            .header("content-type", "application/grpc"),
    ];
    for request in requests {
        send(client, request.body(Full::default()).expect("a valid request")).await;
    }
}

#[tokio::test]
async fn ten_thousand_invented_methods_and_paths_make_no_time_series() {
    let server = Server::start(Limits::default()).await;
    let client: HttpClient = Client::builder(TokioExecutor::new()).build_http();
    send_invented(&server, &client, 0).await;
    let before = series(&server.registry);
    for number in 1..=2_500 {
        send_invented(&server, &client, number).await;
    }
    assert_eq!(series(&server.registry), before);
}
