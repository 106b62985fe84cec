//! Who is let in, and with how much: anonymous callers, and the budget of bodies.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Bytes;
use daybook_service::server::Limits;
use futures::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body as _, Frame};
use hyper::client::conn::http2;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::{LARGE_BYTES, Server, problem, until};

const KIB: usize = 1_024;

/// A body that comes in pieces.
type SlowBody = UnsyncBoxBody<Bytes, Infallible>;

fn client_of(version: http::Version) -> Client<HttpConnector, SlowBody> {
    Client::builder(TokioExecutor::new())
        .http2_only(version == http::Version::HTTP_2)
        .build_http()
}

/// A body whose pieces are sent by hand.
fn slow_body() -> (mpsc::Sender<Bytes>, SlowBody) {
    let (pieces, mut sent) = mpsc::channel(1);
    let stream = futures::stream::poll_fn(move |cx| sent.poll_recv(cx));
    let frames = stream.map(|bytes| Ok(Frame::data(bytes)));
    (pieces, UnsyncBoxBody::new(StreamBody::new(frames)))
}

/// A body that is there.
fn whole(count: usize) -> SlowBody {
    UnsyncBoxBody::new(Full::from(zeros(count)))
}

/// A body that never ends, as fast as it is taken.
fn endless_body() -> SlowBody {
    let piece = || Ok(Frame::data(Bytes::from_static(&[0; 16 * 1_024])));
    UnsyncBoxBody::new(StreamBody::new(futures::stream::repeat_with(piece)))
}

/// How many bytes the server says that requests hold.
fn held(server: &Server) -> usize {
    let metrics = server.registry.encode();
    let gauge = metrics
        .lines()
        .find_map(|line| line.strip_prefix("daybook_request_bytes_in_flight "));
    gauge.expect("the gauge is there").parse().expect("a number")
}

/// The code of a refusal of either transport.
async fn code_of(response: Response<hyper::body::Incoming>) -> String {
    if let Some(status) = Status::from_header_map(response.headers()) {
        let details = status.get_error_details();
        return details.error_info().expect("an ErrorInfo").reason.clone();
    }
    let body = response
        .into_body()
        .collect()
        .await
        .expect("a whole body")
        .to_bytes();
    let problem: Value = serde_json::from_slice(&body).expect("a problem is JSON");
    problem["code"].as_str().expect("a code").to_owned()
}

#[tokio::test]
async fn without_a_key_only_public_routes_answer() {
    let server = Server::start_closed().await;
    for path in ["/v1/orders/7", "/v1/panic", "/v1/collect", "/v2/nothing", "/"] {
        let response = server.get(path).await;
        problem(&response, StatusCode::UNAUTHORIZED, "UNAUTHENTICATED");
        assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"daybook\"");
    }
    for path in ["/t.v1.T/Refuse", "/t.v1.T/Nothing", "/nothing"] {
        let status = server.call(path, None).await;
        assert_eq!(status.code(), tonic::Code::Unauthenticated, "{path}");
        let details = status.get_error_details();
        assert_eq!(
            details.error_info().expect("an ErrorInfo").reason,
            "UNAUTHENTICATED"
        );
        assert!(details.request_info().is_some());
    }
    for path in ["/problems", "/healthz"] {
        assert_eq!(server.get(path).await.status(), StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn an_anonymous_caller_is_refused_however_large_or_endless_the_body() {
    let server = Server::start_closed().await;
    let transports = [
        (http::Version::HTTP_11, "application/json"),
        (http::Version::HTTP_2, "application/json"),
        (http::Version::HTTP_2, "application/grpc"),
    ];
    for (version, content_type) in transports {
        for _ in 0..20 {
            let request = Request::post(server.url("/v1/collect")).header("content-type", content_type);
            let request = request.body(endless_body()).expect("a valid request");
            let response = client_of(version).request(request).await;
            let code = code_of(response.expect("an answer, and no broken connection")).await;
            assert_eq!(code, "UNAUTHENTICATED", "{version:?} {content_type}");
        }
    }
}

#[tokio::test]
async fn a_connection_outlives_thousands_of_answers_that_did_not_wait_for_small_bodies() {
    let server = Server::start_closed().await;
    // Refused for want of a key, and by a handler that has no use for a body. Without a key few may be open at once.
    for (path, content_type, at_once, code) in [
        ("/t.v1.T/Collect", "application/grpc", 500, "UNAUTHENTICATED"),
        ("/healthz", "text/plain", 8, "METHOD_NOT_ALLOWED"),
    ] {
        let stream = TokioIo::new(server.connect().await);
        let handshake = http2::handshake(TokioExecutor::new(), stream).await;
        let (sender, connection) = handshake.expect("HTTP/2");
        tokio::spawn(connection);
        for _ in 0..4_000 / at_once {
            let calls = (0..at_once).map(|_| {
                let piece = || Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[0; 5])));
                let pieces = futures::stream::repeat_with(piece).take(1);
                let request = Request::post(server.url(path)).header("content-type", content_type);
                let request = request.body(UnsyncBoxBody::new(StreamBody::new(pieces)));
                let mut sender = sender.clone();
                async move {
                    sender.ready().await?;
                    sender.send_request(request.expect("a valid request")).await
                }
            });
            for answer in futures::future::join_all(calls).await {
                let answer = answer.expect("the connection is there");
                assert_eq!(code_of(answer).await, code, "{path}");
            }
        }
    }
}

#[tokio::test]
async fn a_refusal_reaches_a_caller_who_sends_the_whole_body_before_it_reads() {
    let server = Server::start_closed().await;
    for _ in 0..5 {
        let mut stream = server.connect().await;
        let head = "POST /v1/collect HTTP/1.1\r\nHost: a\r\nContent-Length: 8388608\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("the server reads");
        let sent = stream.write_all(&vec![0; 8_388_608]).await;
        sent.expect("the connection is not reset under the caller");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("it ends in order");
        assert!(answer.starts_with(b"HTTP/1.1 401"));
    }
}

/// Asks on a connection of its own, which opens no stream's window; the answers, which count as long as they are kept.
async fn ask(
    server: &Server,
    request: (Method, &str, &'static str),
    count: usize,
) -> Vec<Response<hyper::body::Incoming>> {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.http2_only(true).http2_initial_stream_window_size(0);
    let client: Client<HttpConnector, SlowBody> = builder.build_http();
    let (method, path, content_type) = request;
    let calls = (0..count).map(|_| {
        let request = Request::builder().method(method.clone()).uri(server.url(path));
        let request = request.header("content-type", content_type);
        let request = request.body(UnsyncBoxBody::new(Full::default()));
        client.request(request.expect("a valid request"))
    });
    let answers = futures::future::join_all(calls).await.into_iter();
    answers.map(|answer| answer.expect("an answer")).collect()
}

/// Opens streams that need no key.
async fn watch(server: &Server, count: usize) -> Vec<Response<hyper::body::Incoming>> {
    ask(server, (Method::POST, "/t.v1.T/Watch", "application/grpc"), count).await
}

fn is_refused(answer: &Response<hyper::body::Incoming>) -> bool {
    Status::from_header_map(answer.headers()).is_some()
}

#[tokio::test]
async fn a_connection_has_few_streams_without_a_key_and_another_one_has_its_own() {
    let server = Server::start_closed().await;
    let mut watched = watch(&server, 17).await;
    let refused = watched.iter().position(is_refused).expect("one too many");
    let refused = watched.swap_remove(refused);
    assert_eq!(code_of(refused).await, "RATE_LIMITED");
    assert!(!watched.iter().any(is_refused));
    assert!(!watch(&server, 16).await.iter().any(is_refused));
}

#[tokio::test]
async fn streams_without_a_key_are_bounded_in_all_and_leave_room_for_questions() {
    let server = Server::start_closed().await;
    let mut watched = Vec::new();
    for _ in 0..70 {
        watched.extend(watch(&server, 16).await);
    }
    let open = watched.iter().filter(|answer| !is_refused(answer)).count();
    assert!(
        (500..1_024).contains(&open),
        "{open} of {} are open",
        watched.len()
    );
    let refused = watched.into_iter().find(is_refused).expect("too many");
    assert_eq!(code_of(refused).await, "OVERLOADED");
    assert_eq!(server.get("/problems").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn probes_are_answered_while_anonymous_callers_fill_all_that_is_theirs() {
    let server = Server::start_closed().await;
    let mut open = Vec::new();
    for _ in 0..70 {
        open.extend(watch(&server, 16).await);
        open.extend(ask(&server, (Method::GET, "/v1/stream", "text/plain"), 16).await);
        open.extend(ask(&server, (Method::GET, "/healthz", "text/plain"), 16).await);
    }
    let refused = server.get("/problems").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(server.get("/healthz").await.status(), StatusCode::OK);
    let probe = ask(&server, (Method::POST, "/t.v1.T/Probe", "application/grpc"), 1).await;
    assert_eq!(probe[0].status(), StatusCode::OK);
    assert!(!probe.iter().any(is_refused));
}

#[tokio::test]
async fn on_the_private_listener_probes_are_answered_when_there_is_room_for_nothing_else() {
    let limits = Limits {
        bytes_in_flight_max: 100 * KIB,
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    let _open = ask(&server, (Method::GET, "/v1/stream", "text/plain"), 100).await;
    let response = server.get("/problems").await;
    problem(&response, StatusCode::SERVICE_UNAVAILABLE, "OVERLOADED");
    assert_eq!(server.get("/healthz").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn refusals_that_nobody_takes_are_bounded_and_others_have_no_body_then() {
    let server = Server::start_closed().await;
    let anonymous = (Method::GET, "/v1/orders/7", "text/plain");
    let mut untaken = ask(&server, anonymous.clone(), 1_000).await;
    untaken.extend(ask(&server, anonymous.clone(), 200).await);
    assert!(held(&server) <= 4 * KIB * KIB + 64 * KIB, "{}", held(&server));
    // Beyond its few, a connection finds no room any more.
    let refused = ask(&server, anonymous, 5).await;
    assert!(
        refused
            .iter()
            .all(|refused| refused.status() == StatusCode::UNAUTHORIZED)
    );
    let with_body = refused.iter().filter(|refused| !refused.body().is_end_stream());
    assert_eq!(with_body.count(), 2);
    drop((untaken, refused));
    until(|| held(&server) == 0).await;
}

#[tokio::test]
async fn a_connection_that_takes_no_refusals_leaves_the_others_theirs() {
    let server = Server::start_closed().await;
    let anonymous = (Method::GET, "/v1/orders/7", "text/plain");
    let mut untaken = ask(&server, anonymous.clone(), 1_000).await;
    untaken.extend(ask(&server, anonymous, 100).await);
    let refused = server.get("/v1/orders/7").await;
    problem(&refused, StatusCode::UNAUTHORIZED, "UNAUTHENTICATED");
    drop(untaken);
}

#[tokio::test]
async fn an_answer_that_is_not_the_handlers_own_counts_until_it_is_taken() {
    let limits = Limits {
        request_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    // What the router refuses and the server puts into words, a deadline that has passed, and a panic.
    for (method, path, status) in [
        (Method::DELETE, "/problems", StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, "/v1/slow", StatusCode::GATEWAY_TIMEOUT),
        (Method::GET, "/v1/panic", StatusCode::INTERNAL_SERVER_ERROR),
    ] {
        let untaken = ask(&server, (method, path, "text/plain"), 100).await;
        assert!(untaken.iter().all(|answer| answer.status() == status), "{path}");
        assert!(held(&server) >= 100 * 4 * KIB, "{path}: {}", held(&server));
        drop(untaken);
        until(|| held(&server) == 0).await;
    }
    // They count with their requests: among the refusals so many would have no body.
    let refused = (Method::DELETE, "/problems", "text/plain");
    let mut untaken = ask(&server, refused.clone(), 1_000).await;
    untaken.extend(ask(&server, refused, 100).await);
    assert!(!untaken.iter().any(|answer| answer.body().is_end_stream()));
}

#[tokio::test]
async fn a_grpc_refusal_ends_with_its_head() {
    let server = Server::start(Limits::default()).await;
    let refused = ask(&server, (Method::POST, "/t.v1.T/Refuse", "application/grpc"), 1).await;
    assert!(refused[0].headers().contains_key("grpc-status"));
    assert!(refused[0].body().is_end_stream());
}

/// A large answer: whether it comes, or the code of its refusal.
async fn large(server: &Server, content_type: &'static str) -> Result<(), String> {
    let client = client_of(http::Version::HTTP_2);
    let (method, path) = match content_type {
        "application/grpc" => (Method::POST, "/t.v1.T/Large"),
        _ => (Method::GET, "/v1/large"),
    };
    let request = Request::builder().method(method).uri(server.url(path));
    let request = request
        .header("content-type", content_type)
        .body(UnsyncBoxBody::new(Full::default()));
    let answer = client
        .request(request.expect("a valid request"))
        .await
        .expect("an answer");
    if answer.status() != StatusCode::OK || is_refused(&answer) {
        return Err(code_of(answer).await);
    }
    let body = answer.into_body().collect().await.expect("a whole body");
    let has_trailers = body.trailers().is_some();
    assert_eq!(has_trailers, content_type == "application/grpc");
    assert_eq!(body.to_bytes().len(), LARGE_BYTES);
    Ok(())
}

#[tokio::test]
async fn an_answer_is_refused_that_is_larger_than_a_tenants_share_or_finds_no_room_in_it() {
    let share_of = |bytes: usize| Limits {
        tenant_bytes_in_flight_max: bytes,
        ..Limits::default()
    };
    for content_type in ["text/plain", "application/grpc"] {
        let server = Server::start(share_of(LARGE_BYTES)).await;
        let refused = large(&server, content_type).await;
        assert_eq!(refused, Err("PAYLOAD_TOO_LARGE".to_owned()), "{content_type}");

        let server = Server::start(share_of(LARGE_BYTES * 3 / 2)).await;
        let untaken = ask(&server, (Method::GET, "/v1/large", "text/plain"), 1).await;
        assert_eq!(untaken[0].status(), StatusCode::OK);
        let refused = large(&server, content_type).await;
        assert_eq!(refused, Err("RATE_LIMITED".to_owned()), "{content_type}");
        drop(untaken);
        until(|| held(&server) == 0).await;
        assert_eq!(large(&server, content_type).await, Ok(()), "{content_type}");
    }
}

/// The handlers that read a whole body, of either transport.
const COLLECTORS: [(&str, &str); 2] = [
    ("/v1/collect", "text/plain"),
    ("/t.v1.T/Collect", "application/grpc"),
];

/// Sends a body whose length may be declared, in a task of its own.
fn collect(
    server: &Server,
    (path, content_type): (&str, &str),
    body: SlowBody,
    length: Option<usize>,
) -> JoinHandle<Response<hyper::body::Incoming>> {
    let mut request = Request::post(server.url(path)).header("content-type", content_type);
    if let Some(length) = length {
        request = request.header("content-length", length);
    }
    let request = request.body(body).expect("a valid request");
    let answer = client_of(http::Version::HTTP_2).request(request);
    tokio::spawn(async move { answer.await.expect("an answer") })
}

fn zeros(count: usize) -> Bytes {
    Bytes::from(vec![0; count])
}

#[tokio::test]
async fn bodies_over_the_budget_are_refused_at_once_and_fit_again_when_others_are_done() {
    let limits = Limits {
        bytes_in_flight_max: 110 * KIB,
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    for transport in COLLECTORS {
        let send = |body: SlowBody, length: Option<usize>| collect(&server, transport, body, length);
        // The first is declared and not sent yet, the second is sent and was not declared.
        let (first, body) = slow_body();
        let declared = send(body, Some(60 * KIB));
        until(|| held(&server) >= 60 * KIB).await;
        let (second, body) = slow_body();
        let undeclared = send(body, None);
        second.send(zeros(30 * KIB)).await.expect("it is taken");
        until(|| held(&server) >= 90 * KIB).await;

        for length in [Some(20 * KIB), None] {
            let refused = send(whole(20 * KIB), length).await.expect("no panic");
            let (hint, pause) = match transport.1 {
                "text/plain" => ("retry-after", "1"),
                _ => ("grpc-retry-pushback-ms", "1000"),
            };
            assert_eq!(refused.headers()[hint], pause);
            assert_eq!(code_of(refused).await, "OVERLOADED", "{length:?}");
        }
        second.send(zeros(20 * KIB)).await.expect("it is taken");
        assert_eq!(code_of(undeclared.await.expect("no panic")).await, "OVERLOADED");

        first.send(zeros(60 * KIB)).await.expect("it is taken");
        drop(first);
        drop(declared.await.expect("no panic"));
        until(|| held(&server) == 0).await;
        let answer = send(whole(60 * KIB), Some(60 * KIB)).await.expect("no panic");
        let collected = answer.into_body().collect().await.expect("a whole body");
        assert_eq!(collected.to_bytes(), "61440");
    }
}

#[tokio::test]
async fn a_grpc_message_counts_as_long_as_it_says_it_is() {
    let limits = Limits {
        bytes_in_flight_max: 100 * KIB,
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    // Five bytes arrive; tonic makes room for what they say.
    let call = async |length: u32| {
        let (pieces, body) = slow_body();
        let answer = collect(&server, COLLECTORS[1], body, None);
        let prefix = [&[0], &length.to_be_bytes()[..]].concat();
        pieces.send(Bytes::from(prefix)).await.expect("it is taken");
        (pieces, answer)
    };
    let _first = call(40_000).await;
    until(|| held(&server) > 40_000).await;
    let _second = call(40_000).await;
    until(|| held(&server) > 80_000).await;
    for (length, code) in [(40_000, "OVERLOADED"), (4_000_000, "PAYLOAD_TOO_LARGE")] {
        let (_body, answer) = call(length).await;
        assert_eq!(code_of(answer.await.expect("no panic")).await, code);
    }
}

#[tokio::test]
async fn requests_without_a_body_are_bounded_too() {
    let limits = Limits {
        bytes_in_flight_max: 100 * KIB,
        tenant_bytes_in_flight_max: 100 * KIB,
        request_timeout: Duration::from_millis(500),
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    let client = client_of(http::Version::HTTP_2);
    let requests = (0..100).map(|_| {
        let request = Request::get(server.url("/v1/slow")).body(UnsyncBoxBody::new(Full::default()));
        client.request(request.expect("a valid request"))
    });
    let mut codes = Vec::new();
    for answer in futures::future::join_all(requests).await {
        codes.push(code_of(answer.expect("an answer")).await);
    }
    let open = codes.iter().filter(|code| *code == "DEADLINE_EXCEEDED").count();
    let refused = codes.iter().filter(|code| *code == "OVERLOADED").count();
    assert!((10..=25).contains(&open) && open + refused == 100, "{codes:?}");
}

#[tokio::test]
async fn a_request_whose_caller_goes_away_counts_until_its_work_has_ended() {
    let limits = Limits {
        bytes_in_flight_max: 100 * KIB,
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    let client = client_of(http::Version::HTTP_2);
    let request = |path: &str| {
        let request = Request::get(server.url(path)).body(UnsyncBoxBody::new(Full::default()));
        client.request(request.expect("a valid request"))
    };
    request("/v1/orders/7").await.expect("an answer");
    let mut cancelled = 0;
    let refused = loop {
        let before = held(&server);
        let call = tokio::spawn(request("/v1/work"));
        until(|| held(&server) > before || call.is_finished()).await;
        if call.is_finished() {
            break call.await.expect("no panic").expect("an answer");
        }
        call.abort();
        cancelled += 1;
        assert!(cancelled < 100, "work piles up");
    };
    assert_eq!(code_of(refused).await, "OVERLOADED");
    server.work_ends.cancel();
    until(|| held(&server) == 0).await;
    let answer = request("/v1/orders/7").await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn one_tenant_cannot_take_the_whole_budget() {
    let limits = Limits {
        bytes_in_flight_max: 100 * KIB,
        tenant_bytes_in_flight_max: 50 * KIB,
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    let response = server.post("/v1/collect", "text/plain", vec![0; 50 * KIB]).await;
    let refused = problem(&response, StatusCode::TOO_MANY_REQUESTS, "RATE_LIMITED");
    assert!(refused["quota"].is_string() && response.headers()["retry-after"] == "1");
    let response = server.post("/v1/collect", "text/plain", vec![0; 40 * KIB]).await;
    assert_eq!(response.status(), StatusCode::OK);
}
