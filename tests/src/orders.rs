//! Orders to send.

pub use daybook_client::new_key;
use daybook_domain::ids::OrderId;
use daybook_proto::common::v1::CommandContext;
use daybook_proto::orders::v1::{NewOrderLine, PlaceOrderRequest};
use uuid::Uuid;

/// A new order's id.
#[must_use]
pub fn new_order_id() -> String {
    OrderId::from_uuid(Uuid::now_v7()).to_string()
}

/// An order of two lines by a customer; it costs 3,530 minor units.
#[must_use]
pub fn place(order_id: &str, customer_id: &str) -> PlaceOrderRequest {
    PlaceOrderRequest {
        request_id: new_key(),
        context: Some(CommandContext {
            actor: "agent:jane".into(),
            reason: "by phone".into(),
            ..Default::default()
        }),
        order_id: order_id.to_owned(),
        reference: String::new(),
        customer_id: customer_id.to_owned(),
        currency: "USD".to_owned(),
        lines: vec![
            NewOrderLine {
                sku: "CD".to_owned(),
                quantity: 2,
                unit_price_minor: 1_177,
            },
            NewOrderLine {
                sku: "LP".to_owned(),
                quantity: 1,
                unit_price_minor: 1_176,
            },
        ],
        shipping_address: None,
        expected_total_minor: Some(3_530),
        expected_version: None,
    }
}
