//! Many callers at once: order within an aggregate, one winner for each version.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, ensure};
use daybook_tests::client::Caller;
use daybook_tests::command::{self, Command};
use daybook_tests::ledger::Ledger;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::refusal::{code, value};
use daybook_tests::stack::Backend;
use daybook_tests::{check, metrics};
use futures::future::try_join_all;
use tokio::task::JoinSet;

/// How many callers there are.
const CALLERS: usize = 64;

/// How many commands each of them sends to the one order.
const COMMANDS_EACH: u32 = 20;

/// How many orders the writers race on.
const STREAMS: usize = 20;

/// How often each writer must have won.
const WINS_EACH: usize = 10;

#[tokio::test]
async fn sixty_four_callers_of_one_order_see_no_conflict_whichever_service_they_ask() -> anyhow::Result<()> {
    let backend = Backend::start(2).await?;
    let order_id = new_order_id();
    let ledger = Ledger::default();
    // All through one service, and then through both.
    let callers = backend.callers()?;
    ledger.send(&callers[0], place(&order_id, "customer-1")).await?;
    hammer(&callers[..1], &ledger, &order_id).await?;
    hammer(&callers, &ledger, &order_id).await?;

    let events = check::recorded(&backend.superuser, &ledger).await?;
    assert_eq!(events.len(), 1 + 2 * CALLERS * COMMANDS_EACH as usize);
    let mut retries = 0.0;
    for service in &backend.commands {
        retries += metrics::sum(service.admin, "daybook_mailbox_retries_total").await?;
    }
    assert!(
        retries > 0.0,
        "two services never got into each other's way: nothing was tried"
    );
    Ok(())
}

/// Every caller changes the quantity, one command after another; each receipt is newer than the one before.
async fn hammer(services: &[Caller], ledger: &Ledger, order_id: &str) -> anyhow::Result<()> {
    let calls = (0..CALLERS).map(async |number| {
        let caller = &services[number % services.len()];
        let mut newest = 0;
        for quantity in 1..=COMMANDS_EACH {
            let change = command::change_quantity(order_id, quantity);
            let receipt = ledger.send(caller, change).await?;
            ensure!(
                receipt.stream_version > newest,
                "version {} came after {newest}",
                receipt.stream_version
            );
            newest = receipt.stream_version;
        }
        Ok(())
    });
    try_join_all(calls).await.map(drop)
}

#[tokio::test]
async fn of_sixty_four_writers_who_expect_the_same_version_one_wins_through_either_service()
-> anyhow::Result<()> {
    let backend = Backend::start(2).await?;
    let callers = backend.callers()?;
    let order_ids: Arc<[String]> = (0..STREAMS).map(|_| new_order_id()).collect();
    let ledger = Ledger::default();
    for order_id in order_ids.iter() {
        ledger.send(&callers[0], place(order_id, "customer-1")).await?;
    }
    let conflicts = Arc::new(AtomicUsize::new(0));
    let mut writers = JoinSet::new();
    for number in 0..CALLERS {
        let writer = Writer {
            caller: callers[number % 2].clone(),
            ledger: ledger.clone(),
            order_ids: Arc::clone(&order_ids),
            conflicts: Arc::clone(&conflicts),
        };
        writers.spawn(writer.win(number));
    }
    let mut wins = HashMap::new();
    while let Some(won) = writers.join_next().await {
        for (order_id, version) in won?? {
            let winners: &mut usize = wins.entry((order_id, version)).or_default();
            *winners += 1;
            assert_eq!(*winners, 1, "two writers won the same version");
        }
    }

    let events = check::recorded(&backend.superuser, &ledger).await?;
    assert_eq!(events.len(), STREAMS + CALLERS * WINS_EACH);
    assert_eq!(wins.len(), CALLERS * WINS_EACH);
    for event in events.iter().filter(|event| event.stream_version > 1) {
        assert!(wins.contains_key(&(event.stream_id.clone(), event.stream_version)));
    }
    assert!(
        conflicts.load(Ordering::Relaxed) > CALLERS,
        "the writers did not race"
    );
    Ok(())
}

struct Writer {
    caller: Caller,
    ledger: Ledger,
    order_ids: Arc<[String]>,
    conflicts: Arc<AtomicUsize>,
}

impl Writer {
    /// Writes to one order after another, until it has won often enough; returns what it won.
    async fn win(self, number: usize) -> anyhow::Result<Vec<(String, u64)>> {
        let mut believed = [1_u64; STREAMS];
        let mut won = Vec::new();
        for turn in number.. {
            if won.len() == WINS_EACH {
                break;
            }
            let (order_id, expected) = (&self.order_ids[turn % STREAMS], &mut believed[turn % STREAMS]);
            let quantity = u32::try_from(turn % 100 + 1)?;
            let change = command::change_quantity(order_id, quantity).expecting(*expected);
            match self.ledger.send(&self.caller, change).await {
                Ok(receipt) => {
                    ensure!(
                        receipt.stream_version == *expected + 1,
                        "who expects {expected} cannot get {}",
                        receipt.stream_version
                    );
                    won.push((order_id.clone(), receipt.stream_version));
                    *expected = receipt.stream_version;
                }
                Err(status) => {
                    ensure!(code(&status) == "VERSION_CONFLICT", "{status:?}");
                    self.conflicts.fetch_add(1, Ordering::Relaxed);
                    *expected = value(&status, "actual_version")
                        .parse()
                        .context("a conflict says the version")?;
                }
            }
        }
        Ok(won)
    }
}
