//! Callers that repeat old commands beside callers that send new ones, all on one order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use daybook_proto::orders::v1::ChangeLineQuantityRequest;
use daybook_tests::client::Caller;
use daybook_tests::command;
use daybook_tests::ledger::Ledger;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::stack::Backend;
use daybook_tests::{check, metrics};
use tokio::task::JoinSet;
use tonic::Status;

/// Callers that send new commands, and as many that repeat old ones.
const CALLERS: usize = 64;

/// New commands of each caller.
const COMMANDS_EACH: u32 = 50;

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_repeat_old_keys_of_an_order_keep_nobody_from_sending_new_ones() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let (caller, ledger) = (backend.caller()?, Ledger::default());
    let order_id = new_order_id();
    ledger.send(&caller, place(&order_id, "customer-1")).await?;
    let mut old = Vec::new();
    for number in 0..CALLERS {
        let quantity = u32::try_from(number + 1)?;
        let change = command::change_quantity(&order_id, quantity);
        ledger.send(&caller, change.clone()).await?;
        old.push(change);
    }

    let is_over = Arc::new(AtomicBool::new(false));
    let mut repeats = JoinSet::new();
    for change in old {
        repeats.spawn(repeat(
            caller.clone(),
            ledger.clone(),
            change,
            Arc::clone(&is_over),
        ));
    }
    let mut changes = JoinSet::new();
    for _ in 0..CALLERS {
        changes.spawn(change(caller.clone(), ledger.clone(), order_id.clone()));
    }
    while let Some(changed) = changes.join_next().await {
        changed??;
    }
    is_over.store(true, Ordering::Relaxed);
    let mut repeated = 0;
    while let Some(repeats) = repeats.join_next().await {
        repeated += repeats??;
    }

    let events = check::recorded(&backend.superuser, &ledger).await?;
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

async fn change(caller: Caller, ledger: Ledger, order_id: String) -> Result<(), Status> {
    for quantity in 1..=COMMANDS_EACH {
        let change = command::change_quantity(&order_id, quantity);
        ledger.send(&caller, change).await?;
    }
    Ok(())
}

/// Sends a command again and again, and counts how often. The ledger sees to it that each answer is as the first one.
async fn repeat(
    caller: Caller,
    ledger: Ledger,
    change: ChangeLineQuantityRequest,
    is_over: Arc<AtomicBool>,
) -> Result<usize, Status> {
    let mut repeats = 0;
    while !is_over.load(Ordering::Relaxed) {
        ledger.send(&caller, change.clone()).await?;
        repeats += 1;
    }
    Ok(repeats)
}
