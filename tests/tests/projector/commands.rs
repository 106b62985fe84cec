//! Commands that fill a log: orders and a stock item, as the domain decides them, and what no program knows.

use daybook_domain::aggregate::Aggregate;
use daybook_domain::ids::{OrderId, Reason, Sku, StockItemId};
use daybook_domain::money::{Currency, Money};
use daybook_domain::order::{Command, NewLine, State};
use daybook_domain::stock;
use daybook_event_store::{NewCommand, NewEvent};
use daybook_tests::log;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;

use super::Setup;

/// The most commands in one append.
const BATCH_COMMANDS_MAX: usize = 500;

/// An aggregate whose commands are decided one on another.
struct Stream<A> {
    tenant_id: Uuid,
    id: String,
    state: A,
    newest: Option<Uuid>,
}

impl<A: Aggregate> Stream<A> {
    fn new(tenant_id: Uuid, id: impl ToString) -> Self {
        Self {
            tenant_id,
            id: id.to_string(),
            state: A::default(),
            newest: None,
        }
    }

    /// A command as it is appended; `None` when it is refused. Ids are random but repeatable.
    fn decide(&mut self, random: &mut StdRng, command: A::Command) -> Option<NewCommand> {
        let events = self.state.decide(command).ok()?;
        self.state = events.iter().fold(std::mem::take(&mut self.state), A::evolve);
        let events = events.iter().map(|event| NewEvent {
            event_id: Uuid::from_u128(random.random()),
            ..log::encoded(event)
        });
        let (decided_on, events) = (self.newest, events.collect::<Vec<_>>());
        self.newest = events.last().map(|event| event.event_id).or(decided_on);
        Some(NewCommand {
            key: Uuid::from_u128(random.random()).to_string().into(),
            category: A::CATEGORY,
            ..log::command(self.tenant_id, &self.id, decided_on, events)
        })
    }
}

/// Orders that live random but repeatable lives.
pub(crate) struct Orders {
    random: StdRng,
    tenant_id: Uuid,
    customers: u32,
    orders: Vec<(OrderId, Stream<State>)>,
}

impl Orders {
    /// None yet; of 500 customers.
    pub(crate) fn new(seed: u64) -> Self {
        Self::of(500, seed)
    }

    /// None yet; of so many customers.
    pub(crate) fn of(customers: u32, seed: u64) -> Self {
        Self {
            customers,
            random: StdRng::seed_from_u64(seed),
            tenant_id: Uuid::from_u128(u128::from(seed) + 1),
            orders: Vec::new(),
        }
    }

    /// Appends about this many commands, in batches.
    pub(crate) async fn append(&mut self, setup: &Setup, commands: usize) {
        let mut left = commands;
        while left > 0 {
            let batch = (0..left.min(BATCH_COMMANDS_MAX)).filter_map(|_| self.next());
            let batch = batch.collect();
            left = left.saturating_sub(BATCH_COMMANDS_MAX);
            setup.append(batch).await;
        }
    }

    /// Half of the commands place an order; the others go to one of the latest. A command that is refused is none.
    fn next(&mut self) -> Option<NewCommand> {
        if self.orders.is_empty() || self.random.random_bool(0.5) {
            let order_id = OrderId::from_uuid(Uuid::from_u128(self.random.random()));
            self.orders
                .push((order_id, Stream::new(self.tenant_id, order_id)));
        }
        let latest = self.orders.len().saturating_sub(2_000);
        let index = self.random.random_range(latest..self.orders.len());
        let command = match &self.orders[index] {
            (order_id, order) if order.newest.is_none() => self.place(*order_id),
            _ => self.change(),
        };
        self.orders[index].1.decide(&mut self.random, command)
    }

    fn place(&mut self, order_id: OrderId) -> Command {
        let lines = (0..self.random.random_range(1..4)).map(|_| self.line()).collect();
        let customer = self.random.random_range(0..self.customers);
        Command::Place {
            order_id,
            reference: None,
            customer_id: text(&format!("customer-{customer}")),
            currency: euros(),
            lines,
            shipping_address: None,
            expected_total_minor: None,
        }
    }

    fn line(&mut self) -> NewLine {
        NewLine {
            sku: text(&format!("sku-{}", self.random.random_range(0..100))),
            quantity: self.random.random_range(1..10),
            unit_price_minor: self.random.random_range(0..10_000),
        }
    }

    fn change(&mut self) -> Command {
        match self.random.random_range(0..6) {
            0 => Command::AddLine { line: self.line() },
            1 => Command::RemoveLine { line_number: 1 },
            2 => Command::Confirm,
            3 => Command::Cancel {
                reason: text::<Reason>("changed my mind"),
            },
            4 => Command::Ship {
                shipment_id: text("shipment"),
                lines: Vec::new(),
                carrier: None,
                tracking_number: None,
            },
            _ => Command::RecordPayment {
                payment_id: text(&Uuid::from_u128(self.random.random()).to_string()),
                amount: Money::new(1, euros()),
            },
        }
    }
}

/// Orders of 500 lines, and then a payment for each.
pub(crate) async fn append_wide(setup: &Setup, orders: usize) {
    let mut random = Orders::new(18);
    let mut streams = Vec::new();
    for _ in 0..orders {
        let order_id = OrderId::from_uuid(Uuid::from_u128(random.random.random()));
        let mut place = random.place(order_id);
        if let Command::Place { lines, .. } = &mut place {
            *lines = (0..500).map(|_| random.line()).collect();
        }
        streams.push((Stream::<State>::new(random.tenant_id, order_id), place));
    }
    let decide =
        |(order, command): &mut (Stream<State>, Command)| order.decide(&mut random.random, command.clone());
    let placed = streams.iter_mut().map(decide).collect::<Option<Vec<_>>>();
    setup.append(placed.expect("orders")).await;
    for (_, command) in &mut streams {
        *command = Command::RecordPayment {
            payment_id: text("payment"),
            amount: Money::new(1, euros()),
        };
    }
    let decide =
        |(order, command): &mut (Stream<State>, Command)| order.decide(&mut random.random, command.clone());
    let paid = streams.iter_mut().map(decide).collect::<Option<Vec<_>>>();
    setup.append(paid.expect("payments")).await;
}

/// A stock item that is registered and then receives goods, one at a time: so many events, appended in batches.
pub(crate) async fn append_stock(setup: &Setup, tenant_id: Uuid, events: usize) {
    let mut random = StdRng::seed_from_u64(17);
    let sku: Sku = text("PEN-FINE");
    let mut item = Stream::<stock::State>::new(tenant_id, StockItemId::of(&sku));
    let receive = stock::Command::Receive {
        quantity: 1,
        reference: None,
    };
    let commands = std::iter::once(stock::Command::Register { sku }).chain(std::iter::repeat(receive));
    let decided = commands
        .take(events)
        .map(|command| item.decide(&mut random, command).expect("it is granted"));
    for batch in decided.collect::<Vec<_>>().chunks(BATCH_COMMANDS_MAX) {
        setup.append(batch.to_vec()).await;
    }
}

/// An event that no build of this program knows.
pub(crate) fn unknown_event() -> NewCommand {
    let event = NewEvent {
        event_type: "order.exploded",
        ..log::event("{}".to_owned())
    };
    log::command(Uuid::from_u128(99), "ord_unknown", None, vec![event])
}

/// An event of an aggregate that no build of this program knows.
pub(crate) fn foreign_event() -> NewCommand {
    NewCommand {
        category: "weather",
        stream_id: "wea_unknown".into(),
        ..unknown_event()
    }
}

fn euros() -> Currency {
    Currency::parse("EUR").expect("a currency")
}

fn text<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a valid text")
}
