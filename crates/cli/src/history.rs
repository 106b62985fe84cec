//! `daybook history`: what happened to an aggregate, in order, by whom and why.

use clap::{Args, ValueEnum};
use daybook_proto::history::v1::history_service_client::HistoryServiceClient;
use daybook_proto::history::v1::{Event, EventMetadata, ListStreamEventsRequest};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::client::{self, Authorized, Service};
use crate::failure::Failure;
use crate::output::{print, print_json, print_json_lines, rfc3339, table};
use crate::settings::{Role, Settings};

/// How many events are asked for at once: the most that the service gives.
const PAGE_EVENTS: u32 = 100;

/// Shows the events of an aggregate, oldest first. Needs the scope events:read.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The aggregate's TypeID ("ord_…").
    id: String,

    /// The first version to show.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    from_version: u64,

    /// The last version to show; the newest when absent.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    to_version: Option<u64>,

    /// What the output looks like.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// A line for each event, without payloads.
    Table,
    /// One JSON array. Payloads are as they were recorded, byte for byte.
    Json,
    /// A JSON object on each line, as the events arrive.
    Ndjson,
}

/// Runs the verb.
pub(crate) async fn run(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let connection = client::connect(settings, Service::Query, Role::Auditor).await?;
    let mut pages = Pages::new(connection, arguments);
    if let Format::Ndjson = arguments.output {
        while let Some(events) = pages.next().await? {
            print_json_lines(&views(&events)?)?;
        }
        return Ok(());
    }
    let mut events = Vec::new();
    while let Some(page) = pages.next().await? {
        events.extend(page);
    }
    match arguments.output {
        Format::Table => print(&as_table(&events)),
        Format::Json | Format::Ndjson => print_json(&views(&events)?),
    }
}

/// The events, a page at a time.
struct Pages {
    client: HistoryServiceClient<Authorized>,
    /// Asks for the next page; `None` after the last one.
    request: Option<ListStreamEventsRequest>,
}

impl Pages {
    fn new(connection: Authorized, arguments: &Arguments) -> Self {
        let request = ListStreamEventsRequest {
            stream_id: arguments.id.clone(),
            page_size: PAGE_EVENTS,
            page_token: String::new(),
            from_version: arguments.from_version,
            to_version: arguments.to_version.unwrap_or(0),
            descending: false,
        };
        Self {
            client: HistoryServiceClient::new(connection),
            request: Some(request),
        }
    }

    async fn next(&mut self) -> Result<Option<Vec<Event>>, Failure> {
        let Some(request) = self.request.take() else {
            return Ok(None);
        };
        let page = self
            .client
            .list_stream_events(request.clone())
            .await?
            .into_inner();
        if !page.next_page_token.is_empty() {
            self.request = Some(ListStreamEventsRequest {
                page_token: page.next_page_token,
                ..request
            });
        }
        Ok(Some(page.events))
    }
}

/// An event as JSON.
#[derive(Serialize)]
struct EventView<'a> {
    event_id: &'a str,
    event_type: &'a str,
    schema_version: u32,
    partition: u32,
    position: u64,
    stream_id: &'a str,
    stream_version: u64,
    recorded_at: Option<String>,
    metadata: MetadataView<'a>,
    payload: &'a RawValue,
}

/// An event's metadata as JSON, without what was not given.
#[derive(Serialize)]
struct MetadataView<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    correlation_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    causation_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    principal: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    actor: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    command: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    idempotency_key: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    traceparent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    occurred_at: Option<String>,
}

impl<'a> From<&'a EventMetadata> for MetadataView<'a> {
    fn from(metadata: &'a EventMetadata) -> Self {
        Self {
            correlation_id: &metadata.correlation_id,
            causation_id: &metadata.causation_id,
            principal: &metadata.principal,
            actor: &metadata.actor,
            reason: &metadata.reason,
            command: &metadata.command,
            idempotency_key: &metadata.idempotency_key,
            traceparent: &metadata.traceparent,
            occurred_at: rfc3339(metadata.occurred_at.as_ref()),
        }
    }
}

/// What an event without metadata has.
static NO_METADATA: EventMetadata = EventMetadata {
    correlation_id: String::new(),
    causation_id: String::new(),
    principal: String::new(),
    actor: String::new(),
    reason: String::new(),
    command: String::new(),
    idempotency_key: String::new(),
    traceparent: String::new(),
    occurred_at: None,
};

fn metadata(event: &Event) -> &EventMetadata {
    event.metadata.as_ref().unwrap_or(&NO_METADATA)
}

fn views(events: &[Event]) -> Result<Vec<EventView<'_>>, Failure> {
    events.iter().map(view).collect()
}

fn view(event: &Event) -> Result<EventView<'_>, Failure> {
    let payload = serde_json::from_str(&event.payload_json).map_err(|error| {
        let position = event.position;
        Failure::Failed(format!(
            "the payload of the event at position {position} is not JSON: {error}"
        ))
    })?;
    Ok(EventView {
        event_id: &event.event_id,
        event_type: &event.event_type,
        schema_version: event.schema_version,
        partition: event.partition,
        position: event.position,
        stream_id: &event.stream_id,
        stream_version: event.stream_version,
        recorded_at: rfc3339(event.recorded_at.as_ref()),
        metadata: metadata(event).into(),
        payload,
    })
}

fn as_table(events: &[Event]) -> String {
    let header = [
        "VERSION", "POSITION", "RECORDED", "OCCURRED", "EVENT", "BY", "REASON",
    ];
    table(header, events.iter().map(table_row))
}

fn table_row(event: &Event) -> [String; 7] {
    let metadata = metadata(event);
    [
        event.stream_version.to_string(),
        event.position.to_string(),
        rfc3339(event.recorded_at.as_ref()).unwrap_or_default(),
        rfc3339(metadata.occurred_at.as_ref()).unwrap_or_default(),
        event.event_type.clone(),
        by(metadata),
        metadata.reason.clone(),
    ]
}

/// The credential is proved, the actor is what its holder said.
fn by(metadata: &EventMetadata) -> String {
    if metadata.actor.is_empty() {
        metadata.principal.clone()
    } else {
        format!("{} ({})", metadata.actor, metadata.principal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed() -> Event {
        Event {
            event_id: "0190a5b2-0000-7000-8000-000000000001".to_owned(),
            event_type: "order.placed".to_owned(),
            schema_version: 2,
            position: 7,
            stream_id: "ord_1".to_owned(),
            stream_version: 1,
            payload_json: r#"{"b": 1.0, "a":2}"#.to_owned(),
            metadata: Some(EventMetadata {
                principal: "key:ab12cd34".to_owned(),
                actor: "agent:jane".to_owned(),
                ..EventMetadata::default()
            }),
            ..Event::default()
        }
    }

    #[test]
    fn a_payload_keeps_its_bytes() {
        let event = placed();
        let json =
            serde_json::to_string(&view(&event).expect("the payload is JSON")).expect("a view is JSON");
        assert!(json.ends_with(r#""payload":{"b": 1.0, "a":2}}"#), "{json}");
    }

    #[test]
    fn metadata_that_was_not_given_is_left_out() {
        let event = placed();
        let json = serde_json::to_string(&MetadataView::from(metadata(&event))).expect("a view is JSON");
        assert_eq!(json, r#"{"principal":"key:ab12cd34","actor":"agent:jane"}"#);
    }

    #[test]
    fn an_event_says_who_asked_and_with_which_credential() {
        assert_eq!(table_row(&placed())[5], "agent:jane (key:ab12cd34)");
        assert_eq!(by(&NO_METADATA), "");
    }
}
