//! Values, commands, lives and nonsense, drawn at random.
//!
//! The values are drawn from small sets (few lines, few ids, small amounts) so that sequences get somewhere,
//! with an impossible one among them now and then.

use proptest::prelude::*;
use uuid::Uuid;

use super::{Step, all_events, live};
use crate::ids::OrderId;
use crate::order::*;

/// Draws a valid text from a small set, so that it is met again.
fn text<T: std::str::FromStr<Err: std::fmt::Debug> + std::fmt::Debug + Clone>() -> impl Strategy<Value = T> {
    prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(|text| text.parse().expect("short and plain"))
}

fn quantity() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 1..4_u32, 1 => Just(0), 1 => Just(QUANTITY_MAX), 1 => any::<u32>()]
}

fn price() -> impl Strategy<Value = i64> {
    prop_oneof![8 => 0..4_i64, 1 => any::<i64>(), 1 => Just(i64::MAX)]
}

fn line_number() -> impl Strategy<Value = u32> {
    prop_oneof![10 => 1..6_u32, 1 => any::<u32>()]
}

fn currency() -> impl Strategy<Value = Currency> {
    prop_oneof![20 => Just("USD"), 1 => Just("EUR")].prop_map(|code| code.parse().expect("both are active"))
}

fn amount() -> impl Strategy<Value = Money> {
    let minor = prop_oneof![10 => 1..8_i64, 1 => any::<i64>()];
    (minor, currency()).prop_map(|(minor, currency)| Money::new(minor, currency))
}

fn new_line() -> impl Strategy<Value = NewLine> {
    (text(), quantity(), price()).prop_map(|(sku, quantity, unit_price_minor)| NewLine {
        sku,
        quantity,
        unit_price_minor,
    })
}

fn parts() -> impl Strategy<Value = Vec<LineQuantity>> {
    let part = (line_number(), quantity()).prop_map(|(line_number, quantity)| LineQuantity {
        line_number,
        quantity,
    });
    prop::collection::vec(part, 0..3)
}

fn order_id() -> impl Strategy<Value = OrderId> {
    any::<u128>().prop_map(|id| OrderId::from_uuid(Uuid::from_u128(id)))
}

fn address() -> impl Strategy<Value = Address> {
    (text(), text(), text()).prop_map(|(name, line, city)| {
        Address::new(name, vec![line], city, None, "GB".parse().expect("a country"))
            .expect("one line is allowed")
    })
}

fn place() -> impl Strategy<Value = Command> {
    let lines = prop::collection::vec(new_line(), 0..4);
    (order_id(), text(), currency(), lines, prop::option::of(0..9_i64)).prop_map(
        |(order_id, customer_id, currency, lines, expected_total_minor)| Command::Place {
            order_id,
            reference: None,
            customer_id,
            currency,
            lines,
            shipping_address: None,
            expected_total_minor,
        },
    )
}

pub(super) fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        1 => place(),
        3 => new_line().prop_map(|line| Command::AddLine { line }),
        2 => line_number().prop_map(|line_number| Command::RemoveLine { line_number }),
        3 => (line_number(), quantity())
            .prop_map(|(line_number, quantity)| Command::ChangeQuantity { line_number, quantity }),
        1 => address().prop_map(|shipping_address| Command::ChangeShippingAddress { shipping_address }),
        2 => Just(Command::Confirm),
        1 => text().prop_map(|reason| Command::Reject { reason }),
        6 => (text(), amount()).prop_map(|(payment_id, amount)| Command::RecordPayment { payment_id, amount }),
        6 => (text(), parts()).prop_map(|(shipment_id, lines)| Command::Ship {
            shipment_id,
            lines,
            carrier: None,
            tracking_number: None,
        }),
        4 => text().prop_map(|shipment_id| Command::RecordDelivery { shipment_id }),
        1 => text().prop_map(|reason| Command::Cancel { reason }),
        4 => (text(), parts())
            .prop_map(|(return_id, lines)| Command::RequestReturn { return_id, lines, reason: None }),
        3 => text().prop_map(|return_id| Command::ReceiveReturn { return_id }),
        4 => (text(), amount()).prop_map(|(refund_id, amount)| Command::Refund { refund_id, amount }),
    ]
}

/// Commands to an order that has arrived, or any other.
fn aftermath() -> impl Strategy<Value = Command> {
    let part = |(line_number, quantity)| LineQuantity {
        line_number,
        quantity,
    };
    let small = (1..4_i64).prop_map(|minor| Money::new(minor, "USD".parse().expect("a currency")));
    prop_oneof![
        2 => command(),
        2 => (text(), (1..4_u32, 1..3_u32)).prop_map(move |(return_id, one)| Command::RequestReturn {
            return_id,
            lines: vec![part(one)],
            reason: None,
        }),
        2 => text().prop_map(|return_id| Command::ReceiveReturn { return_id }),
        2 => (text(), small).prop_map(|(refund_id, amount)| Command::Refund { refund_id, amount }),
    ]
}

/// A likely life of an order, with anything at all between its steps.
pub(super) fn commands() -> impl Strategy<Value = Vec<Step>> {
    let likely_place = prop::collection::vec((text(), 1..4_u32, 0..4_i64), 1..4).prop_map(|lines| {
        let new_line = |(sku, quantity, unit_price_minor)| NewLine {
            sku,
            quantity,
            unit_price_minor,
        };
        Step::Command(Command::Place {
            order_id: OrderId::from_uuid(Uuid::nil()),
            reference: None,
            customer_id: "a".parse().expect("short and plain"),
            currency: "USD".parse().expect("a currency"),
            lines: lines.into_iter().map(new_line).collect(),
            shipping_address: None,
            expected_total_minor: None,
        })
    });
    let anything = || prop::collection::vec(command().prop_map(Step::Command), 0..8);
    let then = |step: Step| {
        prop::option::weighted(0.8, Just(step)).prop_map(|step| step.into_iter().collect::<Vec<_>>())
    };
    let ship_all = Step::Command(Command::Ship {
        shipment_id: "e".parse().expect("short and plain"),
        lines: vec![],
        carrier: None,
        tracking_number: None,
    });
    let deliver_all = Step::Command(Command::RecordDelivery {
        shipment_id: "e".parse().expect("short and plain"),
    });
    (
        anything(),
        likely_place,
        anything(),
        then(Step::Command(Command::Confirm)),
        then(Step::Settle),
        anything(),
        then(ship_all),
        then(deliver_all),
        prop::collection::vec(aftermath().prop_map(Step::Command), 0..24),
    )
        .prop_map(
            |(before, place, editing, confirm, settle, shipping, ship, deliver, after)| {
                [
                    before,
                    vec![place],
                    editing,
                    confirm,
                    settle,
                    shipping,
                    ship,
                    deliver,
                    after,
                ]
                .concat()
            },
        )
}

/// Events that a bug could ask for, in any order: decided in one life, folded into another, or shuffled with
/// values that no decision would give.
pub(super) fn nonsense() -> impl Strategy<Value = Vec<Event>> {
    let lives = prop::collection::vec(commands().prop_map(|steps| all_events(&live(steps))), 1..4);
    (lives, any::<u64>(), prop::collection::vec(absurd(), 0..8)).prop_map(|(lives, seed, absurd)| {
        let mut events: Vec<_> = lives.into_iter().flatten().chain(absurd).collect();
        let count = events.len() as u64;
        for index in 0..events.len() {
            let other = seed.wrapping_mul(index as u64 + 1) % count;
            events.swap(index, usize::try_from(other).expect("an index fits"));
        }
        events
    })
}

fn absurd() -> impl Strategy<Value = Event> {
    prop_oneof![4 => absurd_goods(), 3 => absurd_amounts()]
}

fn extreme() -> impl Strategy<Value = i64> {
    prop::sample::select(vec![i64::MIN, -1, i64::MAX])
}

fn absurd_goods() -> impl Strategy<Value = Event> {
    let parts = || prop::collection::vec((line_number(), Just(u32::MAX)), 0..3);
    let parts = move || {
        parts().prop_map(|parts| {
            let part = |(line_number, quantity)| LineQuantity {
                line_number,
                quantity,
            };
            parts.into_iter().map(part).collect::<Vec<_>>()
        })
    };
    let status = || prop::sample::select(Status::ALL.to_vec());
    prop_oneof![
        (text(), parts(), status()).prop_map(|(shipment_id, lines, status)| Event::from(Shipped {
            shipment_id,
            lines,
            carrier: None,
            tracking_number: None,
            status
        })),
        (text(), parts(), status()).prop_map(|(shipment_id, lines, status)| DeliveryRecorded {
            shipment_id,
            lines,
            status
        }
        .into()),
        (text(), parts()).prop_map(|(return_id, lines)| ReturnRequested {
            return_id,
            lines,
            reason: None
        }
        .into()),
        (text(), parts(), currency(), extreme(), extreme()).prop_map(
            |(return_id, lines, currency, value_minor, returned_minor)| {
                ReturnReceived {
                    return_id,
                    lines,
                    currency,
                    value_minor,
                    returned_minor,
                }
                .into()
            }
        ),
    ]
}

fn absurd_amounts() -> impl Strategy<Value = Event> {
    prop_oneof![
        (text(), text(), currency(), extreme(), extreme()).prop_map(
            |(customer_id, payment_id, currency, amount_minor, paid_minor)| {
                PaymentRecorded {
                    customer_id,
                    payment_id,
                    currency,
                    amount_minor,
                    paid_minor,
                }
                .into()
            }
        ),
        (text(), text(), currency(), extreme(), extreme()).prop_map(
            |(customer_id, refund_id, currency, amount_minor, refunded_minor)| {
                Refunded {
                    customer_id,
                    refund_id,
                    currency,
                    amount_minor,
                    refunded_minor,
                }
                .into()
            }
        ),
        (text(), text(), line_number(), extreme(), extreme(), currency()).prop_map(
            |(customer_id, sku, line_number, unit_price_minor, total_minor, currency)| {
                let line = Line {
                    line_number,
                    sku,
                    quantity: u32::MAX,
                    unit_price_minor,
                };
                LineAdded {
                    customer_id,
                    line,
                    currency,
                    total_minor,
                    total_change_minor: total_minor,
                    item_count: u64::MAX,
                    item_count_change: i64::MAX,
                }
                .into()
            }
        ),
    ]
}
