//! Properties of every sequence of commands, and of every sequence of events.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use uuid::Uuid;

use super::*;
use crate::event::Event as _;

/// Few orders and small quantities, so that commands often meet what others left.
fn command() -> impl Strategy<Value = Command> {
    let order = || (1..4_u128).prop_map(|id| OrderId::from_uuid(Uuid::from_u128(id)));
    let quantity = || prop_oneof![8 => 0..8_u32, 1 => Just(QUANTITY_MAX), 1 => any::<u32>()];
    let reason = || "counted".parse::<Reason>().expect("a valid reason");
    prop_oneof![
        1 => Just(Command::Register { sku: "TEA".parse().expect("a valid article") }),
        4 => quantity().prop_map(|quantity| Command::Receive { quantity, reference: None }),
        6 => (order(), quantity()).prop_map(|(order_id, quantity)| Command::Reserve { order_id, quantity }),
        3 => (order(), prop::option::of(quantity()))
            .prop_map(|(order_id, quantity)| Command::Release { order_id, quantity, reason: None }),
        3 => (order(), prop::option::of(quantity()))
            .prop_map(|(order_id, quantity)| Command::Dispatch { order_id, quantity }),
        2 => prop_oneof![-8..8_i64, any::<i64>()]
            .prop_map(move |change| Command::Adjust { change, reason: reason() }),
    ]
}

/// A registered item's life.
fn commands() -> impl Strategy<Value = Vec<Command>> {
    prop::collection::vec(command(), 0..60).prop_map(|mut commands| {
        let sku = "TEA".parse().expect("a valid article");
        commands.insert(0, Command::Register { sku });
        commands
    })
}

/// Every state on the way, with the events that led to it.
fn live(commands: Vec<Command>) -> Vec<(State, Vec<Event>)> {
    let mut state = State::default();
    let mut lived = vec![];
    for command in commands {
        let events = state.decide(command).unwrap_or_default();
        state = events.iter().fold(state, State::evolve);
        lived.push((state.clone(), events));
    }
    lived
}

/// The properties below say little about what is never reached.
#[test]
fn the_lives_that_are_drawn_reach_every_event() {
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeSet::new();
    for _ in 0..256 {
        let commands = commands()
            .new_tree(&mut runner)
            .expect("nothing is filtered out")
            .current();
        for (_, events) in live(commands) {
            seen.extend(events.iter().map(Event::event_type));
        }
    }
    assert_eq!(
        seen,
        Event::SCHEMAS.iter().map(|(event_type, _)| *event_type).collect()
    );
}

proptest! {
    #[test]
    fn nothing_is_ever_below_zero_or_reserved_twice(commands in commands()) {
        for (state, _) in live(commands) {
            let item = state.item().expect("it was registered first");
            let sum: u64 = item.reservations.values().map(|quantity| u64::from(*quantity)).sum();
            prop_assert_eq!(item.reserved, sum);
            prop_assert!(item.reserved <= item.on_hand && item.on_hand <= ON_HAND_MAX);
            prop_assert_eq!(item.available() + item.reserved, item.on_hand);
            prop_assert!(item.reservations.values().all(|quantity| *quantity > 0));
        }
    }

    #[test]
    fn events_alone_tell_the_levels(commands in commands()) {
        let (mut on_hand, mut reserved) = (0, 0);
        for (state, events) in live(commands) {
            for event in &events {
                match event {
                    Event::Registered(_) => {}
                    Event::Received(event) => on_hand += i64::from(event.quantity),
                    Event::Reserved(event) => reserved += i64::from(event.quantity),
                    Event::Released(event) => reserved -= i64::from(event.quantity),
                    Event::Dispatched(event) => {
                        on_hand -= i64::from(event.quantity);
                        reserved -= i64::from(event.quantity);
                    }
                    Event::Adjusted(event) => on_hand += event.change,
                }
            }
            let item = state.item().expect("it was registered first");
            prop_assert_eq!((item.on_hand, item.reserved), (on_hand.unsigned_abs(), reserved.unsigned_abs()));
        }
    }

    #[test]
    fn what_is_stored_folds_to_the_same_state(commands in commands()) {
        let lived = live(commands);
        let stored = lived.iter().flat_map(|(_, events)| events).map(|event| {
            Event::decode(event.event_type(), event.schema_version(), &event.encode()).expect("it was just written")
        });
        let folded = stored.fold(State::default(), |state, event| state.evolve(&event));
        prop_assert_eq!(Some(folded), lived.last().map(|(state, _)| state.clone()));
    }

    #[test]
    fn no_sequence_of_events_makes_evolve_or_decide_panic(
        lives in prop::collection::vec(commands(), 3),
        asked in prop::collection::vec(command(), 8),
    ) {
        // Events of several items, folded into one as if they were its own.
        let mut state = State::default();
        let events: Vec<_> = lives.into_iter().map(live).collect();
        for step in 0..60 {
            for (_, events) in events.iter().filter_map(|lived| lived.get(step)) {
                state = events.iter().fold(state, State::evolve);
            }
        }
        for command in asked {
            let _either_way = state.decide(command);
        }
    }
}
