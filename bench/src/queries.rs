//! Reads over HTTP.

use daybook_tests::client::Caller;
use daybook_tests::orders::new_order_id;
use daybook_tests::stack::Stack;
use http::header::{AUTHORIZATION, HOST};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::commands::applied;
use crate::report::{Goal, Report};
use crate::{Options, load};

/// Connections that each read one order after another.
const CONNECTIONS: usize = 64;

/// Orders that are read.
const ORDERS: usize = 5_000;

/// A connection and the number of the next order to read.
type Reader = (SendRequest<Empty<Bytes>>, usize);

pub(crate) async fn measure(options: &Options, stack: &Stack, report: &mut Report) -> anyhow::Result<()> {
    let paths = orders(&stack.caller()?).await?;
    applied(stack).await?;
    let (key, authority) = (
        format!("Bearer {}", stack.tenant.frontend_key),
        stack.query.address.to_string(),
    );
    for _ in 0..options.runs {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(Some(connect(&authority).await?));
        }
        let connections = std::cell::RefCell::new(connections);
        let (paths, key, authority) = (paths.clone(), key.clone(), authority.clone());
        let get = move |(mut connection, number): Reader| {
            let request = http::Request::get(&paths[number % ORDERS])
                .header(HOST, &authority)
                .header(AUTHORIZATION, &key)
                .body(Empty::new());
            async move {
                let response = connection.send_request(request?).await?;
                anyhow::ensure!(response.status() == 200, "{}", response.status());
                let body = response.into_body().collect().await?.to_bytes();
                anyhow::ensure!(!body.is_empty(), "an order has a body");
                connection.ready().await?;
                Ok((connection, number + 1))
            }
        };
        let make = |worker: usize| {
            let connection = connections.borrow_mut()[worker]
                .take()
                .expect("each worker has one");
            (connection, worker * 71)
        };
        let load = load::closed(CONNECTIONS, options.duration(), make, get).await?;
        report.note(
            "GET /v1/orders/{id}, 64 connections",
            load.rate(),
            "requests/s",
            Goal::AtLeast(10_000.0),
        );
        report.note(
            "GET /v1/orders/{id}, p99",
            load.quantile_ms(0.99),
            "ms",
            Goal::AtMost(15.0),
        );
    }
    Ok(())
}

async fn orders(caller: &Caller) -> anyhow::Result<std::sync::Arc<[String]>> {
    let mut paths = Vec::new();
    let mut sending = tokio::task::JoinSet::new();
    for number in 0..ORDERS {
        let (caller, order_id) = (caller.clone(), new_order_id());
        paths.push(format!("/v1/orders/{order_id}"));
        sending.spawn(async move { caller.place(&order_id, &format!("reader-{}", number % 100)).await });
        if sending.len() >= 256 {
            sending.join_next().await.expect("some are under way")??;
        }
    }
    while let Some(sent) = sending.join_next().await {
        sent??;
    }
    Ok(paths.into())
}

async fn connect(authority: &str) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(authority).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}
