//! The fold: given what happened to a stock item, then these are its levels.

use daybook_domain::ids::StockItemId;
use daybook_domain::stock::Command;

use super::*;
use crate::testing::{START, TENANT, order_id, text};

/// The events of one item that these commands lead to, all of which are granted.
fn history(commands: impl IntoIterator<Item = Command>) -> Vec<Event> {
    let mut state = State::default();
    let mut events = Vec::new();
    for command in commands {
        for body in state.decide(command).expect("what is given is granted") {
            state = state.evolve(&body);
            let version = events.len() as u64 + 1;
            events.push(Event {
                partition: 0,
                position: 10 * version,
                tenant_id: TENANT,
                stream_id: StockItemId::of(&text("TEA")).to_string(),
                stream_version: version,
                event_id: Uuid::nil(),
                event_type: body.event_type().to_owned(),
                recorded_at: START,
                occurred_at: START + time::Duration::minutes(version.cast_signed()),
                metadata: "{}".into(),
                body: Ok(Body::Stock(body)),
            });
        }
    }
    events
}

/// A life with every event: 10 came in, 4 and 3 of them are kept back, 1 of which is given free and 2 go out; 1 is lost.
fn whole_life() -> Vec<Event> {
    history([
        Command::Register { sku: text("TEA") },
        Command::Receive {
            quantity: 10,
            reference: None,
        },
        Command::Reserve {
            order_id: order_id(1),
            quantity: 4,
        },
        Command::Reserve {
            order_id: order_id(2),
            quantity: 3,
        },
        Command::Release {
            order_id: order_id(1),
            quantity: Some(1),
            reason: None,
        },
        Command::Dispatch {
            order_id: order_id(2),
            quantity: Some(2),
        },
        Command::Adjust {
            change: -1,
            reason: text("broken"),
        },
    ])
}

fn replay(events: &[Event]) -> Result<Option<Row>, FoldError> {
    StockLevels::replay(&StreamKey::of(&events[0]), None, events)
}

#[test]
fn every_event_moves_the_levels_as_it_says() {
    let events = whole_life();
    let levels = [
        (0, 0, 0),
        (10, 0, 10),
        (10, 4, 6),
        (10, 7, 3),
        (10, 6, 4),
        (8, 4, 4),
        (7, 4, 3),
    ];
    assert_eq!(events.len(), levels.len());
    for (count, expected) in (1..).zip(levels) {
        let row = replay(&events[..count])
            .expect("it can be folded")
            .expect("a row");
        assert_eq!((row.on_hand, row.reserved, row.available()), expected);
        assert_eq!((row.version, row.position), (count as u64, 10 * count as u64));
        assert_eq!(row.updated_at, events[count - 1].occurred_at);
        assert_eq!(row.sku.as_str(), "TEA");
    }
}

#[test]
fn an_event_that_comes_twice_changes_nothing() {
    let events = whole_life();
    let twice: Vec<_> = events
        .iter()
        .flat_map(|event| [event.clone(), event.clone()])
        .collect();
    assert_eq!(replay(&twice), replay(&events));
}

#[test]
fn a_missing_event_is_found() {
    let mut events = whole_life();
    events.remove(3);
    assert_eq!(
        replay(&events),
        Err(FoldError::Gap {
            expected: 4,
            actual: 5
        })
    );
}

#[test]
fn only_registering_brings_an_item_into_being() {
    let mut events = whole_life();
    events.remove(0);
    events[0].stream_version = 1;
    let event_type = "stock_item.received";
    assert_eq!(replay(&events), Err(FoldError::NotBegun { event_type }));
}

#[test]
fn an_order_is_no_concern_of_it() {
    let log = crate::testing::Log::of([crate::testing::place(1)]);
    assert_eq!(StockLevels::keys(&log.events[0]).into_iter().count(), 0);
}
