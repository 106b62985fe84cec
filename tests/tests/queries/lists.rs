//! Lists of orders: filters, sorts, pages, and the cursors between them.

use std::collections::BTreeSet;

use anyhow::Context as _;
use daybook_proto::common::v1::{CommandContext, Freshness};
use daybook_proto::orders::v1::{ListOrdersRequest, OrderStatus};
use daybook_tests::client::{Answer, Caller};
use daybook_tests::command;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::refusal::code;
use daybook_tests::stack::Stack;
use daybook_tests::tenant::Tenant;
use serde_json::json;
use time::format_description::well_known::Rfc3339;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

/// How many orders there are.
const ORDERS: i64 = 30;

/// How many orders a page has: several pages, the last one not full.
const PAGE: usize = 7;

const SORTS: [&str; 6] = [
    "placed_at",
    "-placed_at",
    "updated_at",
    "-updated_at",
    "total_minor",
    "-total_minor",
];

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

/// All pages of a list over REST.
async fn pages(caller: &Caller, query: &str) -> anyhow::Result<Vec<serde_json::Value>> {
    let mut found = Vec::new();
    let mut cursor = String::new();
    loop {
        let answer = caller
            .get(&format!("/v1/orders?limit={PAGE}&{query}{cursor}"))
            .await?;
        anyhow::ensure!(answer.status == 200, "{query}: {}", answer.json());
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

fn is_sorted(orders: &[serde_json::Value], sort: &str) {
    let (column, descending) = sort
        .strip_prefix('-')
        .map_or((sort, false), |column| (column, true));
    let key = |order: &serde_json::Value| match column {
        "total_minor" => i128::from(order["total"]["minor"].as_i64().expect("a total")),
        time => OffsetDateTime::parse(order[time].as_str().expect("a time"), &Rfc3339)
            .expect("times are RFC 3339")
            .unix_timestamp_nanos(),
    };
    let is_sorted = orders.windows(2).all(|pair| {
        let (first, second) = (key(&pair[0]), key(&pair[1]));
        if descending {
            first >= second
        } else {
            first <= second
        }
    });
    assert!(is_sorted, "not by {sort}: {orders:?}");
}

#[tokio::test]
async fn the_same_list_comes_over_grpc() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (_, token) = orders(&caller).await?;
    let mut request = ListOrdersRequest {
        page_size: u32::try_from(PAGE)?,
        statuses: vec![OrderStatus::Placed.into(), OrderStatus::Cancelled.into()],
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
    let over_http = pages(&caller, "status=PLACED,CANCELLED&sort=-total_minor").await?;
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

    let stranger = Caller::new(
        &stack.command.url(),
        &stack.query.url(),
        &stack.projector.url(),
        Tenant::create(&stack.superuser).await?,
    )?;
    refused(&stranger.get(&format!("{list}&cursor={cursor}")).await?);
    for other in [
        "/v1/orders?limit=7".to_owned(),
        "/v1/orders?customer_id=customer-2".to_owned(),
        "/v1/orders?customer_id=customer-1&sort=placed_at".to_owned(),
        "/v1/orders?customer_id=customer-1&status=PLACED".to_owned(),
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
