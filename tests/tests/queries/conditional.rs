//! Conditional requests: every document has a strong tag, and what a caller has already is not sent again.

use daybook_tests::client::Caller;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::stack::Stack;
use daybook_tests::{check, command, log, stock};
use http::Method;
use sqlx::AssertSqlSafe;

/// An order of several events that is long enough to be compressed, and a stock item; the paths of all documents of theirs.
async fn documents(stack: &Stack, caller: &Caller) -> anyhow::Result<Vec<String>> {
    let order_id = new_order_id();
    let mut order = place(&order_id, "customer-1");
    order.lines = vec![order.lines[0].clone(); 40];
    order.expected_total_minor = None;
    caller.send(order).await?;
    caller.send(command::confirm(&order_id)).await?;
    caller.send(stock::register("PEN-FINE")).await?;
    check::caught_up(&stack.superuser).await?;
    Ok(vec![
        format!("/v1/orders/{order_id}"),
        format!("/v1/orders/{order_id}?fields=status,lines"),
        format!("/v1/orders/{order_id}?as_of=1"),
        format!("/v1/orders/{order_id}/events"),
        format!("/v1/orders/{order_id}/events?limit=1"),
        format!("/v1/orders/{order_id}/events?order=desc"),
        "/v1/customers/customer-1/totals".to_owned(),
        format!("/v1/stock-items/{}", stock::stock_item_id("PEN-FINE")),
    ])
}

/// `"v<version>-<shape>"`.
fn is_strong_tag(tag: &str) -> bool {
    let opaque = tag.strip_prefix("\"v").and_then(|tag| tag.strip_suffix('"'));
    opaque
        .and_then(|opaque| opaque.split_once('-'))
        .is_some_and(|(version, shape)| {
            version.parse::<u64>().is_ok()
                && shape.len() == 16
                && shape.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}

#[tokio::test]
async fn every_document_has_a_tag_and_whoever_shows_it_gets_no_body() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let key = stack.tenant.auditor_key.as_str();
    let mut tags = Vec::new();
    for path in documents(&stack, &caller).await? {
        let full = caller.get(&path).await?;
        let tag = full.header("etag").to_owned();
        assert!(full.status == 200 && is_strong_tag(&tag), "{path}: {tag}");
        assert_eq!(full.header("cache-control"), "private, no-cache");
        for encoding in ["identity", "gzip", "br", "zstd"] {
            let headers = [("accept-encoding", encoding)];
            let encoded = caller.get_as(key, &path, &headers).await?;
            assert!(encoded.header("vary").contains("accept-encoding"), "{path}");
            let tag = encoded.header("etag").to_owned();
            let headers = [("accept-encoding", encoding), ("if-none-match", &tag)];
            let same = caller.get_as(key, &path, &headers).await?;
            assert_eq!((same.status, same.body.len()), (304, 0), "{path} {encoding}");
            for name in ["etag", "cache-control", "vary"] {
                assert_eq!(
                    same.header(name),
                    encoded.header(name),
                    "{path} {encoding} {name}"
                );
            }
            assert!(!same.header("daybook-consistency").is_empty());
        }
        let other = caller
            .get_as(key, &path, &[("if-none-match", "\"v1-0000000000000000\"")])
            .await?;
        assert_eq!((other.status, other.body), (200, full.body), "{path}");
        tags.push(tag);
    }
    let count = tags.len();
    tags.sort();
    tags.dedup();
    assert_eq!(tags.len(), count, "two representations have one tag: {tags:?}");
    Ok(())
}

#[tokio::test]
async fn head_gives_the_headers_of_get_in_every_encoding() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let key = stack.tenant.auditor_key.as_str();
    let mut paths = documents(&stack, &caller).await?;
    paths.extend(
        [
            "/v1/orders",
            "/v1/stock-items",
            "/openapi.json",
            "/problems",
            "/healthz",
        ]
        .map(str::to_owned),
    );
    let mut compressed = 0;
    for path in paths {
        for encoding in ["identity", "gzip", "br", "zstd"] {
            let headers = [("accept-encoding", encoding)];
            let get = caller.http(Method::GET, key, &path, &headers).await?;
            let head = caller.http(Method::HEAD, key, &path, &headers).await?;
            assert_eq!((head.status, head.body.len()), (200, 0), "{path} {encoding}");
            assert_eq!(
                head.header("content-length"),
                get.body.len().to_string(),
                "{path} {encoding}"
            );
            for name in [
                "etag",
                "content-type",
                "content-encoding",
                "cache-control",
                "vary",
            ] {
                assert_eq!(head.header(name), get.header(name), "{path} {encoding} {name}");
            }
            compressed += u32::from(!get.header("content-encoding").is_empty());
        }
    }
    assert!(compressed >= 12, "{compressed} answers were compressed");
    Ok(())
}

#[tokio::test]
async fn every_resource_says_which_methods_it_takes() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let mut paths = documents(&stack, &caller).await?;
    paths.extend(
        [
            "/v1/orders",
            "/v1/stock-items",
            "/v1/events",
            "/openapi.json",
            "/problems",
        ]
        .map(str::to_owned),
    );
    for path in paths {
        let answer = caller.http(Method::OPTIONS, "", &path, &[]).await?;
        assert_eq!(
            (answer.status, answer.header("allow")),
            (204, "GET,HEAD,OPTIONS"),
            "{path}"
        );
        let refused = caller
            .http(Method::PUT, &stack.tenant.auditor_key, &path, &[])
            .await?;
        assert_eq!(
            (refused.status, refused.header("allow")),
            (405, "GET,HEAD,OPTIONS"),
            "{path}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_document_that_another_fold_has_made_has_another_tag_in_the_same_version() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let key = stack.tenant.auditor_key.as_str();
    let path = documents(&stack, &caller).await?.swap_remove(0);
    let before = caller.get(&path).await?;
    // What is left behind by a rebuild with a fold that writes documents otherwise.
    sqlx::query(AssertSqlSafe(
        "UPDATE read_model.order_details_g1
         SET document = replace(document::text, '\"customer-1\"', '\"customer-1b\"')::json",
    ))
    .execute(&stack.superuser)
    .await?;
    let headers = [("if-none-match", before.header("etag"))];
    let after = caller.get_as(key, &path, &headers).await?;
    assert_eq!(after.status, 200, "it was told that it has this");
    assert_eq!(after.json()["data"]["customer_id"], "customer-1b");
    assert_eq!(after.json()["data"]["version"], before.json()["data"]["version"]);
    assert_ne!(after.header("etag"), before.header("etag"));
    Ok(())
}

#[tokio::test]
async fn a_history_that_has_grown_and_totals_that_have_changed_are_sent_again() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let key = stack.tenant.auditor_key.as_str();
    let paths = documents(&stack, &caller).await?;
    let [events, totals] = [&paths[3], &paths[6]];
    let mut tags = Vec::new();
    for path in [events, totals] {
        tags.push(caller.get(path).await?.header("etag").to_owned());
    }
    let order_id = log::events(&stack.superuser).await?[0].stream_id.clone();
    caller.send(command::pay(&order_id, "pay-1", 1)).await?;
    check::caught_up(&stack.superuser).await?;
    for (path, tag) in [events, totals].into_iter().zip(&tags) {
        let changed = caller.get_as(key, path, &[("if-none-match", tag)]).await?;
        assert_eq!(changed.status, 200, "{path}");
        assert_ne!(changed.header("etag"), tag, "{path}");
    }
    Ok(())
}
