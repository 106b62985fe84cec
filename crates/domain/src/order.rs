//! Orders: what may be asked of one, and what then happens.
//!
//! An order is placed, changed while nobody has confirmed it, confirmed or rejected, paid, shipped in one or
//! more parts, delivered, and possibly sent back and refunded; until something is shipped it can be
//! cancelled.
//!
//! Guarantees, whatever commands come in whatever order: the total is the sum of the lines; no more is paid
//! than the total, and no more refunded than was paid; of each line, returned ≤ return requested ≤ delivered
//! ≤ shipped ≤ ordered; a line number never means two lines. Amounts never wrap.

mod decide;
mod events;
mod rejection;
mod state;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use self::events::{
    Cancelled, Confirmed, DeliveryRecorded, Event, LineAdded, LineRemoved, PaymentRecorded, Placed,
    QuantityChanged, Refunded, Rejected, ReturnReceived, ReturnRequested, Shipped, ShippingAddressChanged,
};
pub use self::rejection::Rejection;
pub use self::state::{Order, OrderLine, Progress, Return, Shipment, State, Status};

use crate::address::Address;
use crate::aggregate::Aggregate;
use crate::ids::{
    Carrier, CustomerId, OrderId, PaymentId, Reason, Reference, RefundId, ReturnId, ShipmentId, Sku,
    TrackingNumber,
};
use crate::money::{Currency, Money};

/// The most lines that an order has at one time.
pub const LINES_MAX: usize = 500;
/// The most articles on one line; the least is one.
pub const QUANTITY_MAX: u32 = 1_000_000;

impl Aggregate for State {
    const CATEGORY: &'static str = "order";
    const PLURAL: &'static str = "orders";

    type Id = OrderId;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;

    /// A granted command always gives at least one event, also when it asks for what is the case already: that
    /// somebody said so is a fact, too. Costs no more than the order, and what is asked, have lines.
    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        decide::decide(self, command).map(|event| vec![event])
    }

    /// Costs no more than the order has lines.
    fn evolve(self, event: &Event) -> Self {
        self.after(event)
    }

    fn opens(command: &Command) -> bool {
        matches!(command, Command::Place { .. })
    }

    fn heap_bytes(&self) -> usize {
        self.order().map_or(0, Order::heap_bytes)
    }
}

/// The commands of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Place a new order.
    Place {
        /// The order, which must not exist yet.
        order_id: OrderId,
        /// The caller's own reference.
        reference: Option<Reference>,
        /// The customer.
        customer_id: CustomerId,
        /// The currency of all the order's amounts.
        currency: Currency,
        /// The lines to order: 1 to [`LINES_MAX`].
        lines: Vec<NewLine>,
        /// The shipping address, if there is one.
        shipping_address: Option<Address>,
        /// The total that the caller expects, if it says one.
        expected_total_minor: Option<i64>,
    },
    /// Add a line; it gets the next line number.
    AddLine {
        /// The new line.
        line: NewLine,
    },
    /// Remove a line, unless it is the last one.
    RemoveLine {
        /// The line.
        line_number: u32,
    },
    /// Order more or less of a line.
    ChangeQuantity {
        /// The line.
        line_number: u32,
        /// The new quantity.
        quantity: u32,
    },
    /// Send the order somewhere else.
    ChangeShippingAddress {
        /// The new shipping address.
        shipping_address: Address,
    },
    /// Confirm the order, which fixes its lines.
    Confirm,
    /// Refuse the order.
    Reject {
        /// Why, for the customer.
        reason: Reason,
    },
    /// Record that a payment was received.
    RecordPayment {
        /// The payment.
        payment_id: PaymentId,
        /// The amount of the payment.
        amount: Money,
    },
    /// Ship all or some of the order.
    Ship {
        /// The shipment, new to this order.
        shipment_id: ShipmentId,
        /// The articles shipped, each line once; none means all that are left.
        lines: Vec<LineQuantity>,
        /// The carrier.
        carrier: Option<Carrier>,
        /// The carrier's number.
        tracking_number: Option<TrackingNumber>,
    },
    /// Record that a shipment arrived.
    RecordDelivery {
        /// The shipment.
        shipment_id: ShipmentId,
    },
    /// Call the order off, before anything is shipped.
    Cancel {
        /// Why, for the customer.
        reason: Reason,
    },
    /// Record that the customer wants to send delivered goods back.
    RequestReturn {
        /// The return, new to this order.
        return_id: ReturnId,
        /// The articles that come back, each line once, at least one.
        lines: Vec<LineQuantity>,
        /// Why, in the customer's words.
        reason: Option<Reason>,
    },
    /// Record that returned goods arrived.
    ReceiveReturn {
        /// The return.
        return_id: ReturnId,
    },
    /// Record that money was given back.
    Refund {
        /// The refund.
        refund_id: RefundId,
        /// The amount given back.
        amount: Money,
    },
}

/// A line as it is asked for, before it has a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLine {
    /// The article.
    pub sku: Sku,
    /// How many, 1 to [`QUANTITY_MAX`].
    pub quantity: u32,
    /// The price of one in minor units, not negative.
    pub unit_price_minor: i64,
}

/// A line as it is ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its number, unique within the order and never used again.
    pub line_number: u32,
    /// The article.
    pub sku: Sku,
    /// How many are ordered.
    pub quantity: u32,
    /// The price of one in minor units.
    pub unit_price_minor: i64,
}

/// A part of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineQuantity {
    /// The line.
    pub line_number: u32,
    /// How many of it.
    pub quantity: u32,
}
