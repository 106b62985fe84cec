//! Rules for goods that go out and come back.

use std::collections::BTreeSet;

use super::check_open;
use super::lines::{check_quantity, find_line};
use crate::ids::{Carrier, Reason, ReturnId, ShipmentId, TrackingNumber};
use crate::money::Money;
use crate::order::{
    DeliveryRecorded, Event, LineQuantity, Order, OrderLine, Progress, Rejection, ReturnReceived,
    ReturnRequested, Shipped, Status,
};

pub(super) fn ship(
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
        let left = line.left_to_ship();
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
    let shipped = count(&lines) + count_all(order, |line| line.shipped);
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
        quantity: line.left_to_ship(),
    };
    order
        .lines
        .iter()
        .map(left)
        .filter(|part| part.quantity > 0)
        .collect()
}

pub(super) fn record_delivery(order: &Order, shipment_id: ShipmentId) -> Result<Event, Rejection> {
    let Some(shipment) = order.shipments.get(&shipment_id) else {
        return Err(Rejection::ShipmentNotFound { shipment_id });
    };
    if shipment.progress == Progress::Arrived {
        return Err(Rejection::ShipmentAlreadyDelivered { shipment_id });
    }
    let lines = shipment.lines.clone();
    let delivered = count(&lines) + count_all(order, |line| line.delivered);
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

pub(super) fn request_return(
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
        let returnable = line.returnable();
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

pub(super) fn receive_return(order: &Order, return_id: ReturnId) -> Result<Event, Rejection> {
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
    for part in parts {
        let LineQuantity {
            line_number,
            quantity,
        } = *part;
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

fn count_all(order: &Order, of: impl Fn(&OrderLine) -> u32) -> u64 {
    order.lines.iter().map(|line| u64::from(of(line))).sum()
}
