//! Commands on orders, as tests send them.

pub use daybook_client::Command;
use daybook_proto::common::v1::Money;
use daybook_proto::orders::v1::{
    AddOrderLineRequest, Address, CancelOrderRequest, ChangeLineQuantityRequest,
    ChangeShippingAddressRequest, ConfirmOrderRequest, LineQuantity, NewOrderLine, ReceiveReturnRequest,
    RecordDeliveryRequest, RecordPaymentRequest, RefundOrderRequest, RejectOrderRequest,
    RemoveOrderLineRequest, RequestReturnRequest, ShipOrderRequest,
};

use crate::orders::new_key;

/// Adds a line.
#[must_use]
pub fn add_line(order_id: &str, sku: &str, quantity: u32, unit_price_minor: i64) -> AddOrderLineRequest {
    AddOrderLineRequest {
        request_id: new_key(),
        order_id: order_id.to_owned(),
        line: Some(NewOrderLine {
            sku: sku.to_owned(),
            quantity,
            unit_price_minor,
        }),
        ..Default::default()
    }
}

/// Removes a line.
#[must_use]
pub fn remove_line(order_id: &str, line_number: u32) -> RemoveOrderLineRequest {
    RemoveOrderLineRequest {
        request_id: new_key(),
        order_id: order_id.to_owned(),
        line_number,
        ..Default::default()
    }
}

/// Changes the quantity of the first line.
#[must_use]
pub fn change_quantity(order_id: &str, quantity: u32) -> ChangeLineQuantityRequest {
    ChangeLineQuantityRequest {
        request_id: new_key(),
        order_id: order_id.to_owned(),
        line_number: 1,
        quantity,
        ..Default::default()
    }
}

/// Changes where the order goes.
#[must_use]
pub fn change_address(order_id: &str, city: &str) -> ChangeShippingAddressRequest {
    ChangeShippingAddressRequest {
        request_id: new_key(),
        order_id: order_id.to_owned(),
        shipping_address: Some(Address {
            name: "Jane Doe".to_owned(),
            lines: vec!["1 Main Street".to_owned()],
            city: city.to_owned(),
            postal_code: "12345".to_owned(),
            country: "US".to_owned(),
        }),
        ..Default::default()
    }
}

/// Confirms.
#[must_use]
pub fn confirm(order_id: &str) -> ConfirmOrderRequest {
    ConfirmOrderRequest {
        request_id: new_key(),
        order_id: order_id.to_owned(),
        ..Default::default()
    }
}

/// Rejects.
#[must_use]
pub fn reject(order_id: &str) -> RejectOrderRequest {
    RejectOrderRequest {
        request_id: new_key(),
        order_id: order_id.to_owned(),
        rejection_reason: "out of stock".to_owned(),
        ..Default::default()
    }
}

/// Records a payment in USD.
#[must_use]
pub fn pay(order_id: &str, payment_id: &str, minor: i64) -> RecordPaymentRequest {
    RecordPaymentRequest {
        request_id: new_key(),
        order_id: order_id.to_owned(),
        payment_id: payment_id.to_owned(),
        amount: Some(usd(minor)),
        ..Default::default()
    }
}

/// Ships parts of lines (number and quantity); all that is left when there are none.
#[must_use]
pub fn ship(order_id: &str, shipment_id: &str, parts: &[(u32, u32)]) -> ShipOrderRequest {
    ShipOrderRequest {
        request_id: new_key(),
        order_id: order_id.to_owned(),
        shipment_id: shipment_id.to_owned(),
        lines: parts_of_lines(parts),
        carrier: "Post".to_owned(),
        ..Default::default()
    }
}

/// Records that a shipment has arrived.
#[must_use]
pub fn deliver(order_id: &str, shipment_id: &str) -> RecordDeliveryRequest {
    RecordDeliveryRequest {
        request_id: new_key(),
        order_id: order_id.to_owned(),
        shipment_id: shipment_id.to_owned(),
        ..Default::default()
    }
}

/// Cancels.
#[must_use]
pub fn cancel(order_id: &str) -> CancelOrderRequest {
    CancelOrderRequest {
        request_id: new_key(),
        order_id: order_id.to_owned(),
        cancellation_reason: "changed my mind".to_owned(),
        ..Default::default()
    }
}

/// Asks to send parts of lines back.
#[must_use]
pub fn request_return(order_id: &str, return_id: &str, parts: &[(u32, u32)]) -> RequestReturnRequest {
    RequestReturnRequest {
        request_id: new_key(),
        order_id: order_id.to_owned(),
        return_id: return_id.to_owned(),
        lines: parts_of_lines(parts),
        return_reason: "scratched".to_owned(),
        ..Default::default()
    }
}

/// Records that returned goods have arrived.
#[must_use]
pub fn receive_return(order_id: &str, return_id: &str) -> ReceiveReturnRequest {
    ReceiveReturnRequest {
        request_id: new_key(),
        order_id: order_id.to_owned(),
        return_id: return_id.to_owned(),
        ..Default::default()
    }
}

/// Records a refund in USD.
#[must_use]
pub fn refund(order_id: &str, refund_id: &str, minor: i64) -> RefundOrderRequest {
    RefundOrderRequest {
        request_id: new_key(),
        order_id: order_id.to_owned(),
        refund_id: refund_id.to_owned(),
        amount: Some(usd(minor)),
        ..Default::default()
    }
}

fn usd(minor: i64) -> Money {
    Money {
        minor,
        currency: "USD".to_owned(),
    }
}

fn parts_of_lines(parts: &[(u32, u32)]) -> Vec<LineQuantity> {
    let part = |&(line_number, quantity): &(u32, u32)| LineQuantity {
        line_number,
        quantity,
    };
    parts.iter().map(part).collect()
}
