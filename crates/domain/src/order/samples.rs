//! How stored events of orders are read: upcasting, and what is refused.

use super::{Event, Line, Placed};
use crate::event::{DecodeError, Event as _};
use crate::samples::sample;

const ORDER_ID: &str = "ord_01h455vb4pex5vsknk084sn02q";

fn decode(event_type: &str, schema_version: u32, payload: &str) -> Event {
    Event::decode(event_type, schema_version, payload).unwrap_or_else(|error| {
        panic!(
            "{event_type} version {schema_version}: {error}: {:?}",
            std::error::Error::source(&error)
        )
    })
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
