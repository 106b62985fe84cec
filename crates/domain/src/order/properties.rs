//! Properties of every sequence of commands, and of every sequence of events.

mod strategies;

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use self::strategies::{command, commands, nonsense};
use super::*;
use crate::event::Event as _;

/// The properties below say little about what is never reached.
#[test]
fn the_lives_that_are_drawn_reach_every_event_and_status() {
    let mut runner = TestRunner::deterministic();
    let mut events = BTreeSet::new();
    let mut statuses = BTreeSet::new();
    for _ in 0..256 {
        let steps = commands()
            .new_tree(&mut runner)
            .expect("nothing is filtered out")
            .current();
        for (state, happened) in live(steps) {
            events.extend(happened.iter().map(Event::event_type));
            statuses.extend(state.order().map(|order| order.status.as_str()));
        }
    }
    assert_eq!(
        events,
        Event::SCHEMAS.iter().map(|(event_type, _)| *event_type).collect()
    );
    assert_eq!(statuses, Status::ALL.map(Status::as_str).into());
}

proptest! {
    #[test]
    fn no_sequence_of_commands_breaks_an_invariant(steps in commands()) {
        let lived = live(steps);
        for order in lived.iter().filter_map(|(state, _)| state.order()) {
            check_amounts(order)?;
            check_goods(order)?;
            check_lines(order)?;
        }
        let numbers = line_numbers(&all_events(&lived));
        prop_assert!(numbers.is_sorted_by(|a, b| a < b), "a line number came twice: {numbers:?}");
    }

    #[test]
    fn replaying_what_was_decided_gives_the_same_state(steps in commands()) {
        let lived = live(steps);
        let replayed = all_events(&lived).iter().fold(State::default(), State::evolve);
        let kept = lived.last().map(|(state, _)| state.clone()).unwrap_or_default();
        prop_assert_eq!(replayed, kept);
    }

    #[test]
    fn what_was_decided_can_be_stored_and_read(steps in commands()) {
        for event in all_events(&live(steps)) {
            let read = Event::decode(event.event_type(), event.schema_version(), &event.encode());
            prop_assert_eq!(read.expect("what was written can be read"), event);
        }
    }

    #[test]
    fn a_state_can_be_stored_and_read(steps in commands()) {
        for (state, _) in live(steps) {
            let json = serde_json::to_string(&state).expect("a state is plain data");
            prop_assert_eq!(serde_json::from_str::<State>(&json).expect("what was written can be read"), state);
        }
    }

    #[test]
    fn a_granted_command_gives_at_least_one_event(steps in commands(), command in command()) {
        for (state, _) in live(steps) {
            if let Ok(events) = state.decide(command.clone()) {
                prop_assert!(!events.is_empty());
            }
        }
    }

    #[test]
    fn events_alone_tell_the_status_and_the_amounts(steps in commands()) {
        let mut status = None;
        let mut totals = CustomerTotals::default();
        for (state, events) in live(steps) {
            for event in &events {
                status = event.status().or(status);
                totals = totals.after(event);
            }
            if let Some(order) = state.order() {
                prop_assert_eq!(status, Some(order.status));
                prop_assert_eq!(&totals, &CustomerTotals::expected(order));
            }
        }
    }

    #[test]
    fn no_sequence_of_events_makes_evolve_or_decide_panic(events in nonsense(), commands in prop::collection::vec(command(), 8)) {
        let state = events.iter().fold(State::default(), State::evolve);
        for command in commands {
            let _either_way = state.decide(command);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Command(Command),
    Settle,
}

/// Takes the steps one by one; gives every state on the way with the events that led to it.
fn live(steps: Vec<Step>) -> Vec<(State, Vec<Event>)> {
    let mut state = State::default();
    let mut lived = vec![];
    for step in steps {
        let command = match step {
            Step::Command(command) => Some(command),
            Step::Settle => settle(&state),
        };
        let events = command
            .map_or(Ok(vec![]), |command| state.decide(command))
            .unwrap_or_default();
        state = events.iter().fold(state, State::evolve);
        lived.push((state.clone(), events));
    }
    lived
}

fn all_events(lived: &[(State, Vec<Event>)]) -> Vec<Event> {
    lived.iter().flat_map(|(_, events)| events.clone()).collect()
}

/// A payment of exactly what is due, which a random amount seldom is; without it few orders would be shipped.
fn settle(state: &State) -> Option<Command> {
    let order = state.order()?;
    let amount = order.total.checked_sub(order.paid).ok()?;
    Some(Command::RecordPayment {
        payment_id: "rest".parse().expect("short and plain"),
        amount,
    })
}

fn value(order: &Order, of: fn(&OrderLine) -> u32) -> i128 {
    let value = |line: &OrderLine| i128::from(line.unit_price_minor) * i128::from(of(line));
    order.lines.iter().map(value).sum()
}

fn check_amounts(order: &Order) -> Result<(), TestCaseError> {
    prop_assert_eq!(i128::from(order.total.minor), value(order, |line| line.quantity));
    prop_assert_eq!(
        order.item_count,
        order
            .lines
            .iter()
            .map(|line| u64::from(line.quantity))
            .sum::<u64>()
    );
    prop_assert!(0 <= order.refunded.minor);
    prop_assert!(order.refunded.minor <= order.paid.minor);
    prop_assert!(order.paid.minor <= order.total.minor);
    if !matches!(order.status, Status::Cancelled | Status::Rejected) {
        prop_assert!(order.refunded.minor <= order.returned.minor);
    }
    prop_assert_eq!(
        i128::from(order.returned.minor),
        value(order, |line| line.returned)
    );
    for amount in [order.paid, order.returned, order.refunded] {
        prop_assert_eq!(amount.currency, order.currency());
    }
    Ok(())
}

fn check_goods(order: &Order) -> Result<(), TestCaseError> {
    for line in &order.lines {
        prop_assert!((1..=QUANTITY_MAX).contains(&line.quantity));
        prop_assert!(line.shipped <= line.quantity);
        prop_assert!(line.delivered <= line.shipped);
        prop_assert!(line.return_requested <= line.delivered);
        prop_assert!(line.returned <= line.return_requested);
        prop_assert!(line.shipped == 0 || order.paid == order.total);
    }
    let all = |of: fn(&OrderLine) -> u32| order.lines.iter().all(|line| of(line) == line.quantity);
    let none_shipped = order.lines.iter().all(|line| line.shipped == 0);
    match order.status {
        Status::Placed | Status::Confirmed | Status::Rejected | Status::Cancelled => {
            prop_assert!(none_shipped)
        }
        Status::PartiallyShipped => prop_assert!(!none_shipped && !all(|line| line.shipped)),
        Status::Shipped => prop_assert!(all(|line| line.shipped) && !all(|line| line.delivered)),
        Status::Delivered => prop_assert!(all(|line| line.delivered)),
    }
    Ok(())
}

fn check_lines(order: &Order) -> Result<(), TestCaseError> {
    prop_assert!((1..=LINES_MAX).contains(&order.lines.len()));
    prop_assert!(order.lines.is_sorted_by(|a, b| a.line_number < b.line_number));
    prop_assert!(
        order
            .lines
            .iter()
            .all(|line| line.line_number <= order.last_line_number)
    );
    Ok(())
}

/// Every line number that was ever given, in the order of events.
fn line_numbers(events: &[Event]) -> Vec<u32> {
    let numbers = |event: &Event| match event {
        Event::Placed(placed) => placed.lines.iter().map(|line| line.line_number).collect(),
        Event::LineAdded(added) => vec![added.line.line_number],
        _ => vec![],
    };
    events.iter().flat_map(numbers).collect()
}

/// Folds what customer totals need from single events, the way a read model without rules does.
#[derive(Debug, Default, PartialEq)]
struct CustomerTotals {
    items: i128,
    ordered: i128,
    paid: i128,
    refunded: i128,
}

impl CustomerTotals {
    fn after(mut self, event: &Event) -> Self {
        let (items, ordered) = match event {
            Event::Placed(event) => (i128::from(event.item_count), i128::from(event.total_minor)),
            Event::LineAdded(event) => (event.item_count_change.into(), event.total_change_minor.into()),
            Event::LineRemoved(event) => (event.item_count_change.into(), event.total_change_minor.into()),
            Event::QuantityChanged(event) => {
                (event.item_count_change.into(), event.total_change_minor.into())
            }
            Event::Cancelled(event) => (-i128::from(event.item_count), -i128::from(event.total_minor)),
            Event::Rejected(event) => (-i128::from(event.item_count), -i128::from(event.total_minor)),
            _ => (0, 0),
        };
        self.items += items;
        self.ordered += ordered;
        match event {
            Event::PaymentRecorded(event) => self.paid += i128::from(event.amount_minor),
            Event::Refunded(event) => self.refunded += i128::from(event.amount_minor),
            _ => {}
        }
        self
    }

    fn expected(order: &Order) -> Self {
        let closed = matches!(order.status, Status::Cancelled | Status::Rejected);
        Self {
            items: if closed { 0 } else { order.item_count.into() },
            ordered: if closed { 0 } else { order.total.minor.into() },
            paid: order.paid.minor.into(),
            refunded: order.refunded.minor.into(),
        }
    }
}
