//! One line of the file, and the request that it becomes.

use std::borrow::Cow;

use daybook_domain::ids::OrderId;
use daybook_proto::common::v1::CommandContext;
use daybook_proto::convert::to_timestamp;
use daybook_proto::orders::v1::{NewOrderLine, PlaceOrderRequest};
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

/// The namespace of the order ids that follow from references. It never changes: with another one, running an import
/// again would place every order again.
const ORDER_NAMESPACE: Uuid = Uuid::from_u128(0x5f0c_8e0a_94d1_4b6e_a3f7_2d1c_6b98_e042);

/// Why the events of an import were recorded, for auditors.
const REASON: &str = "import";

/// A line as it was read.
#[derive(Debug, PartialEq)]
pub(crate) struct Line {
    /// Its number in the file, from 1.
    pub(crate) number: u64,
    /// What it asks for, or why that cannot be understood.
    pub(crate) request: Result<PlaceOrderRequest, String>,
}

/// The fields of a line. Others are passed over.
#[derive(Deserialize)]
struct OrderFields<'a> {
    #[serde(borrow)]
    order: Cow<'a, str>,
    #[serde(borrow)]
    customer: Cow<'a, str>,
    #[serde(borrow)]
    currency: Cow<'a, str>,
    #[serde(with = "time::serde::rfc3339")]
    placed_at: OffsetDateTime,
    #[serde(borrow)]
    lines: Vec<LineFields<'a>>,
}

#[derive(Deserialize)]
struct LineFields<'a> {
    #[serde(borrow)]
    sku: Cow<'a, str>,
    quantity: u32,
    unit_price_minor: i64,
}

/// Reads a line. What is only wrong by the rules of the domain is for the command service to refuse.
pub(crate) fn parse(number: u64, text: &[u8]) -> Line {
    let fields: Result<OrderFields<'_>, _> = serde_json::from_slice(text);
    let request = match fields {
        Ok(fields) if fields.order.is_empty() => Err("`order` is empty".to_owned()),
        Ok(fields) => Ok(request(fields)),
        Err(error) => Err(error.to_string()),
    };
    Line { number, request }
}

fn request(fields: OrderFields<'_>) -> PlaceOrderRequest {
    let order_id = order_id(&fields.order);
    PlaceOrderRequest {
        request_id: request_id(&fields.order, order_id),
        context: Some(CommandContext {
            reason: REASON.to_owned(),
            occurred_at: Some(to_timestamp(fields.placed_at)),
            ..CommandContext::default()
        }),
        order_id: order_id.to_string(),
        reference: fields.order.into_owned(),
        customer_id: fields.customer.into_owned(),
        currency: fields.currency.into_owned(),
        lines: fields.lines.into_iter().map(new_line).collect(),
        shipping_address: None,
        expected_total_minor: None,
        expected_version: None,
    }
}

fn new_line(fields: LineFields<'_>) -> NewOrderLine {
    NewOrderLine {
        sku: fields.sku.into_owned(),
        quantity: fields.quantity,
        unit_price_minor: fields.unit_price_minor,
    }
}

/// The id of the order with this reference: always the same.
fn order_id(reference: &str) -> OrderId {
    OrderId::from_uuid(Uuid::new_v5(&ORDER_NAMESPACE, reference.as_bytes()))
}

/// The idempotency key. A reference may have characters that a key may not; its order's id stands in then.
fn request_id(reference: &str, order_id: OrderId) -> String {
    if reference.bytes().all(|byte| byte.is_ascii_graphic()) {
        format!("import:{reference}")
    } else {
        format!("import:{order_id}")
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;

    const LINE: &str = r#"{"order":"cdnow-00001","customer":"cdnow-00001","currency":"USD","placed_at":"1997-01-01T00:00:00Z","lines":[{"sku":"CD","quantity":1,"unit_price_minor":1177}]}"#;

    fn parsed(text: &str) -> PlaceOrderRequest {
        parse(1, text.as_bytes())
            .request
            .expect("the line is well formed")
    }

    fn problem(text: &str) -> String {
        parse(1, text.as_bytes())
            .request
            .expect_err("the line is malformed")
    }

    #[test]
    fn a_line_becomes_a_request_with_everything_that_it_says() {
        let request = parsed(LINE);
        assert_eq!(request.request_id, "import:cdnow-00001");
        assert_eq!(request.reference, "cdnow-00001");
        assert_eq!(request.customer_id, "cdnow-00001");
        assert_eq!(request.currency, "USD");
        let line = NewOrderLine {
            sku: "CD".to_owned(),
            quantity: 1,
            unit_price_minor: 1_177,
        };
        assert_eq!(request.lines, [line]);
        let occurred_at = request.context.and_then(|context| context.occurred_at);
        assert_eq!(
            occurred_at,
            Some(Timestamp {
                seconds: 852_076_800,
                nanos: 0
            })
        );
    }

    #[test]
    fn an_order_keeps_its_id_for_ever() {
        // Written down, so that a change of the namespace or of the derivation does not pass unseen.
        assert_eq!(parsed(LINE).order_id, "ord_6mdvptnhrmb9xavsybtpc31y54");
        assert_ne!(
            parsed(LINE).order_id,
            parsed(&LINE.replacen("00001", "00002", 1)).order_id
        );
    }

    #[test]
    fn a_reference_that_is_no_key_is_replaced_by_the_id_in_the_key() {
        let request = parsed(&LINE.replacen("cdnow-00001", "Größe 1", 1));
        assert_eq!(request.reference, "Größe 1");
        assert_eq!(request.request_id, format!("import:{}", request.order_id));
    }

    #[test]
    fn escapes_and_fields_that_are_not_known_are_read() {
        let text = LINE.replacen("{\"order\":\"cdnow", "{\"note\":[1],\"order\":\"\\u0063dnow", 1);
        assert_eq!(parsed(&text), parsed(LINE));
    }

    #[test]
    fn a_malformed_line_says_what_is_wrong() {
        assert!(problem("{").starts_with("EOF while parsing"), "{}", problem("{"));
        assert!(problem("{}").starts_with("missing field `order`"));
        assert!(problem(&LINE.replace("\"quantity\":1", "\"quantity\":-1")).contains("-1"));
        assert!(problem(&LINE.replace("1177", "11.77")).contains("11.77"));
        assert!(problem(&LINE.replace("1177", "99999999999999999999")).contains("invalid type"));
        assert!(problem(&LINE.replace("1997-01-01T", "1997-13-01T")).contains("month"));
        assert!(problem(&LINE.replacen("cdnow-00001", "", 1)).contains("empty"));
        assert!(parse(1, b"\xff\xfe").request.is_err());
    }
}
