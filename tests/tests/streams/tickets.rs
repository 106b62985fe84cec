//! Tickets: what opens a stream where a key cannot be sent, and what they do not open.

use anyhow::ensure;
use daybook_service::identity::{Principal, Scope, ScopeSet};
use daybook_service::tickets::Tickets;
use daybook_tests::client::Answer;
use daybook_tests::orders::new_order_id;
use daybook_tests::rest::Rest;
use daybook_tests::sse::Source;
use daybook_tests::stack::{Role, Stack};
use daybook_tests::tenant::Tenant;
use daybook_tests::{log, sealing, wait};
use http::Method;
use serde_json::json;
use time::{Duration, OffsetDateTime};

const EVENTS: &str = "/v1/events/stream?type=order.placed";

/// Asks for a ticket with a key.
async fn ask(url: &str, key: &str, stream: &str) -> anyhow::Result<Answer> {
    let body = json!({ "stream": stream }).to_string();
    Rest::new(url, key)
        .send(Method::POST, "/v1/stream-tickets", &[], body)
        .await
}

/// The address of a stream with a ticket in it.
async fn with_ticket(url: &str, key: &str, stream: &str) -> anyhow::Result<String> {
    let answer = ask(url, key, stream).await?;
    ensure!(answer.status == 200, "{}", answer.json());
    ensure!(answer.header("cache-control") == "no-store", "nobody keeps it");
    let ticket = super::text(&answer.json()["data"]["ticket"]);
    let separator = if stream.contains('?') { '&' } else { '?' };
    Ok(format!("{stream}{separator}ticket={ticket}"))
}

#[tokio::test]
async fn a_ticket_opens_its_stream_without_a_key_and_goes_on_with_it() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let (caller, url) = (stack.caller()?, stack.query.url());
    let address = with_ticket(&url, &stack.tenant.auditor_key, EVENTS).await?;
    let other_replica = stack.servers.run(Role::Query, &[]).await?;
    let mut shown = Source::new(stack.query.address, &address, "").open().await?;
    caller.place(&new_order_id(), "customer-1").await?;
    let first = shown.next().await?;
    caller.place(&new_order_id(), "customer-1").await?;
    let mut resumed = Source::new(other_replica.address, &address, "")
        .behind(&first.id)
        .open()
        .await?;
    assert_eq!(resumed.next().await?.data, shown.next().await?.data);
    let orders = with_ticket(&url, &stack.tenant.frontend_key, "/v1/orders/stream").await?;
    Source::new(stack.query.address, &orders, "").open().await?;
    Ok(())
}

/// The address of a stream with a ticket that was given out so many seconds ago.
fn with_old_ticket(stack: &Stack, stream: &str, seconds: i64) -> anyhow::Result<String> {
    let caller = Principal {
        tenant_id: stack.tenant.tenant_id,
        tenant_partition: log::PARTITION,
        key_prefix: stack.tenant.auditor_key["dbk_live_".len()..][..8].to_owned(),
        name: String::new(),
        scopes: ScopeSet::default(),
    };
    let issued_at = OffsetDateTime::now_utc() - Duration::seconds(seconds);
    let ticket = Tickets::new(sealing::ring()).issue(&caller, &stream.parse()?, issued_at);
    Ok(format!("{stream}&ticket={ticket}"))
}

#[tokio::test]
async fn a_late_ticket_opens_nothing_but_goes_on_with_what_it_has_opened() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let (query, key) = (stack.query.address, stack.tenant.auditor_key.as_str());
    let late = with_old_ticket(&stack, EVENTS, 57)?;
    let opened = Source::new(query, &late, "").open().await?;
    wait::until("the ticket opens nothing any more", async || {
        Ok(Source::new(query, &late, "").open().await.is_err())
    })
    .await?;
    assert_eq!(Source::new(query, &late, "").refusal().await?, "UNAUTHENTICATED");
    Source::new(query, &late, "")
        .behind(opened.last_id())
        .open()
        .await?;
    // An id of a stream that another ticket, or the key, has opened shows nothing.
    let other = with_ticket(&stack.query.url(), key, EVENTS).await?;
    let of_other = Source::new(query, &other, "").open().await?;
    let of_key = Source::new(query, EVENTS, key).open().await?;
    for id in [of_other.last_id(), of_key.last_id(), "nonsense"] {
        let resumed = Source::new(query, &late, "").behind(id);
        assert_eq!(resumed.refusal().await?, "UNAUTHENTICATED");
    }
    Ok(())
}

#[tokio::test]
async fn a_ticket_opens_no_other_stream_and_nothing_that_is_none() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let (query, key) = (stack.query.address, stack.tenant.auditor_key.as_str());
    let address = with_ticket(&stack.query.url(), key, EVENTS).await?;
    let (_, ticket) = address.rsplit_once("ticket=").expect("it has a ticket");
    for other in [
        "/v1/events/stream?".to_owned(),
        "/v1/events/stream?type=order.placed,order.cancelled&".to_owned(),
        "/v1/orders/stream?".to_owned(),
        format!("/v1/orders/{}/events/stream?", new_order_id()),
    ] {
        let other = format!("{other}ticket={ticket}");
        let refused = Source::new(query, &other, "").refusal().await?;
        assert_eq!(refused, "UNAUTHENTICATED", "{other}");
    }
    let list = stack
        .caller()?
        .get_as("", &format!("/v1/orders?ticket={ticket}"), &[])
        .await?;
    assert_eq!(list.status, 401);
    Ok(())
}

#[tokio::test]
async fn a_ticket_is_given_for_what_its_caller_may_stream() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let url = stack.query.url();
    let code = async |key: &str, stream: &str| {
        let answer = ask(&url, key, stream).await?;
        anyhow::Ok(super::text(&answer.json()["code"]))
    };
    let orders = stack.tenant.key_with(&stack.superuser, Scope::OrdersRead).await?;
    assert_eq!(code(&orders, "/v1/orders/stream").await?, "");
    assert_eq!(code(&orders, EVENTS).await?, "PERMISSION_DENIED");
    assert_eq!(
        code(&stack.tenant.operator_key, EVENTS).await?,
        "PERMISSION_DENIED"
    );
    assert_eq!(code("", EVENTS).await?, "UNAUTHENTICATED");
    for wrong in [
        "",
        "/",
        "/v1/orders",
        "https://elsewhere/v1/orders/stream",
        "/v1/orders/42/events/stream",
    ] {
        assert_eq!(
            code(&stack.tenant.auditor_key, wrong).await?,
            "VALIDATION_FAILED",
            "{wrong}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_ticket_goes_with_its_key() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let often = [("DAYBOOK_STREAM_RECHECK_SECONDS", "1")];
    let query = stack.servers.run(Role::Query, &often).await?;
    let key = stack.tenant.key_with(&stack.superuser, Scope::EventsRead).await?;
    let address = with_ticket(&query.url(), &key, EVENTS).await?;
    let mut shown = Source::new(query.address, &address, "").open().await?;
    sqlx::query("UPDATE event_store.api_key SET revoked_at = now() WHERE prefix = $1")
        .bind(&key["dbk_live_".len()..][..8])
        .execute(&stack.superuser)
        .await?;
    assert_eq!(shown.next().await?.name, "revoked");
    wait::until("the ticket is refused", async || {
        let resumed = Source::new(query.address, &address, "")
            .behind(shown.last_id())
            .open()
            .await;
        Ok(resumed.is_err())
    })
    .await?;
    // Another tenant's key asks for tickets of its own tenant.
    let other = Tenant::create(&stack.superuser).await?;
    stack.caller()?.place(&new_order_id(), "customer-1").await?;
    let first = format!("{EVENTS}&after_position=0");
    let address = with_ticket(&query.url(), &other.auditor_key, &first).await?;
    let mut shown = Source::new(query.address, &address, "").open().await?;
    let nothing = shown.within(std::time::Duration::from_millis(300)).await?;
    ensure!(nothing.is_none(), "{nothing:?}");
    Ok(())
}
