//! The command service as operators see it: without NATS, and on its way out.

use anyhow::Context as _;
use daybook_tests::ledger::Ledger;
use daybook_tests::load::Load;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::stack::{Backend, Role};
use daybook_tests::{check, client};
use futures::future::try_join_all;

#[tokio::test]
async fn commands_are_taken_while_nats_is_down_and_published_when_it_is_back() -> anyhow::Result<()> {
    let mut backend = Backend::start(1).await?;
    let (caller, ledger) = (backend.caller()?, Ledger::default());
    let place_one = |caller| ledger.send(caller, place(&new_order_id(), "customer-1"));
    place_one(&caller).await?;
    backend.servers.nats.kill().await?;
    try_join_all((0..50).map(|_| place_one(&caller))).await?;

    // One that starts without NATS is ready all the same.
    let late = backend.servers.run(Role::Command, &[]).await?;
    let late = client::Caller::new(&late.url(), &late.url(), &late.url(), backend.tenant.clone())?;
    place_one(&late).await?;

    backend.servers.nats.restart().await?;
    let events = check::recorded(&backend.superuser, &ledger).await?;
    assert_eq!(events.len(), 52);
    check::bus(&backend.superuser, &backend.servers.nats.url(), &events).await
}

#[tokio::test]
async fn a_service_that_is_told_to_stop_finishes_what_it_has_accepted() -> anyhow::Result<()> {
    let mut backend = Backend::start(2).await?.with_projector().await?;
    let load = Load::start(&backend.callers()?, 16);
    load.progress(500).await?;
    let mut leaving = backend.commands.remove(0);
    let process = leaving.service.process_id().context("it runs")?.clone();
    leaving.service.stop().await?;
    assert!(!process.is_alive());
    load.progress(500).await?;
    let ledger = load.stop().await;
    assert!(ledger.tally().refused > 0, "no rule refused anything");
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}
