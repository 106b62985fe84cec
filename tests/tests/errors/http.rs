//! What is refused over HTTP: a problem of RFC 9457, whatever the route.

use std::collections::HashSet;

use anyhow::ensure;
use daybook_proto::common::v1::CommandContext;
use daybook_tests::client::{Answer, Caller};
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::stack::Stack;
use daybook_tests::{log, stock};
use http::Method;

use crate::described::{Described, described};

/// An article of which there is a stock item.
const ARTICLE: &str = "PEN-FINE";

/// Every route that is read, of an order and of what there is beside it.
async fn routes(caller: &Caller, order_id: &str) -> anyhow::Result<Vec<Described>> {
    let description = caller.get_as("", "/openapi.json", &[]).await?;
    let mut routes = described(&description, "get", |_| true, 14)?;
    for Described { path, .. } in &mut routes {
        for (name, value) in [
            ("{aggregates}/{id}", format!("orders/{order_id}")),
            ("{order_id}", order_id.to_owned()),
            ("{stock_item_id}", stock::stock_item_id(ARTICLE)),
            ("{customer_id}", "customer-1".to_owned()),
            ("{correlation_id}", "checkout-77".to_owned()),
        ] {
            *path = path.replace(name, &value);
        }
        ensure!(!path.contains('{'), "{path} has an id of which there is none");
    }
    Ok(routes)
}

/// A request that is wrong, what is said about it, and which field is wrong.
const WRONG: [(&str, &str); 51] = [
    ("/v1/stock-items/42", "/stock_item_id"),
    ("/v1/stock-items?limit=0", "limit"),
    ("/v1/stock-items/{id}/events", "/id"),
    ("/v1/orders?limit=0", "limit"),
    ("/v1/orders?limit=-1", "limit"),
    ("/v1/orders?limit=101", "limit"),
    ("/v1/orders?limit=99999999999999999999", "limit"),
    ("/v1/orders?limit=ten", "limit"),
    ("/v1/orders?limit=1&limit=2", "limit"),
    ("/v1/orders?status=placed", "status"),
    ("/v1/orders?status=ORDER_STATUS_PLACED", "status"),
    ("/v1/orders?customer_id=", "customer_id"),
    ("/v1/orders?customer_id=a%20b", "customer_id"),
    ("/v1/orders?customer_id=%00", "customer_id"),
    ("/v1/orders?placed_after=yesterday", "placed_after"),
    ("/v1/orders?placed_before=2024-13-01T00:00:00Z", "placed_before"),
    ("/v1/orders?sort=reference", "sort"),
    ("/v1/orders?sort=--placed_at", "sort"),
    ("/v1/orders?sort=placed_at;DROP", "sort"),
    ("/v1/orders?sort=updated_at", "sort"),
    ("/v1/orders?sort=total_minor", "sort"),
    ("/v1/orders?currency=euro", "currency"),
    ("/v1/orders?q=", "q"),
    ("/v1/orders?expand=password", "expand"),
    ("/v1/orders?expand=lines&limit=21", "limit"),
    ("/v1/orders?fields=password", "fields"),
    ("/v1/orders?consistency=nonsense", "consistency"),
    ("/v1/orders/42", "/order_id"),
    ("/v1/orders/cus_01h455vb4pex5vsknk084sn02q", "/order_id"),
    ("/v1/orders/ord_01h455vb4pex5vsknk084sn02", "/order_id"),
    ("/v1/orders/%00", "/order_id"),
    ("/v1/orders/{id}?as_of=0", "as_of"),
    ("/v1/orders/{id}?as_of=-1", "as_of"),
    ("/v1/orders/{id}?as_of=yesterday", "as_of"),
    ("/v1/orders/{id}?fields=", "fields"),
    ("/v1/orders/{id}/events?from_version=0", "from_version"),
    ("/v1/orders/{id}/events?from_version=3&to_version=2", "to_version"),
    ("/v1/orders/{id}/events?order=up", "order"),
    ("/v1/events?limit=0", "limit"),
    ("/v1/events?sort=recorded_at", "sort"),
    ("/v1/events?actor=a&event_type=b", "sort"),
    ("/v1/events?event_type=", "event_type"),
    ("/v1/events?stream_id=%00", "stream_id"),
    ("/v1/events?recorded_after=yesterday", "recorded_after"),
    ("/v1/events?consistency=nonsense", "consistency"),
    ("/v1/correlations/%00", "/correlation_id"),
    ("/v1/orders/stk_01h455vb4pex5vsknk084sn02q/history", "/order_id"),
    ("/v1/customers?q=a%20b", "q"),
    ("/v1/customers?sort=-customer_id", "sort"),
    ("/v1/customers/a%20b/totals", "/customer_id"),
    ("/v1/customers/%F0%9F%A6%80/totals", "/customer_id"),
];

fn problem(answer: &Answer, status: u16, code: &str) -> anyhow::Result<()> {
    let body = answer.json();
    ensure!(
        answer.status == status && body["code"] == code && body["status"] == status,
        "{} {body} and not {status} {code}",
        answer.status
    );
    ensure!(
        answer.header("content-type") == "application/problem+json",
        "{body} came as {}",
        answer.header("content-type")
    );
    ensure!(
        body["request_id"] == answer.header("x-request-id") && !answer.header("x-request-id").is_empty(),
        "{body} has not the request id of the header"
    );
    let kind = body["type"].as_str().unwrap_or_default();
    ensure!(kind.starts_with("/problems/"), "{body} has no type");
    Ok(())
}

#[tokio::test]
async fn no_route_answers_without_a_key_with_a_wrong_one_or_without_its_scope() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    for Described { path, scope } in routes(&caller, &new_order_id()).await? {
        for key in [
            "",
            "nonsense",
            &daybook_service::identity::generate_api_key().plain,
        ] {
            let answer = caller.get_as(key, &path, &[]).await?;
            problem(&answer, 401, "UNAUTHENTICATED")?;
            assert!(answer.header("www-authenticate").starts_with("Bearer"), "{path}");
        }
        for key in stack.tenant.keys_without(&stack.superuser, scope).await? {
            // Who may not ask is told so even when the question is wrong.
            for path in [path.clone(), format!("{path}?limit=0&as_of=0")] {
                let answer = caller.get_as(&key, &path, &[]).await?;
                problem(&answer, 403, "PERMISSION_DENIED")?;
                assert_eq!(answer.json()["missing_scope"], scope.as_str());
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_request_that_is_wrong_names_the_field() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    for (path, field) in WRONG {
        let answer = caller.get(&path.replace("{id}", &new_order_id())).await?;
        problem(&answer, 400, "VALIDATION_FAILED").map_err(|error| error.context(path))?;
        let body = answer.json();
        let pointers: HashSet<&str> = body["errors"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|violation| violation["pointer"].as_str())
            .collect();
        assert!(pointers.contains(field), "{path}: {body}");
    }
    let several = caller.get("/v1/orders?limit=0&sort=x&status=y").await?;
    assert_eq!(several.json()["errors"].as_array().map(Vec::len), Some(3));
    assert_eq!(log::head(&stack.superuser).await?, 0);
    Ok(())
}

#[tokio::test]
async fn what_does_not_exist_and_what_cannot_be_done_are_problems_on_every_service() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    for service in [&stack.command, &stack.query, &stack.projector] {
        let url = service.url();
        let caller = Caller::new(&url, &url, &url, stack.tenant.clone())?;
        for path in ["/", "/v1/nonsense", "/v1/orders/a/b/c", "/%ff"] {
            problem(&caller.get(path).await?, 404, "RESOURCE_NOT_FOUND")?;
            problem(&caller.get_as("", path, &[]).await?, 401, "UNAUTHENTICATED")?;
        }
        let answer = caller.http(Method::DELETE, "", "/problems", &[]).await?;
        problem(&answer, 405, "METHOD_NOT_ALLOWED")?;
        assert!(answer.header("allow").contains("GET"));
        for public in ["/problems/version-conflict", "/healthz"] {
            assert_eq!(caller.get_as("", public, &[]).await?.status, 200, "{public}");
        }
        let id = caller
            .get_as("", "/v1/nonsense", &[("x-request-id", "my-own-id")])
            .await?;
        assert_eq!(id.header("x-request-id"), "my-own-id");
        let long = format!("/{}", "x".repeat(64 * 1_024));
        let refused = caller.get(&long).await;
        assert!(
            refused.is_err() || refused.is_ok_and(|answer| (400..500).contains(&answer.status)),
            "a request line of 64 KiB was taken"
        );
    }
    let caller = stack.caller()?;
    for path in ["/v1/orders", "/v1/customers/customer-1/totals"] {
        let answer = caller
            .http(Method::POST, &stack.tenant.auditor_key, path, &[])
            .await?;
        problem(&answer, 405, "METHOD_NOT_ALLOWED")?;
    }
    // One address may lead to both services.
    let rule = caller.get_as("", "/problems/order-already-shipped", &[]).await?;
    assert_eq!(rule.status, 200, "{}", rule.json());
    Ok(())
}

#[tokio::test]
async fn another_tenants_resource_is_answered_like_one_that_does_not_exist() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let owner = stack.caller()?;
    let order_id = new_order_id();
    owner.send(stock::register(ARTICLE)).await?;
    let mut order = place(&order_id, "customer-1");
    order.context = Some(CommandContext {
        correlation_id: "checkout-77".to_owned(),
        ..Default::default()
    });
    let receipt = owner.send(order).await?;
    let token = receipt.consistency_token.as_str();
    let routes = routes(&owner, &order_id).await?;
    for Described { path, .. } in routes.iter().filter(|route| !route.path.ends_with("/stream")) {
        assert_eq!(owner.get_after(token, path).await?.status, 200, "{path}");
    }
    let other_tenant = stack.other_caller().await?;
    let missing_id = new_order_id();
    for route in [
        "/v1/orders/{id}",
        "/v1/orders/{id}?as_of=1",
        "/v1/orders/{id}?as_of=2100-01-01T00:00:00Z",
        "/v1/orders/{id}?fields=status",
        "/v1/orders/{id}/events",
        "/v1/orders/{id}/events?order=desc",
    ] {
        let ask = async |id: &str| {
            let headers = [("x-request-id", "the-same")];
            let path = route.replace("{id}", id);
            other_tenant
                .get_as(&other_tenant.tenant.auditor_key, &path, &headers)
                .await
        };
        let (foreign, missing) = (ask(&order_id).await?, ask(&missing_id).await?);
        problem(&foreign, 404, "RESOURCE_NOT_FOUND").map_err(|error| error.context(route))?;
        let body = |answer: &Answer, id: &str| String::from_utf8_lossy(&answer.body).replace(id, "");
        assert_eq!(body(&foreign, &order_id), body(&missing, &missing_id), "{route}");
        let names = |answer: &Answer| answer.headers.keys().cloned().collect::<HashSet<_>>();
        assert_eq!(names(&foreign), names(&missing), "{route}");
    }
    let item = format!("/v1/stock-items/{}", stock::stock_item_id(ARTICLE));
    let item = other_tenant.get(&item).await?;
    problem(&item, 404, "RESOURCE_NOT_FOUND")?;
    let items = other_tenant.get("/v1/stock-items").await?;
    assert_eq!(items.json()["data"], serde_json::json!([]));
    let totals = other_tenant.get("/v1/customers/customer-1/totals").await?;
    problem(&totals, 404, "RESOURCE_NOT_FOUND")?;
    let correlation = other_tenant.get("/v1/correlations/checkout-77").await?;
    problem(&correlation, 404, "RESOURCE_NOT_FOUND")?;
    for list in ["/v1/orders", "/v1/events"] {
        let list = other_tenant.get(list).await?;
        assert_eq!(list.json()["data"], serde_json::json!([]));
    }
    Ok(())
}
