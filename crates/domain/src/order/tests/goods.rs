//! Shipments, deliveries and returns.

use super::*;

#[test]
fn shipping_without_naming_lines_ships_everything() {
    given(&paid())
        .when(ship("s-1", &[]))
        .then(shipped("s-1", &[(1, 2), (2, 1)], Status::Shipped));
}

#[test]
fn shipping_without_naming_lines_ships_what_is_left() {
    given(&partially_shipped()).when(ship("s-2", &[])).then(shipped(
        "s-2",
        &[(1, 1), (2, 1)],
        Status::Shipped,
    ));
    let only_the_second_left = [
        paid(),
        vec![shipped("s-1", &[(1, 2)], Status::PartiallyShipped).into()],
    ]
    .concat();
    given(&only_the_second_left)
        .when(ship("s-2", &[]))
        .then(shipped("s-2", &[(2, 1)], Status::Shipped));
}

#[test]
fn an_order_can_be_shipped_in_parts() {
    given(&paid())
        .when(ship("s-1", &[(1, 1)]))
        .then(shipped("s-1", &[(1, 1)], Status::PartiallyShipped));
    given(&partially_shipped())
        .when(ship("s-2", &[(2, 1), (1, 1)]))
        .then(shipped("s-2", &[(2, 1), (1, 1)], Status::Shipped));
}

#[test]
fn a_shipment_names_carrier_and_tracking_number() {
    let carrier = Some(text("DHL"));
    let tracking_number = Some(text("0034"));
    given(&paid())
        .when(Command::Ship {
            shipment_id: text("s-1"),
            lines: parts(&[(2, 1)]),
            carrier: carrier.clone(),
            tracking_number: tracking_number.clone(),
        })
        .then(Shipped {
            carrier,
            tracking_number,
            ..shipped("s-1", &[(2, 1)], Status::PartiallyShipped)
        });
}

#[test]
fn shipping_an_order_that_is_not_confirmed_is_refused() {
    given(&with(placed(), payment("p-1", TOTAL, TOTAL)))
        .when(ship("s-1", &[]))
        .then_rejected(Rejection::OrderNotConfirmed);
}

#[test]
fn shipping_an_order_that_is_not_paid_in_full_is_refused() {
    given(&with(confirmed(), payment("p-1", 1249, 1249)))
        .when(ship("s-1", &[]))
        .then_rejected(Rejection::OrderNotPaid {
            paid_minor: 1249,
            total_minor: TOTAL,
            currency: usd(),
        });
}

#[test]
fn an_order_that_costs_nothing_counts_as_paid() {
    let free = Placed {
        lines: vec![line(1, "A", 1, 0)],
        total_minor: 0,
        item_count: 1,
        ..order_placed()
    };
    let confirmed = Confirmed {
        total_minor: 0,
        item_count: 1,
        ..order_confirmed()
    };
    given(&[free.into(), confirmed.into()])
        .when(ship("s-1", &[]))
        .then(shipped("s-1", &[(1, 1)], Status::Shipped));
}

#[test]
fn shipping_a_closed_order_is_refused() {
    for (history, status) in [(cancelled(), Status::Cancelled), (rejected(), Status::Rejected)] {
        given(&history)
            .when(ship("s-1", &[]))
            .then_rejected(Rejection::OrderClosed { status });
    }
}

#[test]
fn shipping_more_of_a_line_than_is_left_is_refused() {
    given(&partially_shipped())
        .when(ship("s-2", &[(1, 2)]))
        .then_rejected(Rejection::ShipmentExceedsOrder {
            line_number: 1,
            quantity: 2,
            left: 1,
        });
}

#[test]
fn shipping_when_everything_was_shipped_is_refused() {
    for history in [fully_shipped(), delivered()] {
        given(&history)
            .when(ship("s-2", &[]))
            .then_rejected(Rejection::NothingLeftToShip);
    }
}

#[test]
fn a_shipment_is_recorded_once() {
    given(&partially_shipped())
        .when(ship("s-1", &[(2, 1)]))
        .then_rejected(Rejection::ShipmentAlreadyRecorded {
            shipment_id: text("s-1"),
        });
}

#[test]
fn a_shipment_of_none_of_a_line_is_refused() {
    given(&paid())
        .when(ship("s-1", &[(1, 0)]))
        .then_rejected(Rejection::QuantityOutOfRange { quantity: 0 });
}

#[test]
fn a_shipment_of_a_line_that_is_not_there_is_refused() {
    given(&paid())
        .when(ship("s-1", &[(3, 1)]))
        .then_rejected(Rejection::LineNotFound { line_number: 3 });
}

#[test]
fn a_shipment_that_names_a_line_twice_is_refused() {
    given(&paid())
        .when(ship("s-1", &[(1, 1), (2, 1), (1, 1)]))
        .then_rejected(Rejection::DuplicateLine { line_number: 1 });
}

#[test]
fn an_order_is_delivered_when_all_of_it_was_shipped_and_has_arrived() {
    given(&fully_shipped())
        .when(deliver("s-1"))
        .then(delivery("s-1", &[(1, 2), (2, 1)], Status::Delivered));
}

#[test]
fn an_order_is_not_delivered_while_something_is_not_shipped() {
    given(&partially_shipped()).when(deliver("s-1")).then(delivery(
        "s-1",
        &[(1, 1)],
        Status::PartiallyShipped,
    ));
}

#[test]
fn an_order_is_not_delivered_while_a_shipment_is_underway() {
    let in_two = with(
        partially_shipped(),
        shipped("s-2", &[(1, 1), (2, 1)], Status::Shipped),
    );
    given(&in_two)
        .when(deliver("s-2"))
        .then(delivery("s-2", &[(1, 1), (2, 1)], Status::Shipped));
    given(&with(in_two, delivery("s-2", &[(1, 1), (2, 1)], Status::Shipped)))
        .when(deliver("s-1"))
        .then(delivery("s-1", &[(1, 1)], Status::Delivered));
}

#[test]
fn delivery_of_an_unknown_shipment_is_refused() {
    given(&paid())
        .when(deliver("s-9"))
        .then_rejected(Rejection::ShipmentNotFound {
            shipment_id: text("s-9"),
        });
}

#[test]
fn a_shipment_is_delivered_once() {
    given(&delivered())
        .when(deliver("s-1"))
        .then_rejected(Rejection::ShipmentAlreadyDelivered {
            shipment_id: text("s-1"),
        });
}

#[test]
fn delivered_goods_can_be_sent_back() {
    given(&delivered())
        .when(send_back("r-1", &[(1, 2), (2, 1)]))
        .then(return_requested("r-1", &[(1, 2), (2, 1)]));
}

#[test]
fn a_return_says_why() {
    let reason = Some(text("scratched"));
    given(&delivered())
        .when(Command::RequestReturn {
            return_id: text("r-1"),
            lines: parts(&[(1, 1)]),
            reason: reason.clone(),
        })
        .then(ReturnRequested {
            reason,
            ..return_requested("r-1", &[(1, 1)])
        });
}

#[test]
fn goods_that_have_not_arrived_cannot_be_sent_back() {
    for history in [placed(), paid(), fully_shipped()] {
        given(&history)
            .when(send_back("r-1", &[(1, 1)]))
            .then_rejected(Rejection::ReturnExceedsDelivered {
                line_number: 1,
                quantity: 1,
                returnable: 0,
            });
    }
}

#[test]
fn goods_cannot_be_sent_back_twice() {
    let requested = with(delivered(), return_requested("r-1", &[(1, 1)]));
    let received = with(requested.clone(), return_received("r-1", &[(1, 1)], 500, 500));
    for history in [requested, received] {
        given(&history)
            .when(send_back("r-2", &[(1, 2)]))
            .then_rejected(Rejection::ReturnExceedsDelivered {
                line_number: 1,
                quantity: 2,
                returnable: 1,
            });
        given(&history)
            .when(send_back("r-2", &[(1, 1)]))
            .then(return_requested("r-2", &[(1, 1)]));
    }
}

#[test]
fn a_return_is_requested_once() {
    given(&with(delivered(), return_requested("r-1", &[(1, 1)])))
        .when(send_back("r-1", &[(1, 1)]))
        .then_rejected(Rejection::ReturnAlreadyRequested {
            return_id: text("r-1"),
        });
}

#[test]
fn a_return_without_lines_is_refused() {
    given(&delivered())
        .when(send_back("r-1", &[]))
        .then_rejected(Rejection::ReturnWithoutLines);
}

#[test]
fn a_return_that_names_a_line_twice_or_wrongly_is_refused() {
    given(&delivered())
        .when(send_back("r-1", &[(1, 1), (1, 1)]))
        .then_rejected(Rejection::DuplicateLine { line_number: 1 });
    given(&delivered())
        .when(send_back("r-1", &[(7, 1)]))
        .then_rejected(Rejection::LineNotFound { line_number: 7 });
    given(&delivered())
        .when(send_back("r-1", &[(1, 0)]))
        .then_rejected(Rejection::QuantityOutOfRange { quantity: 0 });
}

#[test]
fn a_return_for_a_closed_order_is_refused() {
    given(&cancelled())
        .when(send_back("r-1", &[(1, 1)]))
        .then_rejected(Rejection::OrderClosed {
            status: Status::Cancelled,
        });
}

#[test]
fn received_goods_are_worth_what_they_cost() {
    given(&with(delivered(), return_requested("r-1", &[(1, 1), (2, 1)])))
        .when(receive("r-1"))
        .then(return_received("r-1", &[(1, 1), (2, 1)], 750, 750));
}

#[test]
fn what_all_received_goods_are_worth_adds_up() {
    let history = [
        delivered(),
        vec![
            return_requested("r-1", &[(1, 1)]).into(),
            return_received("r-1", &[(1, 1)], 500, 500).into(),
            return_requested("r-2", &[(2, 1)]).into(),
        ],
    ]
    .concat();
    given(&history)
        .when(receive("r-2"))
        .then(return_received("r-2", &[(2, 1)], 250, 750));
}

#[test]
fn goods_that_nobody_asked_to_send_back_are_not_received() {
    given(&delivered())
        .when(receive("r-1"))
        .then_rejected(Rejection::ReturnNotFound {
            return_id: text("r-1"),
        });
}

#[test]
fn a_return_is_received_once() {
    let history = with(
        with(delivered(), return_requested("r-1", &[(1, 1)])),
        return_received("r-1", &[(1, 1)], 500, 500),
    );
    given(&history)
        .when(receive("r-1"))
        .then_rejected(Rejection::ReturnAlreadyReceived {
            return_id: text("r-1"),
        });
}

#[test]
fn what_came_back_of_a_line_adds_up_over_its_returns() {
    let came_back = |return_id, returned_minor| {
        [
            return_requested(return_id, &[(1, 1)]).into(),
            return_received(return_id, &[(1, 1)], 500, returned_minor).into(),
        ]
    };
    let history = [
        delivered(),
        came_back("r-1", 500).into(),
        came_back("r-2", 1000).into(),
    ]
    .concat();
    let Given(state) = given(&history);
    let line = state
        .order()
        .and_then(|order| order.line(1))
        .expect("the order has it");
    assert_eq!((line.returned, line.returnable()), (2, 0));
}
