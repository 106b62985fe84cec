//! The whole process: its tasks against a real Postgres and a real NATS, and what it answers to operators.

use std::time::Duration;

use anyhow::Context as _;
use daybook_devstack::process::Signal;
use daybook_event_bus::publish::{Publisher, PublisherOptions};
use daybook_event_bus::{Bus, Deployment, signal};
use daybook_event_store::{EventStore, SeenEpoch};
use daybook_proto::projections::v1::projection_service_client::ProjectionServiceClient;
use daybook_proto::projections::v1::{
    GetProjectionRequest, GetRebuildRequest, ListProjectionsRequest, ProjectionStatus,
    RebuildProjectionRequest, RebuildStatus,
};
use daybook_read_model::{OrderList, ReadModel as _, each_read_model};
use daybook_tests::check;
use daybook_tests::client::{Caller, channel, credential};
use daybook_tests::log::PARTITION;
use daybook_tests::stack::{Role, Running, Servers};
use daybook_tests::tenant::Tenant;
use daybook_tests::wait::{self, DEADLINE};
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tonic::Code;

use super::{NO_NATS, Orders, Setup};

/// A database with a projector that cannot reach NATS, and a caller of it.
async fn without_nats() -> anyhow::Result<(Setup, Running, Caller)> {
    let servers = Servers::start().await?;
    let running = servers.run(Role::Projector, &[("NATS_URL", NO_NATS)]).await?;
    let setup = Setup::on(servers.database).await;
    let tenant = Tenant::create(&setup.superuser).await?;
    let url = running.url();
    let caller = Caller::new(&url, &url, &url, tenant)?;
    Ok((setup, running, caller))
}

fn rebuild_of(name: &str, reason: &str) -> RebuildProjectionRequest {
    RebuildProjectionRequest {
        name: name.to_owned(),
        reason: reason.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_watch_projections_and_rebuild_them_without_nats() -> anyhow::Result<()> {
    let (setup, mut running, caller) = without_nats().await?;
    let mut client = caller.projections();
    Orders::new(21).append(&setup, 1_000).await;
    let head = check::caught_up(&setup.superuser).await?;
    let listed = client.list_projections(ListProjectionsRequest {}).await?;
    let listed = listed.into_inner().projections;
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
        .rebuild_projection(rebuild_of(OrderList::NAME, "to see"))
        .await?;
    let rebuild = asked.into_inner().rebuild.context("its progress")?;
    assert_eq!((rebuild.generation, rebuild.head), (2, head));
    let done = wait::value("the rebuild", async || {
        let request = GetRebuildRequest {
            name: OrderList::NAME.to_owned(),
            generation: 2,
        };
        let rebuild = client.get_rebuild(request).await?.into_inner().rebuild;
        Ok(rebuild.filter(|rebuild| rebuild.status() == RebuildStatus::Done))
    })
    .await?;
    assert_eq!(done.position, head);
    assert!(done.ended_at.is_some() && done.error.is_empty());

    // The worker follows the new tables.
    Orders::new(22).append(&setup, 100).await;
    check::caught_up(&setup.superuser).await?;
    let process = running.service.process_id().context("it runs")?;
    process.signal(Signal::TERM);
    let ended = wait::value("its end", async || Ok(running.service.failure())).await?;
    assert!(ended.starts_with("exit status: 0"), "{ended}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_not_valid_are_refused_with_a_typed_error() -> anyhow::Result<()> {
    let (_setup, running, caller) = without_nats().await?;
    let mut client = caller.projections();
    let of_nobody = ProjectionServiceClient::new(channel(&running.url())?)
        .list_projections(ListProjectionsRequest {})
        .await;
    assert_eq!(of_nobody.expect_err("no key").code(), Code::Unauthenticated);
    let reader = credential(&caller.tenant.frontend_key)?;
    let unfit = ProjectionServiceClient::with_interceptor(channel(&running.url())?, reader)
        .list_projections(ListProjectionsRequest {})
        .await;
    assert_eq!(unfit.expect_err("no scope").code(), Code::PermissionDenied);
    let unknown = GetProjectionRequest {
        name: "weather".to_owned(),
    };
    let unknown = client.get_projection(unknown).await;
    assert_eq!(unknown.expect_err("no projection").code(), Code::NotFound);
    for (name, reason, code) in [
        ("", "to see", Code::InvalidArgument),
        (OrderList::NAME, "", Code::InvalidArgument),
        (OrderList::NAME, "x".repeat(513).as_str(), Code::InvalidArgument),
        (OrderList::NAME, "a\0b", Code::InvalidArgument),
        ("a\0b", "to see", Code::InvalidArgument),
        ("weather", "to see", Code::NotFound),
    ] {
        let refused = client.rebuild_projection(rebuild_of(name, reason)).await;
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
        let missing = client.get_rebuild(request).await;
        assert_eq!(missing.expect_err("no rebuild").code(), Code::NotFound);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_over_the_bus_and_what_is_applied_is_announced() -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let bus = Bus::connect(&servers.nats.url(), &Deployment::default(), "test").await?;
    let (_committed, to_publish) = mpsc::channel(1);
    let options = PublisherOptions {
        compare_interval: Duration::from_millis(20),
        ..PublisherOptions::default()
    };
    let store = EventStore::new(servers.database.pool("daybook_publisher").await?);
    let (_handle, publishing) = Publisher::new(
        bus.clone(),
        store.clone(),
        store,
        PARTITION,
        to_publish,
        SeenEpoch::default(),
        options,
    );
    let publishing = tokio::spawn(publishing);
    let mut signals = signal::subscribe(&bus).await?;
    let _running = servers.run(Role::Projector, &[]).await?;
    let setup = Setup::on(servers.database.clone()).await;

    let mut orders = Orders::new(23);
    let mut head = 0;
    for _ in 0..5 {
        orders.append(&setup, 400).await;
        head = check::caught_up(&setup.superuser).await?;
    }
    let mut announced = 0;
    while announced < head {
        let applied = tokio::time::timeout(DEADLINE, signals.next()).await?;
        let applied = applied.context("the subscription goes on")?;
        if applied.projection == OrderList::NAME {
            announced = applied.position;
        }
    }
    publishing.abort();
    check::read_models(&setup.superuser, &setup.log().await).await
}
