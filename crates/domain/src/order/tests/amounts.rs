//! Payments and refunds.

use super::*;

fn euros(minor: i64) -> Money {
    Money::new(minor, text("EUR"))
}

fn in_euros() -> Rejection {
    Rejection::CurrencyMismatch {
        expected: usd(),
        actual: text("EUR"),
    }
}

fn exceeds_refundable(amount_minor: i64, refundable_minor: i64) -> Rejection {
    Rejection::RefundExceedsRefundable {
        amount_minor,
        refundable_minor,
        currency: usd(),
    }
}

/// One of article A, worth 500, came back.
fn one_came_back() -> Vec<Event> {
    with(
        with(delivered(), return_requested("r-1", &[(1, 1)])),
        return_received("r-1", &[(1, 1)], 500, 500),
    )
}

#[test]
fn an_order_can_be_paid_before_and_after_it_is_confirmed() {
    for history in [placed(), confirmed()] {
        given(&history)
            .when(pay("p-1", TOTAL))
            .then(payment("p-1", TOTAL, TOTAL));
    }
}

#[test]
fn an_order_can_be_paid_in_parts() {
    given(&with(placed(), payment("p-1", 1000, 1000)))
        .when(pay("p-2", 250))
        .then(payment("p-2", 250, TOTAL));
}

#[test]
fn a_payment_is_recorded_once() {
    let history = with(placed(), payment("p-1", 100, 100));
    given(&history)
        .when(pay("p-1", 100))
        .then_rejected(Rejection::PaymentAlreadyRecorded {
            payment_id: text("p-1"),
        });
}

#[test]
fn paying_more_than_the_total_is_refused() {
    let history = with(placed(), payment("p-1", 1000, 1000));
    for amount_minor in [251, i64::MAX] {
        given(&history)
            .when(pay("p-2", amount_minor))
            .then_rejected(Rejection::PaymentExceedsTotal {
                amount_minor,
                paid_minor: 1000,
                total_minor: TOTAL,
                currency: usd(),
            });
    }
}

#[test]
fn a_payment_of_nothing_or_less_is_refused() {
    for amount_minor in [0, -1, i64::MIN] {
        given(&placed())
            .when(pay("p-1", amount_minor))
            .then_rejected(Rejection::AmountNotPositive { amount_minor });
    }
}

#[test]
fn a_payment_in_another_currency_is_refused() {
    given(&placed())
        .when(Command::RecordPayment {
            payment_id: text("p-1"),
            amount: euros(1),
        })
        .then_rejected(in_euros());
}

#[test]
fn a_payment_for_a_closed_order_is_refused() {
    for (history, status) in [(cancelled(), Status::Cancelled), (rejected(), Status::Rejected)] {
        given(&history)
            .when(pay("p-1", 1))
            .then_rejected(Rejection::OrderClosed { status });
    }
}

#[test]
fn what_was_paid_for_a_cancelled_order_is_refunded() {
    let history = with(paid(), order_cancelled(TOTAL));
    given(&history)
        .when(refund("f-1", TOTAL))
        .then(refunded("f-1", TOTAL, TOTAL));
}

#[test]
fn what_was_paid_for_a_rejected_order_is_refunded() {
    let history = with(with(placed(), payment("p-1", 100, 100)), order_rejected(100));
    given(&history)
        .when(refund("f-1", 100))
        .then(refunded("f-1", 100, 100));
}

#[test]
fn a_refund_can_come_in_parts_up_to_what_was_paid() {
    let history = with(with(paid(), order_cancelled(TOTAL)), refunded("f-1", 1000, 1000));
    given(&history)
        .when(refund("f-2", 250))
        .then(refunded("f-2", 250, TOTAL));
    for amount_minor in [251, i64::MAX] {
        given(&history)
            .when(refund("f-2", amount_minor))
            .then_rejected(exceeds_refundable(amount_minor, 250));
    }
}

#[test]
fn nothing_is_refunded_for_a_closed_order_that_was_not_paid() {
    given(&cancelled())
        .when(refund("f-1", 1))
        .then_rejected(exceeds_refundable(1, 0));
}

#[test]
fn goods_that_came_back_are_refunded_at_their_price() {
    given(&one_came_back())
        .when(refund("f-1", 500))
        .then(refunded("f-1", 500, 500));
    given(&one_came_back())
        .when(refund("f-1", 501))
        .then_rejected(exceeds_refundable(501, 500));
}

#[test]
fn goods_that_came_back_are_not_refunded_twice() {
    given(&with(one_came_back(), refunded("f-1", 500, 500)))
        .when(refund("f-2", 1))
        .then_rejected(exceeds_refundable(1, 0));
}

#[test]
fn nothing_is_refunded_while_nothing_came_back() {
    for history in [
        placed(),
        paid(),
        fully_shipped(),
        delivered(),
        with(delivered(), return_requested("r-1", &[(1, 1)])),
    ] {
        given(&history)
            .when(refund("f-1", 1))
            .then_rejected(exceeds_refundable(1, 0));
    }
}

#[test]
fn a_refund_is_recorded_once() {
    given(&with(one_came_back(), refunded("f-1", 100, 100)))
        .when(refund("f-1", 100))
        .then_rejected(Rejection::RefundAlreadyRecorded {
            refund_id: text("f-1"),
        });
}

#[test]
fn a_refund_of_nothing_or_less_is_refused() {
    for amount_minor in [0, -1, i64::MIN] {
        given(&one_came_back())
            .when(refund("f-1", amount_minor))
            .then_rejected(Rejection::AmountNotPositive { amount_minor });
    }
}

#[test]
fn a_refund_in_another_currency_is_refused() {
    given(&one_came_back())
        .when(Command::Refund {
            refund_id: text("f-1"),
            amount: euros(1),
        })
        .then_rejected(in_euros());
}
