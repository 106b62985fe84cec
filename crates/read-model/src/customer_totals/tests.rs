use daybook_domain::order::Command;

use super::*;
use crate::testing::{Log, TENANT, deliver, euros, new_line, part, pay, place, ship, text};

fn totals_after(commands: impl IntoIterator<Item = Command>) -> Row {
    Log::of(commands).row::<CustomerTotals>().shown()
}

fn adas_totals() -> Row {
    Row {
        key: Key {
            tenant_id: TENANT,
            customer_id: text("ada"),
            currency: text("EUR"),
        },
        position: 10,
        orders_placed: 1,
        orders_closed: 0,
        items_ordered: 3,
        ordered_minor: 2_600,
        paid_minor: 0,
        refunded_minor: 0,
    }
}

#[test]
fn a_placed_order_counts() {
    assert_eq!(totals_after([place(1)]), adas_totals());
}

#[test]
fn a_second_order_adds_to_the_first() {
    let mut log = Log::of([place(1)]);
    log.record(2, place(2)).expect("a new order");
    let expected = Row {
        position: 20,
        orders_placed: 2,
        items_ordered: 6,
        ordered_minor: 5_200,
        ..adas_totals()
    };
    assert_eq!(log.row::<CustomerTotals>().shown(), expected);
}

#[test]
fn changed_lines_count_by_their_difference() {
    let commands = [
        place(1),
        Command::AddLine {
            line: new_line("CUP", 4, 150),
        },
        Command::ChangeQuantity {
            line_number: 1,
            quantity: 1,
        },
        Command::RemoveLine { line_number: 2 },
    ];
    let expected = Row {
        position: 40,
        items_ordered: 5,
        ordered_minor: 900,
        ..adas_totals()
    };
    assert_eq!(totals_after(commands), expected);
}

#[test]
fn a_cancelled_or_rejected_order_stays_counted_but_nothing_of_it_is_ordered() {
    let reason = text("late");
    let cancelled = totals_after([place(1), Command::Cancel { reason }]);
    let reason = text("sold");
    let rejected = totals_after([place(1), Command::Reject { reason }]);
    let expected = Row {
        position: 20,
        orders_closed: 1,
        items_ordered: 0,
        ordered_minor: 0,
        ..adas_totals()
    };
    assert_eq!(cancelled, expected);
    assert_eq!(rejected, expected);
}

#[test]
fn payments_and_refunds_add_up() {
    let commands = [
        place(1),
        pay("p1", 600),
        pay("p2", 400),
        Command::Cancel { reason: text("late") },
        Command::Refund {
            refund_id: text("r1"),
            amount: euros(300),
        },
    ];
    let totals = totals_after(commands);
    assert_eq!((totals.paid_minor, totals.refunded_minor), (1_000, 300));
}

#[test]
fn what_changes_no_total_touches_no_row() {
    let log = Log::of([
        place(1),
        Command::Confirm,
        pay("p1", 2_600),
        ship("s1", vec![]),
        deliver("s1"),
        Command::RequestReturn {
            return_id: text("r1"),
            lines: vec![part(1, 1)],
            reason: None,
        },
        Command::ReceiveReturn {
            return_id: text("r1"),
        },
    ]);
    let touching: Vec<_> = log
        .events
        .iter()
        .filter(|event| CustomerTotals::keys(event).into_iter().next().is_some())
        .map(|event| event.stream_version)
        .collect();
    assert_eq!(touching, [1, 3]);
}

#[test]
fn sums_beyond_64_bits_are_kept_exactly_and_shown_as_the_highest_number() {
    let dear = |number| {
        let Command::Place {
            order_id,
            customer_id,
            currency,
            ..
        } = place(number)
        else {
            unreachable!("place places");
        };
        Command::Place {
            order_id,
            reference: None,
            customer_id,
            currency,
            lines: vec![new_line("GOLD", 1, i64::MAX)],
            shipping_address: None,
            expected_total_minor: None,
        }
    };
    let mut log = Log::of([dear(1)]);
    log.record(2, dear(2)).expect("a new order");
    assert_eq!(log.row::<CustomerTotals>().shown().ordered_minor, i64::MAX);

    let cancel = Command::Cancel { reason: text("late") };
    log.record(1, cancel.clone()).expect("nothing is shipped");
    log.record(2, cancel).expect("nothing is shipped");
    assert_eq!(log.row::<CustomerTotals>().ordered_minor, 0);
}
