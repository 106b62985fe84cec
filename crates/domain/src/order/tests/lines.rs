//! Adding, removing and changing lines.

use super::*;

fn add(line: NewLine) -> Command {
    Command::AddLine { line }
}

fn remove(line_number: u32) -> Command {
    Command::RemoveLine { line_number }
}

fn change(line_number: u32, quantity: u32) -> Command {
    Command::ChangeQuantity {
        line_number,
        quantity,
    }
}

fn line_added(line: Line, total_minor: i64, total_change_minor: i64) -> LineAdded {
    LineAdded {
        customer_id: customer(),
        currency: usd(),
        total_minor,
        total_change_minor,
        item_count: ITEMS + u64::from(line.quantity),
        item_count_change: i64::from(line.quantity),
        line,
    }
}

fn second_line_removed() -> LineRemoved {
    LineRemoved {
        customer_id: customer(),
        line: line(2, "B", 1, 250),
        currency: usd(),
        total_minor: 1000,
        total_change_minor: -250,
        item_count: 2,
        item_count_change: -1,
    }
}

fn quantity_changed(quantity: u32, total_minor: i64, change_minor: i64) -> QuantityChanged {
    QuantityChanged {
        customer_id: customer(),
        line_number: 1,
        sku: text("A"),
        quantity,
        previous_quantity: 2,
        currency: usd(),
        total_minor,
        total_change_minor: change_minor,
        item_count: u64::from(quantity) + 1,
        item_count_change: i64::from(quantity) - 2,
    }
}

#[test]
fn an_added_line_gets_the_next_number_and_raises_the_total() {
    given(&placed())
        .when(add(new_line("C", 4, 25)))
        .then(line_added(line(3, "C", 4, 25), 1350, 100));
}

#[test]
fn the_number_of_a_removed_line_is_not_used_again() {
    let history = with(placed(), second_line_removed());
    given(&history).when(add(new_line("B", 1, 250))).then(LineAdded {
        item_count: ITEMS,
        ..line_added(line(3, "B", 1, 250), 1250, 250)
    });
}

#[test]
fn an_order_whose_line_numbers_are_used_up_takes_no_more_lines() {
    let history = with(placed(), line_added(line(u32::MAX, "C", 1, 0), TOTAL, 0));
    given(&history)
        .when(add(new_line("D", 1, 0)))
        .then_rejected(Rejection::LineNumbersExhausted);
}

#[test]
fn adding_one_line_more_than_is_allowed_is_refused() {
    let full = Placed {
        lines: (1..=500).map(|number| line(number, "A", 1, 1)).collect(),
        total_minor: 500,
        item_count: 500,
        ..order_placed()
    };
    given(&[full.into()])
        .when(add(new_line("B", 1, 1)))
        .then_rejected(Rejection::TooManyLines { line_count: 501 });
}

#[test]
fn adding_a_line_with_an_impossible_quantity_or_price_is_refused() {
    given(&placed())
        .when(add(new_line("C", 0, 1)))
        .then_rejected(Rejection::QuantityOutOfRange { quantity: 0 });
    given(&placed())
        .when(add(new_line("C", 1, -5)))
        .then_rejected(Rejection::NegativePrice { unit_price_minor: -5 });
}

#[test]
fn adding_a_line_that_makes_the_total_too_large_to_count_is_refused() {
    given(&placed())
        .when(add(new_line("C", 1, i64::MAX - TOTAL + 1)))
        .then_rejected(Rejection::AmountOverflow);
    given(&placed())
        .when(add(new_line("C", 1, i64::MAX - TOTAL)))
        .then(line_added(
            line(3, "C", 1, i64::MAX - TOTAL),
            i64::MAX,
            i64::MAX - TOTAL,
        ));
}

#[test]
fn a_removed_line_lowers_the_total() {
    given(&placed()).when(remove(2)).then(second_line_removed());
}

#[test]
fn the_last_line_cannot_be_removed() {
    given(&with(placed(), second_line_removed()))
        .when(remove(1))
        .then_rejected(Rejection::LastLine { line_number: 1 });
}

#[test]
fn a_line_that_is_not_there_can_be_neither_removed_nor_changed() {
    let history = with(placed(), second_line_removed());
    for line_number in [0, 2, 3, u32::MAX] {
        let rejection = Rejection::LineNotFound { line_number };
        given(&history)
            .when(remove(line_number))
            .then_rejected(rejection.clone());
        given(&history)
            .when(change(line_number, 1))
            .then_rejected(rejection);
    }
}

#[test]
fn a_larger_quantity_raises_the_total() {
    given(&placed())
        .when(change(1, 5))
        .then(quantity_changed(5, 2750, 1500));
}

#[test]
fn a_smaller_quantity_lowers_the_total() {
    given(&placed())
        .when(change(1, 1))
        .then(quantity_changed(1, 750, -500));
}

#[test]
fn setting_the_quantity_that_a_line_has_already_is_recorded_as_well() {
    given(&placed())
        .when(change(1, 2))
        .then(quantity_changed(2, TOTAL, 0));
}

#[test]
fn changing_to_an_impossible_quantity_is_refused() {
    for quantity in [0, QUANTITY_MAX + 1] {
        given(&placed())
            .when(change(1, quantity))
            .then_rejected(Rejection::QuantityOutOfRange { quantity });
    }
}

#[test]
fn changing_to_a_quantity_that_is_too_dear_to_count_is_refused() {
    let dear = Placed {
        lines: vec![line(1, "A", 1, i64::MAX / 2)],
        total_minor: i64::MAX / 2,
        item_count: 1,
        ..order_placed()
    };
    given(&[dear.into()])
        .when(change(1, 3))
        .then_rejected(Rejection::AmountOverflow);
}

#[test]
fn the_total_cannot_fall_below_what_was_paid() {
    let history = with(placed(), payment("p-1", 1001, 1001));
    let below_paid = |total_minor| Rejection::TotalBelowPaid {
        total_minor,
        paid_minor: 1001,
        currency: usd(),
    };
    given(&history).when(remove(2)).then_rejected(below_paid(1000));
    given(&history).when(change(1, 1)).then_rejected(below_paid(750));
}

#[test]
fn the_total_can_fall_to_what_was_paid() {
    given(&with(placed(), payment("p-1", 1000, 1000)))
        .when(remove(2))
        .then(second_line_removed());
}

#[test]
fn lines_are_fixed_once_the_order_is_confirmed_shipped_or_closed() {
    for (history, rejection) in [
        (confirmed(), Rejection::OrderAlreadyConfirmed),
        (
            partially_shipped(),
            Rejection::OrderAlreadyShipped {
                status: Status::PartiallyShipped,
            },
        ),
        (
            fully_shipped(),
            Rejection::OrderAlreadyShipped {
                status: Status::Shipped,
            },
        ),
        (
            delivered(),
            Rejection::OrderAlreadyShipped {
                status: Status::Delivered,
            },
        ),
        (
            rejected(),
            Rejection::OrderClosed {
                status: Status::Rejected,
            },
        ),
        (
            cancelled(),
            Rejection::OrderClosed {
                status: Status::Cancelled,
            },
        ),
    ] {
        for command in [add(new_line("C", 1, 1)), remove(2), change(1, 1)] {
            given(&history).when(command).then_rejected(rejection.clone());
        }
    }
}

#[test]
fn lines_are_found_even_if_they_were_not_stored_in_order() {
    let mut shuffled = order_placed();
    shuffled.lines.reverse();
    given(&[shuffled.into()])
        .when(remove(2))
        .then(second_line_removed());
}
