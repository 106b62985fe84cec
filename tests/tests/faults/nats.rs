//! NATS goes away, and comes back with nothing.

use anyhow::Context as _;
use daybook_devstack::proxy::Direction;
use daybook_event_bus::{Deployment, message};
use daybook_event_store::RecordedEvent;
use daybook_tests::ledger::Ledger;
use daybook_tests::load::Load;
use daybook_tests::network::Network;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::stack::{Backend, Role, Running, Servers};
use daybook_tests::tenant::Tenant;
use daybook_tests::{check, log, metrics, nats, wait};
use sqlx::PgPool;
use uuid::Uuid;

#[tokio::test]
async fn a_lost_stream_is_refilled_and_nobody_had_to_wait_for_it() -> anyhow::Result<()> {
    let mut backend = Backend::start(2).await?.with_projector().await?;
    let load = Load::start(&backend.callers()?, 8);
    load.progress(300).await?;

    backend.servers.nats.delete_store().await?;
    let before = load.tally();
    load.progress(300).await?;
    // Projections go on from Postgres meanwhile.
    let without_bus = check::caught_up(&backend.superuser).await?;
    assert!(without_bus > 0);
    assert!(of_projector(&backend, "daybook_consume_from_log_total").await? > 0.0);
    assert_eq!(
        load.tally().unknown,
        before.unknown,
        "a command was not answered because NATS was down"
    );

    backend.servers.nats.restart().await?;
    load.progress(300).await?;
    let ledger = load.stop().await;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await?;
    assert!(
        refilled(&backend.commands).await? > 0.0,
        "what the stream had lost was not read from the log"
    );
    Ok(())
}

/// The generation of the log.
async fn generation(superuser: &PgPool) -> anyhow::Result<Uuid> {
    let select = "SELECT generation FROM event_store.log WHERE partition = $1";
    let generation = sqlx::query_scalar(select).bind(log::PARTITION);
    Ok(generation.fetch_one(superuser).await?)
}

async fn refilled(services: &[Running]) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for service in services {
        sum += metrics::sum(service.admin, "daybook_publish_refilled_total").await?;
    }
    Ok(sum)
}

async fn of_projector(backend: &Backend, name: &str) -> anyhow::Result<f64> {
    let projector = backend.projector.as_ref().context("there is a projector")?;
    metrics::sum(projector.admin, name).await
}

/// What a command service counts: streams that it has deleted and filled again.
const REBUILT: &str = "daybook_publish_rebuilt_total";

#[tokio::test]
async fn a_stream_that_holds_what_the_log_does_not_is_made_anew() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?.with_projector().await?;
    let load = Load::start(&backend.callers()?, 8);
    load.progress(200).await?;
    let generation = generation(&backend.superuser).await?;
    let subject = format!("daybook.events.0.{generation}.foreign.order.order_placed");
    let bus = nats::connect(&backend.servers.nats.url()).await?;
    bus.publish(subject, "not an event".into()).await?;
    bus.flush().await?;
    load.progress(200).await?;
    let ledger = load.stop().await;
    check::everything_repaired(&backend.superuser, &backend.servers.nats.url(), &ledger).await?;
    let rebuilt = metrics::sum(backend.commands[0].admin, REBUILT).await?;
    assert!(rebuilt > 0.0, "the foreign message was not noticed");
    let holes = of_projector(&backend, "daybook_consume_holes_total").await?;
    assert!(holes > 0.0, "the projector passed it over");
    assert!(log::head(&backend.superuser).await? > 0);
    Ok(())
}

/// What the projector counts: batches that the log does not hold.
const REFUTED: &str = "daybook_projection_batches_refuted_total";

/// An administrator of NATS publishes, at a position, that an order was placed: all but the id is plausible.
async fn forge(backend: &Backend, events: &[RecordedEvent], position: u64) -> anyhow::Result<()> {
    let mut orders = events.iter().filter(|event| event.category == "order");
    let placed = orders.find(|event| event.stream_version == 1);
    let forged = RecordedEvent {
        position,
        event_id: Uuid::now_v7(),
        stream_id: new_order_id(),
        ..placed.context("an order was placed")?.clone()
    };
    let generation = generation(&backend.superuser).await?;
    let message = message::encode(&forged, generation, &Deployment::default());
    let bus = nats::jetstream(&backend.servers.nats.url()).await?;
    bus.publish_with_headers(message.subject, message.headers, message.payload)
        .await?
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_plausible_event_that_nobody_committed_is_never_shown_and_the_real_one_is() -> anyhow::Result<()> {
    let backend = Backend::start(2).await?.with_projector().await?;
    let load = Load::start(&backend.callers()?, 8);
    load.progress(200).await?;
    let ledger = load.stop().await;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await?;

    let events = log::events(&backend.superuser).await?;
    forge(&backend, &events, events.len() as u64 + 1).await?;
    wait::until("the projector has met the forged event", async || {
        Ok(of_projector(&backend, REFUTED).await? > 0.0)
    })
    .await?;
    check::read_models(&backend.superuser, &events).await?;

    // Real events take its place.
    let load = Load::start(&backend.callers()?, 8);
    load.progress(200).await?;
    ledger.absorb(&load.stop().await);
    check::everything_repaired(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}

#[tokio::test]
async fn a_plausible_event_in_the_place_of_one_that_was_committed_is_never_shown() -> anyhow::Result<()> {
    let mut backend = Backend::start(0).await?.with_projector().await?;
    let network = Network::between(&backend.servers, Role::Command).await?;
    let service = backend.servers.run(Role::Command, &network.environment()).await?;
    backend.commands.push(service);
    let load = Load::start(&backend.callers()?, 8);
    load.progress(200).await?;
    let ledger = load.stop().await;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await?;

    // What is committed now is not published yet.
    let events = log::events(&backend.superuser).await?;
    network.nats.black_hole(Direction::Both);
    let load = Load::start(&backend.callers()?, 8);
    load.progress(1).await?;
    forge(&backend, &events, events.len() as u64 + 1).await?;
    load.progress(100).await?;
    network.nats.heal();
    wait::until("the publisher has met the forged event", async || {
        let rebuilt = metrics::sum(backend.commands[0].admin, REBUILT).await?;
        Ok(rebuilt > 0.0)
    })
    .await?;
    load.progress(100).await?;
    ledger.absorb(&load.stop().await);
    check::everything_repaired(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}

/// An administrator of NATS makes the stream anew from its newest message on, which has the id of the log's event and another
/// price in it. Nobody reads or writes meanwhile.
async fn replace_newest(backend: &Backend) -> anyhow::Result<()> {
    let events = log::events(&backend.superuser).await?;
    let newest = events.last().context("there is one")?;
    let forged = RecordedEvent {
        payload: newest.payload.replace("1176", "1"),
        ..newest.clone()
    };
    anyhow::ensure!(forged != *newest, "{newest:?} costs something else");
    let bus = nats::jetstream(&backend.servers.nats.url()).await?;
    let mut config = bus.get_stream(nats::STREAM).await?.cached_info().config.clone();
    config.first_sequence = Some(newest.position);
    bus.delete_stream(nats::STREAM).await?;
    bus.create_stream(config).await?;
    let message = message::encode(
        &forged,
        generation(&backend.superuser).await?,
        &Deployment::default(),
    );
    let published = bus.publish_with_headers(message.subject, message.headers, message.payload);
    anyhow::ensure!(published.await?.await?.sequence == newest.position);
    Ok(())
}

#[tokio::test]
async fn an_event_that_has_other_content_in_the_stream_is_shown_as_the_log_has_it() -> anyhow::Result<()> {
    let mut backend = Backend::start(1).await?.with_projector().await?;
    let (ledger, caller) = (Ledger::default(), backend.caller()?);
    ledger.send(&caller, place(&new_order_id(), "customer")).await?;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await?;

    let projector = backend.projector.as_mut().context("there is one")?;
    projector.service.kill().await?;
    ledger.send(&caller, place(&new_order_id(), "customer")).await?;
    let head = log::head(&backend.superuser).await?;
    wait::until("it is published", async || {
        let stream = nats::jetstream(&backend.servers.nats.url())
            .await?
            .get_stream(nats::STREAM)
            .await?;
        Ok(stream.cached_info().state.last_sequence == head)
    })
    .await?;
    backend.commands[0].service.pause();
    replace_newest(&backend).await?;

    let projector = backend.projector.as_mut().context("there is one")?;
    projector.service.restart().await?;
    check::caught_up(&backend.superuser).await?;
    let events = log::events(&backend.superuser).await?;
    check::read_models(&backend.superuser, &events).await?;

    // Whoever else reads the stream gets the log's event, too, as soon as a publisher has compared it with the log.
    let service = &mut backend.commands[0].service;
    service.kill().await?;
    service.restart().await?;
    check::everything_repaired(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}

#[tokio::test]
async fn two_deployments_with_logs_of_their_own_share_an_account() -> anyhow::Result<()> {
    let first = Backend::start(1).await?.with_projector().await?;
    let nats = first.servers.nats.url();
    let elsewhere = [("DAYBOOK_DEPLOYMENT", "other"), ("NATS_URL", nats.as_str())];
    let servers = Servers::start().await?;
    let superuser = servers.database.superuser().await?;
    let second = Backend {
        tenant: Tenant::create(&superuser).await?,
        commands: vec![servers.run(Role::Command, &elsewhere).await?],
        projector: Some(servers.run(Role::Projector, &elsewhere).await?),
        superuser,
        servers,
    };
    let loads = [
        Load::start(&first.callers()?, 8),
        Load::start(&second.callers()?, 8),
    ];
    for (load, backend) in loads.into_iter().zip([&first, &second]) {
        load.progress(300).await?;
        let ledger = load.stop().await;
        let events = check::recorded(&backend.superuser, &ledger).await?;
        check::caught_up(&backend.superuser).await?;
        check::read_models(&backend.superuser, &events).await?;
        assert_eq!(metrics::sum(backend.commands[0].admin, REBUILT).await?, 0.0);
    }
    let events = log::events(&first.superuser).await?;
    check::bus(&first.superuser, &nats, &events).await
}
