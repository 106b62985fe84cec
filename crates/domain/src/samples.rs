//! The frozen samples in `samples/`: one payload of every event type and schema version that was ever
//! written, by any aggregate. They are added to and never changed; what they hold must stay readable for good. The contract has a
//! JSON Schema for each.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::aggregates::{AGGREGATES, AnyEvent};

/// A sample's payload.
pub(crate) fn sample(event_type: &str, schema_version: u32) -> String {
    let file = directory().join(format!("{event_type}.v{schema_version}.json"));
    let json = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    json.trim_end().to_owned()
}

/// The JSON Schema that the contract has for the payload of a version.
fn schema(event_type: &str, schema_version: u32) -> Value {
    let file = schemas().join(format!("{event_type}.v{schema_version}.json"));
    let json = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_str(&json).expect("a schema is JSON")
}

fn schemas() -> PathBuf {
    PathBuf::from("../../proto/schemas")
}

/// Cargo runs tests in the directory of their crate.
fn directory() -> PathBuf {
    PathBuf::from("samples")
}

/// Category, type and version of everything that was ever written.
fn versions_ever() -> impl Iterator<Item = (&'static str, &'static str, u32)> {
    AGGREGATES.iter().flat_map(|kind| {
        let versions = move |&(event_type, current): &(&'static str, u32)| {
            (1..=current).map(move |version| (kind.category, event_type, version))
        };
        kind.schemas.iter().flat_map(versions)
    })
}

fn decode(category: &str, event_type: &str, schema_version: u32, payload: &str) -> AnyEvent {
    AnyEvent::decode(category, event_type, schema_version, payload)
        .expect("every listed category is known")
        .unwrap_or_else(|error| {
            panic!(
                "{event_type} version {schema_version}: {error}: {:?}",
                std::error::Error::source(&error)
            )
        })
}

#[test]
fn every_version_of_every_event_has_a_sample_and_there_are_no_others() {
    let expected: BTreeSet<_> = versions_ever()
        .map(|(_, event_type, version)| format!("{event_type}.v{version}.json"))
        .collect();
    assert_eq!(files(directory()), expected);
    assert_eq!(files(schemas()), expected, "and a schema");
}

fn files(directory: PathBuf) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).expect("it is beside the sources");
    let names = entries.map(|entry| entry.expect("the directory can be listed").file_name());
    names
        .map(|name| name.into_string().expect("names are ASCII"))
        .collect()
}

/// Outside tools hold the samples to the schemas in all that a schema says (`contracts/events.py`).
#[test]
fn samples_have_every_member_that_their_schema_requires_and_none_that_it_does_not_describe() {
    for (_, event_type, version) in versions_ever() {
        let payload: Value = serde_json::from_str(&sample(event_type, version)).expect("a sample is JSON");
        assert_described(&schema(event_type, version), &payload);
    }
}

/// Members are as the schema says, all the way down.
fn assert_described(schema: &Value, value: &Value) {
    match value {
        Value::Object(members) => {
            for name in schema["required"].as_array().into_iter().flatten() {
                assert!(
                    members.contains_key(name.as_str().expect("a name")),
                    "{name} is missing"
                );
            }
            for (name, member) in members {
                let described = &schema["properties"][name];
                assert!(described.is_object(), "{name} is not described");
                assert_described(described, member);
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| assert_described(&schema["items"], item)),
        _ => {}
    }
}

#[test]
fn every_sample_can_be_read() {
    for (category, event_type, version) in versions_ever() {
        let event = decode(category, event_type, version, &sample(event_type, version));
        assert_eq!(event.event_type(), event_type);
    }
}

#[test]
fn current_samples_are_written_again_byte_for_byte() {
    for kind in AGGREGATES {
        for &(event_type, current) in kind.schemas {
            let payload = sample(event_type, current);
            let event = decode(kind.category, event_type, current, &payload);
            assert_eq!(event.encode(), (current, payload));
        }
    }
}

#[test]
fn old_samples_come_back_unchanged_once_they_are_upcast() {
    for (category, event_type, version) in versions_ever() {
        let event = decode(category, event_type, version, &sample(event_type, version));
        let (current, payload) = event.encode();
        assert_eq!(decode(category, event_type, current, &payload), event);
    }
}
