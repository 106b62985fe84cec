//! What an export is asked for: a format, and the filters of the event feed. Where several are given, an event meets all of them.

use daybook_event_store::RecordedEvent;
use daybook_proto::convert::Violations;
use daybook_service::error::ApiError;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use time::format_description::well_known::Rfc3339;
use time::serde::rfc3339;
use time::{OffsetDateTime, UtcOffset};
use utoipa::ToSchema;

use crate::request::validation_error;

/// The most bytes in a text that events are found by, as the event feed has it.
const SEARCHABLE_BYTES_MAX: usize = 256;

/// What a file looks like. May grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = EventExportFormat)]
pub(crate) enum Format {
    /// An event on each line, as the event feed shows it.
    Ndjson,
    /// A row for each event (RFC 4180), below a row of names. No cell begins like a formula.
    Csv,
}

impl Format {
    /// What is said of the file that is sent.
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8; header=present",
        }
    }

    /// What the names of such files end with.
    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
        }
    }
}

/// Which events to export, and how.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct EventExportRequest {
    /// What the file looks like: `ndjson` or `csv`.
    #[serde(default)]
    #[schema(required, example = "ndjson")]
    format: String,
    /// Only events of this type.
    #[schema(nullable = false, min_length = 1, max_length = 256, example = "order.placed")]
    event_type: Option<String>,
    /// Only events of the aggregate with this id.
    #[schema(nullable = false, min_length = 1, max_length = 256)]
    stream_id: Option<String>,
    /// Only what this actor asked for.
    #[schema(nullable = false, min_length = 1, max_length = 256)]
    actor: Option<String>,
    /// Only what the request with this correlation id caused.
    #[schema(nullable = false, min_length = 1, max_length = 256)]
    correlation_id: Option<String>,
    /// Only events recorded at or after this time.
    #[schema(nullable = false, value_type = Option<OffsetDateTime>)]
    recorded_after: Option<String>,
    /// Only events recorded before this time.
    #[schema(nullable = false, value_type = Option<OffsetDateTime>)]
    recorded_before: Option<String>,
}

impl EventExportRequest {
    /// What it asks for.
    ///
    /// # Errors
    /// `VALIDATION_FAILED`, with all that is wrong with it.
    pub(super) fn check(self) -> Result<Asked, ApiError> {
        let mut violations = Violations::default();
        let format = format(&self.format, &mut violations);
        let mut text = |pointer, text| searched(pointer, text, &mut violations);
        let mut filters = Filters {
            event_type: text("/event_type", self.event_type),
            stream_id: text("/stream_id", self.stream_id),
            actor: text("/actor", self.actor),
            correlation_id: text("/correlation_id", self.correlation_id),
            ..Filters::default()
        };
        filters.recorded_after = moment("/recorded_after", self.recorded_after, &mut violations);
        filters.recorded_before = moment("/recorded_before", self.recorded_before, &mut violations);
        let asked = format.map(|format| Asked { format, filters });
        violations.finish(asked).map_err(validation_error)
    }
}

fn format(text: &str, violations: &mut Violations) -> Option<Format> {
    match text {
        "ndjson" => Some(Format::Ndjson),
        "csv" => Some(Format::Csv),
        "" => {
            violations.add("/format", "REQUIRED", "format is required");
            None
        }
        _ => {
            violations.add("/format", "UNKNOWN_VALUE", "must be ndjson or csv");
            None
        }
    }
}

/// A text that events are found by: what is longer, or has control characters, no event has.
fn searched(pointer: &str, text: Option<String>, violations: &mut Violations) -> Option<String> {
    let text = text?;
    if text.is_empty() {
        violations.add(pointer, "EMPTY", "must not be empty");
    } else if text.len() > SEARCHABLE_BYTES_MAX {
        let message = format_args!("must have at most {SEARCHABLE_BYTES_MAX} bytes");
        violations.add(pointer, "TOO_LONG", message);
    } else if text.chars().any(char::is_control) {
        violations.add(pointer, "FORBIDDEN_CHARACTER", "must not have control characters");
    }
    Some(text)
}

/// The same moment has one form, whatever its offset was: the content of a request is compared by it.
fn moment(pointer: &str, text: Option<String>, violations: &mut Violations) -> Option<OffsetDateTime> {
    let moment = OffsetDateTime::parse(&text?, &Rfc3339).ok();
    let moment = moment.and_then(|moment| moment.checked_to_offset(UtcOffset::UTC));
    let moment = moment.filter(|moment| (1..=9999).contains(&moment.year()));
    if moment.is_none() {
        violations.add(pointer, "INVALID_TIME", "must be a time in RFC 3339");
    }
    moment
}

/// What is asked for, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Asked {
    /// What the file looks like.
    pub(super) format: Format,
    /// Which events are in it.
    pub(super) filters: Filters,
}

impl Asked {
    /// As it is kept, and the hash that tells it from another.
    pub(super) fn encode(&self) -> (String, [u8; 32]) {
        let json = serde_json::to_string(self).expect("it has string keys and no failing serializer");
        let sha256 = Sha256::digest(&json).into();
        (json, sha256)
    }
}

/// Which events are exported: those that meet all that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = EventExportFilters)]
pub(crate) struct Filters {
    /// Events of this type.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) event_type: Option<String>,
    /// Events of the aggregate with this id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) stream_id: Option<String>,
    /// What this actor asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) actor: Option<String>,
    /// What the request with this correlation id caused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) correlation_id: Option<String>,
    /// Events recorded at or after this time.
    #[serde(default, with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) recorded_after: Option<OffsetDateTime>,
    /// Events recorded before this time.
    #[serde(default, with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) recorded_before: Option<OffsetDateTime>,
}

/// What the metadata say of an event that it is found by.
#[derive(Default, Deserialize)]
struct Attribution {
    actor: Option<String>,
    correlation_id: Option<String>,
}

impl Filters {
    /// Whether an event meets what its metadata have to. What cannot be read there is absent, as it is for the event feed. All else
    /// is for the database.
    pub(super) fn pass(&self, event: &RecordedEvent) -> bool {
        if self.actor.is_none() && self.correlation_id.is_none() {
            return true;
        }
        let found: Attribution = serde_json::from_str(&event.metadata).unwrap_or_default();
        let meets = |wanted: &Option<String>, found: Option<String>| wanted.is_none() || *wanted == found;
        meets(&self.actor, found.actor) && meets(&self.correlation_id, found.correlation_id)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn asked(body: Value) -> Result<Asked, Vec<(String, &'static str)>> {
        let request: EventExportRequest = serde_json::from_value(body).expect("it has the right types");
        request.check().map_err(|refused| {
            let violations = refused.violations().iter();
            violations
                .map(|violation| (violation.pointer.clone(), violation.code))
                .collect()
        })
    }

    #[test]
    fn the_same_question_in_other_words_is_the_same_question() {
        let one = asked(json!({"format": "csv", "recorded_after": "2024-05-01T12:00:00Z", "tomorrow": 1}));
        let other =
            asked(json!({"recorded_after": "2024-05-01T14:00:00+02:00", "format": "csv", "actor": null}));
        let (one, other) = (one.expect("it is right"), other.expect("it is right"));
        assert_eq!(one.encode(), other.encode());
        let third = asked(json!({"format": "ndjson", "recorded_after": "2024-05-01T12:00:00Z"}));
        assert_ne!(one.encode().1, third.expect("it is right").encode().1);
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let asked = asked(
            json!({"format": "ndjson", "actor": "agent:jane", "recorded_before": "2024-05-01T12:00:00Z"}),
        );
        let asked = asked.expect("it is right");
        let read: Asked = serde_json::from_str(&asked.encode().0).expect("it is what was kept");
        assert_eq!(read, asked);
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let wrong = asked(json!({
            "format": "xml", "event_type": "", "stream_id": "a\nb", "actor": "x".repeat(257), "recorded_after": "yesterday",
            "recorded_before": "0000-01-01T00:00:00Z",
        }));
        let expected = [
            ("/format", "UNKNOWN_VALUE"),
            ("/event_type", "EMPTY"),
            ("/stream_id", "FORBIDDEN_CHARACTER"),
            ("/actor", "TOO_LONG"),
            ("/recorded_after", "INVALID_TIME"),
            ("/recorded_before", "INVALID_TIME"),
        ];
        assert_eq!(
            wrong,
            Err(expected.map(|(pointer, code)| (pointer.to_owned(), code)).into())
        );
        assert_eq!(asked(json!({})), Err(vec![("/format".to_owned(), "REQUIRED")]));
    }
}
