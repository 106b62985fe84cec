//! Walking a list while writers write: what was there before comes once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, ensure};
use daybook_proto::common::v1::CommandContext;
use daybook_proto::convert::to_timestamp;
use daybook_proto::orders::v1::PlaceOrderRequest;
use daybook_tests::client::Caller;
use daybook_tests::command;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::stack::Stack;
use futures::future::try_join_all;
use time::Duration;
use time::macros::datetime;
use tokio::task::JoinSet;

use crate::lists::all;

/// How many orders there are before.
const ORDERS: usize = 60;

/// The orders of a customer, and of a currency.
const CUSTOMER: &str = "customer-1";

/// The lists: none of them sorts by what the writers change of the orders that were there before.
const LISTS: [&str; 9] = [
    "sort=placed_at",
    "sort=-placed_at",
    "sort=order_id",
    "sort=-order_id",
    "customer_id=customer-1&sort=placed_at",
    "customer_id=customer-1",
    "currency=USD&sort=placed_at",
    "currency=USD&sort=-placed_at",
    "q=web-",
];

/// An order that comes first or last in the lists, in turn.
fn new_order(number: i64) -> PlaceOrderRequest {
    let mut order = place(&new_order_id(), CUSTOMER);
    order.reference = format!("web-{number}");
    if number % 8 == 0 {
        let long_ago = datetime!(2020-01-01 00:00 UTC) + Duration::seconds(number);
        order.context = Some(CommandContext {
            occurred_at: Some(to_timestamp(long_ago)),
            ..Default::default()
        });
    }
    order
}

/// Writes until it is stopped: places orders at both ends of the list, and confirms, cancels and changes those that were there
/// before, each of which is then found under another status or with another total.
async fn write(
    caller: Caller,
    before: Arc<[String]>,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    for number in 0_i64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if number % 4 == 0 {
            caller.send(new_order(number)).await?;
        }
        let order_id = &before[usize::try_from(number)? % before.len()];
        // What the domain refuses the second time is no change either.
        let quantity = u32::try_from(number % 7)? + 1;
        let _ = caller.change_quantity(order_id, quantity, None).await;
        // Some stay as they are, so that their totals go on changing.
        if number % 6 == 0 {
            let _ = caller.send(command::confirm(order_id)).await;
        } else if number % 6 == 1 {
            let _ = caller.send(command::cancel(order_id)).await;
        }
        written.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[tokio::test]
async fn what_was_there_before_comes_once_however_much_is_written_meanwhile() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let placing = (0..ORDERS).map(|number| {
        let caller = caller.clone();
        async move {
            let mut order = place(&new_order_id(), CUSTOMER);
            order.reference = format!("web-{number}");
            let id = order.order_id.clone();
            anyhow::Ok((id, caller.send(order).await?))
        }
    });
    let placed = try_join_all(placing).await?;
    for (_, receipt) in &placed {
        let seen = caller.get_after(&receipt.consistency_token, "/v1/orders").await?;
        assert_eq!(seen.status, 200, "{}", seen.json());
    }
    let before: Arc<[String]> = placed.into_iter().map(|(id, _)| id).collect();

    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut writers = JoinSet::new();
    for _ in 0..4 {
        writers.spawn(write(
            caller.clone(),
            Arc::clone(&before),
            Arc::clone(&stop),
            Arc::clone(&written),
        ));
    }
    for list in LISTS {
        // Until something was written in the middle of it twice.
        let mut disturbed = 0;
        while disturbed < 2 {
            let at_first = written.load(Ordering::Relaxed);
            walk(&caller, list, &before).await?;
            disturbed += u32::from(written.load(Ordering::Relaxed) > at_first);
        }
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    Ok(())
}

/// Walks through all pages.
async fn walk(caller: &Caller, list: &str, before: &[String]) -> anyhow::Result<()> {
    let mut times: HashMap<String, u32> = HashMap::new();
    for order in all(caller, &format!("/v1/orders?limit=7&fields=order_id&{list}")).await? {
        let id = order["order_id"].as_str().context("an id")?;
        *times.entry(id.to_owned()).or_default() += 1;
    }
    let repeated: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    ensure!(repeated.is_empty(), "{list} repeats {repeated:?}");
    let skipped: Vec<_> = before.iter().filter(|id| !times.contains_key(*id)).collect();
    ensure!(skipped.is_empty(), "{list} skips {skipped:?}");
    Ok(())
}
