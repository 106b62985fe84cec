//! The fold: given an event of any kind, then there is a row that finds it.

use std::sync::Arc;

use daybook_event_store::RecordedEvent;

use super::*;
use crate::testing::{Log, START, TENANT, place};

/// An event of a category that no program here knows, with these metadata.
fn foreign(metadata: &str) -> Event {
    Event::decode(&RecordedEvent {
        partition: 0,
        position: 7,
        tenant_id: TENANT,
        category: "weather".to_owned(),
        stream_id: "wea_1".to_owned(),
        stream_version: 3,
        event_id: Uuid::from_u128(9),
        event_type: "weather.changed".to_owned(),
        schema_version: 1,
        payload: "42".to_owned(),
        metadata: metadata.into(),
        recorded_at: START,
    })
}

fn row(event: &Event) -> Row {
    let mut keys = EventIndex::keys(event).into_iter();
    let key = keys.next().expect("an event has a row");
    let row = EventIndex::fold(&key, None, event).expect("no event is rejected");
    row.expect("every event has a row")
}

#[test]
fn an_event_is_found_by_type_stream_actor_and_correlation() {
    let mut log = Log::of([place(1)]);
    log.events[0].metadata =
        Arc::from(r#"{"correlation_id":"checkout-77","actor":"agent:jane","reason":"why not"}"#);
    let event = &log.events[0];
    let row = row(event);
    assert_eq!((row.position, row.event_type.as_str()), (10, "order.placed"));
    assert_eq!(row.stream_id, event.stream_id);
    assert_eq!(row.actor.as_deref(), Some("agent:jane"));
    assert_eq!(row.correlation_id.as_deref(), Some("checkout-77"));
}

#[test]
fn an_event_that_cannot_be_decoded_has_its_row() {
    let event = foreign(r#"{"actor":"station:4"}"#);
    assert!(event.body.is_err());
    let expected = Row {
        tenant_id: TENANT,
        position: 7,
        event_id: Uuid::from_u128(9),
        recorded_at: START,
        stream_id: "wea_1".to_owned(),
        event_type: "weather.changed".to_owned(),
        actor: Some("station:4".to_owned()),
        correlation_id: None,
    };
    assert_eq!(row(&event), expected);
}

#[test]
fn metadata_that_cannot_be_read_or_searched_for_stop_nothing() {
    let long = format!(r#"{{"actor":"{}"}}"#, "a".repeat(SEARCHABLE_BYTES_MAX + 1));
    for metadata in [
        "[]",
        "null",
        r#"{"actor":5}"#,
        r#"{"actor":""}"#,
        r#"{"actor":"a\u0000b"}"#,
        r#"{"occurred_at":"yesterday"}"#,
        &long,
    ] {
        let row = row(&foreign(metadata));
        assert_eq!((row.actor, row.correlation_id), (None, None), "{metadata}");
    }
}

#[test]
fn one_filter_at_a_time_is_served_in_either_direction() {
    let of_type = || Filter {
        event_type: Some("order.placed".to_owned()),
        ..Filter::default()
    };
    let index = |filter: Filter, sort| {
        let scan = filter.scan(Some(&Sort::parse(sort)));
        scan.map(|scan| (scan.index(), scan.order().to_string()))
    };
    assert_eq!(
        index(Filter::default(), "position"),
        Ok(("pkey", "position".to_owned()))
    );
    assert_eq!(
        index(of_type(), "-position"),
        Ok(("event_type", "-position".to_owned()))
    );
    let two = Filter {
        actor: Some("agent:jane".to_owned()),
        ..of_type()
    };
    assert!(index(two, "position").is_err());
    assert!(index(of_type(), "recorded_at").is_err());
}
