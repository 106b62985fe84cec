//! Placing, confirming, rejecting, cancelling, and what a status forbids.

use super::*;

#[test]
fn placing_an_order_numbers_and_adds_up_its_lines() {
    given([]).when(place(the_lines(), None)).then(order_placed());
}

#[test]
fn an_order_can_be_placed_with_the_total_that_the_customer_saw() {
    given([])
        .when(place(the_lines(), Some(TOTAL)))
        .then(order_placed());
}

#[test]
fn placing_an_order_with_another_total_than_the_customer_saw_is_refused() {
    given([])
        .when(place(the_lines(), Some(1249)))
        .then_rejected(Rejection::OrderTotalMismatch {
            expected_minor: 1249,
            actual_minor: TOTAL,
            currency: usd(),
        });
}

#[test]
fn placing_an_order_twice_is_refused_whatever_became_of_it() {
    for (history, status) in [
        (placed(), Status::Placed),
        (delivered(), Status::Delivered),
        (cancelled(), Status::Cancelled),
    ] {
        given(&history)
            .when(place(the_lines(), None))
            .then_rejected(Rejection::OrderAlreadyExists { status });
    }
}

#[test]
fn an_order_without_lines_is_refused() {
    given([])
        .when(place(vec![], None))
        .then_rejected(Rejection::NoLines);
}

#[test]
fn an_order_may_have_as_many_lines_as_are_allowed_and_no_more() {
    let lines = |count| vec![new_line("A", 1, 1); count];
    assert!(given([]).when(place(lines(LINES_MAX), None)).0.is_ok());
    given([])
        .when(place(lines(LINES_MAX + 1), None))
        .then_rejected(Rejection::TooManyLines {
            line_count: LINES_MAX + 1,
        });
}

#[test]
fn an_order_may_cost_nothing() {
    let free = Placed {
        lines: vec![line(1, "A", 1, 0)],
        total_minor: 0,
        item_count: 1,
        ..order_placed()
    };
    given([]).when(place(vec![new_line("A", 1, 0)], None)).then(free);
}

#[test]
fn placing_an_order_with_an_impossible_quantity_is_refused() {
    for quantity in [0, QUANTITY_MAX + 1, u32::MAX] {
        given([])
            .when(place(vec![new_line("A", quantity, 1)], None))
            .then_rejected(Rejection::QuantityOutOfRange { quantity });
    }
}

#[test]
fn placing_an_order_with_a_negative_price_is_refused() {
    given([])
        .when(place(vec![new_line("A", 1, -1)], None))
        .then_rejected(Rejection::NegativePrice { unit_price_minor: -1 });
}

#[test]
fn placing_an_order_whose_line_is_too_dear_to_count_is_refused() {
    given([])
        .when(place(vec![new_line("A", 2, i64::MAX)], None))
        .then_rejected(Rejection::AmountOverflow);
}

#[test]
fn placing_an_order_whose_lines_together_are_too_dear_to_count_is_refused() {
    let dear = || new_line("A", 1, i64::MAX);
    given([])
        .when(place(vec![dear(), new_line("B", 1, 1)], None))
        .then_rejected(Rejection::AmountOverflow);
    assert!(given([]).when(place(vec![dear()], None)).0.is_ok());
}

#[test]
fn nothing_but_placing_is_possible_before_an_order_is_placed() {
    for command in [
        Command::AddLine {
            line: new_line("A", 1, 1),
        },
        Command::RemoveLine { line_number: 1 },
        Command::ChangeQuantity {
            line_number: 1,
            quantity: 1,
        },
        Command::ChangeShippingAddress {
            shipping_address: address("Paris"),
        },
        Command::Confirm,
        reject(),
        pay("p-1", 1),
        ship("s-1", &[]),
        deliver("s-1"),
        cancel(),
        send_back("r-1", &[(1, 1)]),
        receive("r-1"),
        refund("f-1", 1),
    ] {
        given([]).when(command).then_rejected(Rejection::OrderNotFound);
    }
}

#[test]
fn a_placed_order_can_be_confirmed() {
    given(&placed()).when(Command::Confirm).then(order_confirmed());
}

#[test]
fn a_placed_order_can_be_rejected() {
    given(&placed()).when(reject()).then(order_rejected(0));
}

#[test]
fn rejecting_an_order_says_what_was_paid_for_it() {
    given(&with(placed(), payment("p-1", 100, 100)))
        .when(reject())
        .then(order_rejected(100));
}

#[test]
fn an_order_is_confirmed_or_rejected_once_and_only_while_it_is_placed() {
    for command in [Command::Confirm, reject()] {
        given(&confirmed())
            .when(command.clone())
            .then_rejected(Rejection::OrderAlreadyConfirmed);
        for (history, status) in shipped_in_some_way() {
            given(&history)
                .when(command.clone())
                .then_rejected(Rejection::OrderAlreadyShipped { status });
        }
        for (history, status) in closed_in_some_way() {
            given(&history)
                .when(command.clone())
                .then_rejected(Rejection::OrderClosed { status });
        }
    }
}

#[test]
fn a_placed_order_can_be_cancelled() {
    given(&placed()).when(cancel()).then(order_cancelled(0));
}

#[test]
fn a_confirmed_order_can_be_cancelled_even_when_it_is_paid() {
    given(&confirmed()).when(cancel()).then(order_cancelled(0));
    given(&paid()).when(cancel()).then(order_cancelled(TOTAL));
}

#[test]
fn cancelling_an_order_of_which_something_was_shipped_is_refused() {
    for (history, status) in shipped_in_some_way() {
        given(&history)
            .when(cancel())
            .then_rejected(Rejection::OrderAlreadyShipped { status });
    }
}

#[test]
fn cancelling_a_closed_order_is_refused() {
    for (history, status) in closed_in_some_way() {
        given(&history)
            .when(cancel())
            .then_rejected(Rejection::OrderClosed { status });
    }
}

#[test]
fn the_address_can_change_until_something_is_shipped() {
    let move_to = || Command::ChangeShippingAddress {
        shipping_address: address("Paris"),
    };
    for history in [placed(), confirmed(), paid()] {
        given(&history).when(move_to()).then(ShippingAddressChanged {
            shipping_address: address("Paris"),
        });
    }
    for (history, status) in shipped_in_some_way() {
        given(&history)
            .when(move_to())
            .then_rejected(Rejection::OrderAlreadyShipped { status });
    }
}

#[test]
fn changing_the_address_of_a_closed_order_is_refused() {
    for (history, status) in closed_in_some_way() {
        given(&history)
            .when(Command::ChangeShippingAddress {
                shipping_address: address("Paris"),
            })
            .then_rejected(Rejection::OrderClosed { status });
    }
}

#[test]
fn a_status_is_stored_under_the_name_that_it_shows() {
    for status in Status::ALL {
        let stored = serde_json::to_string(&status).expect("a status is plain data");
        assert_eq!(stored, format!("\"{status}\""));
    }
}

fn shipped_in_some_way() -> [(Vec<Event>, Status); 3] {
    [
        (partially_shipped(), Status::PartiallyShipped),
        (fully_shipped(), Status::Shipped),
        (delivered(), Status::Delivered),
    ]
}

fn closed_in_some_way() -> [(Vec<Event>, Status); 2] {
    [(rejected(), Status::Rejected), (cancelled(), Status::Cancelled)]
}

#[test]
fn what_an_order_holds_in_memory_grows_with_what_it_remembers() {
    let (new, paid) = (given(&placed()).0, given(&paid()).0);
    assert_eq!(State::default().heap_bytes(), 0);
    assert!(new.heap_bytes() >= 2 * size_of::<OrderLine>());
    assert!(paid.heap_bytes() >= new.heap_bytes() + size_of::<PaymentId>() + "p-1".len());
}
