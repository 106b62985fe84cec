//! An event as a line of the file.

use daybook_event_store::{EventDocument, RecordedEvent};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::request::Format;
use crate::operations::csv;

/// The columns of CSV.
const COLUMNS: [&str; 12] = [
    "position",
    "event_id",
    "event_type",
    "schema_version",
    "stream_id",
    "stream_version",
    "recorded_at",
    "occurred_at",
    "actor",
    "correlation_id",
    "causation_id",
    "payload",
];

/// What the file begins with.
pub(super) fn head(format: Format) -> String {
    match format {
        Format::Ndjson => String::new(),
        Format::Csv => csv::row(COLUMNS),
    }
}

/// Writes an event.
///
/// # Errors
/// When what was recorded is no JSON.
pub(super) fn write(
    format: Format,
    event: &RecordedEvent,
    file: &mut Vec<u8>,
) -> Result<(), serde_json::Error> {
    match format {
        Format::Ndjson => {
            serde_json::to_writer(&mut *file, &EventDocument::of(event)?)?;
            file.push(b'\n');
        }
        Format::Csv => file.extend_from_slice(row(&EventDocument::of(event)?, event).as_bytes()),
    }
    Ok(())
}

fn row(shown: &EventDocument<'_>, event: &RecordedEvent) -> String {
    let metadata = event.decoded_metadata();
    csv::row([
        &shown.position.to_string(),
        &shown.event_id.to_string(),
        shown.event_type,
        &shown.schema_version.to_string(),
        shown.stream_id,
        &shown.stream_version.to_string(),
        &moment(shown.recorded_at),
        &metadata.occurred_at.map(moment).unwrap_or_default(),
        metadata.actor.as_deref().unwrap_or_default(),
        &metadata.correlation_id,
        metadata.causation_id.as_deref().unwrap_or_default(),
        shown.payload.get(),
    ])
}

fn moment(moment: OffsetDateTime) -> String {
    moment.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;

    fn event(metadata: &str) -> RecordedEvent {
        RecordedEvent {
            partition: 0,
            position: 7,
            tenant_id: Uuid::nil(),
            category: "order".to_owned(),
            stream_id: "ord_1".to_owned(),
            stream_version: 2,
            event_id: Uuid::from_u128(1),
            event_type: "order.confirmed".to_owned(),
            schema_version: 1,
            payload: r#"{"note": "a, \"b\"",  "n": 1.0}"#.to_owned(),
            metadata: metadata.into(),
            recorded_at: datetime!(2024-05-01 12:05 UTC),
        }
    }

    fn written(format: Format, event: &RecordedEvent) -> String {
        let mut file = head(format).into_bytes();
        write(format, event, &mut file).expect("it is JSON");
        String::from_utf8(file).expect("it is text")
    }

    #[test]
    fn a_line_of_ndjson_is_the_event_byte_for_byte() {
        let line = written(Format::Ndjson, &event(r#"{"actor":"a",  "x":1}"#));
        let expected = r#"{"event_id":"00000000-0000-0000-0000-000000000001","event_type":"order.confirmed","schema_version":1,"partition":0,"position":7,"stream_id":"ord_1","stream_version":2,"payload":{"note": "a, \"b\"",  "n": 1.0},"metadata":{"actor":"a",  "x":1},"recorded_at":"2024-05-01T12:05:00Z"}"#;
        assert_eq!(line, format!("{expected}\n"));
    }

    #[test]
    fn a_row_of_csv_says_who_and_why_and_is_no_formula() {
        let metadata = r#"{"actor":"=cmd|' /C calc'!A0","correlation_id":"-1","causation_id":"@x","occurred_at":"2024-05-01T10:00:00Z"}"#;
        let file = written(Format::Csv, &event(metadata));
        let row = file
            .strip_prefix(&(COLUMNS.join(",") + "\r\n"))
            .expect("names are first");
        let expected = "7,00000000-0000-0000-0000-000000000001,order.confirmed,1,ord_1,2,2024-05-01T12:05:00Z,\
                        2024-05-01T10:00:00Z,'=cmd|' /C calc'!A0,'-1,'@x,\
                        \"{\"\"note\"\": \"\"a, \\\"\"b\\\"\"\"\",  \"\"n\"\": 1.0}\"\r\n";
        assert_eq!(row, expected);
    }

    #[test]
    fn metadata_that_cannot_be_read_leave_their_cells_empty() {
        let file = written(Format::Csv, &event("[]"));
        assert!(file.contains(",2024-05-01T12:05:00Z,,,,,\"{"), "{file}");
    }
}
