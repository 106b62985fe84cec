//! Events as they are recorded, and what is recorded beside their payload.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;
use uuid::Uuid;

/// An event as the log holds it. Payload and metadata are JSON, byte for byte as they were appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedEvent {
    /// The partition of the log.
    pub partition: i32,
    /// The position in the partition: 1, 2, 3, … without holes, in commit order.
    pub position: u64,
    /// Whose event it is.
    pub tenant_id: Uuid,
    /// The kind of aggregate ("order").
    pub category: String,
    /// The aggregate's id.
    pub stream_id: String,
    /// 1, 2, 3, … within the stream.
    pub stream_version: u64,
    /// The event's own id.
    pub event_id: Uuid,
    /// The event's type ("order.placed").
    pub event_type: String,
    /// The version of the payload's schema.
    pub schema_version: u32,
    /// The payload, a JSON text.
    pub payload: String,
    /// [`Metadata`] as a JSON text; the events of one command share it.
    pub metadata: Arc<str>,
    /// When it was committed, by the database's clock; never decreases along the positions of a partition.
    pub recorded_at: OffsetDateTime,
}

impl RecordedEvent {
    /// Reads a row with the columns of `event_store.event`, but for the tenant's id in place of its number.
    pub(crate) fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            partition: row.try_get("partition")?,
            position: row.try_get::<i64, _>("position")?.cast_unsigned(),
            tenant_id: row.try_get("tenant_id")?,
            category: row.try_get("category")?,
            stream_id: row.try_get("stream_id")?,
            stream_version: row.try_get::<i64, _>("stream_version")?.cast_unsigned(),
            event_id: row.try_get("event_id")?,
            event_type: row.try_get("event_type")?,
            schema_version: row.try_get::<i32, _>("schema_version")?.cast_unsigned(),
            payload: row.try_get("payload")?,
            metadata: row.try_get::<&str, _>("metadata")?.into(),
            recorded_at: row.try_get("recorded_at")?,
        })
    }

    /// About how many bytes of memory it takes. The events of one command share their metadata; here each is charged for
    /// them.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let names = self.category.len() + self.stream_id.len() + self.event_type.len();
        size_of::<Self>() + names + self.payload.len() + self.metadata.len()
    }

    /// The metadata, decoded; what cannot be read is absent.
    pub fn decoded_metadata(&self) -> Metadata {
        serde_json::from_str(&self.metadata).unwrap_or_default()
    }
}

/// Who did it, why, and what caused it. Absent members are not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = EventMetadata))]
pub struct Metadata {
    /// Ties together all that one business request caused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub correlation_id: String,
    /// The event or command that caused this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub causation_id: Option<String>,
    /// The credential that was used.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub principal: String,
    /// The actor that the caller named.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub actor: Option<String>,
    /// Why, as the caller said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub reason: Option<String>,
    /// The command.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command: String,
    /// The command's idempotency key.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub idempotency_key: String,
    /// The W3C trace context of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub traceparent: Option<String>,
    /// When it happened in the business, where that is not when it was recorded.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub occurred_at: Option<OffsetDateTime>,
    /// When the service received the command, in microseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub received_at_us: Option<i64>,
}

impl Metadata {
    /// The JSON text that is stored.
    pub fn encode(&self) -> Arc<str> {
        serde_json::to_string(self)
            .expect("metadata has string keys and no failing serializer")
            .into()
    }
}
