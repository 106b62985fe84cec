//! The log as it is in Postgres, read as superuser.

use daybook_event_store::{EventStore, RecordedEvent};
use sqlx::PgPool;

/// The partition that every test's tenants live in.
pub const PARTITION: i32 = 0;

/// Events in one read.
const READ_EVENTS_MAX: u32 = 10_000;

/// The position of the newest event.
///
/// # Errors
/// When the database does not answer.
pub async fn head(superuser: &PgPool) -> anyhow::Result<u64> {
    let log = EventStore::new(superuser.clone());
    Ok(log.head(PARTITION).await?.position)
}

/// Every event of every tenant, in order.
///
/// # Errors
/// When the database does not answer.
pub async fn events(superuser: &PgPool) -> anyhow::Result<Vec<RecordedEvent>> {
    let log = EventStore::new(superuser.clone());
    let mut events = Vec::<RecordedEvent>::new();
    loop {
        let last = events.last().map_or(0, |event| event.position);
        let read = log.read_log(PARTITION, last, READ_EVENTS_MAX).await?;
        if read.is_empty() {
            return Ok(events);
        }
        events.extend(read);
    }
}

/// The events of one aggregate, in order.
///
/// # Errors
/// When the database does not answer.
pub async fn stream(superuser: &PgPool, stream_id: &str) -> anyhow::Result<Vec<RecordedEvent>> {
    let mut events = events(superuser).await?;
    events.retain(|event| event.stream_id == stream_id);
    Ok(events)
}
