//! An event as a NATS message: CloudEvents 1.0 in binary mode, with what the log knows beside it in `daybook-*` headers.
//!
//! The payload is the event's JSON, byte for byte as it is stored. [`decode`] gives back what [`encode`] took, so that a
//! consumer needs no Postgres. What the headers mean is written in `proto/asyncapi.yaml`.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::Arc;

use async_nats::header::{HeaderMap, HeaderName, NATS_EXPECTED_LAST_SEQUENCE};
use bytes::Bytes;
use daybook_event_store::RecordedEvent;
use percent_encoding::{percent_decode_str, percent_encode_byte};
use serde::Deserialize;
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::deployment::Deployment;

static SPEC_VERSION: HeaderName = HeaderName::from_static("ce-specversion");
static ID: HeaderName = HeaderName::from_static("ce-id");
static SOURCE: HeaderName = HeaderName::from_static("ce-source");
static TYPE: HeaderName = HeaderName::from_static("ce-type");
static SUBJECT: HeaderName = HeaderName::from_static("ce-subject");
static TIME: HeaderName = HeaderName::from_static("ce-time");
static CONTENT_TYPE: HeaderName = HeaderName::from_static("content-type");
static TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
static POSITION: HeaderName = HeaderName::from_static("daybook-position");
static GENERATION: HeaderName = HeaderName::from_static("daybook-generation");
static TENANT: HeaderName = HeaderName::from_static("daybook-tenant");
static CATEGORY: HeaderName = HeaderName::from_static("daybook-category");
static STREAM_VERSION: HeaderName = HeaderName::from_static("daybook-stream-version");
static SCHEMA_VERSION: HeaderName = HeaderName::from_static("daybook-schema-version");
static METADATA: HeaderName = HeaderName::from_static("daybook-metadata");
static BODY: HeaderName = HeaderName::from_static("daybook-body");

/// The value of `daybook-body` in a message that stands for an event too large for it.
const BODY_IN_LOG: &str = "in-log";

/// Before the partition's number in `ce-source`.
const SOURCE_PREFIX: &str = "/daybook/log/";

/// A message for NATS.
#[derive(Debug, Clone)]
pub struct Message {
    /// `<deployment>.events.<partition>.<generation>.<tenant>.<category>.<event type>`.
    pub subject: String,
    /// All that is not the payload.
    pub headers: HeaderMap,
    /// The event's JSON.
    pub payload: Bytes,
}

/// A message is not an event of the log, or not a whole one.
#[derive(Debug, Error)]
pub enum MessageError {
    /// A header is not there.
    #[error("the header {0} is missing")]
    Missing(&'static str),
    /// A header has a value that it cannot have.
    #[error("the header {0} cannot be read")]
    Malformed(&'static str),
    /// The payload is not text.
    #[error("the payload is not UTF-8")]
    Payload(#[source] std::str::Utf8Error),
    /// The event was too large for a message; it has to be read from the log.
    #[error("the event is only in the log")]
    InLog,
}

/// Writes an event of `generation` as a message that is accepted at its position only.
pub fn encode(event: &RecordedEvent, generation: Uuid, deployment: &Deployment) -> Message {
    let mut headers = identity(event, generation);
    headers.insert(SPEC_VERSION.clone(), "1.0");
    headers.insert(SOURCE.clone(), format!("{SOURCE_PREFIX}{}", event.partition));
    headers.insert(TYPE.clone(), escaped(&event.event_type, not_plain));
    headers.insert(SUBJECT.clone(), escaped(&event.stream_id, not_plain));
    headers.insert(TIME.clone(), rfc3339(event.recorded_at));
    headers.insert(CONTENT_TYPE.clone(), "application/json");
    headers.insert(TENANT.clone(), event.tenant_id.to_string());
    headers.insert(CATEGORY.clone(), escaped(&event.category, not_plain));
    headers.insert(STREAM_VERSION.clone(), event.stream_version.to_string());
    headers.insert(SCHEMA_VERSION.clone(), event.schema_version.to_string());
    headers.insert(METADATA.clone(), escaped(&event.metadata, not_header_text));
    if let Some(trace_parent) = trace_parent(&event.metadata) {
        headers.insert(TRACE_PARENT.clone(), escaped(&trace_parent, not_plain));
    }
    Message {
        subject: subject(event, generation, deployment),
        headers,
        payload: Bytes::copy_from_slice(event.payload.as_bytes()),
    }
}

/// A message that stands for an event too large for the server: it holds the position, and readers turn to the log.
pub fn encode_as_reference(event: &RecordedEvent, generation: Uuid, deployment: &Deployment) -> Message {
    let mut headers = identity(event, generation);
    headers.insert(BODY.clone(), BODY_IN_LOG);
    Message {
        subject: subject(event, generation, deployment),
        headers,
        payload: Bytes::new(),
    }
}

/// The headers that identify the event and its place in the log.
fn identity(event: &RecordedEvent, generation: Uuid) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let before = event.position.saturating_sub(1);
    headers.insert(NATS_EXPECTED_LAST_SEQUENCE, before.to_string());
    headers.insert(POSITION.clone(), event.position.to_string());
    headers.insert(GENERATION.clone(), generation.to_string());
    headers.insert(ID.clone(), event.event_id.to_string());
    headers
}

/// The subject of an event. Its last two tokens are made of what a token can hold; the headers have the real values.
fn subject(event: &RecordedEvent, generation: Uuid, deployment: &Deployment) -> String {
    let mut subject = subjects(event.partition, generation, deployment);
    write!(subject, ".{}.", event.tenant_id).expect("a String accepts all that is written to it");
    push_token(&mut subject, &event.category);
    subject.push('.');
    push_token(&mut subject, &event.event_type);
    subject
}

/// The filter of a partition's subjects. The generation is in it, so that the stream takes no message of another one.
pub(crate) fn subjects(partition: i32, generation: Uuid, deployment: &Deployment) -> String {
    format!("{deployment}.events.{partition}.{generation}")
}

/// Writes a value with what a token of a subject can hold.
pub(crate) fn push_token(subject: &mut String, value: &str) {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if value.is_empty() {
        subject.push('_');
    }
    subject.extend(value.chars().map(|c| if is_plain(c) { c } else { '_' }));
}

/// Reads a message back: the event, and the generation of the log that it belongs to.
///
/// # Errors
/// [`MessageError`] when it is not a whole event as [`encode`] writes it.
pub fn decode(headers: &HeaderMap, payload: &[u8]) -> Result<(RecordedEvent, Uuid), MessageError> {
    if headers
        .get(BODY.clone())
        .is_some_and(|body| body.as_str() == BODY_IN_LOG)
    {
        return Err(MessageError::InLog);
    }
    let source = text(headers, &SOURCE, "ce-source")?;
    let partition = source
        .strip_prefix(SOURCE_PREFIX)
        .and_then(|number| number.parse().ok());
    let event = RecordedEvent {
        partition: partition.ok_or(MessageError::Malformed("ce-source"))?,
        position: parsed(headers, &POSITION, "daybook-position")?,
        tenant_id: parsed(headers, &TENANT, "daybook-tenant")?,
        category: unescaped(headers, &CATEGORY, "daybook-category")?.into_owned(),
        stream_id: unescaped(headers, &SUBJECT, "ce-subject")?.into_owned(),
        stream_version: parsed(headers, &STREAM_VERSION, "daybook-stream-version")?,
        event_id: parsed(headers, &ID, "ce-id")?,
        event_type: unescaped(headers, &TYPE, "ce-type")?.into_owned(),
        schema_version: parsed(headers, &SCHEMA_VERSION, "daybook-schema-version")?,
        payload: std::str::from_utf8(payload)
            .map_err(MessageError::Payload)?
            .to_owned(),
        metadata: Arc::from(unescaped(headers, &METADATA, "daybook-metadata")?),
        recorded_at: moment(headers)?,
    };
    Ok((event, parsed(headers, &GENERATION, "daybook-generation")?))
}

/// Which event a message says that it is: the generation that has recorded it, and its id. `None` when it is no event's.
pub(crate) fn claim(headers: &HeaderMap, payload: &[u8]) -> Option<(Uuid, Uuid)> {
    match decode(headers, payload) {
        Ok((event, generation)) => Some((generation, event.event_id)),
        Err(MessageError::InLog) => {
            let generation = parsed(headers, &GENERATION, "daybook-generation").ok()?;
            Some((generation, parsed(headers, &ID, "ce-id").ok()?))
        }
        Err(_) => None,
    }
}

/// Whether a message is the one that belongs to this event: all of it word for word, or a reference to it. It may be of an
/// earlier epoch: an event's id does not come again.
pub(crate) fn is_message_of(headers: &HeaderMap, payload: &[u8], event: &RecordedEvent) -> bool {
    match decode(headers, payload) {
        Ok((decoded, _generation)) => decoded == *event,
        Err(MessageError::InLog) => {
            parsed(headers, &POSITION, "daybook-position")
                .is_ok_and(|position: u64| position == event.position)
                && parsed(headers, &ID, "ce-id").is_ok_and(|id: Uuid| id == event.event_id)
        }
        Err(_) => false,
    }
}

fn text<'a>(
    headers: &'a HeaderMap,
    header: &HeaderName,
    name: &'static str,
) -> Result<&'a str, MessageError> {
    headers
        .get(header.clone())
        .map(|value| value.as_str())
        .ok_or(MessageError::Missing(name))
}

fn parsed<T: FromStr>(
    headers: &HeaderMap,
    header: &HeaderName,
    name: &'static str,
) -> Result<T, MessageError> {
    text(headers, header, name)?
        .parse()
        .map_err(|_| MessageError::Malformed(name))
}

fn unescaped<'a>(
    headers: &'a HeaderMap,
    header: &HeaderName,
    name: &'static str,
) -> Result<Cow<'a, str>, MessageError> {
    unescape(text(headers, header, name)?).ok_or(MessageError::Malformed(name))
}

fn moment(headers: &HeaderMap) -> Result<OffsetDateTime, MessageError> {
    OffsetDateTime::parse(text(headers, &TIME, "ce-time")?, &Rfc3339)
        .map_err(|_| MessageError::Malformed("ce-time"))
}

fn rfc3339(moment: OffsetDateTime) -> String {
    moment
        .format(&Rfc3339)
        .expect("the database's clock shows a year of four digits and a whole offset")
}

fn trace_parent(metadata: &str) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Trace<'a> {
        #[serde(borrow)]
        traceparent: Option<Cow<'a, str>>,
    }
    serde_json::from_str::<Trace<'_>>(metadata).ok()?.traceparent
}

/// The characters that the CloudEvents bindings percent-encode in the value of an attribute.
fn not_plain(c: char) -> bool {
    !c.is_ascii_graphic() || c == '%' || c == '"'
}

/// The characters that a header cannot hold, and the escape itself. JSON keeps its quotes and spaces, so it stays
/// readable.
fn not_header_text(c: char) -> bool {
    c.is_ascii_control() || c == '%'
}

/// Percent-encodes the characters that `must` be, and outer spaces, which a header loses.
fn escaped(value: &str, must: fn(char) -> bool) -> String {
    if value.trim_matches(' ').len() == value.len() && !value.contains(must) {
        return value.to_owned();
    }
    let mut escaped = String::with_capacity(value.len() + 16);
    for (index, c) in value.char_indices() {
        if must(c) || c == ' ' && (index == 0 || index + 1 == value.len()) {
            escaped.extend(c.encode_utf8(&mut [0; 4]).bytes().map(percent_encode_byte));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

pub(crate) fn unescape(value: &str) -> Option<Cow<'_, str>> {
    let mut escapes = value.split('%').skip(1);
    let are_whole = escapes.all(
        |escape| matches!(escape.as_bytes(), [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()),
    );
    are_whole.then(|| percent_decode_str(value).decode_utf8().ok())?
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use time::Duration;

    use super::*;

    fn event() -> impl Strategy<Value = RecordedEvent> {
        let places = (any::<i32>(), 1..u64::MAX, any::<u64>(), any::<u32>());
        let ids = (any::<u128>(), any::<u128>(), 0..4_102_444_800_000_000_i64);
        // Names hold any text at all; metadata is JSON, with any white space between its tokens.
        let texts = (any::<String>(), any::<String>(), any::<String>(), any::<String>());
        let metadata = (any::<String>(), "[ \t\r\n]{0,3}", "[ \t\r\n]{0,3}");
        (places, ids, texts, metadata).prop_map(|(places, ids, texts, (reason, before, after))| {
            let (partition, position, stream_version, schema_version) = places;
            let (tenant_id, event_id, microseconds) = ids;
            let (category, stream_id, event_type, payload) = texts;
            let metadata = serde_json::json!({ "reason": reason, "traceparent": reason });
            RecordedEvent {
                partition,
                position,
                tenant_id: Uuid::from_u128(tenant_id),
                category,
                stream_id,
                stream_version,
                event_id: Uuid::from_u128(event_id),
                event_type,
                schema_version,
                payload,
                metadata: format!("{before}{metadata}{after}").into(),
                recorded_at: OffsetDateTime::UNIX_EPOCH + Duration::microseconds(microseconds),
            }
        })
    }

    /// The headers as the other side reads them: on lines of their own, without the spaces around the value.
    fn over_the_wire(headers: &HeaderMap) -> HeaderMap {
        let pairs = headers
            .iter()
            .flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
        pairs
            .map(|(name, value)| {
                assert!(!value.as_str().contains(['\r', '\n']));
                let text = value.as_str().trim();
                (name.clone(), text.parse().expect("it has no line break"))
            })
            .collect()
    }

    proptest! {
        #[test]
        fn an_event_survives_being_a_message(event in event(), generation: u128) {
            let generation = Uuid::from_u128(generation);
            let message = encode(&event, generation, &Deployment::default());
            let headers = over_the_wire(&message.headers);
            prop_assert!(is_message_of(&headers, &message.payload, &event));
            let (decoded, of_generation) = decode(&headers, &message.payload).expect("it was encoded");
            prop_assert_eq!((decoded, of_generation), (event, generation));
        }

        #[test]
        fn a_subject_has_seven_tokens_of_plain_characters(event in event(), generation: u128) {
            let subject = subject(&event, Uuid::from_u128(generation), &Deployment::default());
            prop_assert_eq!(subject.split('.').filter(|token| !token.is_empty()).count(), 7);
            prop_assert!(subject.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)));
        }
    }

    pub(crate) fn sample() -> RecordedEvent {
        RecordedEvent {
            partition: 0,
            position: 7,
            tenant_id: Uuid::from_u128(1),
            category: "order".to_owned(),
            stream_id: "ord_1".to_owned(),
            stream_version: 2,
            event_id: Uuid::from_u128(2),
            event_type: "order.placed".to_owned(),
            schema_version: 1,
            payload: r#"{ "total": 5}"#.to_owned(),
            metadata: r#"{"reason":"10% off, für Zoë","traceparent":"00-ab-cd-01"}"#.into(),
            recorded_at: OffsetDateTime::UNIX_EPOCH + Duration::microseconds(1_500_000),
        }
    }

    #[test]
    fn a_message_looks_as_the_contract_says() {
        let message = encode(&sample(), Uuid::from_u128(3), &Deployment::default());
        assert_eq!(
            message.subject,
            "daybook.events.0.00000000-0000-0000-0000-000000000003.00000000-0000-0000-0000-000000000001.order.order_placed"
        );
        assert_eq!(&*message.payload, br#"{ "total": 5}"#);
        let expected = [
            ("Nats-Expected-Last-Sequence", "6"),
            ("ce-id", "00000000-0000-0000-0000-000000000002"),
            ("ce-source", "/daybook/log/0"),
            ("ce-specversion", "1.0"),
            ("ce-subject", "ord_1"),
            ("ce-time", "1970-01-01T00:00:01.5Z"),
            ("ce-type", "order.placed"),
            ("content-type", "application/json"),
            ("daybook-category", "order"),
            ("daybook-generation", "00000000-0000-0000-0000-000000000003"),
            (
                "daybook-metadata",
                r#"{"reason":"10%25 off, für Zoë","traceparent":"00-ab-cd-01"}"#,
            ),
            ("daybook-position", "7"),
            ("daybook-schema-version", "1"),
            ("daybook-stream-version", "2"),
            ("daybook-tenant", "00000000-0000-0000-0000-000000000001"),
            ("traceparent", "00-ab-cd-01"),
        ];
        let found: BTreeMap<_, _> = message
            .headers
            .iter()
            .map(|(name, values)| (name.to_string(), values[0].to_string()))
            .collect();
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(found, BTreeMap::from(expected));
    }

    #[test]
    fn a_reference_is_the_event_but_cannot_be_decoded() {
        let (event, generation) = (sample(), Uuid::from_u128(3));
        let message = encode_as_reference(&event, generation, &Deployment::default());
        assert!(is_message_of(&message.headers, &message.payload, &event));
        assert!(matches!(
            decode(&message.headers, &message.payload),
            Err(MessageError::InLog)
        ));
    }

    #[test]
    fn a_message_of_another_position_event_or_content_is_another() {
        let (event, generation) = (sample(), Uuid::from_u128(3));
        let Message { headers, payload, .. } = encode(&event, generation, &Deployment::default());
        assert!(is_message_of(&headers, &payload, &event));
        let others = [
            RecordedEvent {
                position: 8,
                ..event.clone()
            },
            RecordedEvent {
                event_id: Uuid::nil(),
                ..event.clone()
            },
            RecordedEvent {
                tenant_id: Uuid::nil(),
                ..event.clone()
            },
            RecordedEvent {
                payload: "{}".to_owned(),
                ..event.clone()
            },
        ];
        for other in others {
            assert!(!is_message_of(&headers, &payload, &other), "{other:?}");
        }
        assert!(!is_message_of(&HeaderMap::new(), &payload, &event));
    }
}
