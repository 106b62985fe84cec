//! A recorded event as the folds see it: where, when and to what it happened, and what happened, decoded where that is possible.

use std::sync::Arc;

use daybook_domain::aggregates::{AnyEvent, Kind};
use daybook_event_store::RecordedEvent;
use serde::Deserialize;
use thiserror::Error;
use time::{OffsetDateTime, UtcOffset};
use uuid::Uuid;

/// An event of the log, decoded once for all read models.
#[derive(Debug, Clone)]
pub struct Event {
    /// The partition of the log.
    pub partition: i32,
    /// The position in the partition: 1, 2, 3, … without holes.
    pub position: u64,
    /// Whose event it is.
    pub tenant_id: Uuid,
    /// The aggregate's id.
    pub stream_id: String,
    /// 1, 2, 3, … within the stream.
    pub stream_version: u64,
    /// The event's own id.
    pub event_id: Uuid,
    /// The event's type, as it was recorded ("order.placed").
    pub event_type: String,
    /// When it was committed.
    pub recorded_at: OffsetDateTime,
    /// When it happened in the business: what the metadata say, else [`Self::recorded_at`]. In UTC and whole
    /// microseconds, so that it comes back from Postgres as it was.
    pub occurred_at: OffsetDateTime,
    /// The metadata, undecoded: the JSON text of [`daybook_event_store::Metadata`].
    pub metadata: Arc<str>,
    /// The decoded event, or why this program cannot decode it. Only read models that take every event meet such a one.
    pub body: Result<AnyEvent, Arc<DecodeError>>,
}

/// Why a recorded event could not be decoded.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// This build knows no aggregate of this kind, and so no read model folds it.
    #[error("unknown category {category:?}")]
    UnknownCategory {
        /// The category as stored.
        category: String,
    },
    /// The payload cannot be read.
    #[error("cannot decode the payload")]
    Payload(#[from] daybook_domain::event::DecodeError),
    /// The metadata, or the business time in them, cannot be read.
    #[error("cannot decode the metadata")]
    Metadata(#[from] serde_json::Error),
    /// The business time lies outside the years 0 to 9999, in UTC.
    #[error("the business time is out of range")]
    OccurredAtOutOfRange,
}

impl Event {
    /// The category of a recorded event; `None` when this program does not know it, so that no read model folds it.
    pub fn known_category(recorded: &RecordedEvent) -> Option<&'static str> {
        Kind::by_category(&recorded.category).map(|kind| kind.category)
    }

    /// Decodes an event, upcasting its payload when it was written in an old version. One whose metadata cannot be read counts
    /// as undecodable, and as having happened when it was recorded.
    pub fn decode(recorded: &RecordedEvent) -> Self {
        let (occurred_at, body) = match occurred_at(recorded) {
            Ok(occurred_at) => (occurred_at, body(recorded)),
            Err(error) => (recorded.recorded_at, Err(error)),
        };
        Self {
            partition: recorded.partition,
            position: recorded.position,
            tenant_id: recorded.tenant_id,
            stream_id: recorded.stream_id.clone(),
            stream_version: recorded.stream_version,
            event_id: recorded.event_id,
            event_type: recorded.event_type.clone(),
            recorded_at: recorded.recorded_at,
            occurred_at,
            metadata: Arc::clone(&recorded.metadata),
            body: body.map_err(Arc::new),
        }
    }
}

fn body(recorded: &RecordedEvent) -> Result<AnyEvent, DecodeError> {
    let RecordedEvent {
        category,
        event_type,
        schema_version,
        payload,
        ..
    } = recorded;
    match AnyEvent::decode(category, event_type, *schema_version, payload) {
        Some(decoded) => Ok(decoded?),
        None => Err(DecodeError::UnknownCategory {
            category: category.clone(),
        }),
    }
}

/// The only part of the metadata that folds look at; the rest is skipped, not decoded.
#[derive(Deserialize)]
struct BusinessTime {
    #[serde(default, with = "time::serde::rfc3339::option")]
    occurred_at: Option<OffsetDateTime>,
}

fn occurred_at(recorded: &RecordedEvent) -> Result<OffsetDateTime, DecodeError> {
    let metadata: BusinessTime = serde_json::from_str(&recorded.metadata)?;
    let moment = metadata.occurred_at.unwrap_or(recorded.recorded_at);
    let utc = moment
        .checked_to_offset(UtcOffset::UTC)
        .filter(|utc| (0..=9999).contains(&utc.year()))
        .ok_or(DecodeError::OccurredAtOutOfRange)?;
    Ok(utc.truncate_to_microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const RECORDED_AT: OffsetDateTime = datetime!(2024-05-01 12:00:00.123456 UTC);

    fn recorded(metadata: &str) -> RecordedEvent {
        RecordedEvent {
            partition: 0,
            position: 7,
            tenant_id: Uuid::nil(),
            category: "order".to_owned(),
            stream_id: "ord_01h455vb4pex5vsknk084sn02q".to_owned(),
            stream_version: 2,
            event_id: Uuid::nil(),
            event_type: "order.confirmed".to_owned(),
            schema_version: 1,
            payload: r#"{"customer_id":"c1","currency":"EUR","total_minor":5,"item_count":1}"#.to_owned(),
            metadata: metadata.into(),
            recorded_at: RECORDED_AT,
        }
    }

    #[test]
    fn without_a_business_time_an_event_happened_when_it_was_recorded() {
        let event = Event::decode(&recorded(r#"{"command":"ConfirmOrder"}"#));
        assert_eq!(event.occurred_at, RECORDED_AT);
    }

    #[test]
    fn the_business_time_is_kept_in_utc_and_whole_microseconds() {
        let metadata = r#"{"occurred_at":"1997-01-01T02:00:00.1234567+02:00"}"#;
        let event = Event::decode(&recorded(metadata));
        assert_eq!(event.occurred_at, datetime!(1997-01-01 00:00:00.123456 UTC));
        assert_eq!(event.occurred_at.offset(), UtcOffset::UTC);
    }

    #[test]
    fn an_event_whose_business_time_is_no_year_in_utc_cannot_be_decoded() {
        for moment in ["0000-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"] {
            let event = Event::decode(&recorded(&format!(r#"{{"occurred_at":"{moment}"}}"#)));
            let error = event.body.expect_err("it is no time");
            assert!(matches!(*error, DecodeError::OccurredAtOutOfRange), "{moment}");
            assert_eq!(event.occurred_at, RECORDED_AT);
        }
    }

    #[test]
    fn of_an_event_of_a_category_that_is_not_known_all_but_the_body_is() {
        let foreign = RecordedEvent {
            category: "weather".to_owned(),
            ..recorded("{}")
        };
        let event = Event::decode(&foreign);
        let error = event.body.expect_err("nobody knows it");
        assert!(
            matches!(&*error, DecodeError::UnknownCategory { category } if category == "weather"),
            "{error}"
        );
        assert_eq!(
            (event.position, event.event_type.as_str()),
            (7, "order.confirmed")
        );
    }
}
