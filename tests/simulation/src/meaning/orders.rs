//! Which command on an order would produce an event.

use daybook_domain::ids::OrderId;
use daybook_domain::money::Money;
use daybook_domain::order::{
    Cancelled, Command, DeliveryRecorded, Event, Line, LineAdded, NewLine, Placed, Rejected, ReturnReceived,
    ReturnRequested, Shipped, State,
};

use super::Reproducible;

impl Reproducible for State {
    fn command(stream_id: &str, event: &Event) -> anyhow::Result<Command> {
        Ok(match event.clone() {
            Event::Placed(placed) => place(stream_id.parse()?, placed),
            Event::LineAdded(LineAdded { line, .. }) => Command::AddLine { line: new_line(line) },
            Event::LineRemoved(removed) => Command::RemoveLine {
                line_number: removed.line.line_number,
            },
            Event::QuantityChanged(changed) => Command::ChangeQuantity {
                line_number: changed.line_number,
                quantity: changed.quantity,
            },
            Event::ShippingAddressChanged(changed) => Command::ChangeShippingAddress {
                shipping_address: changed.shipping_address,
            },
            Event::Confirmed(_) => Command::Confirm,
            Event::Rejected(Rejected { reason, .. }) => Command::Reject { reason },
            Event::PaymentRecorded(payment) => Command::RecordPayment {
                payment_id: payment.payment_id,
                amount: Money::new(payment.amount_minor, payment.currency),
            },
            Event::Shipped(shipped) => ship(shipped),
            Event::DeliveryRecorded(DeliveryRecorded { shipment_id, .. }) => {
                Command::RecordDelivery { shipment_id }
            }
            Event::Cancelled(Cancelled { reason, .. }) => Command::Cancel { reason },
            Event::ReturnRequested(requested) => request_return(requested),
            Event::ReturnReceived(ReturnReceived { return_id, .. }) => Command::ReceiveReturn { return_id },
            Event::Refunded(refunded) => Command::Refund {
                refund_id: refunded.refund_id,
                amount: Money::new(refunded.amount_minor, refunded.currency),
            },
        })
    }
}

/// The order's id is the stream's and not the event's: they have to be the same.
fn place(order_id: OrderId, placed: Placed) -> Command {
    Command::Place {
        order_id,
        reference: placed.reference,
        customer_id: placed.customer_id,
        currency: placed.currency,
        lines: placed.lines.into_iter().map(new_line).collect(),
        shipping_address: placed.shipping_address,
        expected_total_minor: None,
    }
}

/// Its number is for the domain to say.
fn new_line(line: Line) -> NewLine {
    NewLine {
        sku: line.sku,
        quantity: line.quantity,
        unit_price_minor: line.unit_price_minor,
    }
}

fn ship(shipped: Shipped) -> Command {
    Command::Ship {
        shipment_id: shipped.shipment_id,
        lines: shipped.lines,
        carrier: shipped.carrier,
        tracking_number: shipped.tracking_number,
    }
}

fn request_return(requested: ReturnRequested) -> Command {
    Command::RequestReturn {
        return_id: requested.return_id,
        lines: requested.lines,
        reason: requested.reason,
    }
}

#[cfg(test)]
mod tests;
