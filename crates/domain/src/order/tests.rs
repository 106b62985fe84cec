//! The specification of orders: given what happened, when this is asked, then that happens.
//!
//! Unless a test says otherwise the order is of two of article A at 500 and one of article B at 250: 1250 in
//! all.

mod amounts;
mod goods;
mod lifecycle;
mod lines;
mod rejections;

use uuid::Uuid;

use super::*;
use crate::address::Address;
use crate::money::{Currency, Money};

const TOTAL: i64 = 1250;
const ITEMS: u64 = 3;

struct Given(State);

struct Outcome(Result<Vec<Event>, Rejection>);

fn given<'a>(events: impl IntoIterator<Item = &'a Event>) -> Given {
    Given(events.into_iter().fold(State::default(), State::evolve))
}

impl Given {
    fn when(self, command: Command) -> Outcome {
        Outcome(self.0.decide(command))
    }
}

impl Outcome {
    #[track_caller]
    fn then(self, event: impl Into<Event>) {
        assert_eq!(self.0, Ok(vec![event.into()]));
    }

    #[track_caller]
    fn then_rejected(self, rejection: Rejection) {
        assert_eq!(self.0, Err(rejection));
    }
}

// Histories.

fn placed() -> Vec<Event> {
    vec![order_placed().into()]
}

fn confirmed() -> Vec<Event> {
    [placed(), vec![order_confirmed().into()]].concat()
}

fn paid() -> Vec<Event> {
    [confirmed(), vec![payment("p-1", TOTAL, TOTAL).into()]].concat()
}

fn partially_shipped() -> Vec<Event> {
    [
        paid(),
        vec![shipped("s-1", &[(1, 1)], Status::PartiallyShipped).into()],
    ]
    .concat()
}

fn fully_shipped() -> Vec<Event> {
    [
        paid(),
        vec![shipped("s-1", &[(1, 2), (2, 1)], Status::Shipped).into()],
    ]
    .concat()
}

fn delivered() -> Vec<Event> {
    [
        fully_shipped(),
        vec![delivery("s-1", &[(1, 2), (2, 1)], Status::Delivered).into()],
    ]
    .concat()
}

fn cancelled() -> Vec<Event> {
    [placed(), vec![order_cancelled(0).into()]].concat()
}

fn rejected() -> Vec<Event> {
    [placed(), vec![order_rejected(0).into()]].concat()
}

fn with(history: Vec<Event>, event: impl Into<Event>) -> Vec<Event> {
    [history, vec![event.into()]].concat()
}

// Events.

fn order_placed() -> Placed {
    Placed {
        order_id: order_id(),
        customer_id: customer(),
        reference: Some(text("web-1")),
        currency: usd(),
        lines: vec![line(1, "A", 2, 500), line(2, "B", 1, 250)],
        shipping_address: Some(address("London")),
        total_minor: TOTAL,
        item_count: ITEMS,
    }
}

fn order_confirmed() -> Confirmed {
    Confirmed {
        customer_id: customer(),
        currency: usd(),
        total_minor: TOTAL,
        item_count: ITEMS,
    }
}

fn order_rejected(paid_minor: i64) -> Rejected {
    Rejected {
        customer_id: customer(),
        reason: text("out of stock"),
        currency: usd(),
        total_minor: TOTAL,
        item_count: ITEMS,
        paid_minor,
    }
}

fn order_cancelled(paid_minor: i64) -> Cancelled {
    Cancelled {
        customer_id: customer(),
        reason: text("changed my mind"),
        currency: usd(),
        total_minor: TOTAL,
        item_count: ITEMS,
        paid_minor,
    }
}

fn payment(payment_id: &str, amount_minor: i64, paid_minor: i64) -> PaymentRecorded {
    PaymentRecorded {
        customer_id: customer(),
        payment_id: text(payment_id),
        currency: usd(),
        amount_minor,
        paid_minor,
    }
}

fn shipped(shipment_id: &str, lines: &[(u32, u32)], status: Status) -> Shipped {
    Shipped {
        shipment_id: text(shipment_id),
        lines: parts(lines),
        carrier: None,
        tracking_number: None,
        status,
    }
}

fn delivery(shipment_id: &str, lines: &[(u32, u32)], status: Status) -> DeliveryRecorded {
    DeliveryRecorded {
        shipment_id: text(shipment_id),
        lines: parts(lines),
        status,
    }
}

fn return_requested(return_id: &str, lines: &[(u32, u32)]) -> ReturnRequested {
    ReturnRequested {
        return_id: text(return_id),
        lines: parts(lines),
        reason: None,
    }
}

fn return_received(
    return_id: &str,
    lines: &[(u32, u32)],
    value_minor: i64,
    returned_minor: i64,
) -> ReturnReceived {
    ReturnReceived {
        return_id: text(return_id),
        lines: parts(lines),
        currency: usd(),
        value_minor,
        returned_minor,
    }
}

fn refunded(refund_id: &str, amount_minor: i64, refunded_minor: i64) -> Refunded {
    Refunded {
        customer_id: customer(),
        refund_id: text(refund_id),
        currency: usd(),
        amount_minor,
        refunded_minor,
    }
}

// Commands.

fn place(lines: Vec<NewLine>, expected_total_minor: Option<i64>) -> Command {
    Command::Place {
        order_id: order_id(),
        reference: Some(text("web-1")),
        customer_id: customer(),
        currency: usd(),
        lines,
        shipping_address: Some(address("London")),
        expected_total_minor,
    }
}

fn pay(payment_id: &str, minor: i64) -> Command {
    Command::RecordPayment {
        payment_id: text(payment_id),
        amount: dollars(minor),
    }
}

fn ship(shipment_id: &str, lines: &[(u32, u32)]) -> Command {
    Command::Ship {
        shipment_id: text(shipment_id),
        lines: parts(lines),
        carrier: None,
        tracking_number: None,
    }
}

fn deliver(shipment_id: &str) -> Command {
    Command::RecordDelivery {
        shipment_id: text(shipment_id),
    }
}

fn cancel() -> Command {
    Command::Cancel {
        reason: text("changed my mind"),
    }
}

fn reject() -> Command {
    Command::Reject {
        reason: text("out of stock"),
    }
}

fn send_back(return_id: &str, lines: &[(u32, u32)]) -> Command {
    Command::RequestReturn {
        return_id: text(return_id),
        lines: parts(lines),
        reason: None,
    }
}

fn receive(return_id: &str) -> Command {
    Command::ReceiveReturn {
        return_id: text(return_id),
    }
}

fn refund(refund_id: &str, minor: i64) -> Command {
    Command::Refund {
        refund_id: text(refund_id),
        amount: dollars(minor),
    }
}

// Values.

fn text<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("the tests use valid values")
}

fn order_id() -> OrderId {
    OrderId::from_uuid(Uuid::from_u128(7))
}

fn customer() -> CustomerId {
    text("c-1")
}

fn usd() -> Currency {
    text("USD")
}

fn dollars(minor: i64) -> Money {
    Money::new(minor, usd())
}

fn address(city: &str) -> Address {
    Address::new(
        text("Ada"),
        vec![text("12 St James's Square")],
        text(city),
        None,
        text("GB"),
    )
    .expect("one street line is allowed")
}

fn line(line_number: u32, sku: &str, quantity: u32, unit_price_minor: i64) -> Line {
    Line {
        line_number,
        sku: text(sku),
        quantity,
        unit_price_minor,
    }
}

fn new_line(sku: &str, quantity: u32, unit_price_minor: i64) -> NewLine {
    NewLine {
        sku: text(sku),
        quantity,
        unit_price_minor,
    }
}

fn the_lines() -> Vec<NewLine> {
    vec![new_line("A", 2, 500), new_line("B", 1, 250)]
}

fn parts(lines: &[(u32, u32)]) -> Vec<LineQuantity> {
    lines
        .iter()
        .map(|&(line_number, quantity)| LineQuantity {
            line_number,
            quantity,
        })
        .collect()
}
