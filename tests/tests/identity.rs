//! Strangers: what they cost those whom the services know.

use anyhow::{Context as _, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use daybook_service::identity::generate_api_key;
use daybook_tests::cli::daybook;
use daybook_tests::orders::new_order_id;
use daybook_tests::raw;
use daybook_tests::refusal::code;
use daybook_tests::stack::{Backend, Running, Stack};
use daybook_tests::{client, metrics};
use futures::future::try_join_all;
use futures::stream::{self, StreamExt as _};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{Empty, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sqlx::{Connection as _, Executor as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const PLACE_ORDER: &str = "/daybook.orders.v1.OrderService/PlaceOrder";

/// How many requests strangers have open.
const STRANGERS_STREAMS: usize = 1_024;

/// How many methods are invented.
const ODD_METHODS: usize = 10_000;

/// How many bytes each stranger sends: nearly a whole command of the largest size.
const STRANGERS_BYTES: usize = 500 * 1_024;

/// How much more memory all of them together may cost, in KiB.
const STRANGERS_MEMORY_KIB_MAX: u64 = 32 * 1_024;

/// How many requests come with invented keys: more than a service lets wait for their keys at one time.
const INVENTED_KEYS: usize = 6_000;

type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

async fn connect(running: &Running) -> anyhow::Result<SendRequest<Body>> {
    let stream = TcpStream::connect(running.address).await?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A message that is never quite finished.
fn unfinished_message() -> Body {
    let mut start = BytesMut::new();
    start.put_u8(0);
    start.put_u32(u32::try_from(STRANGERS_BYTES + 1).expect("it fits"));
    let piece = Bytes::from_static(&[0; 10 * 1_024]);
    let pieces = std::iter::repeat_n(piece, STRANGERS_BYTES / (10 * 1_024));
    let sent = stream::iter(std::iter::once(start.freeze()).chain(pieces));
    let frames = sent.chain(stream::pending()).map(|bytes| Ok(Frame::data(bytes)));
    UnsyncBoxBody::new(StreamBody::new(frames))
}

#[tokio::test]
async fn a_thousand_large_requests_without_a_key_cost_little_memory() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let running = &backend.commands[0];
    backend.caller()?.place(&new_order_id(), "customer-1").await?;
    let before = running.memory_kib_max()?;
    let connections = try_join_all((0..4).map(|_| connect(running))).await?;
    let mut answers = JoinSet::new();
    for number in 0..STRANGERS_STREAMS {
        let mut connection = connections[number % connections.len()].clone();
        let request = http::Request::post(format!("http://{}{PLACE_ORDER}", running.address))
            .header("content-type", "application/grpc")
            .body(unfinished_message())?;
        answers.spawn(async move {
            connection.ready().await?;
            connection.send_request(request).await
        });
    }
    while let Some(answer) = answers.join_next().await {
        let answer = answer?.context("every stranger gets an answer")?;
        let status = tonic::Status::from_header_map(answer.headers()).context("a status")?;
        ensure!(code(&status) == "UNAUTHENTICATED", "{status:?}");
    }
    for number in 0..ODD_METHODS {
        let odd = http::Request::builder()
            .method(format!("ODD{number}").as_str())
            .uri(format!("http://{}/odd.v1.Odd{number}/Odd", running.address))
            .header("content-type", "application/grpc")
            .body(UnsyncBoxBody::new(Empty::new()))?;
        let mut connection = connections[number % connections.len()].clone();
        connection.ready().await?;
        let answer = connection.send_request(odd).await?;
        let status = tonic::Status::from_header_map(answer.headers()).context("a status")?;
        ensure!(code(&status) == "UNAUTHENTICATED", "{status:?}");
    }
    let more = running.memory_kib_max()? - before;
    assert!(
        more <= STRANGERS_MEMORY_KIB_MAX,
        "{STRANGERS_STREAMS} strangers and {ODD_METHODS} odd methods cost {more} KiB"
    );
    backend.caller()?.place(&new_order_id(), "customer-1").await?;
    Ok(())
}

#[tokio::test]
async fn callers_who_are_known_and_readiness_do_not_notice_keys_that_cannot_be_looked_up()
-> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let (running, caller) = (&backend.commands[0], backend.caller()?);
    caller.place(&new_order_id(), "customer-1").await?;
    let mut connection = backend.superuser.acquire().await?;
    let mut lock = connection.begin().await?;
    lock.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        .await?;
    lock.execute("LOCK TABLE event_store.api_key IN ACCESS EXCLUSIVE MODE")
        .await?;

    let url = running.url();
    let channels: Vec<_> = (0..8).map(|_| client::channel(&url)).collect::<Result<_, _>>()?;
    let mut strangers = JoinSet::new();
    for number in 0..INVENTED_KEYS {
        let channel = channels[number % channels.len()].clone();
        let authorization = format!("Bearer {}", generate_api_key().plain);
        strangers.spawn(async move {
            let answer = raw::call(&channel, PLACE_ORDER, Some(&authorization), Bytes::new()).await;
            answer.expect_err("an invented key opens nothing")
        });
    }
    let (mut orders, mut refusals) = (0, Vec::new());
    while let Some(refusal) = strangers.join_next().await {
        refusals.push(refusal?);
        if refusals.len() % 20 == 0 {
            caller.place(&new_order_id(), "customer-1").await?;
            metrics::ready(running.admin).await?;
            orders += 1;
        }
    }
    lock.rollback().await?;
    let unknown = ["DEPENDENCY_UNAVAILABLE", "OVERLOADED"];
    let surprise = refusals
        .iter()
        .find(|refusal| !unknown.contains(&code(refusal).as_str()));
    assert!(surprise.is_none(), "nobody could look that key up: {surprise:?}");
    assert!(orders >= INVENTED_KEYS / 20);
    Ok(())
}

#[tokio::test]
async fn the_command_line_makes_keys_of_both_kinds_that_open_what_is_theirs_and_nothing_else()
-> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let database_url = stack.servers.database.superuser_url();
    let administrator = [("DATABASE_URL", database_url.as_str())];
    let made = daybook(&administrator, &["bootstrap", "--tenant", "acme", "-o", "json"]).await?;
    assert_eq!(made.code, 0, "{made:?}");
    let tenant = made.json()?;
    assert_eq!(tenant.get("operator_key"), None);
    let made = daybook(&administrator, &["bootstrap", "--operator", "-o", "json"]).await?;
    assert_eq!(made.code, 0, "{made:?}");
    let operator = made.json()?;
    assert_eq!(operator.as_object().map(serde_json::Map::len), Some(1));

    let (projector_url, query_url) = (stack.projector.url(), stack.query.url());
    let projections = async |key: &str| {
        let settings = [
            ("DAYBOOK_PROJECTOR_URL", projector_url.as_str()),
            ("DAYBOOK_API_KEY", key),
        ];
        daybook(&settings, &["get", "projections"]).await
    };
    let key = |keys: &serde_json::Value, name: &str| keys[name].as_str().unwrap_or_default().to_owned();
    let seen = projections(&key(&operator, "operator_key")).await?;
    assert_eq!(seen.code, 0, "{seen:?}");
    for name in ["service_key", "frontend_key", "auditor_key"] {
        let refused = projections(&key(&tenant, name)).await?;
        ensure!(refused.code != 0, "a tenant's {name} operates projections");
        assert!(refused.errors.contains("PERMISSION_DENIED"), "{refused:?}");
    }
    let settings = [
        ("DAYBOOK_QUERY_URL", query_url.as_str()),
        ("DAYBOOK_API_KEY", &key(&operator, "operator_key")),
    ];
    let refused = daybook(&settings, &["history", &new_order_id()]).await?;
    ensure!(refused.code != 0, "an operator reads histories");
    assert!(refused.errors.contains("PERMISSION_DENIED"), "{refused:?}");
    let nothing = daybook(&administrator, &["bootstrap"]).await?;
    ensure!(nothing.code != 0, "it is not said what to make");
    Ok(())
}
