//! The state of an order that the rules need, folded from its events.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::events::{
    DeliveryRecorded, Event, LineAdded, LineRemoved, PaymentRecorded, Placed, QuantityChanged, Refunded,
    ReturnReceived, ReturnRequested, Shipped,
};
use super::{Line, LineQuantity};
use crate::aggregate::tree_bytes;
use crate::ids::{CustomerId, PaymentId, RefundId, ReturnId, ShipmentId, Sku};
use crate::money::{Currency, Money, MoneyError};

/// The status of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Placed, its lines can still change.
    Placed,
    /// Confirmed, its lines are fixed.
    Confirmed,
    /// Refused by the seller.
    Rejected,
    /// Some of it has been shipped.
    PartiallyShipped,
    /// All of it has been shipped.
    Shipped,
    /// All of it has arrived.
    Delivered,
    /// Called off before anything was shipped.
    Cancelled,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 7] = [
        Self::Placed,
        Self::Confirmed,
        Self::Rejected,
        Self::PartiallyShipped,
        Self::Shipped,
        Self::Delivered,
        Self::Cancelled,
    ];

    /// The name under which it is stored and serialised.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Confirmed => "confirmed",
            Self::Rejected => "rejected",
            Self::PartiallyShipped => "partially_shipped",
            Self::Shipped => "shipped",
            Self::Delivered => "delivered",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The state of an order: nothing until it is placed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    order: Option<Order>,
}

impl State {
    /// The order, once it was placed.
    pub fn order(&self) -> Option<&Order> {
        self.order.as_ref()
    }

    pub(super) fn after(self, event: &Event) -> Self {
        let order = match self.order {
            Some(order) => Some(order.after(event)),
            None => Order::first(event),
        };
        Self { order }
    }
}

/// An order that was placed, as far as the rules look at it. What no rule asks for (the address, say) is not
/// kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its status.
    pub status: Status,
    /// The customer.
    pub customer_id: CustomerId,
    /// The price of its lines.
    pub total: Money,
    /// The amount paid.
    pub paid: Money,
    /// The price of the articles that came back.
    pub returned: Money,
    /// The amount refunded.
    pub refunded: Money,
    /// How many articles it has, over all lines.
    pub item_count: u64,
    /// Its lines, ascending by number.
    pub lines: Vec<OrderLine>,
    /// The highest line number ever used.
    pub last_line_number: u32,
    /// The payments that were recorded.
    pub payments: BTreeSet<PaymentId>,
    /// Its shipments.
    pub shipments: BTreeMap<ShipmentId, Shipment>,
    /// Its returns.
    pub returns: BTreeMap<ReturnId, Return>,
    /// The refunds that were recorded.
    pub refunds: BTreeSet<RefundId>,
}

/// A line of an order and how far it has got: returned ≤ return requested ≤ delivered ≤ shipped ≤ quantity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderLine {
    /// Its number, unique within the order and never used again.
    pub line_number: u32,
    /// The article.
    pub sku: Sku,
    /// How many are ordered.
    pub quantity: u32,
    /// The price of one.
    pub unit_price_minor: i64,
    /// How many have been shipped.
    pub shipped: u32,
    /// How many have arrived.
    pub delivered: u32,
    /// How many are to come back, or did.
    pub return_requested: u32,
    /// How many have come back.
    pub returned: u32,
}

/// A shipment of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipment {
    /// The articles in it.
    pub lines: Vec<LineQuantity>,
    /// How far it has got.
    pub progress: Progress,
}

/// A return of delivered goods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Return {
    /// The articles that come back.
    pub lines: Vec<LineQuantity>,
    /// How far it has got.
    pub progress: Progress,
}

/// How far goods on their way have got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Not there yet.
    Underway,
    /// They have arrived.
    Arrived,
}

impl Order {
    /// Only placing brings an order into being.
    fn first(event: &Event) -> Option<Self> {
        match event {
            Event::Placed(placed) => Some(Self::from(placed)),
            Event::LineAdded(_)
            | Event::LineRemoved(_)
            | Event::QuantityChanged(_)
            | Event::ShippingAddressChanged(_)
            | Event::Confirmed(_)
            | Event::Rejected(_)
            | Event::PaymentRecorded(_)
            | Event::Shipped(_)
            | Event::DeliveryRecorded(_)
            | Event::Cancelled(_)
            | Event::ReturnRequested(_)
            | Event::ReturnReceived(_)
            | Event::Refunded(_) => None,
        }
    }

    fn after(mut self, event: &Event) -> Self {
        match event {
            // An order is placed once; a second time says nothing new.
            Event::Placed(_) => {}
            Event::LineAdded(added) => self.add_line(added),
            Event::LineRemoved(removed) => self.remove_line(removed),
            Event::QuantityChanged(changed) => self.change_quantity(changed),
            // No rule depends on where the order goes.
            Event::ShippingAddressChanged(_) => {}
            Event::Confirmed(_) => self.status = Status::Confirmed,
            Event::Rejected(_) => self.status = Status::Rejected,
            Event::PaymentRecorded(payment) => self.record_payment(payment),
            Event::Shipped(shipped) => self.ship(shipped),
            Event::DeliveryRecorded(delivery) => self.deliver(delivery),
            Event::Cancelled(_) => self.status = Status::Cancelled,
            Event::ReturnRequested(requested) => self.request_return(requested),
            Event::ReturnReceived(received) => self.receive_return(received),
            Event::Refunded(refund) => self.refund(refund),
        }
        self
    }

    /// The line with this number, if the order still has it.
    pub fn line(&self, line_number: u32) -> Option<&OrderLine> {
        self.find(line_number).ok().map(|index| &self.lines[index])
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let lines = self.lines.capacity() * size_of::<OrderLine>();
        let skus: usize = self.lines.iter().map(|line| line.sku.as_str().len()).sum();
        self.customer_id.as_str().len() + lines + skus + self.record_bytes()
    }

    /// About how many bytes its payments, shipments, returns and refunds hold on the heap.
    fn record_bytes(&self) -> usize {
        let payments: usize = self.payments.iter().map(|id| id.as_str().len()).sum();
        let refunds: usize = self.refunds.iter().map(|id| id.as_str().len()).sum();
        let part_bytes = |parts: &Vec<LineQuantity>| parts.capacity() * size_of::<LineQuantity>();
        let shipments = self.shipments.iter();
        let shipments: usize = shipments
            .map(|(id, shipment)| id.as_str().len() + part_bytes(&shipment.lines))
            .sum();
        let returns = self.returns.iter();
        let returns: usize = returns
            .map(|(id, goods)| id.as_str().len() + part_bytes(&goods.lines))
            .sum();
        let trees = tree_bytes::<PaymentId, ()>(self.payments.len())
            + tree_bytes::<RefundId, ()>(self.refunds.len())
            + tree_bytes::<ShipmentId, Shipment>(self.shipments.len())
            + tree_bytes::<ReturnId, Return>(self.returns.len());
        payments + refunds + shipments + returns + trees
    }

    /// The order's currency.
    pub fn currency(&self) -> Currency {
        self.total.currency
    }

    fn find(&self, line_number: u32) -> Result<usize, usize> {
        self.lines
            .binary_search_by_key(&line_number, |line| line.line_number)
    }

    fn add_line(&mut self, added: &LineAdded) {
        let line = OrderLine::from(&added.line);
        self.last_line_number = self.last_line_number.max(line.line_number);
        match self.find(line.line_number) {
            Ok(index) => self.lines[index] = line,
            Err(index) => self.lines.insert(index, line),
        }
        self.amount_to(added.total_minor, added.item_count);
    }

    fn remove_line(&mut self, removed: &LineRemoved) {
        if let Ok(index) = self.find(removed.line.line_number) {
            self.lines.remove(index);
        }
        self.amount_to(removed.total_minor, removed.item_count);
    }

    fn change_quantity(&mut self, changed: &QuantityChanged) {
        if let Ok(index) = self.find(changed.line_number) {
            self.lines[index].quantity = changed.quantity;
        }
        self.amount_to(changed.total_minor, changed.item_count);
    }

    fn amount_to(&mut self, total_minor: i64, item_count: u64) {
        self.total.minor = total_minor;
        self.item_count = item_count;
    }

    fn record_payment(&mut self, payment: &PaymentRecorded) {
        self.payments.insert(payment.payment_id.clone());
        self.paid.minor = payment.paid_minor;
    }

    fn ship(&mut self, shipped: &Shipped) {
        self.each_line(&shipped.lines, |line, quantity| {
            line.shipped = line.shipped.saturating_add(quantity)
        });
        let shipment = Shipment {
            lines: shipped.lines.clone(),
            progress: Progress::Underway,
        };
        self.shipments.insert(shipped.shipment_id.clone(), shipment);
        self.status = shipped.status;
    }

    fn deliver(&mut self, delivery: &DeliveryRecorded) {
        self.each_line(&delivery.lines, |line, quantity| {
            line.delivered = line.delivered.saturating_add(quantity)
        });
        if let Some(shipment) = self.shipments.get_mut(&delivery.shipment_id) {
            shipment.progress = Progress::Arrived;
        }
        self.status = delivery.status;
    }

    fn request_return(&mut self, requested: &ReturnRequested) {
        self.each_line(&requested.lines, |line, quantity| {
            line.return_requested = line.return_requested.saturating_add(quantity);
        });
        let goods = Return {
            lines: requested.lines.clone(),
            progress: Progress::Underway,
        };
        self.returns.insert(requested.return_id.clone(), goods);
    }

    fn receive_return(&mut self, received: &ReturnReceived) {
        self.each_line(&received.lines, |line, quantity| {
            line.returned = line.returned.saturating_add(quantity)
        });
        if let Some(goods) = self.returns.get_mut(&received.return_id) {
            goods.progress = Progress::Arrived;
        }
        self.returned.minor = received.returned_minor;
    }

    fn refund(&mut self, refund: &Refunded) {
        self.refunds.insert(refund.refund_id.clone());
        self.refunded.minor = refund.refunded_minor;
    }

    fn each_line(&mut self, parts: &[LineQuantity], change: impl Fn(&mut OrderLine, u32)) {
        for part in parts {
            if let Ok(index) = self.find(part.line_number) {
                change(&mut self.lines[index], part.quantity);
            }
        }
    }
}

impl OrderLine {
    /// How many have not been shipped yet.
    pub fn left_to_ship(&self) -> u32 {
        self.quantity.saturating_sub(self.shipped)
    }

    /// How many the customer has and has not asked to send back.
    pub fn returnable(&self) -> u32 {
        self.delivered.saturating_sub(self.return_requested)
    }

    /// The line as it was ordered.
    pub(super) fn ordered(&self) -> Line {
        Line {
            line_number: self.line_number,
            sku: self.sku.clone(),
            quantity: self.quantity,
            unit_price_minor: self.unit_price_minor,
        }
    }

    /// The price of a quantity of it.
    pub(super) fn price_of(&self, quantity: u32, currency: Currency) -> Result<Money, MoneyError> {
        Money::new(self.unit_price_minor, currency).checked_mul(quantity)
    }
}

impl From<&Placed> for Order {
    fn from(placed: &Placed) -> Self {
        let nothing = Money::zero(placed.currency);
        let mut lines: Vec<_> = placed.lines.iter().map(OrderLine::from).collect();
        // They come in order and without repetition; look-ups by bisection depend on it, so it is made sure
        // of.
        lines.sort_by_key(|line| line.line_number);
        lines.dedup_by_key(|line| line.line_number);
        Self {
            status: Status::Placed,
            customer_id: placed.customer_id.clone(),
            total: Money::new(placed.total_minor, placed.currency),
            paid: nothing,
            returned: nothing,
            refunded: nothing,
            item_count: placed.item_count,
            last_line_number: lines.last().map_or(0, |line| line.line_number),
            lines,
            payments: BTreeSet::new(),
            shipments: BTreeMap::new(),
            returns: BTreeMap::new(),
            refunds: BTreeSet::new(),
        }
    }
}

impl From<&Line> for OrderLine {
    fn from(line: &Line) -> Self {
        Self {
            line_number: line.line_number,
            sku: line.sku.clone(),
            quantity: line.quantity,
            unit_price_minor: line.unit_price_minor,
            shipped: 0,
            delivered: 0,
            return_requested: 0,
            returned: 0,
        }
    }
}
