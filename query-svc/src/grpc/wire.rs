//! From read models and the log to the wire: by hand, field by field.

use daybook_domain::address::Address;
use daybook_domain::money::Money;
use daybook_domain::order::{LineQuantity, Status};
use daybook_event_store::Metadata;
use daybook_proto::common::v1 as common;
use daybook_proto::convert::to_timestamp;
use daybook_proto::history::v1 as history;
use daybook_proto::orders::v1 as orders;
use daybook_read_model::customer_totals;
use daybook_read_model::order_details::{LineView, OrderView, ReturnView, ShipmentView};
use serde_json::Value;

use crate::freshness::Staleness;
use crate::reads::changes::Change;
use crate::reads::correlation::Node;
use crate::reads::history::HistoryEvent;
use crate::reads::orders::ListedOrder;
use crate::sparse::Fields;

/// Makes those members of a message empty that are not wanted. (proto3 has no absent ones.)
macro_rules! keep {
    ($fields:ident, $message:ident: $($member:ident),+) => {
        $(
            if !$fields.has(stringify!($member)) {
                $message.$member = Default::default();
            }
        )+
    };
}

pub(super) fn staleness(staleness: &Staleness) -> common::Staleness {
    common::Staleness {
        position: staleness.plain_position(),
        lag_ms: staleness.lag_ms,
        consistency_token: text(staleness.token()),
    }
}

pub(super) fn order(view: OrderView) -> orders::Order {
    orders::Order {
        order_id: view.order_id,
        version: view.version,
        status: status(view.status).into(),
        reference: text(view.reference),
        customer_id: view.customer_id.to_string(),
        total: Some(money(view.total)),
        paid: Some(money(view.paid)),
        refunded: Some(money(view.refunded)),
        lines: view.lines.iter().map(line).collect(),
        shipping_address: view.shipping_address.as_ref().map(address),
        shipments: view.shipments.into_iter().map(shipment).collect(),
        returns: view.returns.into_iter().map(order_return).collect(),
        placed_at: Some(to_timestamp(view.placed_at)),
        updated_at: Some(to_timestamp(view.updated_at)),
        closing_reason: text(view.closing_reason),
    }
}

/// An order in a list, or those of its members that are wanted.
pub(super) fn order_summary(order: &ListedOrder, fields: Option<&Fields>) -> orders::OrderSummary {
    let row = &order.row;
    let mut summary = orders::OrderSummary {
        order_id: row.order_id.clone(),
        version: row.version,
        status: status(row.status).into(),
        reference: text(row.reference.as_ref()),
        customer_id: row.customer_id.to_string(),
        total: Some(money(Money::new(row.total_minor, row.currency))),
        item_count: row.item_count,
        placed_at: Some(to_timestamp(row.placed_at)),
        updated_at: Some(to_timestamp(row.updated_at)),
        customer: order.customer.as_ref().map(|shown| customer(shown, None)),
        lines: order.lines.iter().flatten().map(line).collect(),
    };
    if let Some(fields) = fields {
        keep!(fields, summary: order_id, version, status, reference, customer_id, total, item_count, placed_at, updated_at, customer, lines);
    }
    summary
}

/// A customer, or those of its members that are wanted.
pub(super) fn customer(shown: &customer_totals::Customer, fields: Option<&Fields>) -> orders::Customer {
    let mut customer = orders::Customer {
        customer_id: shown.customer_id.to_string(),
        totals: shown.totals.iter().map(customer_total).collect(),
    };
    if let Some(fields) = fields {
        keep!(fields, customer: customer_id, totals);
    }
    customer
}

pub(super) fn customer_total(row: &customer_totals::Row) -> orders::CustomerTotal {
    orders::CustomerTotal {
        currency: row.key.currency.to_string(),
        orders_placed: row.orders_placed,
        orders_closed: row.orders_closed,
        items_ordered: row.items_ordered,
        ordered_minor: row.ordered_minor,
        paid_minor: row.paid_minor,
        refunded_minor: row.refunded_minor,
    }
}

pub(super) fn event(event: HistoryEvent) -> history::Event {
    let HistoryEvent { recorded, changes } = event;
    let metadata = event_metadata(recorded.decoded_metadata());
    history::Event {
        event_id: recorded.event_id.to_string(),
        event_type: recorded.event_type,
        schema_version: recorded.schema_version,
        partition: recorded.partition.cast_unsigned(),
        position: recorded.position,
        stream_id: recorded.stream_id,
        stream_version: recorded.stream_version,
        payload_json: recorded.payload,
        metadata: Some(metadata),
        recorded_at: Some(to_timestamp(recorded.recorded_at)),
        changes: changes.into_iter().flatten().map(change).collect(),
    }
}

pub(super) fn correlation_node(node: Node) -> history::CorrelationNode {
    history::CorrelationNode {
        event: Some(event(node.event)),
        depth: node.depth,
        children: node.children.iter().map(ToString::to_string).collect(),
    }
}

fn change(change: Change) -> history::Change {
    let json = |value: Value| value.to_string();
    history::Change {
        pointer: change.pointer,
        before_json: change.before.map(json),
        after_json: change.after.map(json),
    }
}

fn event_metadata(metadata: Metadata) -> history::EventMetadata {
    history::EventMetadata {
        correlation_id: metadata.correlation_id,
        causation_id: text(metadata.causation_id),
        principal: metadata.principal,
        actor: text(metadata.actor),
        reason: text(metadata.reason),
        command: metadata.command,
        idempotency_key: metadata.idempotency_key,
        traceparent: text(metadata.traceparent),
        occurred_at: metadata.occurred_at.map(to_timestamp),
    }
}

fn status(status: Status) -> orders::OrderStatus {
    match status {
        Status::Placed => orders::OrderStatus::Placed,
        Status::Confirmed => orders::OrderStatus::Confirmed,
        Status::Rejected => orders::OrderStatus::Rejected,
        Status::PartiallyShipped => orders::OrderStatus::PartiallyShipped,
        Status::Shipped => orders::OrderStatus::Shipped,
        Status::Delivered => orders::OrderStatus::Delivered,
        Status::Cancelled => orders::OrderStatus::Cancelled,
    }
}

/// The status of an order that a wire status means; none for "unspecified".
pub(super) fn from_status(wire: orders::OrderStatus) -> Option<Status> {
    Status::ALL.into_iter().find(|known| status(*known) == wire)
}

fn money(money: Money) -> common::Money {
    common::Money {
        minor: money.minor,
        currency: money.currency.to_string(),
    }
}

fn line(line: &LineView) -> orders::OrderLine {
    orders::OrderLine {
        line_number: line.line_number,
        sku: line.sku.to_string(),
        quantity: line.quantity,
        unit_price_minor: line.unit_price_minor,
        total_minor: line.total_minor,
        shipped_quantity: line.shipped_quantity,
        returned_quantity: line.returned_quantity,
    }
}

fn line_quantities(lines: &[LineQuantity]) -> Vec<orders::LineQuantity> {
    let wire = |part: &LineQuantity| orders::LineQuantity {
        line_number: part.line_number,
        quantity: part.quantity,
    };
    lines.iter().map(wire).collect()
}

fn address(address: &Address) -> orders::Address {
    orders::Address {
        name: address.name().to_string(),
        lines: address.lines().iter().map(ToString::to_string).collect(),
        city: address.city().to_string(),
        postal_code: text(address.postal_code()),
        country: address.country().as_str().to_owned(),
    }
}

fn shipment(view: ShipmentView) -> orders::Shipment {
    orders::Shipment {
        shipment_id: view.shipment_id.to_string(),
        lines: line_quantities(&view.lines),
        carrier: text(view.carrier),
        tracking_number: text(view.tracking_number),
        shipped_at: Some(to_timestamp(view.shipped_at)),
        delivered_at: view.delivered_at.map(to_timestamp),
    }
}

fn order_return(view: ReturnView) -> orders::OrderReturn {
    orders::OrderReturn {
        return_id: view.return_id.to_string(),
        lines: line_quantities(&view.lines),
        return_reason: text(view.return_reason),
        requested_at: Some(to_timestamp(view.requested_at)),
        received_at: view.received_at.map(to_timestamp),
    }
}

/// proto3 has no absent string: it is an empty one.
fn text(text: Option<impl ToString>) -> String {
    text.map_or_else(String::new, |text| text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_one_of_its_own_on_the_wire() {
        for known in Status::ALL {
            assert_eq!(from_status(status(known)), Some(known));
        }
        assert_eq!(from_status(orders::OrderStatus::Unspecified), None);
    }
}
