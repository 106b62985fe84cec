//! Streams that stay open: what they show, that they resume without gap or repetition, and how they end.

mod ends;
mod forks;
mod large;
mod live;
mod resume;
mod tickets;

use daybook_tests::client::Caller;
use daybook_tests::sse::Stream;
use serde_json::Value;

/// The ids of the next events that a stream shows.
async fn event_ids(stream: &mut Stream, count: usize) -> anyhow::Result<Vec<String>> {
    let mut ids = Vec::with_capacity(count);
    while ids.len() < count {
        let event = stream.next().await?;
        anyhow::ensure!(event.name.is_empty(), "{event:?}");
        ids.push(text(&event.json()["event_id"]));
    }
    Ok(ids)
}

/// The positions of the next events that a stream shows.
async fn positions(stream: &mut Stream, count: usize) -> anyhow::Result<Vec<u64>> {
    let mut positions = Vec::with_capacity(count);
    while positions.len() < count {
        let event = stream.next().await?;
        anyhow::ensure!(event.name.is_empty(), "{event:?}");
        positions.push(event.position());
    }
    Ok(positions)
}

/// Changes an order again and again until there are so many events of it.
async fn change_until(caller: &Caller, id: &str, version: u64) -> anyhow::Result<()> {
    for quantity in 3.. {
        let receipt = caller.change_quantity(id, quantity, None).await?;
        if receipt.stream_version >= version {
            break;
        }
    }
    Ok(())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
