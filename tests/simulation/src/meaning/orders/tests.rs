//! Histories that are right in every form and still say what cannot have happened.

use daybook_domain::aggregate::Aggregate as _;
use daybook_domain::event::Event as _;
use daybook_domain::ids::{CustomerId, PaymentId, RefundId, ReturnId, ShipmentId, Sku};
use daybook_domain::order::LineQuantity;
use daybook_event_store::RecordedEvent;
use time::OffsetDateTime;
use uuid::Uuid;

use super::*;
use crate::meaning;

const TENANT: Uuid = Uuid::from_u128(1);

fn usd(minor: i64) -> Money {
    Money::new(minor, "USD".parse().expect("a currency"))
}

fn line(sku: &str, quantity: u32, unit_price_minor: i64) -> NewLine {
    NewLine {
        sku: Sku::parse(sku).expect("an article"),
        quantity,
        unit_price_minor,
    }
}

/// Two lines, 30.00 USD.
fn placing(order_id: OrderId) -> Command {
    Command::Place {
        order_id,
        reference: None,
        customer_id: CustomerId::parse("customer-1").expect("a customer"),
        currency: usd(0).currency,
        lines: vec![line("CD", 2, 1_000), line("LP", 1, 1_000)],
        shipping_address: None,
        expected_total_minor: None,
    }
}

fn pay(payment_id: &str, minor: i64) -> Command {
    Command::RecordPayment {
        payment_id: PaymentId::parse(payment_id).expect("a payment"),
        amount: usd(minor),
    }
}

fn ship_lines(shipment_id: &str, lines: &[(u32, u32)]) -> Command {
    Command::Ship {
        shipment_id: ShipmentId::parse(shipment_id).expect("a shipment"),
        lines: parts(lines),
        carrier: None,
        tracking_number: None,
    }
}

fn deliver(shipment_id: &str) -> Command {
    Command::RecordDelivery {
        shipment_id: ShipmentId::parse(shipment_id).expect("a shipment"),
    }
}

fn send_back(return_id: &str, lines: &[(u32, u32)]) -> Command {
    Command::RequestReturn {
        return_id: ReturnId::parse(return_id).expect("a return"),
        lines: parts(lines),
        reason: None,
    }
}

fn receive(return_id: &str) -> Command {
    Command::ReceiveReturn {
        return_id: ReturnId::parse(return_id).expect("a return"),
    }
}

fn refund(refund_id: &str, minor: i64) -> Command {
    Command::Refund {
        refund_id: RefundId::parse(refund_id).expect("a refund"),
        amount: usd(minor),
    }
}

fn parts(lines: &[(u32, u32)]) -> Vec<LineQuantity> {
    let part = |&(line_number, quantity): &(u32, u32)| LineQuantity {
        line_number,
        quantity,
    };
    lines.iter().map(part).collect()
}

fn add(sku: &str) -> Command {
    Command::AddLine {
        line: line(sku, 1, 500),
    }
}

fn change(line_number: u32, quantity: u32) -> Command {
    Command::ChangeQuantity {
        line_number,
        quantity,
    }
}

/// The events that these commands lead to, after placing.
fn history(commands: impl IntoIterator<Item = Command>) -> (OrderId, Vec<Event>) {
    let order_id = OrderId::from_uuid(Uuid::from_u128(7));
    let (mut state, mut events) = (State::default(), Vec::new());
    for command in std::iter::once(placing(order_id)).chain(commands) {
        for event in state.decide(command).expect("the domain grants it") {
            state = state.evolve(&event);
            events.push(event);
        }
    }
    (order_id, events)
}

/// A history of which the first parcel is delivered and comes back.
fn shipped_and_returned() -> (OrderId, Vec<Event>) {
    history([
        Command::Confirm,
        pay("payment-1", 3_000),
        ship_lines("shipment-1", &[(1, 2)]),
        deliver("shipment-1"),
        send_back("return-1", &[(1, 1)]),
        receive("return-1"),
        refund("refund-1", 400),
        ship_lines("shipment-2", &[]),
    ])
}

/// The events as a log of one stream, with positions, versions, ids and times as they must be.
fn recorded(order_id: OrderId, events: &[Event]) -> Vec<RecordedEvent> {
    let record = |(event, number): (&Event, u64)| RecordedEvent {
        partition: 0,
        position: number,
        tenant_id: TENANT,
        category: State::CATEGORY.to_owned(),
        stream_id: order_id.to_string(),
        stream_version: number,
        event_id: Uuid::from_u128(number.into()),
        event_type: event.event_type().to_owned(),
        schema_version: event.schema_version(),
        payload: event.encode(),
        metadata: "{}".into(),
        recorded_at: OffsetDateTime::UNIX_EPOCH,
    };
    events.iter().zip(1..).map(record).collect()
}

fn accepted((order_id, events): &(OrderId, Vec<Event>)) {
    meaning::log(&recorded(*order_id, events)).expect("it follows");
}

/// What the check says to a history whose event at this place is another one.
fn refused(of: &(OrderId, Vec<Event>), place: usize, change: impl FnOnce(&mut Event)) -> String {
    accepted(of);
    let (order_id, mut events) = of.clone();
    change(&mut events[place]);
    let error = meaning::log(&recorded(order_id, &events)).expect_err("it does not follow");
    format!("{error:#}")
}

/// What the check says to a history to which this event is added.
fn refused_after(of: &(OrderId, Vec<Event>), event: Event) -> String {
    accepted(of);
    let (order_id, mut events) = of.clone();
    events.push(event);
    let error = meaning::log(&recorded(order_id, &events)).expect_err("it does not follow");
    format!("{error:#}")
}

#[test]
fn whole_lives_with_every_kind_of_event_follow() {
    let lives = [
        shipped_and_returned(),
        history([
            add("MC"),
            change(1, 5),
            Command::RemoveLine { line_number: 2 },
            Command::ChangeShippingAddress {
                shipping_address: serde_json::from_str(
                    r#"{"name":"Jane","lines":["1 Main Street"],"city":"Rome","postal_code":"1","country":"IT"}"#,
                )
                .expect("an address"),
            },
            add("EP"),
            Command::Reject {
                reason: "sold out".parse().expect("a reason"),
            },
        ]),
        history([
            pay("payment-1", 1),
            Command::Cancel {
                reason: "changed my mind".parse().expect("a reason"),
            },
            refund("refund-1", 1),
        ]),
    ];
    let mut kinds: Vec<&str> = Vec::new();
    for life in &lives {
        accepted(life);
        kinds.extend(life.1.iter().map(Event::event_type));
    }
    for (kind, _) in Event::SCHEMAS {
        assert!(kinds.contains(kind), "no life has {kind}");
    }
}

#[test]
fn a_line_number_that_two_lines_have_is_found() {
    let of = history([add("MC"), add("EP")]);
    let twice = of.1[1].clone();
    assert!(
        refused_after(&of, twice).contains("line_number: 5"),
        "line 3 twice"
    );
    let again = |event: &mut Event| {
        if let Event::LineAdded(added) = event {
            added.line.line_number = 3;
        }
    };
    refused(&of, 2, again);
    // Neither after the line is gone.
    let of = history([add("MC"), Command::RemoveLine { line_number: 3 }, add("EP")]);
    refused(&of, 3, again);
}

#[test]
fn a_total_or_a_count_that_is_not_the_sum_of_the_lines_is_found() {
    let of = history([add("MC"), change(1, 5), Command::RemoveLine { line_number: 2 }]);
    for place in 0..of.1.len() {
        refused(&of, place, |event| match event {
            Event::Placed(placed) => placed.total_minor += 1,
            Event::LineAdded(added) => added.total_minor += 1,
            Event::QuantityChanged(changed) => changed.total_change_minor -= 1,
            Event::LineRemoved(removed) => removed.total_minor -= 1,
            other => panic!("{other:?} has no total"),
        });
        refused(&of, place, |event| match event {
            Event::Placed(placed) => placed.item_count += 1,
            Event::LineAdded(added) => added.item_count_change += 1,
            Event::QuantityChanged(changed) => changed.item_count -= 1,
            Event::LineRemoved(removed) => removed.item_count -= 1,
            other => panic!("{other:?} counts no articles"),
        });
    }
}

#[test]
fn a_previous_quantity_or_a_price_that_never_was_is_found() {
    let of = history([
        change(1, 65),
        change(1, 190),
        Command::RemoveLine { line_number: 1 },
    ]);
    let said = refused(&of, 2, |event| {
        if let Event::QuantityChanged(changed) = event {
            changed.previous_quantity = 2;
        }
    });
    assert!(said.contains("previous_quantity: 65"), "{said}");
    refused(&of, 3, |event| {
        if let Event::LineRemoved(removed) = event {
            removed.line.unit_price_minor += 1;
        }
    });
}

#[test]
fn amounts_paid_and_refunded_that_do_not_add_up_are_found() {
    let of = shipped_and_returned();
    for place in [2, 6, 7] {
        refused(&of, place, |event| match event {
            Event::PaymentRecorded(payment) => payment.paid_minor -= 1,
            Event::ReturnReceived(received) => received.returned_minor += 1,
            Event::Refunded(refunded) => refunded.refunded_minor += 1,
            other => panic!("{other:?} has no amount"),
        });
    }
    refused(&of, 7, |event| {
        if let Event::Refunded(refunded) = event {
            (refunded.amount_minor, refunded.refunded_minor) = (1_001, 1_001);
        }
    });
}

#[test]
fn a_payment_a_shipment_a_return_and_a_refund_that_come_twice_are_found() {
    let of = shipped_and_returned();
    for (place, code) in [
        (2, "payment"),
        (3, "shipment"),
        (4, "shipment"),
        (5, "return"),
        (6, "return"),
        (7, "refund"),
    ] {
        let said = refused_after(&of, of.1[place].clone());
        assert!(
            said.contains("the domain refuses it") && said.contains(code),
            "{said}"
        );
    }
}

#[test]
fn an_event_in_a_status_that_does_not_allow_it_is_found() {
    let confirmed = history([Command::Confirm]);
    let changed = history([change(1, 5)]).1.remove(1);
    assert!(refused_after(&confirmed, changed.clone()).contains("already confirmed"));
    let cancelled = history([Command::Cancel {
        reason: "changed my mind".parse().expect("a reason"),
    }]);
    for event in [changed, confirmed.1[1].clone(), cancelled.1[1].clone()] {
        assert!(refused_after(&cancelled, event).contains("cancelled"));
    }
    let of = shipped_and_returned();
    refused(&of, 3, |event| {
        if let Event::Shipped(shipped) = event {
            shipped.status = daybook_domain::order::Status::Shipped;
        }
    });
    let unpaid = history([Command::Confirm]);
    assert!(refused_after(&unpaid, of.1[3].clone()).contains("not paid"));
}

#[test]
fn a_stream_opens_once_with_its_own_order() {
    let of = history([]);
    assert!(refused_after(&of, of.1[0].clone()).contains("already placed"));
    refused(&of, 0, |event| {
        if let Event::Placed(placed) = event {
            placed.order_id = OrderId::from_uuid(Uuid::from_u128(8));
        }
    });
    refused(&of, 0, |event| *event = history([Command::Confirm]).1.remove(1));
}

#[test]
fn streams_of_one_name_are_told_apart_by_tenant_and_a_stream_has_one_category() {
    let (order_id, events) = history([add("MC")]);
    let mut log = recorded(order_id, &events);
    let mut others = recorded(order_id, &events);
    for (event, position) in others.iter_mut().zip(3..) {
        event.tenant_id = Uuid::from_u128(2);
        event.position = position;
        event.event_id = Uuid::from_u128(position.into());
    }
    log.extend(others);
    meaning::log(&log).expect("each follows in its own stream");
    log[3].category = "invoice".to_owned();
    assert!(meaning::log(&log).is_err(), "a stream of two categories");
    log[2].category = "invoice".to_owned();
    let said = format!("{:#}", meaning::log(&log).expect_err("nobody folds invoices"));
    assert!(said.contains("no aggregate"), "{said}");
}
