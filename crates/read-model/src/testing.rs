//! Histories for tests: what the domain decides when it is asked, recorded like the log records it.

use std::collections::BTreeMap;

use daybook_domain::address::Address;
use daybook_domain::aggregate::Aggregate as _;
use daybook_domain::event::Event as _;
use daybook_domain::ids::{OrderId, Sku, StockItemId};
use daybook_domain::money::Money;
use daybook_domain::order::{Command, LineQuantity, NewLine, State};
use daybook_domain::stock;
use time::{Duration, OffsetDateTime, macros::datetime};
use uuid::Uuid;

use crate::{Body, Event, ReadModel};

/// Whose orders these are, unless a test says otherwise.
pub(crate) const TENANT: Uuid = Uuid::from_u128(1);

/// When the first event of a history happened; each later one a minute after the one before.
pub(crate) const START: OffsetDateTime = datetime!(2024-05-01 12:00 UTC);

/// Parses a value that is valid.
pub(crate) fn text<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("tests write valid values")
}

/// The id of a test's n-th order.
pub(crate) fn order_id(number: u8) -> OrderId {
    OrderId::from_uuid(Uuid::from_u128(number.into()))
}

/// An amount in euros.
pub(crate) fn euros(minor: i64) -> Money {
    Money::new(minor, text("EUR"))
}

/// A part of a line.
pub(crate) fn part(line_number: u32, quantity: u32) -> LineQuantity {
    LineQuantity {
        line_number,
        quantity,
    }
}

/// So many of an article at a price.
pub(crate) fn new_line(sku: &str, quantity: u32, unit_price_minor: i64) -> NewLine {
    NewLine {
        sku: text(sku),
        quantity,
        unit_price_minor,
    }
}

/// Places an order of customer "ada" in euros: two TEA at 300 and one POT at 2,000.
pub(crate) fn place(number: u8) -> Command {
    Command::Place {
        order_id: order_id(number),
        reference: Some(text("web-1")),
        customer_id: text("ada"),
        currency: text("EUR"),
        lines: vec![new_line("TEA", 2, 300), new_line("POT", 1, 2_000)],
        shipping_address: Some(address("Kyoto")),
        expected_total_minor: None,
    }
}

/// An address in a town.
pub(crate) fn address(city: &str) -> Address {
    Address::new(text("Ada"), vec![text("1 Main St")], text(city), None, text("JP"))
        .expect("one line is allowed")
}

/// A payment.
pub(crate) fn pay(payment_id: &str, minor: i64) -> Command {
    Command::RecordPayment {
        payment_id: text(payment_id),
        amount: euros(minor),
    }
}

/// A shipment of these parts; none means all that is left.
pub(crate) fn ship(shipment_id: &str, lines: Vec<LineQuantity>) -> Command {
    Command::Ship {
        shipment_id: text(shipment_id),
        lines,
        carrier: Some(text("DHL")),
        tracking_number: None,
    }
}

/// The arrival of a shipment.
pub(crate) fn deliver(shipment_id: &str) -> Command {
    Command::RecordDelivery {
        shipment_id: text(shipment_id),
    }
}

/// Several orders and stock items, and the log that their commands lead to.
#[derive(Debug, Default, Clone)]
pub(crate) struct Log {
    orders: BTreeMap<u8, (State, u64)>,
    items: BTreeMap<Sku, (stock::State, u64)>,
    pub(crate) events: Vec<Event>,
}

impl Log {
    /// The log of order 1 and these commands, all of which are granted.
    pub(crate) fn of(commands: impl IntoIterator<Item = Command>) -> Self {
        let mut log = Self::default();
        for command in commands {
            log.record(1, command.clone())
                .unwrap_or_else(|rejection| panic!("{command:?} was refused: {rejection}"));
        }
        log
    }

    /// Asks an order, and records what it decides.
    pub(crate) fn record(
        &mut self,
        number: u8,
        command: Command,
    ) -> Result<(), daybook_domain::order::Rejection> {
        let (state, version) = self.orders.entry(number).or_default();
        for body in state.decide(command)? {
            *state = std::mem::take(state).evolve(&body);
            *version += 1;
            let stream_id = order_id(number).to_string();
            push(
                &mut self.events,
                stream_id,
                *version,
                body.event_type(),
                Body::Order(body),
            );
        }
        Ok(())
    }

    /// Asks the stock item of an article, and records what it decides.
    pub(crate) fn record_stock(
        &mut self,
        sku: &Sku,
        command: stock::Command,
    ) -> Result<(), stock::Rejection> {
        let (state, version) = self.items.entry(sku.clone()).or_default();
        for body in state.decide(command)? {
            *state = std::mem::take(state).evolve(&body);
            *version += 1;
            let stream_id = StockItemId::of(sku).to_string();
            push(
                &mut self.events,
                stream_id,
                *version,
                body.event_type(),
                Body::Stock(body),
            );
        }
        Ok(())
    }

    /// The state of an order.
    pub(crate) fn state(&self, number: u8) -> State {
        self.orders
            .get(&number)
            .map(|(state, _)| state.clone())
            .unwrap_or_default()
    }

    /// Order 1's row of a read model, or the row that its events lead to whatever its key is.
    pub(crate) fn row<M: ReadModel>(&self) -> M::Row {
        let key = self
            .events
            .iter()
            .flat_map(|event| M::keys(event))
            .next()
            .expect("some event has a key");
        M::replay(
            &key,
            None,
            self.events
                .iter()
                .filter(|event| M::keys(event).into_iter().any(|k| k == key)),
        )
        .expect("the domain's events can be folded")
        .expect("the order was placed")
    }
}

/// Records an event behind those that there are.
fn push(events: &mut Vec<Event>, stream_id: String, stream_version: u64, event_type: &str, body: Body) {
    let occurred_at = START + Duration::minutes(events.len() as i64);
    events.push(Event {
        partition: 0,
        // Positions of other aggregates come between.
        position: 10 * (events.len() as u64 + 1),
        tenant_id: TENANT,
        stream_id,
        stream_version,
        event_id: Uuid::nil(),
        event_type: event_type.to_owned(),
        recorded_at: occurred_at,
        occurred_at,
        metadata: "{}".into(),
        body: Ok(body),
    });
}
