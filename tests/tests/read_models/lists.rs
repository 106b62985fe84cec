//! Paging, sorting and filtering the order list.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use daybook_domain::order::Status;
use daybook_read_model::OrderList;
use daybook_read_model::access_path::Scan;
use daybook_read_model::order_list::{self, ACCESS_PATHS, Filter, Row, Search};

use super::Database;
use super::history::{OTHER_TENANT, TENANT, history, placed_at};

async fn page_through(database: &Database, filter: &Filter, scan: Scan<Row>, limit: u32) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    loop {
        let after = rows.last().map(|last| scan.keyset(last));
        let page = order_list::list(&database.query, TENANT, filter, scan, after.as_ref(), limit)
            .await
            .expect("a page");
        let is_last = page.len() < limit as usize;
        rows.extend(page);
        if is_last {
            return rows;
        }
    }
}

/// The rows in the order of a scan.
fn sorted(mut rows: Vec<Row>, scan: Scan<Row>) -> Vec<Row> {
    let order = scan.order().to_string();
    rows.sort_by(|one, other| {
        let keys = order.split(',').map(|key| match key.strip_prefix('-') {
            Some(name) => compare(other, one, name),
            None => compare(one, other, key),
        });
        keys.fold(Ordering::Equal, Ordering::then)
    });
    rows
}

fn compare(one: &Row, other: &Row, name: &str) -> Ordering {
    match name {
        "placed_at" => one.placed_at.cmp(&other.placed_at),
        "total_minor" => one.total_minor.cmp(&other.total_minor),
        "reference" => {
            let text = |row: &Row| row.reference.as_ref().map(ToString::to_string);
            text(one).cmp(&text(other))
        }
        "order_id" => one.order_id.cmp(&other.order_id),
        unknown => panic!("nothing is sorted by {unknown}"),
    }
}

fn meets(filter: &Filter, row: &Row) -> bool {
    let is_found = |search: &Search| match search {
        Search::OrderId(text) => row.order_id.starts_with(text.as_str()),
        Search::Reference(text) => {
            let reference = row.reference.as_ref();
            reference.is_some_and(|reference| reference.as_str().starts_with(text.as_str()))
        }
    };
    (filter.statuses.is_empty() || filter.statuses.contains(&row.status))
        && filter
            .customer_id
            .as_ref()
            .is_none_or(|id| row.customer_id == *id)
        && filter.currency.is_none_or(|currency| row.currency == currency)
        && filter.placed_after.is_none_or(|moment| row.placed_at >= moment)
        && filter.placed_before.is_none_or(|moment| row.placed_at < moment)
        && filter.search.as_ref().is_none_or(is_found)
}

/// Filters, each with something that passes.
fn filters() -> Vec<Filter> {
    let usual = Filter::default;
    let c7 = Some("c7".parse().expect("a valid id"));
    let euros = Some("EUR".parse().expect("a currency"));
    vec![
        usual(),
        Filter {
            statuses: vec![Status::Confirmed],
            ..usual()
        },
        Filter {
            statuses: vec![Status::Cancelled, Status::Confirmed, Status::Confirmed],
            ..usual()
        },
        Filter {
            statuses: vec![Status::Placed, Status::Confirmed],
            currency: euros,
            ..usual()
        },
        Filter {
            customer_id: c7.clone(),
            ..usual()
        },
        Filter {
            currency: euros,
            ..usual()
        },
        Filter {
            placed_after: Some(placed_at(70)),
            placed_before: Some(placed_at(700)),
            ..usual()
        },
        Filter {
            currency: euros,
            placed_before: Some(placed_at(700)),
            ..usual()
        },
        Filter {
            statuses: vec![Status::Placed],
            customer_id: c7,
            placed_after: Some(placed_at(70)),
            placed_before: Some(placed_at(700)),
            ..usual()
        },
        Filter {
            search: Some(Search::parse("web")),
            ..usual()
        },
        Filter {
            search: Some(Search::parse("ord_0000000000000000000000")),
            ..usual()
        },
    ]
}

#[tokio::test]
async fn every_list_is_what_meets_its_filters_in_its_order_page_by_page() {
    let mut database = Database::create().await;
    let rows = database.project::<OrderList>(&history(TENANT, 0..3_000)).await;
    database
        .project::<OrderList>(&history(OTHER_TENANT, 20_000..20_100))
        .await;
    let mut indexes = BTreeSet::new();
    for filter in filters() {
        let passing: Vec<_> = rows.iter().filter(|row| meets(&filter, row)).cloned().collect();
        assert!(!passing.is_empty(), "{filter:?} lets something through");
        let scans = ACCESS_PATHS.iter().flat_map(|path| path.scans());
        for scan in scans.filter_map(|scan| filter.scan(Some(&scan.order())).ok()) {
            indexes.insert(scan.index());
            let listed = page_through(&database, &filter, scan, 97).await;
            assert!(
                listed == sorted(passing.clone(), scan),
                "{filter:?} by {}: {} rows",
                scan.order(),
                listed.len()
            );
        }
    }
    assert_eq!(indexes.len(), ACCESS_PATHS.len(), "some index was never read");
}
