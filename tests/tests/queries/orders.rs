//! One order, as it is and as it was; a customer's totals.

use anyhow::Context as _;
use daybook_proto::common::v1::Freshness;
use daybook_proto::orders::v1::get_order_request::AsOf;
use daybook_proto::orders::v1::{GetCustomerTotalsRequest, GetOrderRequest, Order, OrderStatus};
use daybook_tests::client::Caller;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::refusal::code;
use daybook_tests::stack::Stack;
use daybook_tests::{command, log};
use http::Method;
use serde_json::json;
use time::format_description::well_known::Rfc3339;

/// An order that is placed, changed, confirmed, paid and shipped; returns its id and the token of the newest receipt.
async fn shipped_order(caller: &Caller, customer: &str) -> anyhow::Result<(String, String)> {
    let id = new_order_id();
    let mut order = place(&id, customer);
    order.reference = "web-4711".to_owned();
    caller.send(order).await?;
    caller.send(command::change_quantity(&id, 3)).await?;
    caller.send(command::change_address(&id, "Springfield")).await?;
    caller.send(command::confirm(&id)).await?;
    caller.send(command::pay(&id, "pay-1", 4_707)).await?;
    let receipt = caller.send(command::ship(&id, "ship-1", &[])).await?;
    Ok((id, receipt.consistency_token))
}

async fn over_grpc(
    caller: &Caller,
    order_id: &str,
    as_of: Option<AsOf>,
    token: &str,
) -> Result<Order, tonic::Status> {
    let request = GetOrderRequest {
        order_id: order_id.to_owned(),
        as_of,
        freshness: Some(Freshness {
            consistency_token: token.to_owned(),
        }),
    };
    let response = caller.queries().get_order(request).await?;
    Ok(response.into_inner().order.expect("what is found is answered"))
}

#[tokio::test]
async fn an_order_is_read_in_full_over_both_transports() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (id, token) = shipped_order(&caller, "customer-1").await?;
    let answer = caller.get_after(&token, &format!("/v1/orders/{id}")).await?;
    assert_eq!(answer.status, 200);
    let order = &answer.json()["data"];
    assert_eq!(order["order_id"], id);
    assert_eq!(order["version"], 6);
    assert_eq!(order["status"], "SHIPPED");
    assert_eq!(order["reference"], "web-4711");
    assert_eq!(order["customer_id"], "customer-1");
    assert_eq!(order["total"], json!({"minor": 4_707, "currency": "USD"}));
    assert_eq!(order["paid"], json!({"minor": 4_707, "currency": "USD"}));
    assert_eq!(order["refunded"]["minor"], 0);
    assert_eq!(
        order["lines"][0],
        json!({
            "line_number": 1, "sku": "CD", "quantity": 3, "unit_price_minor": 1_177, "total_minor": 3_531,
            "shipped_quantity": 3, "returned_quantity": 0,
        })
    );
    assert_eq!(order["shipping_address"]["city"], "Springfield");
    assert_eq!(order["shipments"][0]["shipment_id"], "ship-1");
    assert_eq!(order["returns"], json!([]));
    assert_eq!(answer.header("cache-control"), "private, no-cache");
    assert_eq!(answer.header("daybook-position"), "6");
    assert_eq!(answer.header("daybook-lag-ms"), "0");
    assert!(!answer.header("x-request-id").is_empty());

    let wire = over_grpc(&caller, &id, None, &token).await?;
    assert_eq!(wire.order_id, id);
    assert_eq!(wire.version, 6);
    assert_eq!(wire.status(), OrderStatus::Shipped);
    assert_eq!(wire.total.context("an order has a total")?.minor, 4_707);
    assert_eq!(wire.lines[0].shipped_quantity, 3);
    assert_eq!(
        wire.shipping_address.context("it goes somewhere")?.city,
        "Springfield"
    );
    assert_eq!(wire.shipments[0].shipment_id, "ship-1");
    Ok(())
}

#[tokio::test]
async fn what_a_caller_has_already_is_not_sent_again() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (id, token) = shipped_order(&caller, "customer-1").await?;
    let path = format!("/v1/orders/{id}");
    let key = stack.tenant.frontend_key.as_str();
    let full = caller.get_after(&token, &path).await?;
    let tag = full.header("etag").to_owned();
    assert!(
        tag.starts_with('"') && tag.ends_with('"'),
        "{tag} is not a strong tag"
    );

    let same = caller.get_as(key, &path, &[("if-none-match", &tag)]).await?;
    assert_eq!(same.status, 304);
    assert!(same.body.is_empty());
    assert_eq!(same.header("etag"), tag);
    let head = caller.http(Method::HEAD, key, &path, &[]).await?;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("etag"), tag);
    assert_eq!(head.header("content-length"), full.body.len().to_string());

    let some = caller
        .get_as(key, &format!("{path}?fields=status,order_id"), &[])
        .await?;
    assert_eq!(some.json()["data"], json!({"order_id": id, "status": "SHIPPED"}));
    assert_ne!(
        some.header("etag"),
        tag,
        "another representation has the same tag"
    );
    for encoding in ["gzip", "br", "zstd"] {
        let answer = caller
            .get_as(key, &path, &[("accept-encoding", encoding)])
            .await?;
        assert!(answer.header("vary").contains("accept-encoding"));
        let tag = answer.header("etag").to_owned();
        let same = caller.get_as(key, &path, &[("if-none-match", &tag)]).await?;
        assert_eq!(same.status, 304, "{encoding}");
    }

    let delivered = caller.send(command::deliver(&id, "ship-1")).await?;
    let headers = [
        ("if-none-match", tag.as_str()),
        ("daybook-consistency", delivered.consistency_token.as_str()),
        ("prefer", "wait=10"),
    ];
    let changed = caller.get_as(key, &path, &headers).await?;
    assert_eq!(changed.status, 200);
    assert_eq!(changed.json()["data"]["status"], "DELIVERED");
    assert_ne!(changed.header("etag"), tag);
    Ok(())
}

#[tokio::test]
async fn an_order_is_read_as_it_was_at_every_version_and_moment() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let (id, token) = shipped_order(&caller, "customer-1").await?;
    let events = log::stream(&stack.superuser, &id).await?;
    let statuses = ["PLACED", "PLACED", "PLACED", "CONFIRMED", "CONFIRMED", "SHIPPED"];
    for (event, status) in events.iter().zip(statuses) {
        let version = event.stream_version;
        let by_version = caller.get(&format!("/v1/orders/{id}?as_of={version}")).await?;
        assert_eq!(by_version.json()["data"]["version"], version);
        assert_eq!(by_version.json()["data"]["status"], status);
        let moment = event.recorded_at.format(&Rfc3339)?;
        let by_time = caller.get(&format!("/v1/orders/{id}?as_of={moment}")).await?;
        assert_eq!(by_time.body, by_version.body);
        let wire = over_grpc(&caller, &id, Some(AsOf::AsOfVersion(version)), "").await?;
        assert_eq!(wire.version, version);
        assert_eq!(wire.status().as_str_name(), format!("ORDER_STATUS_{status}"));
    }
    let first = caller.get(&format!("/v1/orders/{id}?as_of=1")).await?;
    assert_eq!(first.json()["data"]["total"]["minor"], 3_530);
    let newest = caller.get_after(&token, &format!("/v1/orders/{id}")).await?;
    let as_of_newest = caller.get(&format!("/v1/orders/{id}?as_of=6")).await?;
    assert_eq!(
        newest.body, as_of_newest.body,
        "the fold and the read model differ"
    );

    for missing in ["7", "18446744073709551615", "2001-01-01T00:00:00Z"] {
        let answer = caller.get(&format!("/v1/orders/{id}?as_of={missing}")).await?;
        assert_eq!(answer.status, 404, "{missing}");
        assert_eq!(answer.json()["code"], "RESOURCE_NOT_FOUND");
    }
    let beyond = over_grpc(&caller, &id, Some(AsOf::AsOfVersion(7)), "").await;
    assert_eq!(code(&beyond.expect_err("there are six")), "RESOURCE_NOT_FOUND");
    let none = over_grpc(&caller, &id, Some(AsOf::AsOfVersion(0)), "").await;
    assert_eq!(
        code(&none.expect_err("versions begin with 1")),
        "VALIDATION_FAILED"
    );
    Ok(())
}

#[tokio::test]
async fn a_customers_totals_leave_closed_orders_out() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    shipped_order(&caller, "customer-1").await?;
    let cancelled = new_order_id();
    caller.place(&cancelled, "customer-1").await?;
    caller.cancel(&cancelled).await?;
    let mut euros = place(&new_order_id(), "customer-1");
    euros.currency = "EUR".to_owned();
    let receipt = caller.send(euros).await?;
    let token = receipt.consistency_token;

    let answer = caller
        .get_after(&token, "/v1/customers/customer-1/totals")
        .await?;
    assert_eq!(
        answer.json()["data"],
        json!({
            "customer_id": "customer-1",
            "totals": [
                {"currency": "EUR", "orders_placed": 1, "orders_closed": 0, "items_ordered": 3,
                 "ordered_minor": 3_530, "paid_minor": 0, "refunded_minor": 0},
                {"currency": "USD", "orders_placed": 2, "orders_closed": 1, "items_ordered": 4,
                 "ordered_minor": 4_707, "paid_minor": 4_707, "refunded_minor": 0},
            ],
        })
    );
    let request = GetCustomerTotalsRequest {
        customer_id: "customer-1".to_owned(),
        freshness: Some(Freshness {
            consistency_token: token,
        }),
    };
    let wire = caller.queries().get_customer_totals(request).await?.into_inner();
    let totals: Vec<_> = wire
        .totals
        .iter()
        .map(|total| (total.currency.as_str(), total.orders_placed, total.ordered_minor))
        .collect();
    assert_eq!(totals, [("EUR", 1, 3_530), ("USD", 2, 4_707)]);
    Ok(())
}
