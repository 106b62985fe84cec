//! What is deprecated says so over both transports, and is gone after its sunset.

use daybook_proto::history::v1::ListOrderEventsRequest;
use daybook_service::error::problem::PROBLEM_JSON;
use daybook_tests::client::Caller;
use daybook_tests::orders::new_order_id;
use daybook_tests::refusal;
use daybook_tests::stack::{Role, Servers};
use daybook_tests::tenant::Tenant;
use http::HeaderMap;
use tonic::{Code, Response, Status};

/// When everything that is deprecated ends, or has ended.
const LATER: &str = "2999-12-31T23:59:59Z";
const BEFORE: &str = "2020-01-01T00:00:00Z";

#[expect(deprecated, reason = "that is what is tested")]
async fn call(
    caller: &Caller,
    order_id: &str,
) -> Result<Response<daybook_proto::history::v1::ListOrderEventsResponse>, Status> {
    let request = ListOrderEventsRequest {
        order_id: order_id.to_owned(),
        ..ListOrderEventsRequest::default()
    };
    caller.histories().list_order_events(request).await
}

fn assert_announced(headers: &HeaderMap, order_id: &str, sunset: &str) {
    let link = format!("</v1/orders/{order_id}/events>; rel=\"successor-version\"");
    for (name, value) in [
        ("deprecation", "@1796083200"),
        ("sunset", sunset),
        ("link", link.as_str()),
    ] {
        assert_eq!(
            headers.get(name).map(|header| header.as_bytes()),
            Some(value.as_bytes()),
            "{name}"
        );
    }
}

#[tokio::test]
async fn what_is_deprecated_says_so_and_is_gone_after_its_sunset_over_both_transports() -> anyhow::Result<()>
{
    let servers = Servers::start().await?;
    let superuser = servers.database.superuser().await?;
    let tenant = Tenant::create(&superuser).await?;
    let command = servers.run(Role::Command, &[]).await?;
    let query = servers.run(Role::Query, &[("DAYBOOK_SUNSET", LATER)]).await?;
    let caller = Caller::new(&command.url(), &query.url(), &query.url(), tenant.clone())?;
    let order_id = new_order_id();
    caller.place(&order_id, "customer-1").await?;
    let path = format!("/v1/orders/{order_id}/history");

    let (answer, successor) = (
        caller.get(&path).await?,
        caller.get(&format!("/v1/orders/{order_id}/events")).await?,
    );
    assert_eq!((answer.status, answer.json()), (200, successor.json()));
    assert_announced(&answer.headers, &order_id, "Tue, 31 Dec 2999 23:59:59 GMT");
    let answer = call(&caller, &order_id).await?;
    assert_announced(
        answer.metadata().as_ref(),
        &order_id,
        "Tue, 31 Dec 2999 23:59:59 GMT",
    );
    assert_eq!(answer.into_inner().events.len(), 1);

    let query = servers.run(Role::Query, &[("DAYBOOK_SUNSET", BEFORE)]).await?;
    let caller = Caller::new(&command.url(), &query.url(), &query.url(), tenant)?;
    let gone = caller.get(&path).await?;
    assert_eq!((gone.status, &gone.json()["code"]), (410, &"GONE".into()));
    assert_eq!(gone.headers["content-type"], PROBLEM_JSON);
    assert_announced(&gone.headers, &order_id, "Wed, 01 Jan 2020 00:00:00 GMT");
    let status = call(&caller, &order_id).await.expect_err("it is over");
    assert_eq!(
        (status.code(), refusal::code(&status)),
        (Code::NotFound, "GONE".to_owned())
    );
    assert_announced(
        status.metadata().as_ref(),
        &order_id,
        "Wed, 01 Jan 2020 00:00:00 GMT",
    );
    for name in ["sunset", "successor"] {
        assert_eq!(gone.json()[name], refusal::value(&status, name), "{name}");
    }
    assert_eq!(
        caller.get(&format!("/v1/orders/{order_id}/events")).await?.status,
        200
    );
    Ok(())
}
