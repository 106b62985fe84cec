//! Rules for money that comes in and goes back.

use super::check_open;
use crate::ids::{PaymentId, RefundId};
use crate::money::Money;
use crate::order::{Event, Order, PaymentRecorded, Refunded, Rejection, Status};

pub(super) fn record_payment(
    order: &Order,
    payment_id: PaymentId,
    amount: Money,
) -> Result<Event, Rejection> {
    check_open(order)?;
    if order.payments.contains(&payment_id) {
        return Err(Rejection::PaymentAlreadyRecorded { payment_id });
    }
    check_amount(amount)?;
    let left = order.total.checked_sub(order.paid)?.checked_sub(amount)?;
    if left.minor < 0 {
        return Err(Rejection::PaymentExceedsTotal {
            amount_minor: amount.minor,
            paid_minor: order.paid.minor,
            total_minor: order.total.minor,
            currency: order.currency(),
        });
    }
    Ok(PaymentRecorded {
        customer_id: order.customer_id.clone(),
        payment_id,
        currency: order.currency(),
        amount_minor: amount.minor,
        paid_minor: order.paid.checked_add(amount)?.minor,
    }
    .into())
}

pub(super) fn refund(order: &Order, refund_id: RefundId, amount: Money) -> Result<Event, Rejection> {
    if order.refunds.contains(&refund_id) {
        return Err(Rejection::RefundAlreadyRecorded { refund_id });
    }
    check_amount(amount)?;
    let refundable = refundable(order)?;
    let left = refundable.checked_sub(amount)?;
    if left.minor < 0 {
        return Err(Rejection::RefundExceedsRefundable {
            amount_minor: amount.minor,
            refundable_minor: refundable.minor,
            currency: order.currency(),
        });
    }
    Ok(Refunded {
        customer_id: order.customer_id.clone(),
        refund_id,
        currency: order.currency(),
        amount_minor: amount.minor,
        refunded_minor: order.refunded.checked_add(amount)?.minor,
    }
    .into())
}

fn check_amount(amount: Money) -> Result<(), Rejection> {
    if amount.minor > 0 {
        Ok(())
    } else {
        Err(Rejection::AmountNotPositive {
            amount_minor: amount.minor,
        })
    }
}

/// The amount still owed to the customer: all that was paid when the order is closed, else the price of the returned
/// goods.
fn refundable(order: &Order) -> Result<Money, Rejection> {
    let owed = match order.status {
        Status::Rejected | Status::Cancelled => order.paid.minor,
        Status::Placed
        | Status::Confirmed
        | Status::PartiallyShipped
        | Status::Shipped
        | Status::Delivered => order.returned.minor.min(order.paid.minor),
    };
    Ok(Money::new(owed, order.currency()).checked_sub(order.refunded)?)
}
