//! The whole process: its tasks against a real Postgres and a real NATS, and what it answers to operators.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser as _;
use daybook_devstack::testing::temporary_directory;
use daybook_devstack::{Nats, NatsOptions, NatsUser};
use daybook_event_bus::publish::{Publisher, PublisherOptions};
use daybook_event_bus::{Bus, Deployment, signal};
use daybook_event_store::SeenEpoch;
use daybook_projector::Config;
use daybook_proto::projections::v1::projection_service_client::ProjectionServiceClient;
use daybook_proto::projections::v1::{
    GetProjectionRequest, GetRebuildRequest, ListProjectionsRequest, ProjectionStatus,
    RebuildProjectionRequest, RebuildStatus,
};
use daybook_read_model::{OrderList, ReadModel as _, each_read_model};
use daybook_service::identity::{Scope, generate_api_key};
use futures::StreamExt as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request};
use uuid::Uuid;

use support::{DEADLINE, NO_NATS, Orders, Setup, eventually};

/// A projector that runs.
struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    process: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    async fn start(setup: &Setup, nats_url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let admin_listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let url = setup.projector_url();
        let arguments = [
            "daybook-projector",
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            &format!("--database-url={url}"),
            &format!("--nats-url={nats_url}"),
        ];
        let config = Config::try_parse_from(arguments).expect("a valid configuration");
        let stop = CancellationToken::new();
        let process = tokio::spawn(daybook_projector::run(
            config,
            listener,
            admin_listener,
            stop.clone(),
        ));
        Self {
            address,
            stop,
            process,
        }
    }

    async fn client(&self) -> ProjectionServiceClient<Channel> {
        let address = format!("http://{}", self.address);
        ProjectionServiceClient::connect(address)
            .await
            .expect("it listens")
    }

    async fn stop(self) {
        self.stop.cancel();
        self.process.await.expect("no panic").expect("no failure");
    }
}

/// A key with this scope: the deployment's, where only that can have it, else a new tenant's.
async fn key(setup: &Setup, scope: Scope) -> String {
    let tenant_id = Uuid::now_v7();
    sqlx::query("INSERT INTO event_store.tenant (tenant_id, name, partition) VALUES ($1, $2, 0)")
        .bind(tenant_id)
        .bind(format!("t-{}", tenant_id.simple()))
        .execute(&setup.superuser)
        .await
        .expect("a tenant");
    let key = generate_api_key();
    sqlx::query(
        "INSERT INTO event_store.api_key (prefix, secret_sha256, tenant_id, name, scopes)
         VALUES ($1, $2, $3, 'test', $4)",
    )
    .bind(&key.prefix)
    .bind(key.sha256.as_slice())
    .bind((!scope.is_deployments()).then_some(tenant_id))
    .bind(vec![scope.as_str()])
    .execute(&setup.superuser)
    .await
    .expect("a key");
    key.plain
}

fn with_key<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value: MetadataValue<_> = format!("Bearer {key}").parse().expect("visible ASCII");
    request.metadata_mut().insert("authorization", value);
    request
}

fn rebuild_of(name: &str, reason: &str) -> RebuildProjectionRequest {
    RebuildProjectionRequest {
        name: name.to_owned(),
        reason: reason.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_watch_projections_and_rebuild_them_without_nats() {
    let setup = Setup::new().await;
    Orders::new(21).append(&setup, 1_000).await;
    let running = Running::start(&setup, NO_NATS).await;
    let mut client = running.client().await;
    let operator = key(&setup, Scope::ProjectionsOperate).await;
    let head = setup.head().await;

    for projection in each_read_model!(M => M::NAME) {
        eventually("the end of the log", async || {
            setup.position(projection).await == head
        })
        .await;
    }
    let listed = client
        .list_projections(with_key(&operator, ListProjectionsRequest {}))
        .await;
    let listed = listed.expect("a list").into_inner().projections;
    let names: Vec<_> = listed.iter().map(|projection| projection.name.as_str()).collect();
    let mut expected = each_read_model!(M => M::NAME);
    expected.sort_unstable();
    assert_eq!(names, expected);
    for projection in &listed {
        assert_eq!(projection.status(), ProjectionStatus::Running);
        assert_eq!(
            (projection.position, projection.head, projection.lag_ms),
            (head, head, 0)
        );
    }

    let asked = client
        .rebuild_projection(with_key(&operator, rebuild_of(OrderList::NAME, "to see")))
        .await;
    let rebuild = asked
        .expect("a rebuild")
        .into_inner()
        .rebuild
        .expect("its progress");
    assert_eq!((rebuild.generation, rebuild.head), (2, head));
    let mut done = None;
    eventually("the rebuild", async || {
        let request = GetRebuildRequest {
            name: OrderList::NAME.to_owned(),
            generation: 2,
        };
        let rebuild = client.get_rebuild(with_key(&operator, request)).await;
        done = rebuild.expect("progress").into_inner().rebuild;
        done.as_ref()
            .is_some_and(|rebuild| rebuild.status() == RebuildStatus::Done)
    })
    .await;
    let done = done.expect("it is done");
    assert_eq!(done.position, head);
    assert!(done.ended_at.is_some() && done.error.is_empty());

    // The worker follows the new tables.
    Orders::new(22).append(&setup, 100).await;
    let head = setup.head().await;
    eventually("the end of the log", async || {
        setup.position(OrderList::NAME).await == head
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_not_valid_are_refused_with_a_typed_error() {
    let setup = Setup::new().await;
    let running = Running::start(&setup, NO_NATS).await;
    let mut client = running.client().await;
    let operator = key(&setup, Scope::ProjectionsOperate).await;
    let reader = key(&setup, Scope::OrdersRead).await;

    let nobody = client.list_projections(ListProjectionsRequest {}).await;
    assert_eq!(nobody.expect_err("no key").code(), Code::Unauthenticated);
    let unfit = client
        .list_projections(with_key(&reader, ListProjectionsRequest {}))
        .await;
    assert_eq!(unfit.expect_err("no scope").code(), Code::PermissionDenied);
    let unknown = GetProjectionRequest {
        name: "weather".to_owned(),
    };
    let unknown = client.get_projection(with_key(&operator, unknown)).await;
    assert_eq!(unknown.expect_err("no projection").code(), Code::NotFound);
    for (name, reason, code) in [
        ("", "to see", Code::InvalidArgument),
        (OrderList::NAME, "", Code::InvalidArgument),
        (OrderList::NAME, "x".repeat(513).as_str(), Code::InvalidArgument),
        (OrderList::NAME, "a\0b", Code::InvalidArgument),
        ("a\0b", "to see", Code::InvalidArgument),
        ("weather", "to see", Code::NotFound),
    ] {
        let refused = client
            .rebuild_projection(with_key(&operator, rebuild_of(name, reason)))
            .await;
        assert_eq!(
            refused.expect_err("not valid").code(),
            code,
            "{name:?} {reason:?}"
        );
    }
    for (name, generation) in [(OrderList::NAME, 1), (OrderList::NAME, u32::MAX), ("weather", 2)] {
        let request = GetRebuildRequest {
            name: name.to_owned(),
            generation,
        };
        let missing = client.get_rebuild(with_key(&operator, request)).await;
        assert_eq!(missing.expect_err("no rebuild").code(), Code::NotFound);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_over_the_bus_and_what_is_applied_is_announced() {
    let setup = Setup::new().await;
    let directory = temporary_directory().expect("a directory");
    let nats = Nats::start(NatsOptions::new(directory.path().join("nats")))
        .await
        .expect("a server");
    let bus = Bus::connect(&nats.url(), &Deployment::default()).await;
    let bus = bus.expect("a connection");
    let (_committed, to_publish) = mpsc::channel(1);
    let options = PublisherOptions {
        compare_interval: Duration::from_millis(20),
        ..PublisherOptions::default()
    };
    let (_handle, publishing) = Publisher::new(
        bus.clone(),
        setup.publisher_store().await,
        setup.publisher_store().await,
        0,
        to_publish,
        SeenEpoch::default(),
        options,
    );
    let publishing = tokio::spawn(publishing);
    let mut signals = signal::subscribe(&bus).await.expect("a subscription");
    let running = Running::start(&setup, &nats.url_of(NatsUser::Projector)).await;

    let mut orders = Orders::new(23);
    for _ in 0..5 {
        orders.append(&setup, 400).await;
        let head = setup.head().await;
        for projection in each_read_model!(M => M::NAME) {
            eventually("the end of the log", async || {
                setup.position(projection).await == head
            })
            .await;
        }
    }
    let head = setup.head().await;
    let mut announced = 0;
    while announced < head {
        let applied = tokio::time::timeout(DEADLINE, signals.next()).await;
        let applied = applied
            .expect("a signal in time")
            .expect("the subscription goes on");
        if applied.projection == OrderList::NAME {
            announced = applied.position;
        }
    }
    running.stop().await;
    publishing.abort();
    each_read_model!(M => setup.assert_equals_fold::<M>().await);
}
