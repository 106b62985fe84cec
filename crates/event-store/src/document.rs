//! An event as JSON has it for callers: in histories, in feeds and streams, and in files.

use serde::Serialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::serde::rfc3339;
use uuid::Uuid;

use crate::RecordedEvent;

/// An event as it was recorded.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = Event))]
pub struct EventDocument<'a> {
    /// The event's UUID.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "uuid"))]
    pub event_id: Uuid,
    /// What happened.
    pub event_type: &'a str,
    /// The version of the payload's schema as it was written.
    pub schema_version: u32,
    /// The partition of the log.
    pub partition: i32,
    /// The position in that partition.
    pub position: u64,
    /// The aggregate's TypeID.
    pub stream_id: &'a str,
    /// The event's number within its aggregate, from 1.
    pub stream_version: u64,
    /// What was recorded, byte for byte. Its schema is that of the event's type and schema version.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub payload: &'a RawValue,
    /// Who, why and what caused it, byte for byte as it was recorded.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::Metadata))]
    pub metadata: &'a RawValue,
    /// When it was committed, by the database's clock.
    #[serde(with = "rfc3339")]
    pub recorded_at: OffsetDateTime,
}

impl<'a> EventDocument<'a> {
    /// The event as it is shown. Payload and metadata are only checked to be JSON.
    ///
    /// # Errors
    /// When they are not.
    pub fn of(recorded: &'a RecordedEvent) -> Result<Self, serde_json::Error> {
        Ok(Self {
            event_id: recorded.event_id,
            event_type: &recorded.event_type,
            schema_version: recorded.schema_version,
            partition: recorded.partition,
            position: recorded.position,
            stream_id: &recorded.stream_id,
            stream_version: recorded.stream_version,
            payload: serde_json::from_str(&recorded.payload)?,
            metadata: serde_json::from_str(&recorded.metadata)?,
            recorded_at: recorded.recorded_at,
        })
    }
}
