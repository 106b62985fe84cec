//! Streams that stay open: what they show, that they resume without gap or repetition, and how they end.

mod ends;
mod live;
mod resume;
mod tickets;

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

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
