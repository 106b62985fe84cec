//! Web pages of other origins, as a browser asks for them.

use std::collections::HashSet;

use daybook_tests::client::{Answer, Caller};
use daybook_tests::orders::new_order_id;
use daybook_tests::stack::{Role, Running, Stack};
use http::Method;

const SHOP: &str = "https://shop.example";
const ORIGINS: &str = "https://shop.example,http://localhost:3000";

/// What a browser shows of any answer, and what means nothing to a page.
const SHOWN_OR_UNSEEN: [&str; 6] = [
    "cache-control",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "vary",
];

fn list<'a>(answer: &'a Answer, name: &str) -> HashSet<&'a str> {
    answer.header(name).split(',').map(str::trim).collect()
}

/// Asks before a request, as a browser does: without a key.
async fn preflight(caller: &Caller, origin: &str, path: &str, method: &str) -> anyhow::Result<Answer> {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", method),
        (
            "access-control-request-headers",
            "authorization,daybook-consistency",
        ),
    ];
    caller.http(Method::OPTIONS, "", path, &headers).await
}

/// A caller of this service alone.
fn caller_of(stack: &Stack, service: &Running) -> anyhow::Result<Caller> {
    let url = service.url();
    Caller::new(&url, &url, &url, stack.tenant.clone())
}

#[tokio::test]
async fn pages_on_the_list_may_call_both_services_and_see_what_answers_carry() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let order_id = new_order_id();
    let receipt = stack.caller()?.place(&order_id, "customer-1").await?;
    let environment = [("DAYBOOK_CORS_ORIGINS", ORIGINS)];
    let query = stack.servers.run(Role::Query, &environment).await?;
    let command = stack.servers.run(Role::Command, &environment).await?;
    let (reader, writer) = (caller_of(&stack, &query)?, caller_of(&stack, &command)?);
    let order = format!("/v1/orders/{order_id}");
    for (caller, path, method) in [
        (&reader, order.as_str(), "GET"),
        (&reader, "/daybook.orders.v1.OrderQueryService/GetOrder", "POST"),
        (&writer, "/daybook.orders.v1.OrderService/PlaceOrder", "POST"),
    ] {
        for origin in ORIGINS.split(',') {
            let allowed = preflight(caller, origin, path, method).await?;
            assert_eq!((allowed.status, allowed.body.len()), (200, 0), "{path}");
            assert_eq!(allowed.header("access-control-allow-origin"), origin);
            assert!(
                list(&allowed, "access-control-allow-methods").contains(method),
                "{path}"
            );
            let headers = list(&allowed, "access-control-allow-headers");
            assert!(headers.contains("authorization") && headers.contains("daybook-consistency"));
            assert_eq!(allowed.header("access-control-allow-credentials"), "");
        }
    }
    let asked = [
        ("origin", SHOP),
        ("daybook-consistency", receipt.consistency_token.as_str()),
    ];
    let key = stack.tenant.auditor_key.as_str();
    for (key, path, status) in [
        (key, order.as_str(), 200),
        (key, "/v1/orders", 200),
        ("", "/v1/orders", 401),
        (key, "/v1/orders/ord_01h455vb4pex5vsknk084sn02q", 404),
        (key, "/v1/nothing", 404),
    ] {
        let answer = reader.get_as(key, path, &asked).await?;
        assert_eq!(answer.status, status, "{path}: {}", answer.json());
        assert_eq!(answer.header("access-control-allow-origin"), SHOP, "{path}");
        assert!(
            answer
                .headers
                .get_all("vary")
                .iter()
                .any(|vary| vary.as_bytes().starts_with(b"origin"))
        );
        let exposed = list(&answer, "access-control-expose-headers");
        for name in answer.headers.keys().map(http::HeaderName::as_str) {
            let is_seen = exposed.contains(name) || name.starts_with("access-control-");
            assert!(
                is_seen || SHOWN_OR_UNSEEN.contains(&name),
                "{path}: a page does not see {name}"
            );
        }
    }
    let refused = reader.http(Method::DELETE, "", &order, &asked[..1]).await?;
    assert_eq!(refused.header("access-control-allow-origin"), SHOP);
    Ok(())
}

#[tokio::test]
async fn no_other_page_may_and_by_default_none() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let environment = [("DAYBOOK_CORS_ORIGINS", ORIGINS)];
    let listed = stack.servers.run(Role::Query, &environment).await?;
    for (service, origin) in [
        (&listed, "https://shop.example.evil"),
        (&listed, "https://evil.example"),
        (&listed, "http://shop.example"),
        (&listed, "null"),
        (&stack.query, SHOP),
        (&stack.command, SHOP),
    ] {
        let caller = caller_of(&stack, service)?;
        let key = stack.tenant.frontend_key.as_str();
        for answer in [
            preflight(&caller, origin, "/v1/orders", "GET").await?,
            caller.get_as(key, "/v1/orders", &[("origin", origin)]).await?,
        ] {
            assert_eq!(answer.header("access-control-allow-origin"), "", "{origin}");
        }
    }
    let options = caller_of(&stack, &listed)?;
    let options = options
        .http(Method::OPTIONS, "", "/v1/orders", &[("origin", SHOP)])
        .await?;
    assert_eq!(
        (options.status, options.header("allow")),
        (204, "GET,HEAD,OPTIONS")
    );
    Ok(())
}
