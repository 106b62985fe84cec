//! `daybook state`: an order as it is, or as it was.

use clap::Args;
use daybook_domain::ids::OrderId;
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;

use crate::client::{self, Service};
use crate::failure::Failure;
use crate::moment::{Point, parse_point};
use crate::money::amount;
use crate::output::{Format, cell, print, print_json, table};
use crate::settings::{Role, Settings};

/// Shows an order as it is, or as it was. Needs the scope orders:read.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The order ("ord_…").
    order_id: OrderId,

    /// As it was: after a version (v17), at a time (2026-11-01T00:00Z), or so long ago (2h, 30m).
    #[arg(long, value_name = "POINT", value_parser = parse_point)]
    at: Option<Point>,

    /// What the output looks like.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// What the query service answers.
#[derive(Deserialize)]
struct Answer {
    data: Value,
}

/// Runs the verb.
pub(crate) async fn run(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let path = path(arguments, OffsetDateTime::now_utc())?;
    let connection = client::connect(settings, Service::Query, Role::Auditor).await?;
    let Answer { data: order } = client::get(connection, &path).await?;
    match arguments.output {
        Format::Json => print_json(&order),
        Format::Text => print(&text(&order)),
    }
}

fn path(arguments: &Arguments, now: OffsetDateTime) -> Result<String, Failure> {
    let path = format!("/v1/orders/{}", arguments.order_id);
    let Some(point) = arguments.at else {
        return Ok(path);
    };
    let before_all_time = || Failure::Usage("--at is before all time".to_owned());
    let as_of = point.as_of(now).ok_or_else(before_all_time)?;
    Ok(format!("{path}?as_of={as_of}"))
}

/// An order for people: its head, then its lines.
fn text(order: &Value) -> String {
    let head = HEAD.map(|(label, member)| match &order[member] {
        Value::Null => String::new(),
        value => format!("{label:<10}{}\n", shown(value)),
    });
    let currency = &order["total"]["currency"];
    let lines = order["lines"].as_array().into_iter().flatten();
    let lines = lines.map(|line| LINE.map(|(_, member)| line_cell(member, &line[member], currency)));
    format!(
        "{}\n{}",
        head.concat(),
        table(LINE.map(|(label, _)| label), lines)
    )
}

/// What is shown of an order, and the members of its document that hold it.
const HEAD: [(&str, &str); 11] = [
    ("order", "order_id"),
    ("version", "version"),
    ("status", "status"),
    ("because", "closing_reason"),
    ("reference", "reference"),
    ("customer", "customer_id"),
    ("placed", "placed_at"),
    ("updated", "updated_at"),
    ("total", "total"),
    ("paid", "paid"),
    ("refunded", "refunded"),
];

/// What is shown of each line.
const LINE: [(&str, &str); 7] = [
    ("LINE", "line_number"),
    ("SKU", "sku"),
    ("QUANTITY", "quantity"),
    ("UNIT PRICE", "unit_price_minor"),
    ("TOTAL", "total_minor"),
    ("SHIPPED", "shipped_quantity"),
    ("RETURNED", "returned_quantity"),
];

fn shown(value: &Value) -> String {
    match value["minor"].as_i64() {
        Some(minor) => amount(minor, &cell(&value["currency"])),
        None => cell(value),
    }
}

/// A member of a line; amounts are in the order's currency.
fn line_cell(member: &str, value: &Value, currency: &Value) -> String {
    match value.as_i64() {
        Some(minor) if member.ends_with("_minor") => amount(minor, &cell(currency)),
        _ => cell(value),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_person_sees_what_is_known_and_nothing_else() {
        let text = text(&json!({
            "order_id": "ord_1",
            "version": 3,
            "status": "PARTIALLY_SHIPPED",
            "total": {"minor": 1_177, "currency": "USD"},
            "lines": [{
                "line_number": 1,
                "sku": "CD",
                "quantity": 1,
                "unit_price_minor": 1_177,
                "total_minor": 1_177,
                "shipped_quantity": 0,
                "returned_quantity": 0,
            }],
        }));
        assert!(text.contains("status    PARTIALLY_SHIPPED\n"), "{text}");
        assert!(text.contains("total     11.77 USD\n"), "{text}");
        assert!(!text.contains("because"), "{text}");
        assert!(
            text.ends_with("1     CD   1         11.77 USD   11.77 USD  0        0"),
            "{text}"
        );
    }
}
