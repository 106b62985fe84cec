//! A line of an import: an order in the words of those who have it elsewhere.

use daybook_domain::ids::OrderId;
use daybook_domain::order::State;
use daybook_proto::common::v1::CommandContext;
use daybook_proto::convert::to_timestamp;
use daybook_proto::orders::v1::{NewOrderLine, PlaceOrderRequest};
use daybook_service::error::ApiError;
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::http::read_json;
use crate::operations::{Imported, Line};

/// The namespace of the order ids that follow from references. It never changes: with another one, running an import
/// again would place every order again.
const ORDER_NAMESPACE: Uuid = Uuid::from_u128(0x5f0c_8e0a_94d1_4b6e_a3f7_2d1c_6b98_e042);

/// Why the events of an import were recorded, for auditors.
pub(crate) const REASON: &str = "import";

/// The fields of a line. Others are passed over.
#[derive(Deserialize)]
struct OrderFields {
    #[serde(default)]
    order: String,
    #[serde(default)]
    customer: String,
    #[serde(default)]
    currency: String,
    #[serde(default, with = "time::serde::rfc3339::option")]
    placed_at: Option<OffsetDateTime>,
    #[serde(default)]
    lines: Vec<NewOrderLine>,
}

impl Imported for State {
    const LINE: &'static str = "{\"order\": the caller's reference, \"customer\", \"currency\", \"placed_at\", \"lines\": [{\"sku\", \
                                \"quantity\", \"unit_price_minor\"}]}";

    type Request = PlaceOrderRequest;

    fn read_line(line: &[u8]) -> Result<Line<PlaceOrderRequest>, ApiError> {
        let fields: OrderFields = read_json(line)?;
        if fields.order.is_empty() {
            return Err(ApiError::invalid_field("/order", "REQUIRED", "order is required"));
        }
        let Some(placed_at) = fields.placed_at else {
            return Err(ApiError::invalid_field(
                "/placed_at",
                "REQUIRED",
                "placed_at is required",
            ));
        };
        let order_id = OrderId::from_uuid(Uuid::new_v5(&ORDER_NAMESPACE, fields.order.as_bytes()));
        Ok(Line {
            reference: fields.order.clone(),
            request: PlaceOrderRequest {
                request_id: key(&fields.order, order_id),
                context: Some(CommandContext {
                    reason: REASON.to_owned(),
                    occurred_at: Some(to_timestamp(placed_at)),
                    ..CommandContext::default()
                }),
                order_id: order_id.to_string(),
                reference: fields.order,
                customer_id: fields.customer,
                currency: fields.currency,
                lines: fields.lines,
                shipping_address: None,
                expected_total_minor: None,
                // Once its key is forgotten, the same line is refused for what it finds.
                expected_version: Some(0),
            },
        })
    }
}

/// The idempotency key. A reference may have characters that a key may not, or too many; its order's id stands in then.
fn key(reference: &str, order_id: OrderId) -> String {
    if reference.len() <= 64 && reference.bytes().all(|byte| byte.is_ascii_graphic()) {
        format!("import:{reference}")
    } else {
        format!("import:{order_id}")
    }
}

#[cfg(test)]
mod tests {
    use daybook_proto::convert::from_timestamp;

    use super::*;

    const LINE: &str = r#"{"order":"cdnow-00001","customer":"cdnow-00001","currency":"USD","placed_at":"1997-01-01T00:00:00Z","lines":[{"sku":"CD","quantity":1,"unit_price_minor":1177}]}"#;

    fn parsed(text: &str) -> PlaceOrderRequest {
        let line = State::read_line(text.as_bytes()).expect("the line is well formed");
        line.request
    }

    fn pointer(text: &str) -> String {
        let error = State::read_line(text.as_bytes()).expect_err("the line is malformed");
        error.violations()[0].pointer.clone()
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
        let occurred_at = occurred_at.as_ref().and_then(from_timestamp);
        let expected = OffsetDateTime::from_unix_timestamp(852_076_800);
        assert_eq!(occurred_at, expected.ok());
    }

    #[test]
    fn an_order_keeps_its_id_for_ever() {
        // Written down, so that a change of the namespace or of the derivation does not pass unseen.
        assert_eq!(parsed(LINE).order_id, "ord_6mdvptnhrmb9xavsybtpc31y54");
        let other = parsed(&LINE.replacen("00001", "00002", 1));
        assert_ne!(parsed(LINE).order_id, other.order_id);
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
    fn a_malformed_line_says_where_it_is_wrong() {
        assert_eq!(pointer("{}"), "/order");
        assert_eq!(pointer(&LINE.replacen("cdnow-00001", "", 1)), "/order");
        assert_eq!(pointer(&LINE.replace("placed_at", "placed")), "/placed_at");
        assert_eq!(pointer(&LINE.replace("1997-01-01T", "1997-13-01T")), "/placed_at");
        assert_eq!(
            pointer(&LINE.replace("\"quantity\":1", "\"quantity\":-1")),
            "/lines/0/quantity"
        );
        assert_eq!(
            pointer(&LINE.replace("1177", "11.77")),
            "/lines/0/unit_price_minor"
        );
        assert_eq!(
            pointer(&LINE.replace("1177", "99999999999999999999")),
            "/lines/0/unit_price_minor"
        );
        for broken in [&b"{"[..], b"\xff\xfe"] {
            assert!(State::read_line(broken).is_err());
        }
    }
}
