//! The specification of stock items: given what happened, when this is asked, then that happens.

use uuid::Uuid;

use super::*;
use crate::rejection::Rejection as _;

struct Given(State);

struct Outcome(Result<Vec<Event>, Rejection>);

fn given(commands: impl IntoIterator<Item = Command>) -> Given {
    let state = commands.into_iter().fold(State::default(), |state, command| {
        let events = state.decide(command).expect("what is given is granted");
        events.iter().fold(state, State::evolve)
    });
    Given(state)
}

impl Given {
    fn when(&self, command: Command) -> Outcome {
        Outcome(self.0.decide(command))
    }

    /// On hand, reserved, available.
    fn levels(&self) -> (u64, u64, u64) {
        let item = self.0.item().expect("it was registered");
        (item.on_hand, item.reserved, item.available())
    }
}

impl Outcome {
    #[track_caller]
    fn then(self, event: impl Into<Event>) {
        assert_eq!(self.0, Ok(vec![event.into()]));
    }

    #[track_caller]
    fn then_refused(self, rejection: Rejection) {
        assert_eq!(self.0, Err(rejection));
    }
}

fn text<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("tests write valid values")
}

fn order(number: u128) -> OrderId {
    OrderId::from_uuid(Uuid::from_u128(number))
}

fn register() -> Command {
    Command::Register {
        sku: text("PEN-FINE"),
    }
}

fn receive(quantity: u32) -> Command {
    Command::Receive {
        quantity,
        reference: None,
    }
}

fn reserve(order_number: u128, quantity: u32) -> Command {
    Command::Reserve {
        order_id: order(order_number),
        quantity,
    }
}

fn release(order_number: u128, quantity: Option<u32>) -> Command {
    Command::Release {
        order_id: order(order_number),
        quantity,
        reason: None,
    }
}

fn dispatch(order_number: u128, quantity: Option<u32>) -> Command {
    Command::Dispatch {
        order_id: order(order_number),
        quantity,
    }
}

fn adjust(change: i64) -> Command {
    Command::Adjust {
        change,
        reason: text("counted"),
    }
}

/// Ten on hand, four of them reserved for order 1.
fn reserved() -> Given {
    given([register(), receive(10), reserve(1, 4)])
}

#[test]
fn an_article_is_registered_under_an_id_that_follows_from_it() {
    given([]).when(register()).then(Registered {
        stock_item_id: StockItemId::of(&text("PEN-FINE")),
        sku: text("PEN-FINE"),
    });
    assert_eq!(given([register()]).levels(), (0, 0, 0));
}

#[test]
fn an_article_is_registered_once() {
    given([register()])
        .when(register())
        .then_refused(Rejection::StockItemAlreadyExists);
    assert!(Rejection::StockItemAlreadyExists.is_already_there());
}

#[test]
fn nothing_is_asked_of_an_article_that_was_never_registered() {
    for command in [
        receive(1),
        reserve(1, 1),
        release(1, None),
        dispatch(1, None),
        adjust(1),
    ] {
        given([]).when(command).then_refused(Rejection::StockItemNotFound);
    }
    assert!(Rejection::StockItemNotFound.is_not_found());
}

#[test]
fn what_comes_in_is_on_hand_and_available() {
    given([register(), receive(7)]).when(receive(3)).then(Received {
        quantity: 3,
        reference: None,
        on_hand: 10,
    });
    assert_eq!(given([register(), receive(7), receive(3)]).levels(), (10, 0, 10));
}

#[test]
fn what_is_reserved_is_on_hand_but_not_available() {
    given([register(), receive(10)])
        .when(reserve(1, 4))
        .then(Reserved {
            order_id: order(1),
            quantity: 4,
            reserved: 4,
        });
    assert_eq!(reserved().levels(), (10, 4, 6));
}

#[test]
fn all_that_is_available_can_be_reserved_and_not_one_more() {
    reserved().when(reserve(2, 6)).then(Reserved {
        order_id: order(2),
        quantity: 6,
        reserved: 10,
    });
    reserved()
        .when(reserve(2, 7))
        .then_refused(Rejection::InsufficientStock {
            quantity: 7,
            available: 6,
        });
}

#[test]
fn an_order_reserves_once_until_all_of_it_is_released_or_dispatched() {
    let again = Rejection::StockAlreadyReserved {
        order_id: order(1),
        reserved: 4,
    };
    reserved().when(reserve(1, 1)).then_refused(again);
    for done in [release(1, None), dispatch(1, None)] {
        let item = given([register(), receive(10), reserve(1, 4), done]);
        assert!(item.when(reserve(1, 1)).0.is_ok());
    }
}

#[test]
fn what_is_released_is_available_again() {
    reserved().when(release(1, Some(3))).then(Released {
        order_id: order(1),
        quantity: 3,
        order_reserved: 1,
        reserved: 1,
        reason: None,
    });
    let released = given([register(), receive(10), reserve(1, 4), release(1, None)]);
    assert_eq!(released.levels(), (10, 0, 10));
}

#[test]
fn what_is_dispatched_is_neither_on_hand_nor_reserved_any_more() {
    reserved().when(dispatch(1, Some(3))).then(Dispatched {
        order_id: order(1),
        quantity: 3,
        order_reserved: 1,
        on_hand: 7,
        reserved: 1,
    });
    let dispatched = given([register(), receive(10), reserve(1, 4), dispatch(1, None)]);
    assert_eq!(dispatched.levels(), (6, 0, 6));
}

#[test]
fn no_more_is_released_or_dispatched_for_an_order_than_is_reserved_for_it() {
    for command in [release(1, Some(5)), dispatch(1, Some(5))] {
        reserved()
            .when(command)
            .then_refused(Rejection::QuantityExceedsReservation {
                order_id: order(1),
                quantity: 5,
                reserved: 4,
            });
    }
}

#[test]
fn nothing_is_released_or_dispatched_for_an_order_without_a_reservation() {
    for command in [release(2, None), dispatch(2, Some(1))] {
        reserved()
            .when(command)
            .then_refused(Rejection::ReservationNotFound { order_id: order(2) });
    }
    given([register(), receive(10), reserve(1, 4), dispatch(1, None)])
        .when(dispatch(1, None))
        .then_refused(Rejection::ReservationNotFound { order_id: order(1) });
}

#[test]
fn a_count_changes_what_is_on_hand_either_way() {
    for (change, on_hand) in [(-6, 4), (5, 15)] {
        reserved().when(adjust(change)).then(Adjusted {
            change,
            on_hand,
            reason: text("counted"),
        });
    }
}

#[test]
fn nothing_is_adjusted_below_what_is_reserved_or_below_zero() {
    for change in [-7, -10, -11, -1_000] {
        reserved()
            .when(adjust(change))
            .then_refused(Rejection::AdjustmentBelowReserved {
                change,
                on_hand: 10,
                reserved: 4,
            });
    }
}

#[test]
fn an_adjustment_changes_something_and_not_without_bounds() {
    let most = i64::from(QUANTITY_MAX);
    for change in [0, most + 1, -most - 1, i64::MIN, i64::MAX] {
        reserved()
            .when(adjust(change))
            .then_refused(Rejection::AdjustmentOutOfRange { change });
    }
}

#[test]
fn quantities_have_bounds() {
    for quantity in [0, QUANTITY_MAX + 1, u32::MAX] {
        for command in [
            receive(quantity),
            reserve(2, quantity),
            release(1, Some(quantity)),
            dispatch(1, Some(quantity)),
        ] {
            reserved()
                .when(command)
                .then_refused(Rejection::StockQuantityOutOfRange { quantity });
        }
    }
}

#[test]
fn what_is_on_hand_has_an_upper_bound() {
    let full = State {
        item: Some(StockItem {
            on_hand: ON_HAND_MAX - 1,
            ..StockItem::default()
        }),
    };
    assert!(full.decide(receive(1)).is_ok());
    for command in [receive(2), adjust(2)] {
        let refused = Rejection::StockTooHigh {
            change: 2,
            on_hand: ON_HAND_MAX - 1,
        };
        assert_eq!(full.decide(command), Err(refused));
    }
}

#[test]
fn so_many_orders_have_reservations_and_not_one_more() {
    let orders = (1..=RESERVATIONS_MAX as u128).map(order);
    let busy = Given(State {
        item: Some(StockItem {
            on_hand: ON_HAND_MAX,
            reserved: RESERVATIONS_MAX as u64,
            reservations: orders.map(|order_id| (order_id, 1)).collect(),
        }),
    });
    busy.when(reserve(0, 1))
        .then_refused(Rejection::TooManyReservations);
    assert!(busy.when(dispatch(1, None)).0.is_ok());
}

#[test]
fn what_an_item_holds_in_memory_grows_with_its_reservations() {
    let (none, one) = (given([register(), receive(10)]).0, reserved().0);
    assert_eq!(none.heap_bytes(), 0);
    assert!(one.heap_bytes() >= size_of::<(OrderId, u32)>());
}

#[test]
fn a_remembered_rejection_is_restored_as_it_was_and_says_every_value() {
    for rejection in [
        Rejection::StockItemAlreadyExists,
        Rejection::InsufficientStock {
            quantity: 7,
            available: 6,
        },
        Rejection::QuantityExceedsReservation {
            order_id: order(1),
            quantity: 5,
            reserved: 4,
        },
        Rejection::AdjustmentBelowReserved {
            change: -7,
            on_hand: 10,
            reserved: 4,
        },
    ] {
        let json = serde_json::to_string(&rejection).expect("rejections are plain data");
        let restored: Rejection = serde_json::from_str(&json).expect("what was written can be read");
        assert_eq!(restored, rejection);
        for (name, value) in rejection.details() {
            assert!(
                rejection.to_string().contains(&value),
                "{name} is missing in {rejection}"
            );
        }
    }
}
