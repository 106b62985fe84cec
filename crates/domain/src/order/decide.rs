//! The rules: which command is granted in which state, and what happens then.

use std::collections::BTreeSet;

use super::{
    Cancelled, Command, Confirmed, DeliveryRecorded, Event, LINES_MAX, Line, LineAdded, LineQuantity,
    LineRemoved, NewLine, Order, OrderLine, PaymentRecorded, Placed, Progress, QUANTITY_MAX, QuantityChanged,
    Refunded, Rejected, Rejection, ReturnReceived, ReturnRequested, Shipped, ShippingAddressChanged, State,
    Status,
};
use crate::ids::{Carrier, PaymentId, Reason, RefundId, ReturnId, ShipmentId, TrackingNumber};
use crate::money::{Currency, Money};

/// What happens when this is asked of an order in this state.
///
/// A granted command always gives at least one event, also when it asks for what is the case already: that somebody
/// said so is a fact, too. Costs no more than the order, and what is asked, have lines.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    let event = match state.order() {
        Some(order) => decide_placed(order, command),
        None => decide_new(command),
    }?;
    Ok(vec![event])
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
    check_line_count(lines.len())?;
    let (total, item_count) = add_up(&lines, currency)?;
    check_expected_total(expected_total_minor, total)?;
    let lines = (1..)
        .zip(lines)
        .map(|(line_number, line)| numbered(line_number, line))
        .collect();
    let total_minor = total.minor;
    Ok(Placed {
        order_id,
        customer_id,
        reference,
        currency,
        lines,
        shipping_address,
        total_minor,
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

// Lines and what they cost.

fn add_line(order: &Order, line: NewLine) -> Result<Event, Rejection> {
    check_editable(order)?;
    check_line_count(order.lines.len() + 1)?;
    let line_number = order
        .last_line_number
        .checked_add(1)
        .ok_or(Rejection::LineNumbersExhausted)?;
    let price = price(&line, order.currency())?;
    let total = order.total.checked_add(price)?;
    Ok(LineAdded {
        customer_id: order.customer_id.clone(),
        currency: order.currency(),
        total_minor: total.minor,
        total_change_minor: price.minor,
        item_count: order.item_count + u64::from(line.quantity),
        item_count_change: i64::from(line.quantity),
        line: numbered(line_number, line),
    }
    .into())
}

fn remove_line(order: &Order, line_number: u32) -> Result<Event, Rejection> {
    check_editable(order)?;
    let line = find_line(order, line_number)?;
    if order.lines.len() == 1 {
        return Err(Rejection::LastLine { line_number });
    }
    let price = line.price_of(line.quantity, order.currency())?;
    let total = order.total.checked_sub(price)?;
    check_covers_paid(order, total)?;
    Ok(LineRemoved {
        customer_id: order.customer_id.clone(),
        line: Line {
            line_number,
            sku: line.sku.clone(),
            quantity: line.quantity,
            unit_price_minor: line.unit_price_minor,
        },
        currency: order.currency(),
        total_minor: total.minor,
        total_change_minor: -price.minor,
        item_count: order.item_count - u64::from(line.quantity),
        item_count_change: -i64::from(line.quantity),
    }
    .into())
}

fn change_quantity(order: &Order, line_number: u32, quantity: u32) -> Result<Event, Rejection> {
    check_editable(order)?;
    let line = find_line(order, line_number)?;
    check_quantity(quantity)?;
    let old_price = line.price_of(line.quantity, order.currency())?;
    let new_price = line.price_of(quantity, order.currency())?;
    let change = new_price.checked_sub(old_price)?;
    let total = order.total.checked_add(change)?;
    check_covers_paid(order, total)?;
    Ok(QuantityChanged {
        customer_id: order.customer_id.clone(),
        line_number,
        sku: line.sku.clone(),
        quantity,
        previous_quantity: line.quantity,
        currency: order.currency(),
        total_minor: total.minor,
        total_change_minor: change.minor,
        item_count: order.item_count - u64::from(line.quantity) + u64::from(quantity),
        item_count_change: i64::from(quantity) - i64::from(line.quantity),
    }
    .into())
}

/// Lines change until the order is confirmed or closed.
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

fn check_line_count(line_count: usize) -> Result<(), Rejection> {
    match line_count {
        0 => Err(Rejection::NoLines),
        1..=LINES_MAX => Ok(()),
        line_count => Err(Rejection::TooManyLines { line_count }),
    }
}

fn check_quantity(quantity: u32) -> Result<(), Rejection> {
    if (1..=QUANTITY_MAX).contains(&quantity) {
        Ok(())
    } else {
        Err(Rejection::QuantityOutOfRange { quantity })
    }
}

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

/// What was paid stays covered: a change of lines is no way to a refund.
fn check_covers_paid(order: &Order, total: Money) -> Result<(), Rejection> {
    if total.minor >= order.paid.minor {
        return Ok(());
    }
    Err(Rejection::TotalBelowPaid {
        total_minor: total.minor,
        paid_minor: order.paid.minor,
        currency: total.currency,
    })
}

/// What the lines cost, and how many articles they have.
fn add_up(lines: &[NewLine], currency: Currency) -> Result<(Money, u64), Rejection> {
    let mut total = Money::zero(currency);
    let mut item_count = 0;
    for line in lines {
        total = total.checked_add(price(line, currency)?)?;
        item_count += u64::from(line.quantity);
    }
    Ok((total, item_count))
}

fn price(line: &NewLine, currency: Currency) -> Result<Money, Rejection> {
    check_quantity(line.quantity)?;
    if line.unit_price_minor < 0 {
        return Err(Rejection::NegativePrice {
            unit_price_minor: line.unit_price_minor,
        });
    }
    Ok(Money::new(line.unit_price_minor, currency).checked_mul(line.quantity)?)
}

fn numbered(line_number: u32, line: NewLine) -> Line {
    Line {
        line_number,
        sku: line.sku,
        quantity: line.quantity,
        unit_price_minor: line.unit_price_minor,
    }
}

fn find_line(order: &Order, line_number: u32) -> Result<&OrderLine, Rejection> {
    order
        .line(line_number)
        .ok_or(Rejection::LineNotFound { line_number })
}

// Whether the order goes ahead.

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

// Money in and out.

fn record_payment(order: &Order, payment_id: PaymentId, amount: Money) -> Result<Event, Rejection> {
    check_open(order)?;
    if order.payments.contains(&payment_id) {
        return Err(Rejection::PaymentAlreadyRecorded { payment_id });
    }
    check_amount(amount)?;
    let paid = order.paid.checked_add(amount)?;
    if paid.minor > order.total.minor {
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
        paid_minor: paid.minor,
    }
    .into())
}

fn refund(order: &Order, refund_id: RefundId, amount: Money) -> Result<Event, Rejection> {
    if order.refunds.contains(&refund_id) {
        return Err(Rejection::RefundAlreadyRecorded { refund_id });
    }
    check_amount(amount)?;
    let refunded = order.refunded.checked_add(amount)?;
    let refundable = refundable(order)?;
    if amount.minor > refundable.minor {
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
        refunded_minor: refunded.minor,
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

/// What the customer is still owed: all that was paid when the order is closed, else what the returned goods cost.
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

// Goods out and back.

fn ship(
    order: &Order,
    shipment_id: ShipmentId,
    lines: Vec<LineQuantity>,
    carrier: Option<Carrier>,
    tracking_number: Option<TrackingNumber>,
) -> Result<Event, Rejection> {
    if order.shipments.contains_key(&shipment_id) {
        return Err(Rejection::ShipmentAlreadyRecorded { shipment_id });
    }
    check_shippable(order)?;
    let lines = if lines.is_empty() { all_left(order) } else { lines };
    check_parts(order, &lines, |line, quantity| {
        let left = line.quantity - line.shipped;
        let line_number = line.line_number;
        if quantity <= left {
            Ok(())
        } else {
            Err(Rejection::ShipmentExceedsOrder {
                line_number,
                quantity,
                left,
            })
        }
    })?;
    let shipped = count(&lines)
        + order
            .lines
            .iter()
            .map(|line| u64::from(line.shipped))
            .sum::<u64>();
    let status = if shipped == order.item_count {
        Status::Shipped
    } else {
        Status::PartiallyShipped
    };
    Ok(Shipped {
        shipment_id,
        lines,
        carrier,
        tracking_number,
        status,
    }
    .into())
}

fn check_shippable(order: &Order) -> Result<(), Rejection> {
    match order.status {
        Status::Placed => return Err(Rejection::OrderNotConfirmed),
        Status::Confirmed | Status::PartiallyShipped => {}
        Status::Shipped | Status::Delivered => return Err(Rejection::NothingLeftToShip),
        status @ (Status::Rejected | Status::Cancelled) => return Err(Rejection::OrderClosed { status }),
    }
    if order.paid.minor >= order.total.minor {
        return Ok(());
    }
    Err(Rejection::OrderNotPaid {
        paid_minor: order.paid.minor,
        total_minor: order.total.minor,
        currency: order.currency(),
    })
}

fn all_left(order: &Order) -> Vec<LineQuantity> {
    let left = |line: &OrderLine| LineQuantity {
        line_number: line.line_number,
        quantity: line.quantity - line.shipped,
    };
    order
        .lines
        .iter()
        .map(left)
        .filter(|part| part.quantity > 0)
        .collect()
}

fn record_delivery(order: &Order, shipment_id: ShipmentId) -> Result<Event, Rejection> {
    let Some(shipment) = order.shipments.get(&shipment_id) else {
        return Err(Rejection::ShipmentNotFound { shipment_id });
    };
    if shipment.progress == Progress::Arrived {
        return Err(Rejection::ShipmentAlreadyDelivered { shipment_id });
    }
    let lines = shipment.lines.clone();
    let delivered = count(&lines)
        + order
            .lines
            .iter()
            .map(|line| u64::from(line.delivered))
            .sum::<u64>();
    let status = if delivered == order.item_count {
        Status::Delivered
    } else {
        order.status
    };
    Ok(DeliveryRecorded {
        shipment_id,
        lines,
        status,
    }
    .into())
}

fn request_return(
    order: &Order,
    return_id: ReturnId,
    lines: Vec<LineQuantity>,
    reason: Option<Reason>,
) -> Result<Event, Rejection> {
    check_open(order)?;
    if order.returns.contains_key(&return_id) {
        return Err(Rejection::ReturnAlreadyRequested { return_id });
    }
    if lines.is_empty() {
        return Err(Rejection::ReturnWithoutLines);
    }
    check_parts(order, &lines, |line, quantity| {
        let returnable = line.delivered - line.return_requested;
        let line_number = line.line_number;
        if quantity <= returnable {
            return Ok(());
        }
        Err(Rejection::ReturnExceedsDelivered {
            line_number,
            quantity,
            returnable,
        })
    })?;
    Ok(ReturnRequested {
        return_id,
        lines,
        reason,
    }
    .into())
}

fn receive_return(order: &Order, return_id: ReturnId) -> Result<Event, Rejection> {
    let Some(goods) = order.returns.get(&return_id) else {
        return Err(Rejection::ReturnNotFound { return_id });
    };
    if goods.progress == Progress::Arrived {
        return Err(Rejection::ReturnAlreadyReceived { return_id });
    }
    let mut value = Money::zero(order.currency());
    for part in &goods.lines {
        let line = find_line(order, part.line_number)?;
        value = value.checked_add(line.price_of(part.quantity, order.currency())?)?;
    }
    Ok(ReturnReceived {
        return_id,
        lines: goods.lines.clone(),
        currency: order.currency(),
        value_minor: value.minor,
        returned_minor: order.returned.checked_add(value)?.minor,
    }
    .into())
}

/// Each part is of a line that exists, named once, in a quantity that is possible at all and passes `check`.
fn check_parts(
    order: &Order,
    parts: &[LineQuantity],
    check: impl Fn(&OrderLine, u32) -> Result<(), Rejection>,
) -> Result<(), Rejection> {
    let mut seen = BTreeSet::new();
    for &LineQuantity {
        line_number,
        quantity,
    } in parts
    {
        let line = find_line(order, line_number)?;
        if !seen.insert(line_number) {
            return Err(Rejection::DuplicateLine { line_number });
        }
        check_quantity(quantity)?;
        check(line, quantity)?;
    }
    Ok(())
}

fn count(parts: &[LineQuantity]) -> u64 {
    parts.iter().map(|part| u64::from(part.quantity)).sum()
}
