//! Paging, sorting and filtering the order list.

use daybook_domain::order::Status;
use daybook_read_model::OrderList;
use daybook_read_model::order_list::{self, Filter, Sort, SortBy};

use super::Database;
use super::history::{STRANGER, TENANT, history, placed_at};

async fn page_through(database: &Database, filter: &Filter, sort: Sort, limit: u32) -> Vec<order_list::Row> {
    let mut rows: Vec<order_list::Row> = Vec::new();
    loop {
        let after = rows.last().map(|last| sort.keyset(last));
        let page = order_list::list(&database.query, TENANT, filter, sort, after.as_ref(), limit)
            .await
            .expect("a page");
        let is_last = page.len() < limit as usize;
        rows.extend(page);
        if is_last {
            return rows;
        }
    }
}

pub(crate) fn every_sort() -> impl Iterator<Item = Sort> {
    SortBy::ALL
        .into_iter()
        .flat_map(|by| [false, true].map(|descending| Sort { by, descending }))
}

pub(crate) fn sorted(mut rows: Vec<order_list::Row>, sort: Sort) -> Vec<order_list::Row> {
    rows.sort_by_key(|row| {
        let place = sort.keyset(row);
        (place.value, place.order_id)
    });
    if sort.descending {
        rows.reverse();
    }
    rows
}

#[tokio::test]
async fn paging_in_any_order_gives_each_order_once_and_in_order() {
    let mut database = Database::create().await;
    let rows = database.project::<OrderList>(&history(TENANT, 0..10_000)).await;
    database
        .project::<OrderList>(&history(STRANGER, 20_000..20_100))
        .await;
    for sort in every_sort() {
        let listed = page_through(&database, &Filter::default(), sort, 997).await;
        assert!(
            listed == sorted(rows.clone(), sort),
            "{sort:?}: {} rows",
            listed.len()
        );
    }
}

#[tokio::test]
async fn filters_let_through_what_meets_all_of_them() {
    let mut database = Database::create().await;
    let rows = database.project::<OrderList>(&history(TENANT, 0..1_000)).await;
    let filters = [
        Filter {
            statuses: vec![Status::Confirmed],
            ..Filter::default()
        },
        Filter {
            statuses: vec![Status::Cancelled, Status::Confirmed, Status::Confirmed],
            ..Filter::default()
        },
        Filter {
            statuses: vec![Status::Placed, Status::Confirmed],
            ..Filter::default()
        },
        Filter {
            customer_id: Some("c7".parse().expect("a valid id")),
            ..Filter::default()
        },
        Filter {
            placed_after: Some(placed_at(70)),
            placed_before: Some(placed_at(700)),
            ..Filter::default()
        },
        Filter {
            statuses: vec![Status::Placed],
            customer_id: Some("c7".parse().expect("a valid id")),
            placed_after: Some(placed_at(70)),
            placed_before: Some(placed_at(700)),
        },
    ];
    for (filter, sort) in filters
        .iter()
        .flat_map(|filter| every_sort().map(move |sort| (filter, sort)))
    {
        let meets = |row: &order_list::Row| {
            (filter.statuses.is_empty() || filter.statuses.contains(&row.status))
                && filter
                    .customer_id
                    .as_ref()
                    .is_none_or(|id| row.customer_id == *id)
                && filter.placed_after.is_none_or(|moment| row.placed_at >= moment)
                && filter.placed_before.is_none_or(|moment| row.placed_at < moment)
        };
        let expected = sorted(rows.iter().filter(|row| meets(row)).cloned().collect(), sort);
        assert!(!expected.is_empty(), "{filter:?} lets something through");
        assert_eq!(
            page_through(&database, filter, sort, 40).await,
            expected,
            "{filter:?} {sort:?}"
        );
    }
}
