//! `/v1/event-types`: what payloads of events look like, of every version that was ever written.

use std::sync::LazyLock;

use axum::response::Response;
use daybook_domain::aggregates::AGGREGATES;
use daybook_proto::EVENT_SCHEMAS;
use daybook_service::document::Document;
use http::header::{CACHE_CONTROL, VARY};
use http::{HeaderMap, HeaderValue};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::openapi::{NotModified, Refusals};
use super::schema::{ListEnvelope, Pagination};
use super::{Caller, ConditionalHeaders};

/// A version of a type of events.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = example)]
pub struct EventType {
    /// What happened.
    pub event_type: &'static str,
    /// The kind of the aggregate that it happens to.
    pub category: &'static str,
    /// The version of the payload's schema. Histories have events in the version in which they were written.
    pub schema_version: u32,
    /// Whether events are written in this version now.
    pub is_current: bool,
    /// The JSON Schema (2020-12) of the payload. Members may be added within a version.
    #[schema(value_type = Object)]
    pub schema: &'static RawValue,
}

/// All of them, prepared once.
static EVENT_TYPES: LazyLock<Document> = LazyLock::new(|| {
    let list = ListEnvelope {
        data: event_types(),
        pagination: Pagination {
            next_cursor: None,
            has_more: false,
        },
    };
    let json = serde_json::to_string(&list).expect("schemas are JSON, and written to memory");
    Document::json(json)
        .with_header(CACHE_CONTROL, &HeaderValue::from_static("private, no-cache"))
        .with_header(VARY, &HeaderValue::from_static("authorization, accept-encoding"))
});

fn event_types() -> Vec<EventType> {
    let kinds = AGGREGATES.iter();
    let current = kinds.flat_map(|kind| kind.schemas.iter().map(|schema| (kind.category, *schema)));
    let versions = current.flat_map(|(category, (event_type, current))| {
        (1..=current).map(move |version| EventType {
            event_type,
            category,
            schema_version: version,
            is_current: version == current,
            schema: schema(event_type, version),
        })
    });
    versions.collect()
}

/// The schema of a version.
fn schema(event_type: &str, version: u32) -> &'static RawValue {
    let name = format!("{event_type}.v{version}");
    let found = EVENT_SCHEMAS.iter().find(|(known, _)| *known == name);
    let (_, schema) = found.expect("every version has its schema");
    serde_json::from_str(schema.trim_end()).expect("schemas are JSON")
}

/// A version of a type, with a part of its schema.
pub(super) fn example() -> Value {
    json!({
        "event_type": "order.confirmed",
        "category": "order",
        "schema_version": 1,
        "is_current": true,
        "schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": "urn:daybook:event:order.confirmed:v1",
            "type": "object",
            "required": ["customer_id", "currency", "total_minor", "item_count"],
        },
    })
}

/// The types of events with the JSON Schema of their payloads: of every version that was ever written, all on one page.
#[utoipa::path(
    get,
    path = "/v1/event-types",
    operation_id = "listEventTypes",
    tag = "Histories",
    security(("api_key" = ["events:read"])),
    params(ConditionalHeaders),
    responses(
        (status = 200, description = "All types and versions.", body = ListEnvelope<EventType>),
        NotModified,
        Refusals,
    ),
)]
pub async fn list_event_types(_: Caller, headers: HeaderMap) -> Response {
    EVENT_TYPES.answer(&headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_is_of_a_version_that_was_written_and_says_which() {
        let all = event_types();
        assert_eq!(all.len(), EVENT_SCHEMAS.len());
        for version in all {
            let schema: Value = serde_json::from_str(version.schema.get()).expect("JSON");
            let id = format!(
                "urn:daybook:event:{}:v{}",
                version.event_type, version.schema_version
            );
            assert_eq!(schema["$id"], id);
        }
    }
}
