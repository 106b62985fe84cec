use daybook_domain::order::Command;
use time::Duration;

use super::*;
use crate::testing::{Log, START, TENANT, deliver, new_line, order_id, part, pay, place, ship, text};

fn row_after(commands: impl IntoIterator<Item = Command>) -> Row {
    Log::of(commands).row::<OrderList>()
}

#[test]
fn a_placed_order_is_listed_with_what_the_event_says() {
    let row = row_after([place(1)]);
    let expected = Row {
        tenant_id: TENANT,
        order_id: order_id(1).to_string(),
        version: 1,
        position: 10,
        status: Status::Placed,
        reference: Some(text("web-1")),
        customer_id: text("ada"),
        currency: text("EUR"),
        total_minor: 2_600,
        item_count: 3,
        placed_at: START,
        updated_at: START,
    };
    assert_eq!(row, expected);
}

#[test]
fn changed_lines_change_total_and_item_count() {
    let row = row_after([
        place(1),
        Command::AddLine {
            line: new_line("CUP", 4, 150),
        },
    ]);
    assert_eq!((row.total_minor, row.item_count), (3_200, 7));

    let row = row_after([
        place(1),
        Command::ChangeQuantity {
            line_number: 1,
            quantity: 5,
        },
    ]);
    assert_eq!((row.total_minor, row.item_count), (3_500, 6));

    let row = row_after([place(1), Command::RemoveLine { line_number: 2 }]);
    assert_eq!((row.total_minor, row.item_count), (600, 2));
}

#[test]
fn the_status_is_the_one_that_the_last_event_with_a_status_says() {
    let ready = [place(1), Command::Confirm, pay("p1", 2_600)];
    assert_eq!(row_after(ready.clone()).status, Status::Confirmed);

    let mut shipped = ready.to_vec();
    shipped.push(ship("s1", vec![part(1, 1)]));
    assert_eq!(row_after(shipped.clone()).status, Status::PartiallyShipped);

    shipped.push(ship("s2", vec![]));
    assert_eq!(row_after(shipped.clone()).status, Status::Shipped);

    shipped.extend([deliver("s1"), deliver("s2")]);
    assert_eq!(row_after(shipped).status, Status::Delivered);

    let cancel = Command::Cancel { reason: text("late") };
    assert_eq!(row_after([place(1), cancel]).status, Status::Cancelled);
    let reject = Command::Reject { reason: text("sold") };
    assert_eq!(row_after([place(1), reject]).status, Status::Rejected);
}

#[test]
fn every_event_moves_version_position_and_time_of_change() {
    let row = row_after([place(1), pay("p1", 100), pay("p2", 100)]);
    assert_eq!((row.version, row.position), (3, 30));
    assert_eq!(
        (row.placed_at, row.updated_at),
        (START, START + Duration::minutes(2))
    );
}

#[test]
fn an_event_that_is_dated_back_does_not_take_back_the_time_of_change() {
    let mut log = Log::of([place(1), pay("p1", 100)]);
    log.events[1].occurred_at = START - Duration::days(1);
    assert_eq!(log.row::<OrderList>().updated_at, START);
}

#[test]
fn an_event_that_the_row_has_seen_changes_nothing() {
    let log = Log::of([place(1), Command::Confirm]);
    let row = log.row::<OrderList>();
    for event in &log.events {
        let change = OrderList::fold(&StreamKey::of(event), Some(&row), event);
        assert_eq!(change, Ok(None));
    }
}

#[test]
fn a_hole_in_the_history_is_refused() {
    let log = Log::of([place(1), Command::Confirm, pay("p1", 100)]);
    let events = [&log.events[0], &log.events[2]];
    let refused = OrderList::replay(&StreamKey::of(events[0]), None, events);
    assert_eq!(
        refused,
        Err(FoldError::Gap {
            expected: 2,
            actual: 3
        })
    );
}

#[test]
fn an_order_that_does_not_begin_with_its_placing_is_refused() {
    let mut log = Log::of([place(1), Command::Confirm]);
    log.events[1].stream_version = 1;
    let refused = OrderList::replay(&StreamKey::of(&log.events[1]), None, [&log.events[1]]);
    assert_eq!(
        refused,
        Err(FoldError::NotBegun {
            event_type: "order.confirmed"
        })
    );
}

#[test]
fn a_place_in_the_list_is_what_the_order_has_in_the_columns_of_the_sort() {
    let row = row_after([place(1), Command::Confirm]);
    let in_euros = Filter {
        currency: Some(text("EUR")),
        ..Filter::default()
    };
    let keyset = |filter: &Filter, sort: &str| {
        let scan = filter.scan(Some(&Sort::parse(sort))).expect("an index serves it");
        scan.keyset(&row).0
    };
    let (id, placed_at) = (order_id(1).to_string(), moment(START));
    assert_eq!(
        keyset(&in_euros, "total_minor"),
        ["2600", placed_at.as_str(), id.as_str()]
    );
    assert_eq!(
        keyset(&Filter::default(), "-placed_at,total_minor"),
        [placed_at.as_str(), "-2600", id.as_str()]
    );
}

#[test]
fn without_a_sort_the_newest_come_first_and_what_is_searched_for_in_its_own_order() {
    let order = |search: Option<&str>| {
        let filter = Filter {
            search: search.map(Search::parse),
            ..Filter::default()
        };
        let scan = filter.scan(None).expect("an index serves it");
        scan.order().to_string()
    };
    assert_eq!(order(None), "-placed_at,-order_id");
    assert_eq!(order(Some("ord_01")), "order_id");
    assert_eq!(order(Some("web-1")), "reference,order_id");
}

#[test]
fn totals_are_compared_within_a_currency_only() {
    let refused = Filter::default().scan(Some(&Sort::parse("-total_minor")));
    let message = refused.expect_err("no index serves it").to_string();
    assert!(
        message.contains("total_minor,placed_at or -total_minor,-placed_at with currency (and with status)"),
        "{message}"
    );
}
