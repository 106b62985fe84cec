//! Reading one's own writes: an answer includes what the token stands for, or says that it does not.

use std::time::Duration;

use anyhow::Context as _;
use daybook_proto::common::v1::Freshness;
use daybook_proto::history::v1::ListStreamEventsRequest;
use daybook_proto::orders::v1::get_order_request::AsOf;
use daybook_proto::orders::v1::{GetOrderRequest, ListOrdersRequest};
use daybook_service::consistency::ConsistencyToken;
use daybook_tests::client::Caller;
use daybook_tests::orders::new_order_id;
use daybook_tests::refusal::{code, value};
use daybook_tests::stack::Stack;
use daybook_tests::{check, command, metrics, sealing, wait};
use futures::future::{try_join, try_join_all};
use sqlx::Connection as _;
use tokio::time::Instant;
use uuid::Uuid;

/// How many callers write and read at once.
const CALLERS: usize = 16;

/// How often each of them does.
const ROUNDS: u32 = 15;

#[tokio::test]
async fn a_read_with_a_token_is_never_older_than_the_write() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let callers = (0..CALLERS).map(|number| write_and_read(&caller, number));
    try_join_all(callers).await.map(drop)
}

/// The position of a token.
fn opened(caller: &Caller, token: &str) -> anyhow::Result<u64> {
    Ok(sealing::token(caller.tenant.tenant_id, token)?.position)
}

/// Places an order and changes it, and after each step reads the order, a list and the totals.
async fn write_and_read(caller: &Caller, number: usize) -> anyhow::Result<()> {
    let order_id = new_order_id();
    let customer = format!("customer-{number}");
    let mut receipt = caller.place(&order_id, &customer).await?;
    for quantity in 2..ROUNDS + 2 {
        let token = receipt.consistency_token.as_str();
        let order = caller.get_after(token, &format!("/v1/orders/{order_id}")).await?;
        assert_eq!(order.json()["data"]["version"], receipt.stream_version);
        let position: u64 = order.header("daybook-position").parse()?;
        assert!(position >= opened(caller, token)?, "it says that it is older");
        let shown = order.header("daybook-consistency");
        assert_eq!(opened(caller, shown)?, position);

        let list = caller
            .get_after(token, &format!("/v1/orders?customer_id={customer}"))
            .await?;
        assert_eq!(list.json()["data"][0]["version"], receipt.stream_version);
        let totals = caller
            .get_after(token, &format!("/v1/customers/{customer}/totals"))
            .await?;
        assert_eq!(
            totals.json()["data"]["totals"][0]["ordered_minor"],
            order.json()["data"]["total"]["minor"]
        );
        receipt = caller.change_quantity(&order_id, quantity, None).await?;
    }
    let request = ListOrdersRequest {
        customer_id: customer,
        freshness: Some(Freshness {
            consistency_token: receipt.consistency_token,
        }),
        ..Default::default()
    };
    let list = caller.queries().list_orders(request).await?.into_inner();
    assert_eq!(list.orders[0].version, receipt.stream_version);
    Ok(())
}

#[tokio::test]
async fn while_the_projector_stands_still_a_read_says_so_and_never_shows_less_than_it_was_asked_for()
-> anyhow::Result<()> {
    let mut stack = Stack::start().await?;
    let caller = stack.caller()?;
    let order_id = new_order_id();
    caller.place(&order_id, "customer-1").await?;
    let before = check::caught_up(&stack.superuser).await?;
    stack.projector.service.pause();
    let receipt = caller.send(command::confirm(&order_id)).await?;
    let token = receipt.consistency_token.as_str();

    let key = stack.tenant.auditor_key.as_str();
    for path in [
        format!("/v1/orders/{order_id}"),
        "/v1/orders".to_owned(),
        "/v1/customers/customer-1/totals".to_owned(),
    ] {
        let asked = Instant::now();
        let headers = [("daybook-consistency", token), ("prefer", "wait=1")];
        let behind = caller.get_as(key, &path, &headers).await?;
        assert_eq!(behind.status, 503, "{path}: {}", behind.json());
        assert_eq!(behind.json()["code"], "READ_MODEL_BEHIND");
        let stands = behind.json()["position"].as_str().map(str::to_owned);
        assert_eq!(opened(&caller, &stands.context("it says where it is")?)?, before);
        assert_eq!(behind.json()["wanted_position"], token);
        assert!(!behind.header("retry-after").is_empty());
        let waited = asked.elapsed();
        assert!(
            (Duration::from_millis(900)..Duration::from_secs(5)).contains(&waited),
            "it was to wait for a second and waited {waited:?}"
        );
    }
    let mut request = tonic::Request::new(GetOrderRequest {
        order_id: order_id.clone(),
        freshness: Some(Freshness {
            consistency_token: token.to_owned(),
        }),
        ..Default::default()
    });
    request.set_timeout(Duration::from_secs(1));
    let behind = caller
        .queries()
        .get_order(request)
        .await
        .expect_err("it is behind");
    assert_eq!(code(&behind), "READ_MODEL_BEHIND");
    assert_eq!(behind.code(), tonic::Code::Unavailable);
    assert_eq!(value(&behind, "wanted_position"), token);
    assert_eq!(opened(&caller, &value(&behind, "position"))?, before);

    // Without a token the older state is good enough, and says how old it is. The log itself is never behind.
    let older = caller.get(&format!("/v1/orders/{order_id}")).await?;
    assert_eq!(older.json()["data"]["version"], 1);
    assert_eq!(older.header("daybook-position"), before.to_string());
    let lag: u64 = older.header("daybook-lag-ms").parse()?;
    assert!(lag > 0, "it says that it is not behind");
    let as_of = caller.get(&format!("/v1/orders/{order_id}?as_of=2")).await?;
    assert_eq!(as_of.json()["data"]["status"], "CONFIRMED");

    stack.projector.service.resume();
    let fresh = caller.get_after(token, &format!("/v1/orders/{order_id}")).await?;
    assert_eq!(fresh.json()["data"]["version"], 2);
    Ok(())
}

#[tokio::test]
async fn reads_are_fresh_without_nats_too() -> anyhow::Result<()> {
    let mut stack = Stack::start().await?;
    let caller = stack.caller()?;
    stack.servers.nats.kill().await?;
    for _ in 0..5 {
        let order_id = new_order_id();
        let receipt = caller.place(&order_id, "customer-1").await?;
        let order = caller
            .get_after(&receipt.consistency_token, &format!("/v1/orders/{order_id}"))
            .await?;
        assert_eq!(order.json()["data"]["version"], 1);
    }
    Ok(())
}

/// Over gRPC neither an order nor its history is read with a token that the log does not have.
async fn assert_unknown_over_grpc(caller: &Caller, order_id: &str, unknown: String) {
    let freshness = Some(Freshness {
        consistency_token: unknown,
    });
    let order = GetOrderRequest {
        order_id: order_id.to_owned(),
        freshness: freshness.clone(),
        ..Default::default()
    };
    let order_as_of = GetOrderRequest {
        as_of: Some(AsOf::AsOfVersion(1)),
        ..order.clone()
    };
    let events = ListStreamEventsRequest {
        stream_id: order_id.to_owned(),
        freshness,
        ..Default::default()
    };
    let (mut queries, mut histories) = (caller.queries(), caller.histories());
    for refused in [
        queries.get_order(order).await.map(drop),
        queries.get_order(order_as_of).await.map(drop),
        histories.list_stream_events(events).await.map(drop),
    ] {
        let refused = refused.expect_err("it is unknown");
        assert_eq!(refused.code(), tonic::Code::OutOfRange);
        assert_eq!(code(&refused), "POSITION_UNKNOWN");
    }
}

#[tokio::test]
async fn a_token_that_is_none_is_refused_and_one_that_the_log_does_not_have_is_unknown() -> anyhow::Result<()>
{
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let order_id = new_order_id();
    let receipt = caller.place(&order_id, "customer-1").await?;
    let token = sealing::token(stack.tenant.tenant_id, &receipt.consistency_token)?;
    let paths = ["", "?as_of=1", "/events"].map(|rest| format!("/v1/orders/{order_id}{rest}"));
    let key = stack.tenant.auditor_key.as_str();
    let ask = async |path: &str, token: &str| {
        let headers = [("daybook-consistency", token), ("prefer", "wait=5")];
        caller.get_as(key, path, &headers).await
    };
    let seal = |token: ConsistencyToken| token.seal(&sealing::ring(), stack.tenant.tenant_id);
    let elsewhere = seal(ConsistencyToken {
        partition: 7,
        ..token
    });
    for path in &paths {
        for wrong in ["", "nonsense", &elsewhere] {
            let answer = ask(path, wrong).await?;
            assert_eq!(answer.status, 400, "{path} {wrong}: {}", answer.json());
            assert_eq!(answer.json()["code"], "VALIDATION_FAILED");
            assert_eq!(answer.json()["errors"][0]["pointer"], "daybook-consistency");
        }
    }
    let restored = seal(ConsistencyToken {
        generation: Uuid::now_v7(),
        ..token
    });
    let beyond = seal(ConsistencyToken {
        position: token.position + 1_000,
        ..token
    });
    for unknown in [restored, beyond] {
        for path in &paths {
            let answer = ask(path, &unknown).await?;
            assert_eq!(answer.status, 400, "{path}: {}", answer.json());
            assert_eq!(answer.json()["code"], "POSITION_UNKNOWN");
        }
        assert_unknown_over_grpc(&caller, &order_id, unknown).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_history_says_how_fresh_it_is() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let order_id = new_order_id();
    let receipt = caller.place(&order_id, "customer-1").await?;
    let token = sealing::token(stack.tenant.tenant_id, &receipt.consistency_token)?;
    let events = ListStreamEventsRequest {
        stream_id: order_id,
        freshness: Some(Freshness {
            consistency_token: receipt.consistency_token,
        }),
        ..Default::default()
    };
    let read = caller.histories().list_stream_events(events).await?.into_inner();
    let shown = read.staleness.context("it says how fresh it is")?;
    assert!(opened(&caller, &shown.consistency_token)? >= token.position);
    Ok(())
}

/// The command service finds a fork first, and its callers read with tokens of an epoch that the query service has not seen.
#[tokio::test]
async fn a_token_of_an_epoch_that_is_newer_than_the_last_look_is_waited_for() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let order_id = new_order_id();
    let receipt = caller.place(&order_id, "customer-1").await?;
    check::caught_up(&stack.superuser).await?;
    let token = sealing::token(stack.tenant.tenant_id, &receipt.consistency_token)?;
    let mut connection = stack.superuser.acquire().await?;
    let mut opening = connection.begin().await?;
    let epoch: i32 = sqlx::query_scalar("SELECT event_store.fork(0, 0, 'a test')")
        .fetch_one(&mut *opening)
        .await?;
    let generation: Uuid = sqlx::query_scalar("SELECT generation FROM event_store.log WHERE partition = 0")
        .fetch_one(&mut *opening)
        .await?;
    let newer = ConsistencyToken {
        epoch,
        generation,
        ..token
    };
    let newer = newer.seal(&sealing::ring(), stack.tenant.tenant_id);
    let path = format!("/v1/orders/{order_id}");
    let open = async {
        wait::until("somebody waits", async || {
            let in_flight = metrics::sum(stack.query.admin, "daybook_requests_in_flight").await?;
            Ok(in_flight >= 1.0)
        })
        .await?;
        Ok(opening.commit().await?)
    };
    let (answer, ()) = try_join(caller.get_after(&newer, &path), open).await?;
    assert_eq!(answer.status, 200, "{}", answer.json());

    // One that never comes is told as soon as its time is up.
    let never = ConsistencyToken {
        epoch: epoch + 1,
        generation: Uuid::now_v7(),
        ..token
    };
    let never = never.seal(&sealing::ring(), stack.tenant.tenant_id);
    let headers = [("daybook-consistency", never.as_str()), ("prefer", "wait=1")];
    let behind = caller.get_as(&stack.tenant.auditor_key, &path, &headers).await?;
    assert_eq!(behind.json()["code"], "READ_MODEL_BEHIND");
    Ok(())
}
