//! The events of orders, as they are stored.
//!
//! An event carries what its readers need: a read model that folds only these events keeps status, lines and
//! amounts without knowing a rule, and everything that changes what a customer has bought, paid or got back
//! names the customer and the currency, so that customer totals can be keyed and added up from single events.
//! Amounts called `…_change` are differences; all others are what holds after the event. All amounts are in
//! minor units of `currency`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Line, LineQuantity, Status};
use crate::address::Address;
use crate::ids::{
    Carrier, CustomerId, OrderId, PaymentId, Reason, Reference, RefundId, ReturnId, ShipmentId, Sku,
    TrackingNumber,
};
use crate::money::Currency;

events! {
    /// An event of an order.
    pub enum Event upcast by upcast {
        /// A customer placed the order.
        Placed = "order.placed", 2;
        /// A line was added.
        LineAdded = "order.line_added", 1;
        /// A line was removed.
        LineRemoved = "order.line_removed", 1;
        /// The quantity of a line was changed.
        QuantityChanged = "order.quantity_changed", 1;
        /// The order goes somewhere else.
        ShippingAddressChanged = "order.shipping_address_changed", 1;
        /// The seller confirmed the order; its lines are fixed.
        Confirmed = "order.confirmed", 1;
        /// The seller refused the order.
        Rejected = "order.rejected", 1;
        /// A payment was received.
        PaymentRecorded = "order.payment_recorded", 1;
        /// Some or all of the order left.
        Shipped = "order.shipped", 1;
        /// A shipment arrived.
        DeliveryRecorded = "order.delivery_recorded", 1;
        /// The order was called off.
        Cancelled = "order.cancelled", 1;
        /// The customer wants to send goods back.
        ReturnRequested = "order.return_requested", 1;
        /// Goods came back.
        ReturnReceived = "order.return_received", 1;
        /// Money was given back.
        Refunded = "order.refunded", 1;
    }
}

impl Event {
    /// The order's status after this event, if the event changes it.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Placed(_) => Some(Status::Placed),
            Self::Confirmed(_) => Some(Status::Confirmed),
            Self::Rejected(_) => Some(Status::Rejected),
            Self::Cancelled(_) => Some(Status::Cancelled),
            Self::Shipped(event) => Some(event.status),
            Self::DeliveryRecorded(event) => Some(event.status),
            Self::LineAdded(_)
            | Self::LineRemoved(_)
            | Self::QuantityChanged(_)
            | Self::ShippingAddressChanged(_)
            | Self::PaymentRecorded(_)
            | Self::ReturnRequested(_)
            | Self::ReturnReceived(_)
            | Self::Refunded(_) => None,
        }
    }
}

/// A customer placed the order.
///
/// Version 1 had neither reference nor address, called the customer `customer` and the lines `items`,
/// numbered them by their order only, and left counting the articles to the reader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The order.
    pub order_id: OrderId,
    /// The customer.
    pub customer_id: CustomerId,
    /// The caller's own reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
    /// The currency of all the order's amounts.
    pub currency: Currency,
    /// The lines, at least one, numbered from 1.
    pub lines: Vec<Line>,
    /// The shipping address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shipping_address: Option<Address>,
    /// The order's total.
    pub total_minor: i64,
    /// How many articles it has, over all lines.
    pub item_count: u64,
}

/// A line was added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineAdded {
    /// The customer.
    pub customer_id: CustomerId,
    /// The new line.
    pub line: Line,
    /// The order's currency.
    pub currency: Currency,
    /// The order's total after the event.
    pub total_minor: i64,
    /// The change of the total.
    pub total_change_minor: i64,
    /// How many articles it has now.
    pub item_count: u64,
    /// How many it has more than before.
    pub item_count_change: i64,
}

/// A line was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineRemoved {
    /// The customer.
    pub customer_id: CustomerId,
    /// The line as it was.
    pub line: Line,
    /// The order's currency.
    pub currency: Currency,
    /// The order's total after the event.
    pub total_minor: i64,
    /// The change of the total: zero or negative.
    pub total_change_minor: i64,
    /// How many articles it has now.
    pub item_count: u64,
    /// How many it has more than before; here, less than nothing.
    pub item_count_change: i64,
}

/// The quantity of a line was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuantityChanged {
    /// The customer.
    pub customer_id: CustomerId,
    /// The line.
    pub line_number: u32,
    /// Its article.
    pub sku: Sku,
    /// How many are ordered now.
    pub quantity: u32,
    /// How many were ordered before.
    pub previous_quantity: u32,
    /// The order's currency.
    pub currency: Currency,
    /// The order's total after the event.
    pub total_minor: i64,
    /// The change of the total, positive or negative.
    pub total_change_minor: i64,
    /// How many articles it has now.
    pub item_count: u64,
    /// How many it has more than before; negative when it has fewer.
    pub item_count_change: i64,
}

/// The order goes somewhere else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShippingAddressChanged {
    /// The new shipping address.
    pub shipping_address: Address,
}

/// The seller confirmed the order; its lines are fixed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// The customer.
    pub customer_id: CustomerId,
    /// The order's currency.
    pub currency: Currency,
    /// The order's total.
    pub total_minor: i64,
    /// How many articles it has.
    pub item_count: u64,
}

/// The seller refused the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// The customer.
    pub customer_id: CustomerId,
    /// Why, for the customer.
    pub reason: Reason,
    /// The order's currency.
    pub currency: Currency,
    /// The order's total before it was closed.
    pub total_minor: i64,
    /// How many articles it had.
    pub item_count: u64,
    /// The amount paid, which can be refunded now.
    pub paid_minor: i64,
}

/// A payment was received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaymentRecorded {
    /// The customer.
    pub customer_id: CustomerId,
    /// The payment.
    pub payment_id: PaymentId,
    /// The order's currency.
    pub currency: Currency,
    /// The amount of this payment.
    pub amount_minor: i64,
    /// The sum of all payments up to now.
    pub paid_minor: i64,
}

/// Some or all of the order left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipped {
    /// The shipment.
    pub shipment_id: ShipmentId,
    /// The articles in it, each line once.
    pub lines: Vec<LineQuantity>,
    /// The carrier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<Carrier>,
    /// The carrier's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking_number: Option<TrackingNumber>,
    /// Whether the order is shipped now, or partially shipped.
    pub status: Status,
}

/// A shipment arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryRecorded {
    /// The shipment.
    pub shipment_id: ShipmentId,
    /// The articles in it.
    pub lines: Vec<LineQuantity>,
    /// Delivered when nothing of the order is still to come, else what it was before.
    pub status: Status,
}

/// The order was called off before anything was shipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancelled {
    /// The customer.
    pub customer_id: CustomerId,
    /// Why, for the customer.
    pub reason: Reason,
    /// The order's currency.
    pub currency: Currency,
    /// The order's total before it was closed.
    pub total_minor: i64,
    /// How many articles it had.
    pub item_count: u64,
    /// The amount paid, which can be refunded now.
    pub paid_minor: i64,
}

/// The customer wants to send goods back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReturnRequested {
    /// The return.
    pub return_id: ReturnId,
    /// The articles that come back, each line once.
    pub lines: Vec<LineQuantity>,
    /// Why, in the customer's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// Goods came back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReturnReceived {
    /// The return.
    pub return_id: ReturnId,
    /// The articles that came back.
    pub lines: Vec<LineQuantity>,
    /// The order's currency.
    pub currency: Currency,
    /// The price of these articles.
    pub value_minor: i64,
    /// The price of all articles that came back so far.
    pub returned_minor: i64,
}

/// Money was given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refunded {
    /// The customer, who gets it.
    pub customer_id: CustomerId,
    /// The refund.
    pub refund_id: RefundId,
    /// The order's currency.
    pub currency: Currency,
    /// The amount of this refund.
    pub amount_minor: i64,
    /// The sum of all refunds up to now.
    pub refunded_minor: i64,
}

/// Every step from an old payload to the next version, in one place.
fn upcast(event_type: &str, from: u32, payload: Map<String, Value>) -> Option<Map<String, Value>> {
    match (event_type, from) {
        ("order.placed", 1) => Some(placed_from_v1(payload)),
        _ => None,
    }
}

fn placed_from_v1(mut payload: Map<String, Value>) -> Map<String, Value> {
    rename(&mut payload, "customer", "customer_id");
    rename(&mut payload, "items", "lines");
    let mut item_count = 0_u64;
    if let Some(Value::Array(lines)) = payload.get_mut("lines") {
        for (line_number, line) in (1_u32..).zip(lines.iter_mut().filter_map(Value::as_object_mut)) {
            let quantity = line.get("quantity").and_then(Value::as_u64).unwrap_or_default();
            item_count = item_count.saturating_add(quantity);
            line.insert("line_number".to_owned(), line_number.into());
        }
    }
    payload.insert("item_count".to_owned(), item_count.into());
    payload
}

fn rename(payload: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = payload.remove(from) {
        payload.insert(to.to_owned(), value);
    }
}
