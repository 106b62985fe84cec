//! The rules: which command is granted in which state, and what happens then.

mod amounts;
mod goods;
mod lines;

use self::amounts::{record_payment, refund};
use self::goods::{receive_return, record_delivery, request_return, ship};
use self::lines::{PricedLines, add_line, change_quantity, price_all, remove_line};
use super::{
    Cancelled, Command, Confirmed, Event, Order, Placed, Rejected, Rejection, ShippingAddressChanged, State,
    Status,
};
use crate::ids::Reason;
use crate::money::Money;

pub(super) fn decide(state: &State, command: Command) -> Result<Event, Rejection> {
    match state.order() {
        Some(order) => decide_placed(order, command),
        None => decide_new(command),
    }
}

fn decide_new(command: Command) -> Result<Event, Rejection> {
    let Command::Place {
        order_id,
        reference,
        customer_id,
        currency,
        lines,
        shipping_address,
        expected_total_minor,
    } = command
    else {
        return Err(Rejection::OrderNotFound);
    };
    let PricedLines {
        lines,
        total,
        item_count,
    } = price_all(lines, currency)?;
    check_expected_total(expected_total_minor, total)?;
    Ok(Placed {
        order_id,
        customer_id,
        reference,
        currency,
        lines,
        shipping_address,
        total_minor: total.minor,
        item_count,
    }
    .into())
}

fn decide_placed(order: &Order, command: Command) -> Result<Event, Rejection> {
    match command {
        Command::Place { .. } => Err(Rejection::OrderAlreadyExists { status: order.status }),
        Command::AddLine { line } => add_line(order, line),
        Command::RemoveLine { line_number } => remove_line(order, line_number),
        Command::ChangeQuantity {
            line_number,
            quantity,
        } => change_quantity(order, line_number, quantity),
        Command::ChangeShippingAddress { shipping_address } => {
            check_nothing_shipped(order)?;
            Ok(ShippingAddressChanged { shipping_address }.into())
        }
        Command::Confirm => confirm(order),
        Command::Reject { reason } => reject(order, reason),
        Command::RecordPayment { payment_id, amount } => record_payment(order, payment_id, amount),
        Command::Ship {
            shipment_id,
            lines,
            carrier,
            tracking_number,
        } => ship(order, shipment_id, lines, carrier, tracking_number),
        Command::RecordDelivery { shipment_id } => record_delivery(order, shipment_id),
        Command::Cancel { reason } => cancel(order, reason),
        Command::RequestReturn {
            return_id,
            lines,
            reason,
        } => request_return(order, return_id, lines, reason),
        Command::ReceiveReturn { return_id } => receive_return(order, return_id),
        Command::Refund { refund_id, amount } => refund(order, refund_id, amount),
    }
}

/// The caller has shown a total to the customer; it must be the one that the lines add up to.
fn check_expected_total(expected_minor: Option<i64>, total: Money) -> Result<(), Rejection> {
    match expected_minor {
        Some(expected_minor) if expected_minor != total.minor => Err(Rejection::OrderTotalMismatch {
            expected_minor,
            actual_minor: total.minor,
            currency: total.currency,
        }),
        Some(_) | None => Ok(()),
    }
}

fn confirm(order: &Order) -> Result<Event, Rejection> {
    check_editable(order)?;
    Ok(Confirmed {
        customer_id: order.customer_id.clone(),
        currency: order.currency(),
        total_minor: order.total.minor,
        item_count: order.item_count,
    }
    .into())
}

fn reject(order: &Order, reason: Reason) -> Result<Event, Rejection> {
    check_editable(order)?;
    Ok(Rejected {
        customer_id: order.customer_id.clone(),
        reason,
        currency: order.currency(),
        total_minor: order.total.minor,
        item_count: order.item_count,
        paid_minor: order.paid.minor,
    }
    .into())
}

fn cancel(order: &Order, reason: Reason) -> Result<Event, Rejection> {
    check_nothing_shipped(order)?;
    Ok(Cancelled {
        customer_id: order.customer_id.clone(),
        reason,
        currency: order.currency(),
        total_minor: order.total.minor,
        item_count: order.item_count,
        paid_minor: order.paid.minor,
    }
    .into())
}

/// An order can be edited until it is confirmed.
fn check_editable(order: &Order) -> Result<(), Rejection> {
    match order.status {
        Status::Placed => Ok(()),
        Status::Confirmed => Err(Rejection::OrderAlreadyConfirmed),
        status @ (Status::PartiallyShipped | Status::Shipped | Status::Delivered) => {
            Err(Rejection::OrderAlreadyShipped { status })
        }
        status @ (Status::Rejected | Status::Cancelled) => Err(Rejection::OrderClosed { status }),
    }
}

fn check_open(order: &Order) -> Result<(), Rejection> {
    match order.status {
        Status::Placed
        | Status::Confirmed
        | Status::PartiallyShipped
        | Status::Shipped
        | Status::Delivered => Ok(()),
        status @ (Status::Rejected | Status::Cancelled) => Err(Rejection::OrderClosed { status }),
    }
}

fn check_nothing_shipped(order: &Order) -> Result<(), Rejection> {
    match order.status {
        Status::Placed | Status::Confirmed => Ok(()),
        status @ (Status::PartiallyShipped | Status::Shipped | Status::Delivered) => {
            Err(Rejection::OrderAlreadyShipped { status })
        }
        status @ (Status::Rejected | Status::Cancelled) => Err(Rejection::OrderClosed { status }),
    }
}
