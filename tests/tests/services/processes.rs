//! What holds for each of the three services: how it refuses to start, what it says of itself, how it stops.

use std::convert::Infallible;

use anyhow::Context as _;
use bytes::Bytes;
use daybook_devstack::process::Signal;
use daybook_tests::client::channel;
use daybook_tests::stack::{Running, Stack, program};
use daybook_tests::{metrics, raw, wait};
use futures::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// `ServerReflectionRequest { list_services: "*" }`.
const LIST_SERVICES: &[u8] = &[0x3a, 0x01, b'*'];

/// Every setting that a service needs in production.
const SETTINGS: [(&str, &str); 7] = [
    ("DAYBOOK_LISTEN", "127.0.0.1:0"),
    ("DAYBOOK_ADMIN_LISTEN", "127.0.0.1:0"),
    ("DATABASE_URL", "postgres://127.0.0.1:1/nothing"),
    ("DAYBOOK_PUBLISHER_DATABASE_URL", "postgres://127.0.0.1:1/nothing"),
    ("DAYBOOK_FINGERPRINT_KEY", KEY),
    ("DAYBOOK_REPLICA_KEY", KEY),
    ("DAYBOOK_SEALING_KEYS", KEY),
];

/// A key that nobody would guess.
const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn a_key_that_is_missing_or_known_to_everybody_is_told_on_one_line() -> anyhow::Result<()> {
    let known = "00".repeat(32);
    for (service, setting) in [
        ("daybook-command-svc", "DAYBOOK_FINGERPRINT_KEY"),
        ("daybook-command-svc", "DAYBOOK_REPLICA_KEY"),
        ("daybook-command-svc", "DAYBOOK_SEALING_KEYS"),
        ("daybook-query-svc", "DAYBOOK_SEALING_KEYS"),
    ] {
        for key in [None, Some(&known)] {
            let mut command = Command::new(program(service)?);
            command.envs(SETTINGS).env_remove(setting);
            command.envs(key.map(|key| (setting, key)));
            let output = command.output().await?;
            let (said, logged) = (String::from_utf8(output.stderr)?, output.stdout.len());
            assert_eq!(output.status.code(), Some(64), "{setting}: {said}");
            assert_eq!((said.lines().count(), logged), (1, 0), "{said}");
            assert!(said.contains(setting) && !said.contains(&known), "{said}");
        }
    }
    Ok(())
}

/// A client that knows an address asks the service what it offers.
#[tokio::test]
async fn every_service_answers_reflection_in_both_versions_and_names_what_it_serves() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let served = [
        (&stack.command, "daybook.orders.v1.OrderService"),
        (&stack.query, "daybook.history.v1.HistoryService"),
        (&stack.projector, "daybook.projections.v1.ProjectionService"),
    ];
    for (running, service) in served {
        let channel = channel(&running.url())?;
        for version in ["v1", "v1alpha"] {
            let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
            let answer = raw::call(&channel, &path, None, Bytes::from_static(LIST_SERVICES)).await?;
            let text = String::from_utf8_lossy(&answer).into_owned();
            assert!(text.contains(service), "{version}: {service} is not among {text}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_service_that_drains_tells_operators_that_it_stops() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let (tenant, method) = (&stack.tenant, |name: &str| format!("/daybook.{name}"));
    for (running, method, key) in [
        (
            &stack.command,
            method("orders.v1.OrderService/PlaceOrder"),
            &tenant.service_key,
        ),
        (
            &stack.query,
            method("orders.v1.OrderQueryService/GetOrder"),
            &tenant.frontend_key,
        ),
        (
            &stack.projector,
            method("projections.v1.ProjectionService/ListProjections"),
            &tenant.operator_key,
        ),
    ] {
        let open = open_call(running, &method, key).await?;
        let process = running.service.process_id().context("it runs")?;
        process.signal(Signal::TERM);
        wait::until("it says that it stops", async || {
            let (status, text) = metrics::get(running.admin, "/readyz")
                .await
                .context(method.clone())?;
            Ok(status == 503 && text.contains("SHUTTING_DOWN"))
        })
        .await?;
        let (alive, _) = metrics::get(running.admin, "/livez").await?;
        assert_eq!(alive, 200, "{method} is open still");
        drop(open);
    }
    Ok(())
}

/// Probes and proxies ask for the health of the whole as a rule, which has no name.
#[tokio::test]
async fn a_service_that_stops_is_not_serving_as_a_whole_and_by_name() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    for (running, name) in [
        (&stack.command, "daybook.orders.v1.OrderService"),
        (&stack.query, "daybook.history.v1.HistoryService"),
        (&stack.projector, "daybook.projections.v1.ProjectionService"),
    ] {
        let mut watches = Vec::new();
        for service in ["", name] {
            let request = HealthCheckRequest {
                service: service.to_owned(),
            };
            let mut health = HealthClient::new(channel(&running.url())?);
            let mut watch = health.watch(request).await?.into_inner();
            let first = watch.message().await?.map(|health| health.status());
            assert_eq!(first, Some(ServingStatus::Serving), "{service:?}");
            watches.push((service, watch));
        }
        let process = running.service.process_id().context("it runs")?;
        process.signal(Signal::TERM);
        for (service, mut watch) in watches {
            let next = watch.message().await?.map(|health| health.status());
            assert_eq!(next, Some(ServingStatus::NotServing), "{service:?}");
        }
    }
    Ok(())
}

/// Calls a method with a message that never comes; the call is open until what this gives is dropped.
async fn open_call(running: &Running, method: &str, key: &str) -> anyhow::Result<JoinSet<()>> {
    let stream = TcpStream::connect(running.address).await?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let never = stream::pending::<Result<Frame<Bytes>, Infallible>>();
    let request = http::Request::post(format!("{}{method}", running.url()))
        .header("content-type", "application/grpc")
        .header("authorization", format!("Bearer {key}"))
        .body(StreamBody::new(never))?;
    let mut open = JoinSet::new();
    open.spawn(async move { drop(connection.await) });
    open.spawn(async move { drop(sender.send_request(request).await) });
    wait::until("the call is open", async || {
        let in_flight = metrics::sum(running.admin, "daybook_requests_in_flight").await?;
        Ok(in_flight >= 1.0)
    })
    .await?;
    Ok(open)
}
