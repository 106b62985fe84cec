//! Callers that repeat old commands beside callers that send new ones, all on one order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use daybook_proto::common::v1::Receipt;
use daybook_proto::orders::v1::ChangeLineQuantityRequest;
use daybook_tests::client::Caller;
use daybook_tests::command;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::stack::Backend;
use daybook_tests::{check, log, metrics};
use tokio::task::JoinSet;
use tonic::Status;

/// Callers that send new commands, and as many that repeat old ones.
const CALLERS: usize = 64;

/// New commands of each caller.
const COMMANDS_EACH: u32 = 50;

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_repeat_old_keys_of_an_order_keep_nobody_from_sending_new_ones() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let caller = backend.caller()?;
    let order_id = new_order_id();
    caller.send(place(&order_id, "customer-1")).await?;
    let mut old = Vec::new();
    for number in 0..CALLERS {
        let quantity = u32::try_from(number + 1)?;
        let change = command::change_quantity(&order_id, quantity);
        old.push((change.clone(), caller.send(change).await?));
    }

    let is_over = Arc::new(AtomicBool::new(false));
    let mut repeats = JoinSet::new();
    for (change, receipt) in old {
        repeats.spawn(repeat(caller.clone(), change, receipt, Arc::clone(&is_over)));
    }
    let mut changes = JoinSet::new();
    for _ in 0..CALLERS {
        changes.spawn(change(caller.clone(), order_id.clone()));
    }
    while let Some(changed) = changes.join_next().await {
        changed??;
    }
    is_over.store(true, Ordering::Relaxed);
    let mut repeated = 0;
    while let Some(repeats) = repeats.join_next().await {
        repeated += repeats??;
    }

    let events = log::events(&backend.superuser).await?;
    check::log(&events)?;
    let sent = CALLERS * COMMANDS_EACH as usize;
    assert_eq!(events.len(), 1 + CALLERS + sent);
    assert!(repeated >= CALLERS, "nobody repeated anything");
    // A repeated command may send those behind it back once. Where each of them did, new commands would starve.
    let retries = metrics::sum(backend.commands[0].admin, "daybook_mailbox_retries_total").await?;
    eprintln!("{repeated} repeats and {retries} retries beside {sent} commands");
    assert!(
        retries <= (sent + repeated) as f64,
        "{retries} retries for {sent} commands and {repeated} repeats"
    );
    Ok(())
}

async fn change(caller: Caller, order_id: String) -> Result<(), Status> {
    for quantity in 1..=COMMANDS_EACH {
        caller.send(command::change_quantity(&order_id, quantity)).await?;
    }
    Ok(())
}

/// Sends a command again and again, and counts how often it was answered as the first time.
async fn repeat(
    caller: Caller,
    change: ChangeLineQuantityRequest,
    receipt: Receipt,
    is_over: Arc<AtomicBool>,
) -> anyhow::Result<usize> {
    let mut repeats = 0;
    while !is_over.load(Ordering::Relaxed) {
        let again = caller.send(change.clone()).await?;
        anyhow::ensure!(again == receipt, "another answer to the same command: {again:?}");
        repeats += 1;
    }
    Ok(repeats)
}
