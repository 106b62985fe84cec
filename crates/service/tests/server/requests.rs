//! Requests whose head is too large, whose body does not come, or that a stop overtakes; over each transport.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Bytes;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use daybook_service::server::Limits;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::{Server, until};

const KIB: usize = 1_024;

/// Over HTTP/1, over HTTP/2, and as gRPC.
const TRANSPORTS: [(Version, &str); 3] = [
    (Version::HTTP_11, "application/json"),
    (Version::HTTP_2, "application/json"),
    (Version::HTTP_2, "application/grpc"),
];

async fn send<B>(version: Version, request: Request<B>) -> Response<Incoming>
where
    B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let client = Client::builder(TokioExecutor::new())
        .http2_only(version == Version::HTTP_2)
        .build_http();
    client.request(request).await.expect("an answer")
}

/// A refusal's code, status and limit, over either transport.
async fn refusal(response: Response<Incoming>) -> (String, u16, String) {
    if let Some(status) = Status::from_header_map(response.headers()) {
        let info = status.get_details_error_info().expect("an ErrorInfo");
        let limit = info.metadata.get("limit_bytes").cloned();
        return (info.reason, status.code() as u16, limit.unwrap_or_default());
    }
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let body = response.into_body().collect().await.expect("a whole body");
    let problem: Value = serde_json::from_slice(&body.to_bytes()).expect("a problem is JSON");
    let limit = problem["limit_bytes"].as_u64().map(|limit| limit.to_string());
    let code = problem["code"].as_str().expect("a code").to_owned();
    (code, status, limit.unwrap_or_default())
}

/// Asserts that a request is refused with this status over HTTP, and over gRPC.
async fn is_refused(
    sent: impl AsyncFn(Version, &str) -> Response<Incoming>,
    code: &str,
    http: u16,
    grpc: u16,
) {
    for (version, content_type) in TRANSPORTS {
        let status = if content_type == "application/grpc" {
            grpc
        } else {
            http
        };
        let (said, with, _) = refusal(sent(version, content_type).await).await;
        assert_eq!(
            (said.as_str(), with),
            (code, status),
            "{version:?} {content_type}"
        );
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_with_the_limit() {
    let server = Server::start(Limits::default()).await;
    let send_large = async |version, content_type: &str, query: usize, header: usize| {
        let path = format!("/v1/collect?{}", "q".repeat(query));
        let request = Request::post(server.url(&path))
            .header("content-type", content_type)
            .header("x-large", "x".repeat(header))
            .body(Empty::<Bytes>::new())
            .expect("a valid request");
        send(version, request).await
    };
    let resource_exhausted = tonic::Code::ResourceExhausted as u16;
    for (version, content_type) in TRANSPORTS {
        let is_grpc = content_type == "application/grpc";
        let status = |http| if is_grpc { resource_exhausted } else { http };
        for (query, header, code, http, limit) in [
            (9 * KIB, 0, "URI_TOO_LONG", 414, "8192"),
            (0, 17 * KIB, "HEADERS_TOO_LARGE", 431, "16384"),
            (0, 23 * KIB, "HEADERS_TOO_LARGE", 431, "16384"),
        ] {
            let response = send_large(version, content_type, query, header).await;
            let refused = refusal(response).await;
            let wanted = (code.to_owned(), status(http), limit.to_owned());
            assert_eq!(refused, wanted, "{version:?} {content_type}");
        }
        let response = send_large(version, content_type, 7 * KIB, 8 * KIB).await;
        assert_eq!(response.status(), StatusCode::OK, "it is as large as it may be");
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_in_time_is_told_from_a_handler_that_takes_too_long() {
    let server = Server::start(Limits {
        request_timeout: Duration::from_millis(50),
        ..Limits::default()
    })
    .await;
    let without_end = async |version, content_type: &str| {
        let path = match content_type {
            "application/grpc" => "/t.v1.T/Collect",
            _ => "/v1/collect",
        };
        let begun = futures::stream::iter([Ok(Frame::data(Bytes::from_static(b"x")))]);
        let body = StreamBody::new(futures::StreamExt::chain(begun, futures::stream::pending()));
        let request = Request::post(server.url(path)).header("content-type", content_type);
        send(version, request.body(body).expect("a valid request")).await
    };
    let deadline_exceeded = tonic::Code::DeadlineExceeded as u16;
    is_refused(without_end, "REQUEST_TIMEOUT", 408, deadline_exceeded).await;
    let slow = async |version, content_type: &str| {
        let (method, path) = match content_type {
            "application/grpc" => (Method::POST, "/t.v1.T/Slow"),
            _ => (Method::GET, "/v1/slow"),
        };
        let request = Request::builder().method(method).uri(server.url(path));
        let request = request.header("content-type", content_type);
        send(
            version,
            request.body(Empty::<Bytes>::new()).expect("a valid request"),
        )
        .await
    };
    is_refused(slow, "DEADLINE_EXCEEDED", 504, deadline_exceeded).await;
}

#[tokio::test]
async fn a_request_that_a_stop_leaves_no_time_is_told_so() {
    let server = Server::start(Limits::default()).await;
    let http = send(
        Version::HTTP_11,
        Request::get(server.url("/v1/slow"))
            .body(Empty::<Bytes>::new())
            .expect("a valid request"),
    );
    let grpc = server.call("/t.v1.T/Slow", None);
    let stop = async {
        until(|| server.registry.encode().contains("daybook_requests_in_flight 2")).await;
        server.shutdown.cancel();
    };
    let started = std::time::Instant::now();
    let (http, grpc, ()) = tokio::join!(http, grpc, stop);
    assert!(
        started.elapsed() < Limits::default().grace_period,
        "the connections are there still"
    );
    assert_eq!(http.headers()["retry-after"], "1");
    let (code, status, _) = refusal(http).await;
    assert_eq!((code.as_str(), status), ("SHUTTING_DOWN", 503));
    let info = grpc.get_details_error_info().expect("an ErrorInfo");
    assert_eq!(
        (grpc.code(), &*info.reason),
        (tonic::Code::Unavailable, "SHUTTING_DOWN")
    );
}

#[tokio::test]
async fn a_grpc_request_by_another_method_is_in_the_catalogue() {
    let server = Server::start(Limits::default()).await;
    let request = Request::get(server.url("/t.v1.T/Collect")).header("content-type", "application/grpc");
    let request = request.body(Empty::<Bytes>::new()).expect("a valid request");
    let (code, status, _) = refusal(send(Version::HTTP_2, request).await).await;
    let unimplemented = tonic::Code::Unimplemented as u16;
    assert_eq!((code.as_str(), status), ("METHOD_NOT_ALLOWED", unimplemented));
}

#[tokio::test]
async fn a_grpc_web_call_over_http_1_has_its_trailers_in_the_body() {
    let server = Server::start(Limits::default()).await;
    let response = server
        .post("/t.v1.T/Large", "application/grpc-web+proto", "")
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/grpc-web+proto");
    let trailers = b"grpc-status:0\r\n";
    let frame = [&[0x80, 0, 0, 0, trailers.len() as u8][..], trailers].concat();
    let body = response.body();
    assert!(
        body.ends_with(&frame),
        "{:?}",
        &body[body.len().saturating_sub(64)..]
    );
    assert_eq!(body.len(), crate::LARGE_BYTES + frame.len());

    let in_base64 = server
        .post("/t.v1.T/Collect", "application/grpc-web-text", "AAAAAAA=")
        .await;
    assert_eq!(
        in_base64.headers()["content-type"],
        "application/grpc-web-text+proto",
        "who does not say how to be answered is answered as it called"
    );
    assert_eq!(
        in_base64.body(),
        "NQ==",
        "five bytes came out of eight: {in_base64:?}"
    );
}

#[tokio::test]
async fn a_grpc_web_call_that_is_refused_says_so_as_grpc_does() {
    let server = Server::start(Limits::default()).await;
    let response = server
        .post("/t.v1.T/Refuse", "application/grpc-web+proto", "")
        .await;
    assert_eq!(response.headers()["content-type"], "application/grpc-web+proto");
    let status = Status::from_header_map(response.headers()).expect("a status in the headers");
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!(info.reason, "VALIDATION_FAILED");
}

#[tokio::test]
async fn a_grpc_web_call_in_base64_may_be_as_large_as_any_other() {
    let server = Server::start(Limits::default()).await;
    // The route takes as much, and no more.
    let largest = vec![0; 64 * 1_024];
    let text = |body: &[u8]| BASE64_STANDARD.encode(body);
    let of_text = "application/grpc-web-text";
    let collected = async |content_type, body: Bytes| {
        let response = server.post("/t.v1.T/Collect", content_type, body).await;
        let status = Status::from_header_map(response.headers());
        match status.and_then(|status| status.get_details_error_info()) {
            Some(info) => info.reason,
            None => String::from_utf8_lossy(response.body()).into_owned(),
        }
    };
    let in_text = collected(of_text, text(&largest).into()).await;
    assert_eq!(in_text, text(b"65536"));
    let plain = collected("application/grpc-web", largest.clone().into()).await;
    assert!(plain.starts_with("65536"), "{plain}");
    let larger = [&largest[..], &[0; 4]].concat();
    for (content_type, body) in [
        (of_text, text(&larger).into()),
        ("application/grpc-web", larger.into()),
    ] {
        assert_eq!(
            collected(content_type, body).await,
            "PAYLOAD_TOO_LARGE",
            "{content_type}"
        );
    }
}
