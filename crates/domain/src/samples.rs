//! The frozen samples in `samples/`: one payload of every event type and schema version that was ever
//! written, by any aggregate. They are added to and never changed; what they hold must stay readable for good.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::aggregates::{AGGREGATES, AnyEvent};

/// A sample's payload.
pub(crate) fn sample(event_type: &str, schema_version: u32) -> String {
    let file = directory().join(format!("{event_type}.v{schema_version}.json"));
    let json = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    json.trim_end().to_owned()
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
    let found: BTreeSet<_> = fs::read_dir(directory())
        .expect("the samples are beside the sources")
        .map(|entry| {
            entry
                .expect("the directory can be listed")
                .file_name()
                .into_string()
                .expect("names are ASCII")
        })
        .collect();
    assert_eq!(found, expected);
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
