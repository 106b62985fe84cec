//! An order in full, as the read model keeps it and the contract shows it, and what each event makes of it.

use daybook_domain::address::Address;
use daybook_domain::ids::{
    Carrier, CustomerId, Reason, Reference, ReturnId, ShipmentId, Sku, TrackingNumber,
};
use daybook_domain::money::Money;
use daybook_domain::order::{
    DeliveryRecorded, Event as OrderEvent, Line, LineQuantity, Placed, ReturnReceived, ReturnRequested,
    Shipped, Status,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::serde::rfc3339;

#[cfg(feature = "openapi")]
use crate::schema;
use crate::{FoldError, status};

// As JSON it is the contract's `Order`: `snake_case`, times in RFC 3339, absent fields left out. The comments are its
// description in OpenAPI.
/// An order in full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = Order))]
pub struct OrderView {
    /// The order's TypeID.
    pub order_id: String,
    /// The number of the order's events so far.
    pub version: u64,
    /// Where it stands.
    #[serde(with = "status")]
    #[cfg_attr(feature = "openapi", schema(value_type = schema::OrderStatus))]
    pub status: Status,
    /// The caller's own reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub reference: Option<Reference>,
    /// Who buys.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub customer_id: CustomerId,
    /// What it costs.
    #[cfg_attr(feature = "openapi", schema(value_type = schema::Money))]
    pub total: Money,
    /// What has been paid.
    #[cfg_attr(feature = "openapi", schema(value_type = schema::Money))]
    pub paid: Money,
    /// What has been refunded.
    #[cfg_attr(feature = "openapi", schema(value_type = schema::Money))]
    pub refunded: Money,
    /// What is bought, ascending by line number.
    pub lines: Vec<LineView>,
    /// Where it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = schema::Address))]
    pub shipping_address: Option<Address>,
    /// What has been shipped, the first shipment first.
    pub shipments: Vec<ShipmentView>,
    /// What comes or came back, the first return first.
    pub returns: Vec<ReturnView>,
    /// When it was placed, by the business's time.
    #[serde(with = "rfc3339")]
    pub placed_at: OffsetDateTime,
    /// When it last changed, by the business's time.
    #[serde(with = "rfc3339")]
    pub updated_at: OffsetDateTime,
    /// Why it was cancelled or rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub closing_reason: Option<Reason>,
}

/// A line of an order as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = OrderLine))]
pub struct LineView {
    /// Its number, unique within the order and never used again.
    pub line_number: u32,
    /// The article.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub sku: Sku,
    /// How many are ordered.
    pub quantity: u32,
    /// The price of one, in minor units of the order's currency.
    pub unit_price_minor: i64,
    /// quantity × unit_price_minor.
    pub total_minor: i64,
    /// How many of them have been shipped.
    pub shipped_quantity: u32,
    /// How many of them have come back.
    pub returned_quantity: u32,
}

/// A shipment of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = Shipment))]
pub struct ShipmentView {
    /// The shipment's id.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub shipment_id: ShipmentId,
    /// What it holds.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<schema::LineQuantity>))]
    pub lines: Vec<LineQuantity>,
    /// Who carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub carrier: Option<Carrier>,
    /// The carrier's tracking number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub tracking_number: Option<TrackingNumber>,
    /// When it left.
    #[serde(with = "rfc3339")]
    pub shipped_at: OffsetDateTime,
    /// When it arrived, once it has.
    #[serde(default, with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub delivered_at: Option<OffsetDateTime>,
}

/// A return of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = OrderReturn))]
pub struct ReturnView {
    /// The return's id.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub return_id: ReturnId,
    /// What comes back.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<schema::LineQuantity>))]
    pub lines: Vec<LineQuantity>,
    /// Why, in the customer's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub return_reason: Option<Reason>,
    /// When it was asked for.
    #[serde(with = "rfc3339")]
    pub requested_at: OffsetDateTime,
    /// When the goods arrived, once they have.
    #[serde(default, with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub received_at: Option<OffsetDateTime>,
}

/// About how many bytes the ids, names and reasons of a part of an order take.
const TEXTS_BYTES: usize = 64;

/// About how many bytes the texts of an order itself take, its address with them.
const ADDRESS_BYTES: usize = 512;

impl OrderView {
    /// About how many bytes of memory its parts take.
    pub(super) fn size_bytes(&self) -> usize {
        let shipped = self
            .shipments
            .iter()
            .map(|shipment| size_of_goods::<ShipmentView>(&shipment.lines));
        let returned = self
            .returns
            .iter()
            .map(|goods| size_of_goods::<ReturnView>(&goods.lines));
        self.lines.len() * (size_of::<LineView>() + TEXTS_BYTES)
            + shipped.chain(returned).sum::<usize>()
            + ADDRESS_BYTES
    }

    /// A new order.
    pub(super) fn placed(
        order_id: &str,
        placed: &Placed,
        occurred_at: OffsetDateTime,
    ) -> Result<Self, FoldError> {
        let nothing = Money::zero(placed.currency);
        Ok(Self {
            order_id: order_id.to_owned(),
            version: 1,
            status: Status::Placed,
            reference: placed.reference.clone(),
            customer_id: placed.customer_id.clone(),
            total: Money::new(placed.total_minor, placed.currency),
            paid: nothing,
            refunded: nothing,
            lines: placed
                .lines
                .iter()
                .map(LineView::ordered)
                .collect::<Result<_, _>>()?,
            shipping_address: placed.shipping_address.clone(),
            shipments: Vec::new(),
            returns: Vec::new(),
            placed_at: occurred_at,
            updated_at: occurred_at,
            closing_reason: None,
        })
    }

    /// Takes over what an event says.
    pub(super) fn note(&mut self, event: &OrderEvent, occurred_at: OffsetDateTime) -> Result<(), FoldError> {
        if let Some(status) = event.status() {
            self.status = status;
        }
        match event {
            // A placed order is made by `placed`; a confirmation changes nothing but the status.
            OrderEvent::Placed(_) | OrderEvent::Confirmed(_) => {}
            OrderEvent::LineAdded(added) => {
                self.lines.push(LineView::ordered(&added.line)?);
                self.total.minor = added.total_minor;
            }
            OrderEvent::LineRemoved(removed) => {
                self.line(removed.line.line_number)?;
                self.lines
                    .retain(|line| line.line_number != removed.line.line_number);
                self.total.minor = removed.total_minor;
            }
            OrderEvent::QuantityChanged(changed) => {
                self.line(changed.line_number)?
                    .change_quantity(changed.quantity)?;
                self.total.minor = changed.total_minor;
            }
            OrderEvent::ShippingAddressChanged(changed) => {
                self.shipping_address = Some(changed.shipping_address.clone());
            }
            OrderEvent::Rejected(rejected) => self.closing_reason = Some(rejected.reason.clone()),
            OrderEvent::Cancelled(cancelled) => self.closing_reason = Some(cancelled.reason.clone()),
            OrderEvent::PaymentRecorded(payment) => self.paid.minor = payment.paid_minor,
            OrderEvent::Refunded(refund) => self.refunded.minor = refund.refunded_minor,
            OrderEvent::Shipped(shipped) => self.ship(shipped, occurred_at)?,
            OrderEvent::DeliveryRecorded(delivery) => self.deliver(delivery, occurred_at)?,
            OrderEvent::ReturnRequested(requested) => self.request_return(requested, occurred_at),
            OrderEvent::ReturnReceived(received) => self.receive_return(received, occurred_at)?,
        }
        Ok(())
    }

    fn ship(&mut self, shipped: &Shipped, occurred_at: OffsetDateTime) -> Result<(), FoldError> {
        for part in &shipped.lines {
            add(&mut self.line(part.line_number)?.shipped_quantity, part.quantity)?;
        }
        self.shipments.push(ShipmentView {
            shipment_id: shipped.shipment_id.clone(),
            lines: shipped.lines.clone(),
            carrier: shipped.carrier.clone(),
            tracking_number: shipped.tracking_number.clone(),
            shipped_at: occurred_at,
            delivered_at: None,
        });
        Ok(())
    }

    fn deliver(&mut self, delivery: &DeliveryRecorded, occurred_at: OffsetDateTime) -> Result<(), FoldError> {
        let id = &delivery.shipment_id;
        let shipment = self
            .shipments
            .iter_mut()
            .find(|shipment| shipment.shipment_id == *id);
        let shipment = shipment.ok_or_else(|| unknown("shipment", id))?;
        shipment.delivered_at = Some(occurred_at);
        Ok(())
    }

    fn request_return(&mut self, requested: &ReturnRequested, occurred_at: OffsetDateTime) {
        self.returns.push(ReturnView {
            return_id: requested.return_id.clone(),
            lines: requested.lines.clone(),
            return_reason: requested.reason.clone(),
            requested_at: occurred_at,
            received_at: None,
        });
    }

    fn receive_return(
        &mut self,
        received: &ReturnReceived,
        occurred_at: OffsetDateTime,
    ) -> Result<(), FoldError> {
        let id = &received.return_id;
        let goods = self.returns.iter_mut().find(|goods| goods.return_id == *id);
        let goods = goods.ok_or_else(|| unknown("return", id))?;
        goods.received_at = Some(occurred_at);
        for part in &received.lines {
            add(&mut self.line(part.line_number)?.returned_quantity, part.quantity)?;
        }
        Ok(())
    }

    fn line(&mut self, line_number: u32) -> Result<&mut LineView, FoldError> {
        let line = self.lines.iter_mut().find(|line| line.line_number == line_number);
        line.ok_or_else(|| unknown("line", line_number))
    }
}

impl LineView {
    fn ordered(line: &Line) -> Result<Self, FoldError> {
        let mut view = Self {
            line_number: line.line_number,
            sku: line.sku.clone(),
            quantity: 0,
            unit_price_minor: line.unit_price_minor,
            total_minor: 0,
            shipped_quantity: 0,
            returned_quantity: 0,
        };
        view.change_quantity(line.quantity)?;
        Ok(view)
    }

    fn change_quantity(&mut self, quantity: u32) -> Result<(), FoldError> {
        self.quantity = quantity;
        self.total_minor = self
            .unit_price_minor
            .checked_mul(i64::from(quantity))
            .ok_or(FoldError::Overflow)?;
        Ok(())
    }
}

/// Of a shipment or a return with these lines.
fn size_of_goods<T>(lines: &[LineQuantity]) -> usize {
    size_of::<T>() + TEXTS_BYTES + size_of_val(lines)
}

fn add(count: &mut u32, more: u32) -> Result<(), FoldError> {
    *count = count.checked_add(more).ok_or(FoldError::Overflow)?;
    Ok(())
}

fn unknown(part: &'static str, id: impl ToString) -> FoldError {
    FoldError::Unknown {
        part,
        id: id.to_string(),
    }
}
