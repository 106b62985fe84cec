use daybook_domain::money::Money;
use daybook_domain::order::{Command, Status};
use serde_json::json;
use time::Duration;

use super::*;
use crate::testing::{Log, START, address, deliver, euros, new_line, order_id, part, pay, place, ship, text};

fn order_after(commands: impl IntoIterator<Item = Command>) -> OrderView {
    Log::of(commands).row::<OrderDetails>().document
}

/// A placed, confirmed, paid order of which everything arrived, in two shipments.
fn delivered() -> Vec<Command> {
    vec![
        place(1),
        Command::Confirm,
        pay("p1", 2_600),
        ship("s1", vec![part(1, 1)]),
        ship("s2", vec![]),
        deliver("s1"),
        deliver("s2"),
    ]
}

#[test]
fn a_placed_order_reads_as_the_contract_says() {
    let json = serde_json::to_value(order_after([place(1)])).expect("it is JSON");
    let line = |number: u32, sku: &str, quantity: u32, price: i64, total: i64| {
        json!({
            "line_number": number, "sku": sku, "quantity": quantity, "unit_price_minor": price,
            "total_minor": total, "shipped_quantity": 0, "returned_quantity": 0,
        })
    };
    let expected = json!({
        "order_id": order_id(1).to_string(),
        "version": 1,
        "status": "PLACED",
        "reference": "web-1",
        "customer_id": "ada",
        "total": {"minor": 2_600, "currency": "EUR"},
        "paid": {"minor": 0, "currency": "EUR"},
        "refunded": {"minor": 0, "currency": "EUR"},
        "lines": [line(1, "TEA", 2, 300, 600), line(2, "POT", 1, 2_000, 2_000)],
        "shipping_address": {"name": "Ada", "lines": ["1 Main St"], "city": "Kyoto", "country": "JP"},
        "shipments": [],
        "returns": [],
        "placed_at": "2024-05-01T12:00:00Z",
        "updated_at": "2024-05-01T12:00:00Z",
    });
    assert_eq!(json, expected);
}

#[test]
fn lines_are_added_changed_and_removed() {
    let order = order_after([
        place(1),
        Command::AddLine {
            line: new_line("CUP", 4, 150),
        },
        Command::ChangeQuantity {
            line_number: 1,
            quantity: 5,
        },
        Command::RemoveLine { line_number: 2 },
    ]);
    let lines: Vec<_> = order
        .lines
        .iter()
        .map(|line| (line.line_number, line.quantity, line.total_minor))
        .collect();
    assert_eq!(lines, [(1, 5, 1_500), (3, 4, 600)]);
    assert_eq!(order.total, euros(2_100));
}

#[test]
fn the_address_is_the_last_one() {
    let shipping_address = address("Nara");
    let order = order_after([
        place(1),
        Command::ChangeShippingAddress {
            shipping_address: shipping_address.clone(),
        },
    ]);
    assert_eq!(order.shipping_address, Some(shipping_address));
}

#[test]
fn an_order_says_why_it_was_closed() {
    let cancelled = order_after([place(1), Command::Cancel { reason: text("late") }]);
    assert_eq!(
        (cancelled.status, cancelled.closing_reason),
        (Status::Cancelled, Some(text("late")))
    );
    let rejected = order_after([place(1), Command::Reject { reason: text("sold") }]);
    assert_eq!(
        (rejected.status, rejected.closing_reason),
        (Status::Rejected, Some(text("sold")))
    );
}

#[test]
fn payments_and_refunds_are_what_the_events_say_holds() {
    let order = order_after([
        place(1),
        pay("p1", 600),
        pay("p2", 400),
        Command::Cancel { reason: text("late") },
        Command::Refund {
            refund_id: text("r1"),
            amount: euros(300),
        },
    ]);
    assert_eq!(
        (order.paid, order.refunded),
        (euros(1_000), Money::new(300, text("EUR")))
    );
}

#[test]
fn shipments_are_listed_with_what_they_hold_and_when_they_left_and_arrived() {
    let order = order_after(delivered());
    assert_eq!(order.status, Status::Delivered);
    let minute = |minutes| START + Duration::minutes(minutes);
    let shipment = |id: &str, lines, left, arrived| ShipmentView {
        shipment_id: text(id),
        lines,
        carrier: Some(text("DHL")),
        tracking_number: None,
        shipped_at: minute(left),
        delivered_at: Some(minute(arrived)),
    };
    let expected = [
        shipment("s1", vec![part(1, 1)], 3, 5),
        shipment("s2", vec![part(1, 1), part(2, 1)], 4, 6),
    ];
    assert_eq!(order.shipments, expected);
    let shipped: Vec<_> = order.lines.iter().map(|line| line.shipped_quantity).collect();
    assert_eq!(shipped, [2, 1]);
}

#[test]
fn returned_goods_are_counted_when_they_arrive() {
    let mut commands = delivered();
    commands.push(Command::RequestReturn {
        return_id: text("r1"),
        lines: vec![part(1, 2)],
        reason: Some(text("too green")),
    });
    let requested = order_after(commands.clone());
    assert_eq!(requested.lines[0].returned_quantity, 0);
    assert_eq!(requested.returns[0].received_at, None);

    commands.push(Command::ReceiveReturn {
        return_id: text("r1"),
    });
    let received = order_after(commands);
    assert_eq!(received.lines[0].returned_quantity, 2);
    let expected = ReturnView {
        return_id: text("r1"),
        lines: vec![part(1, 2)],
        return_reason: Some(text("too green")),
        requested_at: START + Duration::minutes(7),
        received_at: Some(START + Duration::minutes(8)),
    };
    assert_eq!(received.returns, [expected]);
}

#[test]
fn the_first_events_alone_give_the_order_as_it_was_then() {
    let log = Log::of(delivered());
    let key = StreamKey::of(&log.events[0]);
    let then = OrderDetails::replay(&key, None, &log.events[..2]).expect("they can be folded");
    assert_eq!(
        then,
        Some(Log::of([place(1), Command::Confirm]).row::<OrderDetails>())
    );
}

#[test]
fn an_event_about_a_part_that_the_order_does_not_have_is_refused() {
    let mut log = Log::of(delivered());
    let Ok(Body::Order(OrderEvent::DeliveryRecorded(delivery))) = &mut log.events[6].body else {
        panic!("the last thing that happened is the arrival of s2");
    };
    delivery.shipment_id = text("s3");
    let refused = OrderDetails::replay(&StreamKey::of(&log.events[0]), None, &log.events);
    let id = "s3".to_owned();
    assert_eq!(refused, Err(FoldError::Unknown { part: "shipment", id }));
}

#[test]
fn a_document_is_read_as_it_was_written() {
    let mut commands = delivered();
    commands.push(Command::RequestReturn {
        return_id: text("r1"),
        lines: vec![part(1, 1)],
        reason: None,
    });
    let order = order_after(commands);
    let read: OrderView = serde_json::from_str(&encode(&order)).expect("it was written by us");
    assert_eq!(read, order);
}
