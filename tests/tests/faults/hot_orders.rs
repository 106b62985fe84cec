//! Hot orders: what is recorded was decided on what is recorded, however many services decide and whoever goes away.

use daybook_proto::orders::v1::PlaceOrderRequest;
use daybook_tests::client::Caller;
use daybook_tests::command;
use daybook_tests::ledger::Ledger;
use daybook_tests::load::hot;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::stack::Backend;
use daybook_tests::{check, log};
use futures::future::join_all;
use tokio::task::JoinSet;

/// Commands that are answered in each race.
const COMMANDS: usize = 20_000;

/// Commands that are accepted between two kills.
const COMMANDS_PER_KILL: usize = 1_500;

/// How often a service forgets all orders.
const RESTARTS: usize = 5;

/// Orders that it then meets at once.
const ORDERS: usize = 40;

/// Commands on each of them at once.
const COMMANDS_EACH: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn one_service_killed_every_few_seconds_records_no_contradiction_on_hot_orders() -> anyhow::Result<()> {
    race(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_of_which_one_is_killed_every_few_seconds_record_no_contradiction_on_hot_orders()
-> anyhow::Result<()> {
    race(2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn three_services_of_which_one_is_killed_every_few_seconds_record_no_contradiction_on_hot_orders()
-> anyhow::Result<()> {
    race(3).await
}

async fn race(replicas: usize) -> anyhow::Result<()> {
    let mut backend = Backend::start(replicas).await?.with_projector().await?;
    let raced = hot::race(&mut backend, COMMANDS, COMMANDS_PER_KILL).await?;
    let tally = raced.ledger.tally();
    eprintln!(
        "{} kills, {} retries, {tally:?} in {:?}",
        raced.kills, raced.retries, raced.took
    );
    assert!(tally.unknown > 0, "nobody went away: {tally:?}");
    assert!(tally.refused > 0, "no rule refused anything: {tally:?}");
    assert!(
        replicas == 1 || raced.retries > 0.0,
        "the services never got into each other's way"
    );
    check::everything(&backend.superuser, &backend.servers.nats.url(), &raced.ledger).await
}

#[tokio::test(flavor = "multi_thread")]
async fn placing_an_order_that_exists_spoils_nothing_for_those_who_change_it_at_the_same_time()
-> anyhow::Result<()> {
    let mut backend = Backend::start(1).await?.with_projector().await?;
    let ledger = Ledger::default();
    for _ in 0..RESTARTS {
        let caller = backend.caller()?;
        let orders: Vec<String> = (0..ORDERS).map(|_| new_order_id()).collect();
        join_all(
            orders
                .iter()
                .map(|id| ledger.send(&caller, place(id, "customer-1"))),
        )
        .await;
        // Nothing is in memory any more: who places takes the order for a new one.
        backend.commands[0].service.restart().await?;
        let mut calls = JoinSet::new();
        for id in orders {
            let (caller, ledger) = (caller.clone(), ledger.clone());
            calls.spawn(async move { place_and_change(&caller, &ledger, &id).await });
        }
        calls.join_all().await;
    }
    let tally = ledger.tally();
    assert_eq!(
        tally.refused,
        RESTARTS * ORDERS,
        "each second placing is refused: {tally:?}"
    );
    assert_eq!(tally.unknown, 0, "{tally:?}");
    let events = log::events(&backend.superuser).await?;
    assert_eq!(events.len(), RESTARTS * ORDERS * (1 + COMMANDS_EACH));
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}

/// Places an order that is there, with other lines, and adds to it without waiting for the answer.
async fn place_and_change(caller: &Caller, ledger: &Ledger, id: &str) {
    let mut other: PlaceOrderRequest = place(id, "customer-2");
    other.lines.truncate(1);
    other.expected_total_minor = None;
    let changes = (0..COMMANDS_EACH).map(|_| ledger.send(caller, command::add_line(id, "MC", 1, 500)));
    let (_, _) = futures::join!(ledger.send(caller, other), join_all(changes));
}
