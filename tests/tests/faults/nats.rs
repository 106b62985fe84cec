//! NATS goes away, and comes back with nothing.

use daybook_tests::load::Load;
use daybook_tests::stack::{Backend, Running};
use daybook_tests::{check, log, metrics};

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

async fn refilled(services: &[Running]) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for service in services {
        sum += metrics::sum(service.admin, "daybook_publish_refilled_total").await?;
        sum += metrics::sum(service.admin, "daybook_publish_helped_total").await?;
    }
    Ok(sum)
}

#[tokio::test]
async fn a_stream_that_holds_what_the_log_does_not_is_made_anew() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?.with_projector().await?;
    let load = Load::start(&backend.callers()?, 8);
    load.progress(200).await?;
    let bus = async_nats::connect(backend.servers.nats.url()).await?;
    bus.publish("events.0.foreign.order.order_placed", "not an event".into())
        .await?;
    bus.flush().await?;
    load.progress(200).await?;
    let ledger = load.stop().await;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await?;
    let rebuilt = metrics::sum(backend.commands[0].admin, "daybook_publish_rebuilt_total").await?;
    assert!(rebuilt > 0.0, "the foreign message was not noticed");
    assert!(log::head(&backend.superuser).await? > 0);
    Ok(())
}
