//! Streams of large events: whoever catches up is shown all of them, and whoever takes none has the process hold little.

use anyhow::ensure;
use daybook_tests::log;
use daybook_tests::metrics;
use daybook_tests::orders::new_order_id;
use daybook_tests::sse::Source;
use daybook_tests::stack::Stack;
use serde_json::json;

use super::positions;

/// How many events the order has.
const EVENTS: usize = 40;

/// How many readers take nothing.
const SLOW_READERS: usize = 30;

/// How much more memory all of them together may cost, in KiB.
const MEMORY_KIB_MAX: u64 = 64 * 1_024;

/// Records events of so many bytes, all of one order, and gives the path of their stream.
async fn record(stack: &Stack, bytes: usize) -> anyhow::Result<String> {
    let id = new_order_id();
    let pool = stack.servers.database.pool("daybook_command").await?;
    let mut connection = pool.acquire().await?;
    let mut decided_on = None;
    for _ in 0..EVENTS {
        let event = log::event(json!({"text": "x".repeat(bytes)}).to_string());
        let event_id = event.event_id;
        let command = log::command(stack.tenant.tenant_id, &id, decided_on, vec![event]);
        let judgement = daybook_event_store::append(&mut connection, log::PARTITION, &[command]).await?;
        ensure!(judgement.chains[0].written_end == 1, "{judgement:?}");
        decided_on = Some(event_id);
    }
    Ok(format!("/v1/orders/{id}/events/stream?after_position=0"))
}

fn all() -> Vec<u64> {
    (1..=EVENTS as u64).collect()
}

#[tokio::test]
async fn whoever_catches_up_with_large_events_is_shown_all_of_them() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    // More of them than the log gives at once.
    let path = record(&stack, 400_000).await?;
    let mut stream = Source::new(stack.query.address, &path, &stack.tenant.auditor_key)
        .open()
        .await?;
    assert_eq!(positions(&mut stream, EVENTS).await?, all());
    Ok(())
}

#[tokio::test]
async fn readers_of_large_events_who_take_nothing_have_the_process_hold_little() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let path = record(&stack, 100_000).await?;
    let source = Source::new(stack.query.address, &path, &stack.tenant.auditor_key);
    assert_eq!(positions(&mut source.open().await?, EVENTS).await?, all());
    let before = stack.query.memory_kib_max()?;
    let mut slow = Vec::with_capacity(SLOW_READERS);
    for _ in 0..SLOW_READERS {
        slow.push(source.open_slow().await?);
    }
    for stream in &mut slow {
        assert_eq!(positions(stream, 1).await?, [1]);
    }
    let shown = metrics::sum(stack.query.admin, "daybook_stream_deliveries_total").await?;
    ensure!(shown >= (EVENTS + SLOW_READERS) as f64, "{shown}");
    let grown = stack.query.memory_kib_max()? - before;
    ensure!(grown < MEMORY_KIB_MAX, "{grown} KiB more");
    Ok(())
}
