//! A command's outcome on its way into the log, and what became of it.

use std::sync::Arc;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::lineage::EpochId;

/// A command's outcome on its way into the log.
#[derive(Debug, Clone)]
pub struct NewCommand {
    /// Whose stream it is.
    pub tenant_id: Uuid,
    /// The caller's idempotency key, unique within the tenant.
    pub key: Arc<str>,
    /// 64 bits each of keyed hashes of the command's content. The first is stored; a stored one that equals any of them is of
    /// the same content.
    pub fingerprints: Vec<i64>,
    /// The stream that the events go to.
    pub stream_id: Arc<str>,
    /// The stream's kind ("order").
    pub category: &'static str,
    /// Commands of one group are recorded all together or not at all. Each has a stream of its own, and they are side by side
    /// in their batch. `None` for one that stands by itself.
    pub group: Option<Uuid>,
    /// The decision to record, or the question whether its key is known.
    pub intent: Intent,
}

/// The purpose of a command in a batch.
#[derive(Debug, Clone)]
pub enum Intent {
    /// Record what it was decided to lead to.
    Write(Decision),
    /// Record nothing: tell whether its key is known, and what the newest event of its stream is.
    Ask,
}

/// The events of a command, and the state that it was decided on.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The newest event in that state; `None` for a stream without events.
    pub decided_on: Option<Uuid>,
    /// [`crate::Metadata`] as JSON, shared by the events.
    pub metadata: Arc<str>,
    /// The events; none for a refusal, or where nothing changes.
    pub events: Vec<NewEvent>,
    /// The domain's refusal as JSON, remembered under the key like a success.
    pub rejection: Option<String>,
}

impl Decision {
    /// The newest event in the state after it.
    #[must_use]
    pub fn leads_to(&self) -> Option<Uuid> {
        self.events.last().map(|event| event.event_id).or(self.decided_on)
    }
}

/// An event that has no position yet.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// The event's own id, drawn at random for each decision.
    pub event_id: Uuid,
    /// The event's type ("order.placed").
    pub event_type: &'static str,
    /// The version of the payload's schema.
    pub schema_version: u32,
    /// The payload, a JSON text.
    pub payload: String,
}

/// The result of a command; the same key and content always gives an equal one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The stream that the command was for.
    pub stream_id: Arc<str>,
    /// The stream's version after the command.
    pub stream_version: u64,
    /// The partition of the log.
    pub partition: i32,
    /// The positions of its events are `first_position..first_position + event_count`. A command without events has the
    /// position of the newest event that it was decided on, 0 when there was none.
    pub first_position: u64,
    /// How many events the command has; 0 for a refusal.
    pub event_count: u32,
    /// The epoch that recorded it. A command without events that is answered again after a fork of the log's history has the
    /// newest one.
    pub epoch: EpochId,
    /// When it was committed, by the database's clock.
    pub recorded_at: OffsetDateTime,
    /// The domain's refusal as JSON, when the command was refused.
    pub rejection: Option<String>,
}

impl Receipt {
    /// The position of the newest event of the command, or, when it has none, of the newest that it was decided on;
    /// `None` when there is neither.
    #[must_use]
    pub fn last_position(&self) -> Option<u64> {
        let last = self.first_position + u64::from(self.event_count).saturating_sub(1);
        (last > 0).then_some(last)
    }
}

/// The newest event of a stream, as an append found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// Its id; `None` when the stream has no events.
    pub event_id: Option<Uuid>,
    /// Its version, 0 when there is none.
    pub version: u64,
    /// Its position, 0 when there is none.
    pub position: u64,
}

/// The log's answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its events are committed.
    Appended(Receipt),
    /// It was decided on something else than what is recorded; nothing was written.
    Conflict(Newest),
    /// The key was used before with the same content: the first receipt.
    Replayed(Receipt),
    /// The key was used before with other content; nothing was written.
    KeyReused,
    /// The answer to [`Intent::Ask`]: the key was not used.
    KeyIsNew(Newest),
}
