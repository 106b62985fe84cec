//! The log as it is in Postgres, read by whoever may, and what is appended where no service does.

use daybook_domain::event::Event;
use daybook_event_store::{
    Appender, Decision, EventStore, Intent, Judgement, NewCommand, NewEvent, RecordedEvent, Unanswered,
    Verdict, chains,
};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::sync::oneshot;
use uuid::Uuid;

/// The partition that every test's tenants live in.
pub const PARTITION: i32 = 0;

/// Events in one read.
const READ_EVENTS_MAX: u32 = 10_000;

/// The position of the newest event.
///
/// # Errors
/// When the database does not answer.
pub async fn head(reader: &PgPool) -> anyhow::Result<u64> {
    let log = EventStore::new(reader.clone());
    Ok(log.head(PARTITION).await?.position)
}

/// Every event of every tenant, in order.
///
/// # Errors
/// When the database does not answer.
pub async fn events(reader: &PgPool) -> anyhow::Result<Vec<RecordedEvent>> {
    events_after(reader, 0).await
}

/// The same, behind a position.
///
/// # Errors
/// When the database does not answer.
pub async fn events_after(reader: &PgPool, position: u64) -> anyhow::Result<Vec<RecordedEvent>> {
    let log = EventStore::new(reader.clone());
    let mut events = Vec::<RecordedEvent>::new();
    loop {
        let last = events.last().map_or(position, |event| event.position);
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

/// Appends a command, and waits for the verdict on it.
///
/// # Errors
/// When it is not admitted, or there is no verdict.
pub async fn append_one(appender: &Appender, command: NewCommand) -> anyhow::Result<Verdict> {
    let _permit = appender.admit(command.tenant_id, 0)?;
    let (answer, verdict) = oneshot::channel();
    appender.submit(command, Box::new(|verdict| drop(answer.send(verdict))));
    Ok(verdict.await.unwrap_or(Err(Unanswered::Stopped))?)
}

/// Whether all of a batch is written.
#[must_use]
pub fn is_written_whole(commands: &[NewCommand], judgement: &Judgement) -> bool {
    let ends = chains(commands).into_iter().map(|chain| chain.end);
    judgement.known.is_empty() && judgement.chains.iter().map(|chain| chain.written_end).eq(ends)
}

/// Takes the events behind a position out of the log, as a backup that is put back does, and opens the next epoch there.
///
/// # Errors
/// When the database does not answer.
pub async fn set_back(superuser: &PgPool, position: u64) -> anyhow::Result<()> {
    let mut connection = superuser.acquire().await?;
    for statement in [
        "SET session_replication_role = replica",
        &format!("DELETE FROM event_store.event WHERE position > {position}"),
        "RESET session_replication_role",
        "SELECT event_store.fork(0, 1, 'a backup was put back')",
    ] {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Metadata of the usual size: those of every [`command`].
pub const METADATA: &str = r#"{"correlation_id":"0192f0c1-7b1c-7d3a-8f00-000000000000","principal":"key:abc % fg","command":"PlaceOrder","idempotency_key":"0192f0c1-7b1c-7d3a-8f00-000000000000","received_at_us":1732000000000000}"#;

/// A command that writes these events of an order under a key of its own, decided on the newest event of its stream.
#[must_use]
pub fn command(
    tenant_id: Uuid,
    stream_id: &str,
    decided_on: Option<Uuid>,
    events: Vec<NewEvent>,
) -> NewCommand {
    NewCommand {
        tenant_id,
        key: Uuid::now_v7().to_string().into(),
        fingerprints: vec![7],
        stream_id: stream_id.into(),
        category: "order",
        group: None,
        intent: Intent::Write(Decision {
            decided_on,
            metadata: METADATA.into(),
            events,
            rejection: None,
        }),
    }
}

/// An event of a domain, as it is appended.
#[must_use]
pub fn encoded(event: &impl Event) -> NewEvent {
    NewEvent {
        event_type: event.event_type(),
        schema_version: event.schema_version(),
        ..self::event(event.encode())
    }
}

/// An event that no domain knows.
#[must_use]
pub fn event(payload: String) -> NewEvent {
    NewEvent {
        event_id: Uuid::from_u128(rand::random()),
        event_type: "test.happened",
        schema_version: 1,
        payload,
    }
}
