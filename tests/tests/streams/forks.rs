//! Streams of a log that goes on in another history: nobody is shown two of them as if they were one.

use daybook_devstack::proxy::Direction;
use daybook_tests::client::Caller;
use daybook_tests::network::Network;
use daybook_tests::orders::new_order_id;
use daybook_tests::sse::Source;
use daybook_tests::stack::{Role, Stack};
use daybook_tests::{check, log, wait};

use super::{change_until, positions, text};

const EVENTS: &str = "/v1/events/stream?after_position=0";
const ORDERS: &str = "/v1/orders/stream";

/// Sets the log back while nobody writes. Who writes is started again by [`go_on`].
async fn stop_and_set_back(stack: &mut Stack, position: u64) -> anyhow::Result<()> {
    for running in [&mut stack.command, &mut stack.projector] {
        running.service.stop().await?;
    }
    log::set_back(&stack.superuser, position).await
}

async fn go_on(stack: &mut Stack) -> anyhow::Result<()> {
    for running in [&mut stack.command, &mut stack.projector] {
        running.service.restart().await?;
    }
    Ok(())
}

async fn place(caller: &Caller, count: usize) -> anyhow::Result<()> {
    for _ in 0..count {
        caller.place(&new_order_id(), "customer-1").await?;
    }
    Ok(())
}

/// The first order that is accepted behind a fork.
async fn place_behind_the_fork(caller: &Caller) -> anyhow::Result<String> {
    wait::value("a command is accepted behind the fork", async || {
        let id = new_order_id();
        let placed = caller.place(&id, "customer-2").await;
        Ok(placed.is_ok().then_some(id))
    })
    .await
}

#[tokio::test]
async fn a_stream_beyond_a_fork_of_the_log_is_told_to_read_anew_and_one_before_it_goes_on()
-> anyhow::Result<()> {
    let mut stack = Stack::start().await?;
    let (caller, key) = (stack.caller()?, stack.tenant.auditor_key.clone());
    let address = stack.query.address;
    place(&caller, 1).await?;
    let mut before = Source::new(address, EVENTS, &key).open().await?;
    let before = before.next().await?;
    place(&caller, 5).await?;
    let mut beyond = Source::new(address, EVENTS, &key).open().await?;
    assert_eq!(positions(&mut beyond, 6).await?, [1, 2, 3, 4, 5, 6]);
    let gone_id = beyond.last_id().to_owned();
    stop_and_set_back(&mut stack, 3).await?;
    let reset = beyond.next().await?;
    assert_eq!(reset.name, "reset");
    assert_eq!(reset.json()["code"], "POSITION_UNKNOWN");
    let mut gone = Source::new(address, EVENTS, &key).behind(&gone_id).open().await?;
    assert_eq!(gone.next().await?.name, "reset");
    go_on(&mut stack).await?;
    place_behind_the_fork(&caller).await?;
    let mut resumed = Source::new(address, EVENTS, &key)
        .behind(&before.id)
        .open()
        .await?;
    assert_eq!(positions(&mut resumed, 3).await?, [2, 3, 4]);
    for stream in [&mut beyond, &mut gone] {
        assert_eq!(positions(stream, 1).await?, [4], "it goes on with what is new");
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_of_orders_beyond_a_fork_is_told_to_read_anew_when_the_list_is_of_the_new_history()
-> anyhow::Result<()> {
    let mut stack = Stack::start().await?;
    let (caller, key) = (stack.caller()?, stack.tenant.frontend_key.clone());
    let source = Source::new(stack.query.address, ORDERS, &key);
    let mut beyond = source.open().await?;
    place(&caller, 6).await?;
    for _ in 0..6 {
        assert_eq!(beyond.next().await?.name, "");
    }
    let gone_id = beyond.last_id().to_owned();
    stop_and_set_back(&mut stack, 3).await?;
    let mut gone = source.clone().behind(&gone_id).open().await?;
    go_on(&mut stack).await?;
    for stream in [&mut beyond, &mut gone] {
        let reset = stream.next().await?;
        assert_eq!(reset.name, "reset", "{reset:?}");
        assert_eq!(reset.json()["code"], "POSITION_UNKNOWN");
    }
    let orders = caller.get("/v1/orders").await?.json();
    assert_eq!(orders["data"].as_array().map(Vec::len), Some(3), "{orders}");
    let mut new = source.open().await?;
    let id = place_behind_the_fork(&caller).await?;
    for stream in [&mut beyond, &mut gone, &mut new] {
        let shown = stream.next().await?.json();
        assert_eq!(text(&shown["order_id"]), id, "{shown}");
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_of_orders_that_is_opened_while_the_list_is_of_a_lost_history_goes_on_with_what_is_new()
-> anyhow::Result<()> {
    let mut stack = Stack::start().await?;
    let (caller, key) = (stack.caller()?, stack.tenant.frontend_key.clone());
    place(&caller, 6).await?;
    check::caught_up(&stack.superuser).await?;
    stop_and_set_back(&mut stack, 3).await?;
    stack.query.service.restart().await?;
    let mut opened = Source::new(stack.query.address, ORDERS, &key).open().await?;
    go_on(&mut stack).await?;
    let reset = opened.next().await?;
    assert_eq!(reset.name, "reset", "{reset:?}");
    let id = place_behind_the_fork(&caller).await?;
    let shown = opened.next().await?.json();
    assert_eq!(text(&shown["order_id"]), id, "{shown}");
    Ok(())
}

#[tokio::test]
async fn who_was_shown_more_than_its_instance_had_read_is_told_of_a_fork_behind_that() -> anyhow::Result<()> {
    let mut stack = Stack::start().await?;
    let (caller, key) = (stack.caller()?, stack.tenant.auditor_key.clone());
    let network = Network::between(&stack.servers, Role::Query).await?;
    let other = stack.servers.run(Role::Query, &network.environment()).await?;
    place(&caller, 1).await?;
    let behind = Source::new(other.address, EVENTS, &key);
    let mut behind_the_first = behind.open().await?;
    assert_eq!(positions(&mut behind_the_first, 1).await?, [1]);
    network.postgres.black_hole(Direction::Both);
    place(&caller, 5).await?;
    let mut ahead = Source::new(stack.query.address, EVENTS, &key).open().await?;
    assert_eq!(positions(&mut ahead, 6).await?, [1, 2, 3, 4, 5, 6]);
    let resumed = behind.behind(ahead.last_id());
    let mut resumed = wait::value("the stream is resumed elsewhere", async || {
        Ok(resumed.open().await.ok())
    })
    .await?;
    stop_and_set_back(&mut stack, 3).await?;
    go_on(&mut stack).await?;
    place_behind_the_fork(&caller).await?;
    place(&caller, 4).await?;
    network.postgres.heal();
    network.postgres.reset();
    let reset = resumed.next().await?;
    assert_eq!(reset.name, "reset", "{reset:?}");
    assert_eq!(
        positions(&mut behind_the_first, 7).await?,
        [2, 3, 4, 5, 6, 7, 8],
        "the log has all that this one was shown"
    );
    place(&caller, 1).await?;
    for stream in [&mut resumed, &mut behind_the_first] {
        assert_eq!(positions(stream, 1).await?, [9]);
    }
    Ok(())
}

#[tokio::test]
async fn who_still_catches_up_beyond_a_fork_is_told_to_read_anew() -> anyhow::Result<()> {
    const EVENTS_BEFORE: usize = 250;
    let mut stack = Stack::start().await?;
    let (caller, key) = (stack.caller()?, stack.tenant.auditor_key.clone());
    let id = new_order_id();
    caller.place(&id, "customer-1").await?;
    change_until(&caller, &id, EVENTS_BEFORE as u64).await?;
    // It takes a few KiB, and waits in the middle of what it has not been shown.
    let mut slow = Source::new(stack.query.address, EVENTS, &key).open_slow().await?;
    stop_and_set_back(&mut stack, 3).await?;
    let mut shown = 0;
    let told = loop {
        let event = slow.next().await?;
        match event.name.as_str() {
            "" => shown += 1,
            _ => break event,
        }
    };
    assert_eq!(told.name, "reset", "{told:?}");
    assert!(shown < EVENTS_BEFORE, "it had all before");
    go_on(&mut stack).await?;
    place_behind_the_fork(&caller).await?;
    assert_eq!(positions(&mut slow, 1).await?, [4]);
    Ok(())
}
