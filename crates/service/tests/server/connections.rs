//! The life of a connection: whom the server cuts, and how it stops.

use std::time::Duration;

use axum::body::Bytes;
use daybook_service::server::Limits;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{LARGE_BYTES, PATIENCE, Server, until};

/// Waits until the server has closed the connection, and gives what it sent before.
async fn read_to_end(mut stream: TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    let reading = stream.read_to_end(&mut received);
    // A reset is an end as well.
    let _ = tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("the server closes the connection");
    received
}

#[tokio::test]
async fn callers_that_do_not_finish_a_head_are_cut() {
    let limits = Limits {
        header_read_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    for head in ["", "P", "PRI * HT", "GET / HTTP/1.1\r\nHost: a\r\n"] {
        let mut stream = server.connect().await;
        stream.write_all(head.as_bytes()).await.expect("the server reads");
        read_to_end(stream).await;
    }
}

#[tokio::test]
async fn a_second_head_on_a_connection_has_the_same_limit_but_idling_is_fine() {
    let limits = Limits {
        header_read_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    let mut stream = server.connect().await;
    // Neither letter is in a status line or a header.
    for id in [b'Z', b'Q'] {
        let head = format!("GET /v1/orders/{} HTTP/1.1\r\nHost: a\r\n\r\n", char::from(id));
        stream.write_all(head.as_bytes()).await.expect("the server reads");
        let mut last = 0;
        while last != id {
            last = stream.read_u8().await.expect("an answer that ends with the id");
        }
        // Idle for longer than a head may take: the point of the test is that this time passes.
        let idle = stream.read_u8();
        tokio::time::timeout(Duration::from_millis(250), idle)
            .await
            .expect_err("the connection stays open");
    }
    stream
        .write_all(b"GET /v1/orders/9 HTTP/1.1\r\n")
        .await
        .expect("the server reads");
    assert_eq!(read_to_end(stream).await, b"");
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_the_end() {
    let limits = Limits {
        idle_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    let mut stream = server.connect().await;
    stream
        .write_all(b"GET /v1/orders/7 HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("the server reads");
    let received = read_to_end(stream).await;
    assert!(received.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn one_connection_too_many_is_closed_at_once() {
    let server = Server::start(Limits {
        connections_max: 1,
        ..Limits::default()
    })
    .await;
    let mut first = server.connect().await;
    first
        .write_all(b"GET /v1/orders/7 HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("the server reads");
    first.readable().await.expect("an answer");
    let second = server.connect().await;
    assert_eq!(read_to_end(second).await, b"");
}

#[tokio::test]
async fn for_a_connection_too_many_the_oldest_is_closed_that_has_shown_no_key() {
    let server = Server::start(Limits {
        connections_max: 2,
        ..Limits::default()
    })
    .await;
    let ask = async |stream: &mut TcpStream| {
        let request = b"GET /v1/orders/Z HTTP/1.1\r\nHost: a\r\n\r\n";
        stream.write_all(request).await.expect("the server reads");
        // The letter is in no status line and no header.
        while stream.read_u8().await.expect("an answer that ends with the id") != b'Z' {}
    };
    let open = |count: u8| {
        server
            .registry
            .encode()
            .contains(&format!("daybook_connections {count}\n"))
    };
    let mut known = server.connect().await;
    ask(&mut known).await;
    for opening in [
        &b""[..],
        b"GET / HT",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    ] {
        let mut silent = server.connect().await;
        silent.write_all(opening).await.expect("the server reads");
        until(|| open(2)).await;
        let mut next = server.connect().await;
        ask(&mut next).await;
        read_to_end(silent).await;
        assert_eq!(
            read_to_end(server.connect().await).await,
            b"",
            "both have shown one"
        );
        ask(&mut known).await;
        drop(next);
        until(|| open(1)).await;
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_not_counted_among_the_open_ones() {
    let server = Server::start(Limits::default()).await;
    let mut stream = server.connect().await;
    let request = b"GET /v1/breaks HTTP/1.1\r\nHost: a\r\n\r\n";
    stream.write_all(request).await.expect("the server reads");
    read_to_end(stream).await;
    until(|| server.registry.encode().contains("daybook_connections 0\n")).await;
}

#[tokio::test]
async fn a_stop_lets_an_open_request_finish() {
    let limits = Limits {
        request_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    let mut stream = server.connect().await;
    stream
        .write_all(b"GET /v1/slow HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("the server reads");
    until(|| server.registry.encode().contains("daybook_requests_in_flight 1")).await;
    server.shutdown.cancel();
    assert!(
        read_to_end(stream).await.starts_with(b"HTTP/1.1 504"),
        "the answer came after the stop signal"
    );
    assert!(server.has_ended_within(PATIENCE).await < Limits::default().grace_period);
}

#[tokio::test]
async fn a_stop_ends_though_a_stream_is_open() {
    let server = Server::start(Limits::default()).await;
    let mut stream = server.connect().await;
    stream
        .write_all(b"GET /v1/stream HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("the server reads");
    stream.readable().await.expect("the stream begins");
    let idle = server.connect().await;
    server.shutdown.cancel();
    read_to_end(idle).await;
    let took = server
        .has_ended_within(Limits::default().grace_period + Duration::from_secs(1))
        .await;
    assert!(
        took >= Limits::default().grace_period - Duration::from_millis(100),
        "it had its grace: {took:?}"
    );
}

#[tokio::test]
async fn a_caller_who_does_not_take_its_answer_is_cut_though_the_connection_is_alive() {
    let limits = Limits {
        write_stall_timeout: Duration::from_millis(200),
        connection_age_grace: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    for window_bytes in [0, 1, 65_535] {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(window_bytes);
        let stream = TokioIo::new(server.connect().await);
        let (mut sender, connection) = builder.handshake(stream).await.expect("HTTP/2");
        let connection = tokio::spawn(connection);
        let request = Request::get(server.url("/v1/large")).body(Full::<Bytes>::default());
        let answer = sender.send_request(request.expect("a valid request")).await;
        let unread = answer.expect("the head comes");
        // The connection is read and answers pings; only the stream's window stays as it is.
        let ended = tokio::time::timeout(PATIENCE, connection).await;
        let _ = ended.expect("the server closes the connection");
        drop(unread);
    }
    until(|| {
        server
            .registry
            .encode()
            .contains("daybook_request_bytes_in_flight 0")
    })
    .await;
}

#[tokio::test]
async fn a_large_answer_arrives_whole_and_a_slow_reader_is_waited_for() {
    let limits = Limits {
        write_stall_timeout: Duration::from_millis(500),
        connection_age_grace: Duration::ZERO,
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    let whole = server.get("/v1/large").await.into_body();
    assert!(whole.len() == LARGE_BYTES && whole[LARGE_BYTES - 1] == b'y');

    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(32 * 1_024);
    let stream = TokioIo::new(server.connect().await);
    let (mut sender, connection) = builder.handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::get(server.url("/v1/large")).body(Full::<Bytes>::default());
    let answer = sender.send_request(request.expect("a valid request")).await;
    let mut body = answer.expect("the head comes").into_body();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.expect("the answer goes on");
        read += frame.data_ref().map_or(0, Bytes::len);
        // Slower than the limit in all, and never slower than it for one piece.
        if read < LARGE_BYTES / 4 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert_eq!(read, LARGE_BYTES);
}
