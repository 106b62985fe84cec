//! Lists of orders: filters, sorts, pages, and the cursors between them.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use anyhow::Context as _;
use daybook_proto::common::v1::{CommandContext, Freshness};
use daybook_proto::orders::v1::{ListCustomersRequest, ListOrdersRequest, OrderExpansion, OrderStatus};
use daybook_tests::client::{Answer, Caller};
use daybook_tests::command;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::refusal::code;
use daybook_tests::stack::Stack;
use prost_types::FieldMask;
use serde_json::json;
use time::format_description::well_known::Rfc3339;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

/// How many orders there are.
const ORDERS: i64 = 30;

/// How many orders a page has: several pages, the last one not full.
const PAGE: usize = 7;

const SORTS: [&str; 9] = [
    "placed_at",
    "-placed_at",
    "-placed_at,total_minor",
    "placed_at,-total_minor",
    "total_minor",
    "-total_minor",
    "-total_minor,-placed_at",
    "order_id",
    "-order_id",
];

/// Whether an index serves a sort together with a filter.
fn is_served(filter: &str, sort: &str) -> bool {
    let has = |name: &str| filter.contains(name);
    match sort {
        "placed_at" | "-placed_at" => !(has("customer_id=") && has("currency=")),
        "order_id" | "-order_id" => filter.is_empty(),
        sort if sort.contains("placed_at,") => !has("customer_id=") && !has("currency="),
        _ => has("currency=") && !has("customer_id=") && !has("placed_"),
    }
}

/// What is known of an order that was made here.
#[derive(Debug, Clone)]
struct Made {
    order_id: String,
    customer_id: String,
    status: &'static str,
    placed_at: OffsetDateTime,
    total_minor: i64,
}

/// Orders of three customers on different days, some on the same, with few different totals; the token of the last one.
async fn orders(caller: &Caller) -> anyhow::Result<(Vec<Made>, String)> {
    let mut made = Vec::new();
    let mut token = String::new();
    for number in 0..ORDERS {
        let placed_at = datetime!(2024-05-01 12:00 UTC) + Duration::days(number / 2);
        let order_id = new_order_id();
        let mut order = place(&order_id, &format!("customer-{}", number % 3));
        order.context = Some(CommandContext {
            occurred_at: Some(daybook_proto::convert::to_timestamp(placed_at)),
            ..Default::default()
        });
        order.lines.truncate(1);
        order.lines[0].unit_price_minor = 100 * (number % 4);
        order.expected_total_minor = None;
        let placed = caller.send(order).await?;
        let (status, newest) = match number % 5 {
            0 => ("CONFIRMED", caller.send(command::confirm(&order_id)).await?),
            1 => ("CANCELLED", caller.send(command::cancel(&order_id)).await?),
            _ => ("PLACED", placed),
        };
        token = newest.consistency_token;
        made.push(Made {
            customer_id: format!("customer-{}", number % 3),
            status,
            placed_at,
            total_minor: 200 * (number % 4),
            order_id,
        });
    }
    Ok((made, token))
}

/// All pages of a list of orders over REST.
async fn pages(caller: &Caller, query: &str) -> anyhow::Result<Vec<serde_json::Value>> {
    all(caller, &format!("/v1/orders?limit={PAGE}&{query}")).await
}

/// All pages of a list over REST.
pub(crate) async fn all(caller: &Caller, list: &str) -> anyhow::Result<Vec<serde_json::Value>> {
    let mut found = Vec::new();
    let mut cursor = String::new();
    loop {
        let answer = caller.get(&format!("{list}{cursor}")).await?;
        anyhow::ensure!(answer.status == 200, "{list}: {}", answer.json());
        let page = answer.json();
        found.extend(page["data"].as_array().context("a list")?.iter().cloned());
        match page["pagination"]["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(found),
        }
    }
}

/// A filter as a caller writes it, and as a rule.
type Filter = (String, Box<dyn Fn(&Made) -> bool + Sync + Send>);

fn filters() -> anyhow::Result<Vec<Filter>> {
    let (from, to) = (datetime!(2024-05-04 12:00 UTC), datetime!(2024-05-10 12:00 UTC));
    let (after, before) = (from.format(&Rfc3339)?, to.format(&Rfc3339)?);
    Ok(vec![
        (String::new(), Box::new(|_| true)),
        (
            "status=PLACED".to_owned(),
            Box::new(|made| made.status == "PLACED"),
        ),
        (
            "status=CONFIRMED,CANCELLED".to_owned(),
            Box::new(|made| made.status != "PLACED"),
        ),
        (
            "customer_id=customer-1".to_owned(),
            Box::new(|made| made.customer_id == "customer-1"),
        ),
        ("status=SHIPPED".to_owned(), Box::new(|_| false)),
        (
            format!("placed_after={after}&placed_before={before}"),
            Box::new(move |made| made.placed_at >= from && made.placed_at < to),
        ),
        ("currency=USD".to_owned(), Box::new(|_| true)),
        ("currency=JPY".to_owned(), Box::new(|_| false)),
        (
            "currency=USD&status=PLACED".to_owned(),
            Box::new(|made| made.status == "PLACED"),
        ),
        (
            "currency=USD&customer_id=customer-1".to_owned(),
            Box::new(|made| made.customer_id == "customer-1"),
        ),
        (
            format!("status=PLACED&status=CANCELLED&customer_id=customer-2&placed_after={after}"),
            Box::new(move |made| {
                made.status != "CONFIRMED" && made.customer_id == "customer-2" && made.placed_at >= from
            }),
        ),
    ])
}

#[tokio::test]
async fn every_filter_and_sort_gives_each_order_once_and_in_order() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (made, token) = orders(&caller).await?;
    assert_eq!(caller.get_after(&token, "/v1/orders").await?.status, 200);
    for (filter, holds) in filters()? {
        let wanted: BTreeSet<&str> = made
            .iter()
            .filter(|made| holds(made))
            .map(|made| made.order_id.as_str())
            .collect();
        for sort in SORTS {
            let query = format!("{filter}&sort={sort}");
            if !is_served(&filter, sort) {
                not_served(&caller.get(&format!("/v1/orders?{query}")).await?);
                continue;
            }
            let found = pages(&caller, &query).await?;
            let ids: BTreeSet<&str> = found
                .iter()
                .filter_map(|order| order["order_id"].as_str())
                .collect();
            assert_eq!(ids, wanted, "{query}");
            assert_eq!(found.len(), wanted.len(), "{query} has an order twice");
            for order in &found {
                let made = made.iter().find(|made| order["order_id"] == made.order_id);
                let made = made.context("a list has nothing that was not made")?;
                assert_eq!(order["total"]["minor"], made.total_minor);
                assert_eq!(order["status"], made.status);
            }
            is_sorted(&found, sort);
        }
    }
    let newest_first = pages(&caller, "").await?;
    is_sorted(&newest_first, "-placed_at");
    let some = caller
        .get("/v1/orders?fields=order_id,status&limit=1&status=PLACED")
        .await?;
    let order = &some.json()["data"][0];
    assert_eq!(order.as_object().map(serde_json::Map::len), Some(2));
    assert_eq!(order["status"], "PLACED");
    Ok(())
}

pub(crate) fn not_served(answer: &Answer) {
    let body = answer.json();
    assert_eq!(
        (answer.status, &body["code"]),
        (400, &json!("VALIDATION_FAILED")),
        "{body}"
    );
    assert_eq!(body["errors"][0]["code"], json!("NOT_SERVED"), "{body}");
}

/// What an order has where it is compared.
fn key(order: &serde_json::Value, column: &str) -> (i128, String) {
    let number = match column {
        "total_minor" => i128::from(order["total"]["minor"].as_i64().expect("a total")),
        "placed_at" => OffsetDateTime::parse(order[column].as_str().expect("a time"), &Rfc3339)
            .expect("times are RFC 3339")
            .unix_timestamp_nanos(),
        _ => 0,
    };
    let text = if number == 0 { order[column].as_str() } else { None };
    (number, text.unwrap_or_default().to_owned())
}

fn is_sorted(orders: &[serde_json::Value], sort: &str) {
    let compare = |first: &serde_json::Value, second: &serde_json::Value| {
        let keys = sort.split(',').map(|key| match key.strip_prefix('-') {
            Some(column) => (column, true),
            None => (key, false),
        });
        keys.fold(Ordering::Equal, |so_far, (column, descending)| {
            let next = key(first, column).cmp(&key(second, column));
            so_far.then(if descending { next.reverse() } else { next })
        })
    };
    let is_sorted = orders
        .windows(2)
        .all(|pair| compare(&pair[0], &pair[1]) != Ordering::Greater);
    assert!(is_sorted, "not by {sort}: {orders:?}");
}

#[tokio::test]
async fn orders_are_found_by_what_their_ids_and_references_begin_with() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let mut token = String::new();
    let references = ["web-1", "web-10", "web-2", "Web-1", "händler-7", ""];
    let mut ids = Vec::new();
    for reference in references {
        let mut order = place(&new_order_id(), "customer-1");
        order.reference = reference.to_owned();
        ids.push(order.order_id.clone());
        token = caller.send(order).await?.consistency_token;
    }
    assert_eq!(caller.get_after(&token, "/v1/orders").await?.status, 200);
    let found = async |query: &str| -> anyhow::Result<Vec<String>> {
        let orders = pages(&caller, query).await?;
        let ids = orders.iter().filter_map(|order| order["order_id"].as_str());
        Ok(ids.map(str::to_owned).collect())
    };
    let of = |numbers: &[usize]| {
        numbers
            .iter()
            .map(|number| ids[*number].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(found("q=web-").await?, of(&[0, 1, 2]));
    assert_eq!(found("q=web-1&sort=-reference").await?, of(&[1, 0]));
    assert_eq!(found("q=h%C3%A4nd").await?, of(&[4]));
    assert_eq!(found("q=nothing").await?, of(&[]));
    assert_eq!(found("q=ord_").await?, of(&[0, 1, 2, 3, 4, 5]));
    assert_eq!(found(&format!("q={}", ids[3])).await?, of(&[3]));
    not_served(&caller.get("/v1/orders?q=web&status=PLACED").await?);
    not_served(&caller.get("/v1/orders?q=web&sort=-placed_at").await?);

    let request = ListOrdersRequest {
        q: "web-1".to_owned(),
        ..Default::default()
    };
    let over_grpc = caller.queries().list_orders(request).await?.into_inner();
    let over_grpc: Vec<_> = over_grpc.orders.into_iter().map(|order| order.order_id).collect();
    assert_eq!(over_grpc, of(&[0, 1]));
    Ok(())
}

#[tokio::test]
async fn an_order_shows_its_customer_and_its_lines_on_demand() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (_, token) = orders(&caller).await?;
    let list = "/v1/orders?expand=customer,lines&limit=20&fields=order_id,customer_id";
    let page = caller.get_after(&token, list).await?.json();
    let listed = page["data"].as_array().context("a list")?;
    assert_eq!(listed.len(), 20);
    for order in listed {
        let id = order["customer_id"].as_str().context("an id")?;
        let path = format!("/v1/orders/{}", order["order_id"].as_str().context("an id")?);
        assert_eq!(order["lines"], caller.get(&path).await?.json()["data"]["lines"]);
        let totals = caller.get(&format!("/v1/customers/{id}/totals")).await?.json();
        assert_eq!(order["customer"], totals["data"]);
        assert_eq!(order.as_object().map(serde_json::Map::len), Some(4));
    }
    assert_eq!(caller.get("/v1/orders?expand=lines&limit=21").await?.status, 400);

    let request = ListOrdersRequest {
        expand: vec![OrderExpansion::Customer.into(), OrderExpansion::Lines.into()],
        read_mask: Some(FieldMask {
            paths: vec!["order_id".to_owned()],
        }),
        ..Default::default()
    };
    let over_grpc = caller.queries().list_orders(request).await?.into_inner();
    for (order, listed) in over_grpc.orders.iter().zip(listed) {
        assert_eq!(json!(order.order_id), listed["order_id"]);
        assert_eq!(
            (order.version, order.total.as_ref()),
            (0, None),
            "nobody asked for it"
        );
        assert_eq!(json!(order.lines[0].sku), listed["lines"][0]["sku"]);
        let totals = &order.customer.as_ref().context("it was asked for")?.totals;
        assert_eq!(
            json!(totals[0].ordered_minor),
            listed["customer"]["totals"][0]["ordered_minor"]
        );
    }
    Ok(())
}

/// Customers who have ordered something, and the token of the last order.
async fn some_customers(caller: &Caller) -> anyhow::Result<String> {
    let mut token = String::new();
    for (customer, currency, minor) in [
        ("b-1", "EUR", 300),
        ("a-2", "EUR", 100),
        ("a-1", "EUR", 200),
        ("a-10", "JPY", 900),
        ("a-1", "JPY", 50),
        ("c", "EUR", 200),
    ] {
        let mut order = place("", customer);
        order.currency = currency.to_owned();
        order.lines.truncate(1);
        (order.lines[0].quantity, order.lines[0].unit_price_minor) = (1, minor);
        order.expected_total_minor = None;
        token = caller.send(order).await?.consistency_token;
    }
    Ok(token)
}

#[tokio::test]
async fn customers_are_listed_by_id_and_by_what_they_ordered() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let token = some_customers(&caller).await?;
    assert_eq!(caller.get_after(&token, "/v1/customers").await?.status, 200);
    let found = async |query: &str| -> anyhow::Result<String> {
        let customers = all(&caller, &format!("/v1/customers?limit=2&{query}")).await?;
        let shown = customers.iter().map(|customer| {
            let totals = customer["totals"].as_array().into_iter().flatten();
            let totals: Vec<_> = totals
                .map(|total| format!("{}{}", total["ordered_minor"], total["currency"]))
                .collect();
            format!("{} {}", customer["customer_id"], totals.join(" "))
        });
        Ok(shown.collect::<Vec<_>>().join(", ").replace('"', ""))
    };
    let by_id = "a-1 200EUR 50JPY, a-10 900JPY, a-2 100EUR, b-1 300EUR, c 200EUR";
    assert_eq!(found("").await?, by_id);
    assert_eq!(
        found("sort=customer_id&q=a-1").await?,
        "a-1 200EUR 50JPY, a-10 900JPY"
    );
    assert_eq!(found("q=x").await?, "");
    let by_amount = "b-1 300EUR, c 200EUR, a-1 200EUR, a-2 100EUR";
    assert_eq!(found("currency=EUR").await?, by_amount);
    assert_eq!(
        found("currency=JPY&sort=ordered_minor").await?,
        "a-1 50JPY, a-10 900JPY"
    );
    assert_eq!(found("fields=customer_id&q=b").await?, "b-1 ");
    for refused in [
        "sort=-customer_id",
        "sort=ordered_minor",
        "currency=EUR&q=a",
        "currency=EUR&sort=customer_id",
    ] {
        not_served(&caller.get(&format!("/v1/customers?{refused}")).await?);
    }

    let request = ListCustomersRequest {
        currency: "EUR".to_owned(),
        page_size: 3,
        ..Default::default()
    };
    let page = caller.queries().list_customers(request).await?.into_inner();
    let ids: Vec<_> = page
        .customers
        .iter()
        .map(|customer| customer.customer_id.as_str())
        .collect();
    assert_eq!(ids, ["b-1", "c", "a-1"]);
    assert!(!page.next_page_token.is_empty());
    Ok(())
}

#[tokio::test]
async fn the_same_list_comes_over_grpc() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (_, token) = orders(&caller).await?;
    let mut request = ListOrdersRequest {
        page_size: u32::try_from(PAGE)?,
        statuses: vec![OrderStatus::Placed.into(), OrderStatus::Cancelled.into()],
        currency: "USD".to_owned(),
        order_by: "-total_minor".to_owned(),
        freshness: Some(Freshness {
            consistency_token: token,
        }),
        ..Default::default()
    };
    let mut over_grpc = Vec::new();
    loop {
        let page = caller.queries().list_orders(request.clone()).await?.into_inner();
        over_grpc.extend(page.orders.into_iter().map(|order| order.order_id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let over_http = pages(&caller, "status=PLACED,CANCELLED&currency=USD&sort=-total_minor").await?;
    let over_http: Vec<&str> = over_http
        .iter()
        .filter_map(|order| order["order_id"].as_str())
        .collect();
    assert_eq!(over_grpc, over_http);

    let mut turned = request.clone();
    turned.order_by = "total_minor".to_owned();
    let refused = caller.queries().list_orders(turned).await;
    assert_eq!(
        code(&refused.expect_err("the token is for another sort")),
        "INVALID_CURSOR"
    );
    Ok(())
}

#[tokio::test]
async fn a_cursor_is_good_for_its_own_list_and_tenant_only() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (made, token) = orders(&caller).await?;
    let list = "/v1/orders?limit=7&customer_id=customer-1";
    let first = caller.get_after(&token, list).await?;
    let cursor = first.json()["pagination"]["next_cursor"]
        .as_str()
        .context("there is more")?
        .to_owned();
    // Another size of the page is no other list.
    let good = caller
        .get(&format!(
            "/v1/orders?limit=2&customer_id=customer-1&cursor={cursor}"
        ))
        .await?;
    assert_eq!(good.status, 200);

    let other_tenant = stack.other_caller().await?;
    refused(&other_tenant.get(&format!("{list}&cursor={cursor}")).await?);
    for other in [
        "/v1/orders?limit=7".to_owned(),
        "/v1/orders?customer_id=customer-2".to_owned(),
        "/v1/orders?customer_id=customer-1&sort=placed_at".to_owned(),
        "/v1/orders?customer_id=customer-1&status=PLACED".to_owned(),
        "/v1/orders?currency=USD".to_owned(),
        "/v1/orders?q=customer-1".to_owned(),
        "/v1/customers?limit=7".to_owned(),
        "/v1/orders?customer_id=customer-1&placed_after=2024-05-01T00:00:00Z".to_owned(),
        format!("/v1/orders/{}/events?limit=7", made[0].order_id),
    ] {
        refused(&caller.get(&format!("{other}&cursor={cursor}")).await?);
    }
    for index in 0..cursor.len() {
        let mut tampered = cursor.clone().into_bytes();
        tampered[index] = if tampered[index] == b'A' { b'B' } else { b'A' };
        let tampered = String::from_utf8(tampered)?;
        refused(&caller.get(&format!("{list}&cursor={tampered}")).await?);
    }
    for nonsense in ["", "x", "%00", "AAAA", &"A".repeat(5_000)] {
        refused(&caller.get(&format!("{list}&cursor={nonsense}")).await?);
    }
    Ok(())
}

fn refused(answer: &Answer) {
    assert_eq!(answer.status, 400, "{}", answer.json());
    assert_eq!(answer.json()["code"], json!("INVALID_CURSOR"));
}
