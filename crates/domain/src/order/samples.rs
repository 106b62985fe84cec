//! The frozen samples in `samples/`: one payload of every event type and schema version that was ever
//! written. They are added to and never changed; what they hold must stay readable for good.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::{Event, Line, Placed};
use crate::event::{DecodeError, Event as _};

const ORDER_ID: &str = "ord_01h455vb4pex5vsknk084sn02q";

fn sample(event_type: &str, schema_version: u32) -> String {
    let file = directory().join(format!("{event_type}.v{schema_version}.json"));
    let json = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    json.trim_end().to_owned()
}

/// Cargo runs tests in the directory of their crate.
fn directory() -> PathBuf {
    PathBuf::from("samples")
}

fn versions_ever() -> impl Iterator<Item = (&'static str, u32)> {
    Event::SCHEMAS
        .iter()
        .flat_map(|&(event_type, current)| (1..=current).map(move |version| (event_type, version)))
}

fn decode(event_type: &str, schema_version: u32, payload: &str) -> Event {
    Event::decode(event_type, schema_version, payload).unwrap_or_else(|error| {
        panic!(
            "{event_type} version {schema_version}: {error}: {:?}",
            std::error::Error::source(&error)
        )
    })
}

#[test]
fn every_version_of_every_event_has_a_sample_and_there_are_no_others() {
    let expected: BTreeSet<_> = versions_ever()
        .map(|(event_type, version)| format!("{event_type}.v{version}.json"))
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
    for (event_type, version) in versions_ever() {
        let event = decode(event_type, version, &sample(event_type, version));
        assert_eq!(event.event_type(), event_type);
    }
}

#[test]
fn current_samples_are_written_again_byte_for_byte() {
    for &(event_type, current) in Event::SCHEMAS {
        let payload = sample(event_type, current);
        let event = decode(event_type, current, &payload);
        assert_eq!((event.schema_version(), event.encode()), (current, payload));
    }
}

#[test]
fn old_samples_come_back_unchanged_once_they_are_upcast() {
    for (event_type, version) in versions_ever() {
        let event = decode(event_type, version, &sample(event_type, version));
        assert_eq!(decode(event_type, event.schema_version(), &event.encode()), event);
    }
}

#[test]
fn placed_version_1_gets_line_numbers_and_an_item_count() {
    let line = |line_number, sku: &str, quantity, unit_price_minor| Line {
        line_number,
        sku: sku.parse().expect("a valid SKU"),
        quantity,
        unit_price_minor,
    };
    let expected = Placed {
        order_id: ORDER_ID.parse().expect("a valid TypeID"),
        customer_id: "cust-42".parse().expect("a valid customer"),
        reference: None,
        currency: "USD".parse().expect("a currency"),
        lines: vec![line(1, "CD", 2, 1177), line(2, "LP", 1, 0)],
        shipping_address: None,
        total_minor: 2354,
        item_count: 3,
    };
    assert_eq!(
        decode("order.placed", 1, &sample("order.placed", 1)),
        Event::Placed(expected)
    );
}

#[test]
fn fields_that_a_later_program_added_are_ignored() {
    let payload = sample("order.confirmed", 1).replacen('{', r#"{"added_later":[1],"#, 1);
    assert_eq!(
        decode("order.confirmed", 1, &payload),
        decode("order.confirmed", 1, &sample("order.confirmed", 1))
    );
}

#[test]
fn unknown_types_are_told_from_unknown_versions_and_malformed_payloads() {
    let error =
        |event_type, version, payload| Event::decode(event_type, version, payload).expect_err("unreadable");
    assert!(
        matches!(error("order.eaten", 1, "{}"), DecodeError::UnknownType { event_type } if event_type == "order.eaten")
    );
    for version in [0, 3, u32::MAX] {
        let error = error("order.placed", version, "{}");
        assert!(
            matches!(error, DecodeError::UnknownVersion { schema_version, current: 2, .. } if schema_version == version)
        );
    }
    for payload in [
        "",
        "{",
        "[]",
        "null",
        "1",
        "{}",
        r#"{"items":7}"#,
        r#"{"items":[1,{}]}"#,
    ] {
        for version in [1, 2] {
            let error = error("order.placed", version, payload);
            assert!(
                matches!(error, DecodeError::Malformed { schema_version, .. } if schema_version == version)
            );
        }
    }
}

#[test]
fn values_that_could_never_have_been_written_are_malformed() {
    for (valid, invalid) in [
        ("cust-42", "no spaces"),
        ("USD", "usd"),
        ("GB", "XX"),
        ("ord_", "inv_"),
        ("London", ""),
    ] {
        let payload = sample("order.placed", 2).replace(valid, invalid);
        assert!(
            matches!(
                Event::decode("order.placed", 2, &payload),
                Err(DecodeError::Malformed { .. })
            ),
            "{payload}"
        );
    }
}
