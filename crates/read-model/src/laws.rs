//! The laws of every read model, over any history: a batch delivered twice changes nothing, rebuilt equals live, and
//! the rows agree with what the rules know.

use std::collections::BTreeMap;

use daybook_domain::ids::Sku;
use daybook_domain::order::{Command, Order, Progress, State, Status};
use daybook_domain::stock;
use proptest::prelude::*;

use crate::testing::{Log, address, deliver, euros, new_line, order_id, part, pay, place, ship, text};
use crate::{CustomerTotals, Event, OrderDetails, OrderList, ReadModel, StreamKey, each_read_model};

/// The orders that the histories are about.
const ORDERS: u8 = 3;

/// A table of a read model.
type Table<M> = BTreeMap<<M as ReadModel>::Key, <M as ReadModel>::Row>;

/// The table after a log that came in batches of these sizes, over and over.
fn rebuilt<M: ReadModel>(events: &[Event], batch_sizes: &[usize]) -> Table<M> {
    let mut table = Table::<M>::new();
    let mut rest = events;
    for size in batch_sizes.iter().cycle() {
        let (batch, later) = rest.split_at((*size).min(rest.len()));
        apply::<M>(&mut table, batch);
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    table
}

/// Applies a batch as the projector does: loads the touched rows unless an event opens them, folds, and stores rows
/// that are newer than the stored ones.
fn apply<M: ReadModel>(table: &mut Table<M>, batch: &[Event]) {
    let mut rows: BTreeMap<M::Key, Option<M::Row>> = BTreeMap::new();
    for event in batch {
        for key in M::keys(event) {
            let load = || (!M::opens(event)).then(|| table.get(&key).cloned()).flatten();
            let row = rows.entry(key.clone()).or_insert_with(load);
            let changed = M::fold(&key, row.as_ref(), event).expect("the domain's events can be folded");
            *row = changed.or(row.take());
        }
    }
    for (key, row) in rows {
        let Some(row) = row else { continue };
        let stored = table.get(&key).map(M::position);
        if stored.is_none_or(|stored| stored < M::position(&row)) {
            table.insert(key, row);
        }
    }
}

fn delivered_twice_changes_nothing<M: ReadModel>(
    log: &Log,
    sizes: &[usize],
    from: usize,
) -> Result<(), TestCaseError> {
    let once = rebuilt::<M>(&log.events, sizes);
    let from = from.min(log.events.len());
    for until in from..=log.events.len() {
        let mut twice = once.clone();
        apply::<M>(&mut twice, &log.events[from..until]);
        prop_assert_eq!(&twice, &once);
    }
    Ok(())
}

fn rebuilt_equals_live<M: ReadModel>(log: &Log, sizes: &[usize]) -> Result<(), TestCaseError> {
    let live = rebuilt::<M>(&log.events, &[1]);
    prop_assert_eq!(&rebuilt::<M>(&log.events, sizes), &live);
    prop_assert_eq!(&rebuilt::<M>(&log.events, &[usize::MAX]), &live);
    Ok(())
}

proptest! {
    #[test]
    fn a_batch_delivered_twice_changes_nothing(log in log(), sizes in batch_sizes(), from in 0..60_usize) {
        each_read_model!(M => delivered_twice_changes_nothing::<M>(&log, &sizes, from)?);
    }

    #[test]
    fn rebuilt_is_live(log in log(), sizes in batch_sizes()) {
        each_read_model!(M => rebuilt_equals_live::<M>(&log, &sizes)?);
    }

    #[test]
    fn the_rows_agree_with_what_the_rules_know(log in log(), sizes in batch_sizes()) {
        let list = rebuilt::<OrderList>(&log.events, &sizes);
        let details = rebuilt::<OrderDetails>(&log.events, &sizes);
        for number in 0..ORDERS {
            let state = log.state(number);
            let key = StreamKey { tenant_id: crate::testing::TENANT, stream_id: order_id(number).to_string() };
            match state.order() {
                Some(order) => {
                    check_list(&list[&key], order)?;
                    check_details(&details[&key].document, order)?;
                }
                None => prop_assert!(!list.contains_key(&key) && !details.contains_key(&key)),
            }
        }
        check_totals(&rebuilt::<CustomerTotals>(&log.events, &sizes), &log)?;
    }
}

fn check_list(row: &crate::order_list::Row, order: &Order) -> Result<(), TestCaseError> {
    prop_assert_eq!(row.status, order.status);
    prop_assert_eq!(row.total_minor, order.total.minor);
    prop_assert_eq!(row.item_count, order.item_count);
    Ok(())
}

fn check_details(view: &crate::order_details::OrderView, order: &Order) -> Result<(), TestCaseError> {
    prop_assert_eq!(view.status, order.status);
    prop_assert_eq!(view.total, order.total);
    prop_assert_eq!(view.paid, order.paid);
    prop_assert_eq!(view.refunded, order.refunded);
    prop_assert_eq!(
        view.lines.iter().map(|line| line.total_minor).sum::<i64>(),
        order.total.minor
    );
    let seen: Vec<_> = view
        .lines
        .iter()
        .map(|line| {
            (
                line.line_number,
                line.quantity,
                line.shipped_quantity,
                line.returned_quantity,
            )
        })
        .collect();
    let known: Vec<_> = order
        .lines
        .iter()
        .map(|line| (line.line_number, line.quantity, line.shipped, line.returned))
        .collect();
    prop_assert_eq!(seen, known);
    prop_assert_eq!(view.shipments.len(), order.shipments.len());
    prop_assert_eq!(view.returns.len(), order.returns.len());
    Ok(())
}

/// All orders of the histories have the same customer and currency.
fn check_totals(table: &Table<CustomerTotals>, log: &Log) -> Result<(), TestCaseError> {
    let states: Vec<_> = (0..ORDERS).map(|number| log.state(number)).collect();
    let orders: Vec<_> = states.iter().filter_map(|state| state.order()).collect();
    let Some(row) = table.values().next() else {
        prop_assert!(orders.is_empty());
        return Ok(());
    };
    prop_assert_eq!(table.len(), 1);
    let is_closed = |order: &&&Order| matches!(order.status, Status::Cancelled | Status::Rejected);
    let sum = |of: fn(&Order) -> i64| orders.iter().map(|order| i128::from(of(order))).sum::<i128>();
    let open = || orders.iter().filter(|order| !is_closed(order));
    prop_assert_eq!(row.orders_placed, orders.len() as u64);
    prop_assert_eq!(row.orders_closed, orders.iter().filter(is_closed).count() as u64);
    prop_assert_eq!(
        row.items_ordered,
        open().map(|order| order.item_count).sum::<u64>()
    );
    prop_assert_eq!(
        row.ordered_minor,
        open().map(|order| i128::from(order.total.minor)).sum::<i128>()
    );
    prop_assert_eq!(row.paid_minor, sum(|order| order.paid.minor));
    prop_assert_eq!(row.refunded_minor, sum(|order| order.refunded.minor));
    Ok(())
}

fn batch_sizes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1..12_usize, 1..6)
}

/// What is asked for next.
#[derive(Debug, Clone)]
enum Step {
    /// Of an order; what is likely where nothing else is said.
    Order(u8, Option<Command>),
    /// Of the stock item of an article.
    Stock(Sku, stock::Command),
}

/// A log of several orders and stock items whose commands come mixed: likely ones, and anything else. What the rules refuse does not
/// happen.
fn log() -> impl Strategy<Value = Log> {
    let of_order = prop_oneof![Just(None), command().prop_map(Some)];
    let of_order = (0..ORDERS, of_order).prop_map(|(number, command)| Step::Order(number, command));
    let step = prop_oneof![2 => of_order, 1 => stock_command()];
    prop::collection::vec(step, 0..90).prop_map(|steps| {
        let mut log = Log::default();
        for step in steps {
            match step {
                Step::Order(number, command) => {
                    let command = command.unwrap_or_else(|| likely(number, &log.state(number)));
                    let _refused_or_not = log.record(number, command);
                }
                Step::Stock(sku, command) => {
                    let _refused_or_not = log.record_stock(&sku, command);
                }
            }
        }
        log
    })
}

fn stock_command() -> impl Strategy<Value = Step> {
    let sku = prop::sample::select(vec!["CUP", "POT"]).prop_map(text::<Sku>);
    sku.prop_flat_map(|sku| {
        // Of few orders, or hardly anything that is reserved would be dispatched.
        let order = || (0..2_u8).prop_map(order_id);
        let quantity = || 1..4_u32;
        let some = || prop::option::of(quantity());
        let command = prop_oneof![
            2 => Just(stock::Command::Register { sku: sku.clone() }),
            2 => (5..9_u32).prop_map(|quantity| stock::Command::Receive { quantity, reference: None }),
            2 => (order(), quantity()).prop_map(|(order_id, quantity)| stock::Command::Reserve { order_id, quantity }),
            1 => (order(), some()).prop_map(|(order_id, quantity)| stock::Command::Release { order_id, quantity, reason: None }),
            1 => (order(), some()).prop_map(|(order_id, quantity)| stock::Command::Dispatch { order_id, quantity }),
            1 => (1..3_i64).prop_map(|change| stock::Command::Adjust { change, reason: text("counted") }),
        ];
        command.prop_map(move |command| Step::Stock(sku.clone(), command))
    })
}

/// The next command in a life without surprises; without it few orders would get far.
fn likely(number: u8, state: &State) -> Command {
    let Some(order) = state.order() else {
        return place(number);
    };
    match order.status {
        Status::Placed => Command::Confirm,
        Status::Confirmed if order.paid.minor < order.total.minor => {
            pay("rest", order.total.minor - order.paid.minor)
        }
        Status::Confirmed | Status::PartiallyShipped => ship(&format!("s{}", order.shipments.len()), vec![]),
        Status::Shipped => {
            deliver(&underway(&order.shipments, |shipment| shipment.progress).expect("else all is delivered"))
        }
        Status::Delivered => match underway(&order.returns, |goods| goods.progress) {
            Some(return_id) => Command::ReceiveReturn {
                return_id: text(&return_id),
            },
            None => Command::RequestReturn {
                return_id: text(&format!("r{}", order.returns.len())),
                lines: vec![part(order.lines[0].line_number, 1)],
                reason: None,
            },
        },
        Status::Cancelled | Status::Rejected => Command::Refund {
            refund_id: text("all"),
            amount: order.paid,
        },
    }
}

/// The first that has not arrived.
fn underway<Id: ToString, T>(all: &BTreeMap<Id, T>, progress: fn(&T) -> Progress) -> Option<String> {
    let mut underway = all.iter().filter(|(_, one)| progress(one) == Progress::Underway);
    underway.next().map(|(id, _)| id.to_string())
}

fn command() -> impl Strategy<Value = Command> {
    let number = 1..4_u32;
    let id = || prop::sample::select(vec!["a", "b", "c"]);
    let parts = || {
        prop::collection::vec(
            (1..4_u32, 1..3_u32).prop_map(|(line, quantity)| part(line, quantity)),
            0..2,
        )
    };
    prop_oneof![
        2 => (1..4_u32, 0..500_i64).prop_map(|(quantity, price)| Command::AddLine { line: new_line("CUP", quantity, price) }),
        1 => number.clone().prop_map(|line_number| Command::RemoveLine { line_number }),
        2 => (number, 1..6_u32).prop_map(|(line_number, quantity)| Command::ChangeQuantity { line_number, quantity }),
        1 => Just(Command::ChangeShippingAddress { shipping_address: address("Nara") }),
        4 => Just(Command::Confirm),
        4 => (id(), 1..3_i64).prop_map(|(id, minor)| pay(id, minor)),
        4 => (id(), parts()).prop_map(|(id, lines)| ship(id, lines)),
        4 => id().prop_map(deliver),
        1 => Just(Command::Cancel { reason: text("late") }),
        1 => Just(Command::Reject { reason: text("sold") }),
        3 => (id(), parts()).prop_map(|(id, lines)| Command::RequestReturn { return_id: text(id), lines, reason: None }),
        3 => id().prop_map(|id| Command::ReceiveReturn { return_id: text(id) }),
        3 => (id(), 1..4_i64).prop_map(|(id, minor)| Command::Refund { refund_id: text(id), amount: euros(minor) }),
    ]
}

/// The laws say little about what is never reached.
#[test]
fn the_histories_that_are_drawn_have_every_event() {
    use daybook_domain::event::Event as _;
    use daybook_domain::order;
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..256 {
        let log = log()
            .new_tree(&mut runner)
            .expect("nothing is filtered out")
            .current();
        seen.extend(log.events.into_iter().map(|event| event.event_type));
    }
    let schemas = order::Event::SCHEMAS.iter().chain(stock::Event::SCHEMAS);
    let every: std::collections::BTreeSet<_> =
        schemas.map(|(event_type, _)| (*event_type).to_owned()).collect();
    assert_eq!(seen, every);
}
