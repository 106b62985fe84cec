//! Requests from JSON, into the very messages that come over gRPC.
//!
//! Names are those of the contract, numbers are numbers and moments are RFC 3339. Members that are not known are ignored, so
//! that callers may know more than this program; what is absent has its default.

use prost_types::Timestamp;
use serde::de::{DeserializeOwned, Error as _, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};
use serde_json::error::Category;
use serde_json::value::RawValue;
use serde_path_to_error::{Path, Segment};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Violation, to_timestamp};

/// Why a body is not the message that it should be, and where it begins not to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreadable {
    /// It is not JSON.
    Malformed(Violation),
    /// Something in it has another type than the message.
    Mistyped(Violation),
}

/// Reads a message.
///
/// # Errors
/// Where and why it cannot be read.
pub fn from_json<M: DeserializeOwned>(json: &[u8]) -> Result<M, Unreadable> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let read = serde_path_to_error::deserialize(&mut deserializer);
    let message = read.map_err(|error| unreadable(&pointer(error.path()), error.inner()))?;
    deserializer.end().map_err(|error| unreadable("", &error))?;
    Ok(message)
}

fn unreadable(pointer: &str, error: &serde_json::Error) -> Unreadable {
    let place = format!("line {}, column {}", error.line(), error.column());
    let violation = |code, what: &str| Violation {
        pointer: pointer.to_owned(),
        code,
        message: format!("{what} ({place})"),
    };
    match error.classify() {
        Category::Data => Unreadable::Mistyped(violation("WRONG_TYPE", &expectation(&error.to_string()))),
        Category::Syntax | Category::Eof | Category::Io => {
            Unreadable::Malformed(violation("INVALID_JSON", "the body is not JSON from here on"))
        }
    }
}

/// What belongs there, in words. What came instead is left out: it may be long, or nobody's business.
fn expectation(error: &str) -> String {
    let expected = error.rsplit_once(", expected ").map(|(_, expected)| expected);
    let expected = expected.and_then(|expected| expected.rsplit_once(" at line "));
    match expected {
        Some(("u32" | "u64", _)) => "must be a whole number that is not negative".to_owned(),
        Some(("i64", _)) => "must be a whole number".to_owned(),
        Some(("a sequence", _)) => "must be an array".to_owned(),
        Some((known @ ("a string" | MOMENT), _)) => format!("must be {known}"),
        Some((structure, _)) if structure.starts_with("struct ") || structure == "a map" => {
            "must be an object".to_owned()
        }
        _ if error.starts_with("duplicate field ") => "has a member twice".to_owned(),
        _ => "is not what belongs here".to_owned(),
    }
}

/// A place as an RFC 6901 JSON pointer. The last of its parts may be unknown: then it is the object that has it.
fn pointer(path: &Path) -> String {
    let mut pointer = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => pointer.push_str(&format!("/{index}")),
            Segment::Map { key } => {
                pointer.push('/');
                pointer.push_str(&key.replace('~', "~0").replace('/', "~1"));
            }
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    pointer
}

/// Reads a message from an object alone. What is derived would take an array, too, as the values of its fields in order.
struct Object<D>(D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Object<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq
        tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// Implements the trait for a message whose fields are derived.
macro_rules! object {
    ($message:ty) => {
        impl<'de> Deserialize<'de> for $message {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <$message>::deserialize(Object(deserializer))
            }
        }
    };
}

include!(concat!(env!("OUT_DIR"), "/objects.rs"));

/// A batch of commands, each of which is read by itself: one that cannot be read is wrong by itself.
#[derive(Debug, Default, Deserialize)]
#[serde(remote = "Self")]
pub struct JsonBatch {
    /// How a refused item affects it (`ATOMIC`, `PARTIAL`), as it came.
    #[serde(default)]
    pub mode: String,
    /// The items as they came.
    #[serde(default)]
    pub items: Vec<Box<RawValue>>,
}

object!(JsonBatch);

/// What a moment has to be.
const MOMENT: &str = "a moment as RFC 3339 has it";

/// Reads a moment, which may be absent.
pub(crate) fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    match OffsetDateTime::parse(&text, &Rfc3339) {
        Ok(moment) => Ok(Some(to_timestamp(moment))),
        Err(_) => Err(D::Error::invalid_value(
            serde::de::Unexpected::Str(&text),
            &MOMENT,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orders::v1::{Address, CancelOrderRequest, NewOrderLine, PlaceOrderRequest};

    fn refused(json: &str) -> Unreadable {
        from_json::<PlaceOrderRequest>(json.as_bytes()).expect_err("it is not readable")
    }

    fn mistyped(json: &str) -> (String, String) {
        match refused(json) {
            Unreadable::Mistyped(violation) => {
                let (what, _) = violation.message.split_once(" (line").expect("it says where");
                (violation.pointer, what.to_owned())
            }
            Unreadable::Malformed(violation) => panic!("{violation:?}"),
        }
    }

    #[test]
    fn json_becomes_the_message_that_comes_over_grpc() {
        let json = r#"{
            "customer_id": "ada", "currency": "EUR", "expected_total_minor": 6900, "tomorrow": {"x": [1]},
            "lines": [{"sku": "PEN", "quantity": 2, "unit_price_minor": 3450, "colour": "blue"}],
            "shipping_address": {"name": "Ada", "lines": ["1 Main Street"], "city": "Bath", "country": "GB"},
            "context": {"actor": "agent:jane", "occurred_at": "2024-05-01T14:00:00.5+02:00"},
            "request_id": "from the body"
        }"#;
        let request: PlaceOrderRequest = from_json(json.as_bytes()).expect("it is an order");
        let line = NewOrderLine {
            sku: "PEN".to_owned(),
            quantity: 2,
            unit_price_minor: 3_450,
        };
        assert_eq!(request.lines, [line]);
        assert_eq!(
            (request.expected_total_minor, request.expected_version),
            (Some(6_900), None)
        );
        assert_eq!(request.request_id, "", "the key comes in a header alone");
        let address = request.shipping_address.expect("it is given");
        let wanted = Address {
            name: "Ada".to_owned(),
            lines: vec!["1 Main Street".to_owned()],
            city: "Bath".to_owned(),
            postal_code: String::new(),
            country: "GB".to_owned(),
        };
        assert_eq!(address, wanted);
        let context = request.context.expect("it is given");
        let occurred_at = Timestamp {
            seconds: 1_714_564_800,
            nanos: 500_000_000,
        };
        assert_eq!(context.occurred_at, Some(occurred_at));
    }

    #[test]
    fn what_has_another_type_is_named_by_its_place() {
        for (json, pointer, what) in [
            (
                r#"{"lines": [{"quantity": 1}, {"quantity": "2"}]}"#,
                "/lines/1/quantity",
                "must be a whole number that is not negative",
            ),
            (
                r#"{"lines": [{"quantity": -1}]}"#,
                "/lines/0/quantity",
                "must be a whole number that is not negative",
            ),
            (
                r#"{"lines": [{"unit_price_minor": 34.5}]}"#,
                "/lines/0/unit_price_minor",
                "must be a whole number",
            ),
            (r#"{"customer_id": null}"#, "/customer_id", "must be a string"),
            (r#"{"lines": {}}"#, "/lines", "must be an array"),
            (
                r#"{"lines": [["PEN", 2, 3450]]}"#,
                "/lines/0",
                "must be an object",
            ),
            (
                r#"{"shipping_address": []}"#,
                "/shipping_address",
                "must be an object",
            ),
            (r#"["ada"]"#, "", "must be an object"),
            (
                r#"{"context": {"occurred_at": "yesterday"}}"#,
                "/context/occurred_at",
                "must be a moment as RFC 3339 has it",
            ),
            (
                r#"{"currency": "EUR", "currency": "USD"}"#,
                "",
                "has a member twice",
            ),
        ] {
            assert_eq!(mistyped(json), (pointer.to_owned(), what.to_owned()), "{json}");
        }
        let long = format!(r#"{{"lines": "{}"}}"#, "x".repeat(10_000));
        assert_eq!(mistyped(&long).1, "must be an array", "what came is not repeated");
    }

    #[test]
    fn what_is_no_json_is_named_by_the_place_where_it_ends_to_be() {
        let deep = format!("{{\"unknown\": {}", "[".repeat(10_000));
        for (json, pointer) in [
            ("", ""),
            (r#"{"lines": [{"sku": "PEN", }]}"#, "/lines/0"),
            (r#"{"lines": [{"sku": "PEN""#, "/lines/0"),
            (r#"{"customer_id": "ada"} {}"#, ""),
            (&deep, "/unknown"),
        ] {
            let Unreadable::Malformed(violation) = refused(json) else {
                panic!("{json:.100} is no JSON");
            };
            assert_eq!(
                (&*violation.pointer, violation.code),
                (pointer, "INVALID_JSON"),
                "{json:.100}"
            );
        }
    }

    #[test]
    fn what_is_absent_has_its_default() {
        let request: CancelOrderRequest = from_json(b"{}").expect("everything may be absent");
        assert_eq!(request, CancelOrderRequest::default());
    }
}
