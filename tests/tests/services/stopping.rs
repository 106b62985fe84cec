//! How a service stops: not ready at once, accepting for a while, and gone in time, whatever its callers do.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use daybook_devstack::process::{ProcessId, Signal};
use daybook_tests::client::channel;
use daybook_tests::rest::Rest;
use daybook_tests::stack::{Role, Running, Servers};
use daybook_tests::{metrics, raw, wait};
use http::Method;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A message without fields, as gRPC frames it.
const EMPTY_MESSAGE: &[u8] = &[0, 0, 0, 0, 0];

/// `HealthCheckResponse { status: NOT_SERVING }`.
const NOT_SERVING: &[u8] = &[8, 2];

/// Where the health of a service can be asked for, and watched.
const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// Streams that are open when a service is told to stop, and how many of them a connection has.
const STREAMS: usize = 200;
const STREAMS_PER_CONNECTION: usize = 10;

#[tokio::test]
async fn a_service_that_is_told_to_stop_says_so_at_once_and_accepts_until_its_drain_delay_is_over()
-> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let delay = [("DAYBOOK_DRAIN_DELAY", "3s")];
    for role in [Role::Command, Role::Query, Role::Projector] {
        let service = servers.run(role, &delay).await?;
        let told = Instant::now();
        let process = stop(&service)?;
        wait::until("it says that it is not ready", async || {
            let (status, text) = metrics::get(service.admin, "/readyz").await?;
            Ok(status == 503 && text.contains("SHUTTING_DOWN"))
        })
        .await?;
        wait::until("it says so over gRPC", async || {
            let health = raw::call(&channel(&service.url())?, CHECK, None, Bytes::new()).await;
            Ok(health? == NOT_SERVING)
        })
        .await?;
        // Each look is a connection of its own.
        let look = async || {
            Rest::new(&service.url(), "")
                .send(Method::GET, "/problems", &[], "")
                .await
        };
        let accepted = look().await?;
        let took = told.elapsed();
        ensure!(
            took < Duration::from_secs(3),
            "it was looked at too late: {took:?}"
        );
        assert_eq!(accepted.status, 200, "{role:?}");
        wait::until("it accepts no more", async || Ok(look().await.is_err())).await?;
        assert!(told.elapsed() >= Duration::from_secs(3), "{role:?}");
        wait::until("it is gone", async || Ok(!process.is_alive())).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_callers_never_end_is_gone_by_its_deadline() -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    for role in [Role::Command, Role::Query] {
        let service = servers.run(role, &[("DAYBOOK_GRACE_PERIOD", "1s")]).await?;
        let open = open_streams(&service).await?;
        let told = Instant::now();
        let process = stop(&service)?;
        wait::until("it is gone", async || Ok(!process.is_alive())).await?;
        let took = told.elapsed();
        // The grace period and two seconds; the test looks now and then.
        assert!(took < Duration::from_millis(3_500), "{role:?} took {took:?}");
        drop(open);
    }
    Ok(())
}

/// Tells a service to stop.
fn stop(service: &Running) -> anyhow::Result<ProcessId> {
    let process = service.service.process_id().context("it runs")?.clone();
    process.signal(Signal::TERM);
    Ok(process)
}

/// Streams that say one thing, and are open until what this gives is dropped.
async fn open_streams(service: &Running) -> anyhow::Result<(Vec<Incoming>, JoinSet<()>)> {
    let (mut answers, mut connections) = (Vec::new(), JoinSet::new());
    for _ in 0..STREAMS / STREAMS_PER_CONNECTION {
        let stream = TcpStream::connect(service.address).await?;
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        connections.spawn(async move { drop(connection.await) });
        for _ in 0..STREAMS_PER_CONNECTION {
            // A watch begins when its request has ended.
            let body = Full::new(Bytes::from_static(EMPTY_MESSAGE));
            let request = http::Request::post(format!("{}{WATCH}", service.url()))
                .header("content-type", "application/grpc")
                .body(body)?;
            let mut answer = sender.send_request(request).await?.into_body();
            answer
                .frame()
                .await
                .context("a watch begins with how it is now")??;
            answers.push(answer);
        }
    }
    Ok((answers, connections))
}
