//! Rules for lines and what they cost.

use super::check_editable;
use crate::money::{Currency, Money};
use crate::order::{
    Event, LINES_MAX, Line, LineAdded, LineRemoved, NewLine, Order, OrderLine, QUANTITY_MAX, QuantityChanged,
    Rejection,
};

/// The lines of a new order, numbered, with what they cost and how many articles they are.
pub(super) struct PricedLines {
    pub(super) lines: Vec<Line>,
    pub(super) total: Money,
    pub(super) item_count: u64,
}

pub(super) fn price_all(new_lines: Vec<NewLine>, currency: Currency) -> Result<PricedLines, Rejection> {
    check_line_count(new_lines.len())?;
    let mut lines = Vec::with_capacity(new_lines.len());
    let mut total = Money::zero(currency);
    let mut item_count = 0;
    for (line_number, line) in (1..).zip(new_lines) {
        total = total.checked_add(price(&line, currency)?)?;
        item_count += u64::from(line.quantity);
        lines.push(numbered(line_number, line));
    }
    Ok(PricedLines {
        lines,
        total,
        item_count,
    })
}

pub(super) fn add_line(order: &Order, line: NewLine) -> Result<Event, Rejection> {
    check_editable(order)?;
    check_line_count(order.lines.len() + 1)?;
    let line_number = order
        .last_line_number
        .checked_add(1)
        .ok_or(Rejection::LineNumbersExhausted)?;
    let price = price(&line, order.currency())?;
    let totals = Totals::of(order, price, i64::from(line.quantity))?;
    Ok(LineAdded {
        customer_id: order.customer_id.clone(),
        line: numbered(line_number, line),
        currency: order.currency(),
        total_minor: totals.total_minor,
        total_change_minor: totals.total_change_minor,
        item_count: totals.item_count,
        item_count_change: totals.item_count_change,
    }
    .into())
}

pub(super) fn remove_line(order: &Order, line_number: u32) -> Result<Event, Rejection> {
    check_editable(order)?;
    let line = find_line(order, line_number)?;
    if order.lines.len() == 1 {
        return Err(Rejection::LastLine { line_number });
    }
    let price = line.price_of(line.quantity, order.currency())?;
    let change = Money::zero(order.currency()).checked_sub(price)?;
    let totals = Totals::of(order, change, -i64::from(line.quantity))?;
    Ok(LineRemoved {
        customer_id: order.customer_id.clone(),
        line: line.ordered(),
        currency: order.currency(),
        total_minor: totals.total_minor,
        total_change_minor: totals.total_change_minor,
        item_count: totals.item_count,
        item_count_change: totals.item_count_change,
    }
    .into())
}

pub(super) fn change_quantity(order: &Order, line_number: u32, quantity: u32) -> Result<Event, Rejection> {
    check_editable(order)?;
    let line = find_line(order, line_number)?;
    check_quantity(quantity)?;
    let old_price = line.price_of(line.quantity, order.currency())?;
    let change = line
        .price_of(quantity, order.currency())?
        .checked_sub(old_price)?;
    let totals = Totals::of(order, change, i64::from(quantity) - i64::from(line.quantity))?;
    Ok(QuantityChanged {
        customer_id: order.customer_id.clone(),
        line_number,
        sku: line.sku.clone(),
        quantity,
        previous_quantity: line.quantity,
        currency: order.currency(),
        total_minor: totals.total_minor,
        total_change_minor: totals.total_change_minor,
        item_count: totals.item_count,
        item_count_change: totals.item_count_change,
    }
    .into())
}

pub(super) fn find_line(order: &Order, line_number: u32) -> Result<&OrderLine, Rejection> {
    order
        .line(line_number)
        .ok_or(Rejection::LineNotFound { line_number })
}

pub(super) fn check_quantity(quantity: u32) -> Result<(), Rejection> {
    if (1..=QUANTITY_MAX).contains(&quantity) {
        Ok(())
    } else {
        Err(Rejection::QuantityOutOfRange { quantity })
    }
}

/// The totals of an order after a change of its lines.
struct Totals {
    total_minor: i64,
    total_change_minor: i64,
    item_count: u64,
    item_count_change: i64,
}

impl Totals {
    /// The total never falls below the amount paid: a change of lines is no way to a refund.
    fn of(order: &Order, change: Money, item_count_change: i64) -> Result<Self, Rejection> {
        let total = order.total.checked_add(change)?;
        let paid = order.paid;
        if total.minor < paid.minor {
            return Err(Rejection::TotalBelowPaid {
                total_minor: total.minor,
                paid_minor: paid.minor,
                currency: total.currency,
            });
        }
        Ok(Self {
            total_minor: total.minor,
            total_change_minor: change.minor,
            item_count: order
                .item_count
                .checked_add_signed(item_count_change)
                .ok_or(Rejection::AmountOverflow)?,
            item_count_change,
        })
    }
}

fn check_line_count(line_count: usize) -> Result<(), Rejection> {
    match line_count {
        0 => Err(Rejection::NoLines),
        1..=LINES_MAX => Ok(()),
        line_count => Err(Rejection::TooManyLines { line_count }),
    }
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
