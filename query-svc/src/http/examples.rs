//! Examples for the OpenAPI description: one order and its history. Tests hold them to what is really sent.

use serde_json::{Value, json};

/// The order of all examples.
pub(super) const ORDER_ID: &str = "ord_01h455vb4pex5vsknk084sn02q";

/// The request of all examples.
pub(super) const CORRELATION_ID: &str = "checkout-77";

/// An order with every member that there can be.
pub(super) fn order() -> Value {
    json!({
        "order_id": ORDER_ID,
        "version": 9,
        "status": "PARTIALLY_SHIPPED",
        "reference": "web-2024-0815",
        "customer_id": "c-4711",
        "total": {"minor": 7_497, "currency": "EUR"},
        "paid": {"minor": 7_497, "currency": "EUR"},
        "refunded": {"minor": 2_499, "currency": "EUR"},
        "lines": [{
            "line_number": 1,
            "sku": "teapot-blue",
            "quantity": 3,
            "unit_price_minor": 2_499,
            "total_minor": 7_497,
            "shipped_quantity": 2,
            "returned_quantity": 1,
        }],
        "shipping_address": {
            "name": "Anne Example",
            "lines": ["1 High Street"],
            "city": "Cork",
            "postal_code": "T12 ABC1",
            "country": "IE",
        },
        "shipments": [{
            "shipment_id": "shp-1",
            "lines": [{"line_number": 1, "quantity": 2}],
            "carrier": "An Post",
            "tracking_number": "CE123456789IE",
            "shipped_at": "2024-05-02T08:00:00Z",
            "delivered_at": "2024-05-03T10:30:00Z",
        }],
        "returns": [{
            "return_id": "ret-1",
            "lines": [{"line_number": 1, "quantity": 1}],
            "return_reason": "a chip in the lid",
            "requested_at": "2024-05-04T09:00:00Z",
            "received_at": "2024-05-07T11:15:00Z",
        }],
        "placed_at": "2024-05-01T12:00:00Z",
        "updated_at": "2024-05-08T16:20:00Z",
        "closing_reason": "the rest is out of stock",
    })
}

/// The same order in a list.
pub(super) fn order_summary() -> Value {
    json!({
        "order_id": ORDER_ID,
        "version": 9,
        "status": "PARTIALLY_SHIPPED",
        "reference": "web-2024-0815",
        "customer_id": "c-4711",
        "total": {"minor": 7_497, "currency": "EUR"},
        "item_count": 3,
        "placed_at": "2024-05-01T12:00:00Z",
        "updated_at": "2024-05-08T16:20:00Z",
        "customer": customer_totals(),
        "lines": order()["lines"],
    })
}

/// What its customer has bought.
pub(super) fn customer_totals() -> Value {
    json!({
        "customer_id": "c-4711",
        "totals": [{
            "currency": "EUR",
            "orders_placed": 1,
            "orders_closed": 0,
            "items_ordered": 3,
            "ordered_minor": 7_497,
            "paid_minor": 7_497,
            "refunded_minor": 2_499,
        }],
    })
}

/// One of its events.
pub(super) fn event() -> Value {
    json!({
        "event_id": "018f3a5e-7c1a-7f3e-9c55-2f6d3f1f9a10",
        "event_type": "order.confirmed",
        "schema_version": 1,
        "partition": 0,
        "position": 1_042,
        "stream_id": ORDER_ID,
        "stream_version": 2,
        "payload": {"customer_id": "c-4711", "currency": "EUR", "total_minor": 7_497, "item_count": 3},
        "metadata": {
            "correlation_id": CORRELATION_ID,
            "causation_id": "cmd-76",
            "principal": "key:ab12cd34",
            "actor": "agent:jane",
            "reason": "stock is reserved",
            "command": "ConfirmOrder",
            "idempotency_key": "confirm-77",
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "occurred_at": "2024-05-01T12:05:00Z",
            "received_at_us": 1_714_565_100_123_456_i64,
        },
        "recorded_at": "2024-05-01T12:05:00.125Z",
        "changes": [{"pointer": "/status", "before": "PLACED", "after": "CONFIRMED"}],
    })
}

/// What one request caused.
pub(super) fn correlation() -> Value {
    json!({
        "correlation_id": CORRELATION_ID,
        "nodes": [{
            "event": event(),
            "depth": 0,
            "children": ["018f3a5e-8d2b-7a4f-8d66-3a7e4a2a0b21"],
        }],
        "truncated": true,
    })
}
