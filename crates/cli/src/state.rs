//! `daybook state`: an order as it is, or as it was.

use clap::Args;
use daybook_proto::common::v1::Money;
use daybook_proto::orders::v1::order_query_service_client::OrderQueryServiceClient;
use daybook_proto::orders::v1::{
    Address, GetOrderRequest, LineQuantity, Order, OrderLine, OrderReturn, Shipment,
};
use serde::Serialize;
use time::OffsetDateTime;

use crate::client::{self, Service};
use crate::failure::Failure;
use crate::moment::{Point, parse_point};
use crate::output::{Format, print, print_json, rfc3339, table};
use crate::settings::{Role, Settings};

/// Shows an order as it is, or as it was. Needs the scope orders:read.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The order ("ord_…").
    order_id: String,

    /// As it was: after a version (v17), at a time (2026-11-01T00:00Z), or so long ago (2h, 30m).
    #[arg(long, value_name = "POINT", value_parser = parse_point)]
    at: Option<Point>,

    /// What the output looks like.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Runs the verb.
pub(crate) async fn run(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let request = request(arguments, OffsetDateTime::now_utc())?;
    let connection = client::connect(settings, Service::Query, Role::Auditor).await?;
    let mut client = OrderQueryServiceClient::new(connection);
    let response = client.get_order(request).await?.into_inner();
    let order = response
        .order
        .ok_or_else(|| Failure::Failed("the query service answered without an order".to_owned()))?;
    match arguments.output {
        Format::Json => print_json(&OrderView::from(&order)),
        Format::Text => print(&text(&order)),
    }
}

fn request(arguments: &Arguments, now: OffsetDateTime) -> Result<GetOrderRequest, Failure> {
    let before_all_time = || Failure::Usage("--at is before all time".to_owned());
    let as_of = match arguments.at {
        Some(point) => Some(point.as_of(now).ok_or_else(before_all_time)?),
        None => None,
    };
    Ok(GetOrderRequest {
        order_id: arguments.order_id.clone(),
        as_of,
        freshness: None,
    })
}

/// An order as JSON, in the words of the HTTP interface.
#[derive(Serialize)]
struct OrderView<'a> {
    order_id: &'a str,
    version: u64,
    status: &'static str,
    reference: &'a str,
    customer_id: &'a str,
    total: Option<MoneyView<'a>>,
    paid: Option<MoneyView<'a>>,
    refunded: Option<MoneyView<'a>>,
    lines: Vec<LineView<'a>>,
    shipping_address: Option<AddressView<'a>>,
    shipments: Vec<ShipmentView<'a>>,
    returns: Vec<ReturnView<'a>>,
    placed_at: Option<String>,
    updated_at: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    closing_reason: &'a str,
}

#[derive(Serialize)]
struct MoneyView<'a> {
    minor: i64,
    currency: &'a str,
}

#[derive(Serialize)]
struct LineView<'a> {
    line_number: u32,
    sku: &'a str,
    quantity: u32,
    unit_price_minor: i64,
    total_minor: i64,
    shipped_quantity: u32,
    returned_quantity: u32,
}

#[derive(Serialize)]
struct AddressView<'a> {
    name: &'a str,
    lines: &'a [String],
    city: &'a str,
    postal_code: &'a str,
    country: &'a str,
}

#[derive(Serialize)]
struct ShipmentView<'a> {
    shipment_id: &'a str,
    lines: Vec<LineQuantityView>,
    carrier: &'a str,
    tracking_number: &'a str,
    shipped_at: Option<String>,
    delivered_at: Option<String>,
}

#[derive(Serialize)]
struct ReturnView<'a> {
    return_id: &'a str,
    lines: Vec<LineQuantityView>,
    return_reason: &'a str,
    requested_at: Option<String>,
    received_at: Option<String>,
}

#[derive(Serialize)]
struct LineQuantityView {
    line_number: u32,
    quantity: u32,
}

impl<'a> From<&'a Order> for OrderView<'a> {
    fn from(order: &'a Order) -> Self {
        Self {
            order_id: &order.order_id,
            version: order.version,
            status: status(order),
            reference: &order.reference,
            customer_id: &order.customer_id,
            total: order.total.as_ref().map(Into::into),
            paid: order.paid.as_ref().map(Into::into),
            refunded: order.refunded.as_ref().map(Into::into),
            lines: order.lines.iter().map(Into::into).collect(),
            shipping_address: order.shipping_address.as_ref().map(Into::into),
            shipments: order.shipments.iter().map(Into::into).collect(),
            returns: order.returns.iter().map(Into::into).collect(),
            placed_at: rfc3339(order.placed_at.as_ref()),
            updated_at: rfc3339(order.updated_at.as_ref()),
            closing_reason: &order.closing_reason,
        }
    }
}

impl<'a> From<&'a Money> for MoneyView<'a> {
    fn from(money: &'a Money) -> Self {
        Self {
            minor: money.minor,
            currency: &money.currency,
        }
    }
}

impl<'a> From<&'a OrderLine> for LineView<'a> {
    fn from(line: &'a OrderLine) -> Self {
        Self {
            line_number: line.line_number,
            sku: &line.sku,
            quantity: line.quantity,
            unit_price_minor: line.unit_price_minor,
            total_minor: line.total_minor,
            shipped_quantity: line.shipped_quantity,
            returned_quantity: line.returned_quantity,
        }
    }
}

impl<'a> From<&'a Address> for AddressView<'a> {
    fn from(address: &'a Address) -> Self {
        Self {
            name: &address.name,
            lines: &address.lines,
            city: &address.city,
            postal_code: &address.postal_code,
            country: &address.country,
        }
    }
}

impl<'a> From<&'a Shipment> for ShipmentView<'a> {
    fn from(shipment: &'a Shipment) -> Self {
        Self {
            shipment_id: &shipment.shipment_id,
            lines: shipment.lines.iter().map(Into::into).collect(),
            carrier: &shipment.carrier,
            tracking_number: &shipment.tracking_number,
            shipped_at: rfc3339(shipment.shipped_at.as_ref()),
            delivered_at: rfc3339(shipment.delivered_at.as_ref()),
        }
    }
}

impl<'a> From<&'a OrderReturn> for ReturnView<'a> {
    fn from(goods: &'a OrderReturn) -> Self {
        Self {
            return_id: &goods.return_id,
            lines: goods.lines.iter().map(Into::into).collect(),
            return_reason: &goods.return_reason,
            requested_at: rfc3339(goods.requested_at.as_ref()),
            received_at: rfc3339(goods.received_at.as_ref()),
        }
    }
}

impl From<&LineQuantity> for LineQuantityView {
    fn from(part: &LineQuantity) -> Self {
        Self {
            line_number: part.line_number,
            quantity: part.quantity,
        }
    }
}

/// `PARTIALLY_SHIPPED`.
fn status(order: &Order) -> &'static str {
    let name = order.status().as_str_name();
    name.strip_prefix("ORDER_STATUS_").unwrap_or(name)
}

/// An order for people: its head, then its lines.
fn text(order: &Order) -> String {
    let mut text = String::new();
    for (label, value) in head(order) {
        if !value.is_empty() {
            text.push_str(&format!("{label:<10}{value}\n"));
        }
    }
    text.push('\n');
    text + &lines(&order.lines)
}

fn head(order: &Order) -> [(&'static str, String); 11] {
    let time = |moment| rfc3339(moment).unwrap_or_default();
    [
        ("order", order.order_id.clone()),
        ("version", order.version.to_string()),
        ("status", status(order).to_owned()),
        ("because", order.closing_reason.clone()),
        ("reference", order.reference.clone()),
        ("customer", order.customer_id.clone()),
        ("placed", time(order.placed_at.as_ref())),
        ("updated", time(order.updated_at.as_ref())),
        ("total", money(order.total.as_ref())),
        ("paid", money(order.paid.as_ref())),
        ("refunded", money(order.refunded.as_ref())),
    ]
}

/// How many decimals a currency is written with is a question of taste; minor units are not.
fn money(money: Option<&Money>) -> String {
    money.map_or_else(String::new, |money| {
        format!("{} {} (minor units)", money.minor, money.currency)
    })
}

fn lines(lines: &[OrderLine]) -> String {
    let header = [
        "LINE",
        "SKU",
        "QUANTITY",
        "UNIT PRICE",
        "TOTAL",
        "SHIPPED",
        "RETURNED",
    ];
    let row = |line: &OrderLine| {
        [
            line.line_number.to_string(),
            line.sku.clone(),
            line.quantity.to_string(),
            line.unit_price_minor.to_string(),
            line.total_minor.to_string(),
            line.shipped_quantity.to_string(),
            line.returned_quantity.to_string(),
        ]
    };
    table(header, lines.iter().map(row))
}

#[cfg(test)]
mod tests {
    use daybook_proto::orders::v1::OrderStatus;
    use prost_types::Timestamp;

    use super::*;

    fn order() -> Order {
        Order {
            order_id: "ord_1".to_owned(),
            version: 3,
            status: OrderStatus::PartiallyShipped.into(),
            total: Some(Money {
                minor: 1_177,
                currency: "USD".to_owned(),
            }),
            lines: vec![OrderLine {
                line_number: 1,
                sku: "CD".to_owned(),
                quantity: 1,
                unit_price_minor: 1_177,
                total_minor: 1_177,
                ..OrderLine::default()
            }],
            placed_at: Some(Timestamp {
                seconds: 852_076_800,
                nanos: 0,
            }),
            ..Order::default()
        }
    }

    #[test]
    fn an_order_is_json_in_the_words_of_the_http_interface() {
        let json = serde_json::to_value(OrderView::from(&order())).expect("a view is JSON");
        assert_eq!(json["status"], "PARTIALLY_SHIPPED");
        assert_eq!(json["total"]["minor"], 1_177);
        assert_eq!(json["lines"][0]["sku"], "CD");
        assert_eq!(json["placed_at"], "1997-01-01T00:00:00Z");
        assert!(json.get("closing_reason").is_none());
    }

    #[test]
    fn a_person_sees_what_is_known_and_nothing_else() {
        let text = text(&order());
        assert!(text.contains("total     1177 USD (minor units)\n"), "{text}");
        assert!(!text.contains("because"), "{text}");
        assert!(
            text.ends_with("1     CD   1         1177        1177   0        0"),
            "{text}"
        );
    }
}
