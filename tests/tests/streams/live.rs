//! What streams show, as it happens.

use std::time::Duration;

use daybook_proto::history::v1::subscribe_request::Start;
use daybook_proto::history::v1::{EventFilter, SubscribeRequest, SubscribeResponse};
use daybook_service::identity::Scope;
use daybook_tests::client::Caller;
use daybook_tests::orders::new_order_id;
use daybook_tests::refusal::code;
use daybook_tests::sse::Source;
use daybook_tests::stack::{Servers, Stack};
use daybook_tests::{log, metrics, stock, wait};
use sqlx::AssertSqlSafe;

use super::{event_ids, text};

/// Another tenant of the same system.
async fn stranger(stack: &Stack) -> anyhow::Result<Caller> {
    stack.other_caller().await
}

#[tokio::test]
async fn the_events_of_an_aggregate_are_shown_as_they_are_recorded_and_as_its_history_shows_them()
-> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let [id, other] = [new_order_id(), new_order_id()];
    caller.place(&id, "customer-1").await?;
    let path = format!("/v1/orders/{id}/events/stream");
    let key = stack.tenant.auditor_key.as_str();
    let mut shown = Source::new(stack.query.address, &path, key).open().await?;
    let from_the_first = format!("{path}?after_position=0");
    let mut from_the_first = Source::new(stack.query.address, &from_the_first, key)
        .open()
        .await?;
    caller.place(&other, "customer-1").await?;
    for quantity in 5..9 {
        caller.change_quantity(&other, quantity, None).await?;
        caller.change_quantity(&id, quantity, None).await?;
    }
    let history = caller
        .get(&format!("/v1/orders/{id}/events?limit=100"))
        .await?
        .json();
    let history = history["data"].as_array().expect("a list").clone();
    assert_eq!(history.len(), 5);
    for event in &history {
        assert_eq!(&from_the_first.next().await?.json(), event);
    }
    for event in &history[1..] {
        assert_eq!(&shown.next().await?.json(), event, "what was before is not shown");
    }

    let item = stock::stock_item_id("PEN-FINE");
    caller.send(stock::register("PEN-FINE")).await?;
    let path = format!("/v1/stock-items/{item}/events/stream");
    let mut shown = Source::new(stack.query.address, &path, key).open().await?;
    caller.send(stock::receive(&item, 7)).await?;
    assert_eq!(shown.next().await?.json()["stream_id"], item.as_str());
    Ok(())
}

#[tokio::test]
async fn the_events_of_a_tenant_are_its_own_and_of_the_types_that_are_asked_for() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let (caller, stranger) = (stack.caller()?, stranger(&stack).await?);
    let (address, key) = (stack.query.address, stack.tenant.auditor_key.as_str());
    let mut all = Source::new(address, "/v1/events/stream", key).open().await?;
    let cancelled = "/v1/events/stream?type=order.cancelled,order.confirmed";
    let mut cancelled = Source::new(address, cancelled, key).open().await?;
    for number in 0..10 {
        let id = new_order_id();
        stranger.place(&new_order_id(), "customer-1").await?;
        caller.place(&id, "customer-1").await?;
        if number % 3 == 0 {
            caller.cancel(&id).await?;
        }
    }
    let mut wanted = log::events(&stack.superuser).await?;
    wanted.retain(|event| event.tenant_id == caller.tenant.tenant_id);
    let ids = |event_type: Option<&str>| -> Vec<String> {
        let of_type = |found: &str| event_type.is_none_or(|wanted| wanted == found);
        let wanted = wanted.iter().filter(|event| of_type(&event.event_type));
        wanted.map(|event| event.event_id.to_string()).collect()
    };
    assert_eq!(event_ids(&mut all, 14).await?, ids(None));
    assert_eq!(event_ids(&mut cancelled, 4).await?, ids(Some("order.cancelled")));
    for stream in [&mut all, &mut cancelled] {
        let more = stream.within(Duration::from_millis(300)).await?;
        assert!(more.is_none(), "{more:?}");
    }
    Ok(())
}

#[tokio::test]
async fn orders_are_shown_as_the_list_shows_them_when_they_have_changed() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let (caller, stranger) = (stack.caller()?, stranger(&stack).await?);
    let source = Source::new(
        stack.query.address,
        "/v1/orders/stream",
        &stack.tenant.frontend_key,
    );
    let mut shown = source.open().await?;
    let id = new_order_id();
    stranger.place(&new_order_id(), "customer-1").await?;
    caller.place(&id, "customer-1").await?;
    caller.send(stock::register("PEN-FINE")).await?;
    let placed = shown.next().await?.json();
    assert_eq!(
        (&placed["order_id"], &placed["version"]),
        (&id.as_str().into(), &1.into())
    );
    let receipt = caller.cancel(&id).await?;
    let cancelled = shown.next().await?.json();
    assert_eq!(cancelled["status"], "CANCELLED");
    let list = caller.get_after(&receipt.consistency_token, "/v1/orders").await?;
    assert_eq!(list.json()["data"][0], cancelled);
    Ok(())
}

/// The next event of a call, and the token behind it.
async fn next(responses: &mut tonic::Streaming<SubscribeResponse>) -> anyhow::Result<(String, String)> {
    loop {
        let response = responses.message().await?;
        let response = response.ok_or_else(|| anyhow::anyhow!("the call has ended"))?;
        if let Some(event) = response.event {
            return Ok((event.event_id, response.resume_token));
        }
    }
}

#[tokio::test]
async fn a_subscription_over_grpc_is_the_same_feed_and_each_resumes_where_the_other_was() -> anyhow::Result<()>
{
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let id = new_order_id();
    caller.place(&id, "customer-1").await?;
    let of_order = |start| SubscribeRequest {
        start,
        filter: Some(EventFilter {
            stream_id: id.clone(),
            event_types: Vec::new(),
        }),
    };
    let from_the_first = of_order(Some(Start::AfterPosition(0)));
    let mut call = caller.histories().subscribe(from_the_first).await?.into_inner();
    for quantity in 5..9 {
        caller.change_quantity(&id, quantity, None).await?;
    }
    let wanted = log::stream(&stack.superuser, &id).await?;
    let wanted: Vec<String> = wanted.iter().map(|event| event.event_id.to_string()).collect();
    let mut tokens = Vec::new();
    for event_id in &wanted {
        let (shown, token) = next(&mut call).await?;
        assert_eq!(&shown, event_id);
        tokens.push(token);
    }
    let path = format!("/v1/orders/{id}/events/stream");
    let source = Source::new(stack.query.address, &path, &stack.tenant.auditor_key).behind(&tokens[1]);
    let mut sse = source.open().await?;
    let third = sse.next().await?;
    assert_eq!(text(&third.json()["event_id"]), wanted[2]);
    let resumed = of_order(Some(Start::ResumeToken(third.id)));
    let mut call = caller.histories().subscribe(resumed).await?.into_inner();
    assert_eq!(next(&mut call).await?.0, wanted[3]);
    assert_eq!(event_ids(&mut sse, 2).await?, wanted[3..]);

    // The same refusals as over HTTP.
    let all = SubscribeRequest {
        start: Some(Start::ResumeToken(tokens[1].clone())),
        filter: None,
    };
    let refused = caller
        .histories()
        .subscribe(all)
        .await
        .expect_err("of another feed");
    assert_eq!(code(&refused), "INVALID_CURSOR");
    let refused = caller
        .histories()
        .subscribe(of_order(Some(Start::AfterPosition(1_000_000))))
        .await;
    assert_eq!(code(&refused.expect_err("beyond the head")), "POSITION_UNKNOWN");
    Ok(())
}

#[tokio::test]
async fn a_stream_that_cannot_be_opened_is_a_problem() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let (caller, stranger) = (stack.caller()?, stranger(&stack).await?);
    let id = new_order_id();
    caller.place(&id, "customer-1").await?;
    let (address, key) = (stack.query.address, stack.tenant.auditor_key.as_str());
    let of_order = format!("/v1/orders/{id}/events/stream");
    let missing = format!("/v1/orders/{}/events/stream", new_order_id());
    let refusal = async |path: &str, key: &str| Source::new(address, path, key).refusal().await;
    let of_stranger = stranger.tenant.auditor_key.as_str();
    assert_eq!(refusal(&of_order, of_stranger).await?, "RESOURCE_NOT_FOUND");
    assert_eq!(refusal(&missing, of_stranger).await?, "RESOURCE_NOT_FOUND");
    for path in [of_order.as_str(), "/v1/events/stream", "/v1/orders/stream"] {
        assert_eq!(refusal(path, "").await?, "UNAUTHENTICATED");
        let without = stack.tenant.key_with(&stack.superuser, Scope::StockRead).await?;
        assert_eq!(refusal(path, &without).await?, "PERMISSION_DENIED");
        let nonsense = Source::new(address, path, key).behind("nonsense");
        assert_eq!(nonsense.refusal().await?, "INVALID_CURSOR");
    }
    for (path, code) in [
        ("/v1/events/stream?after_position=-1", "VALIDATION_FAILED"),
        ("/v1/events/stream?after_position=1000000", "POSITION_UNKNOWN"),
        ("/v1/events/stream?type=Nonsense!", "VALIDATION_FAILED"),
        ("/v1/orders/42/events/stream", "VALIDATION_FAILED"),
        ("/v1/customers/42/events/stream", "RESOURCE_NOT_FOUND"),
    ] {
        assert_eq!(refusal(path, key).await?, code, "{path}");
    }
    // An id is good for its own feed and tenant alone.
    let events = Source::new(address, "/v1/events/stream", key).open().await?;
    let last_id = events.last_id().to_owned();
    let cancelled = "/v1/events/stream?type=order.cancelled";
    for (path, key) in [
        ("/v1/events/stream", of_stranger),
        (cancelled, key),
        (&of_order, key),
    ] {
        let other = Source::new(address, path, key).behind(&last_id);
        assert_eq!(other.refusal().await?, "INVALID_CURSOR", "{path}");
    }
    let in_the_query = format!("/v1/events/stream?last_event_id={last_id}");
    Source::new(address, &in_the_query, key).open().await?;
    Ok(())
}

#[tokio::test]
async fn a_stream_reads_nothing_while_nothing_happens() -> anyhow::Result<()> {
    /// How long nothing happens.
    const QUIET: Duration = Duration::from_secs(5);
    /// How often the log may be read meanwhile.
    const READS_MAX: i64 = 5;
    let servers = Servers::start().await?;
    let superuser = servers.database.superuser().await?;
    let count_functions = "DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET track_functions = pl', current_database());
    END $$";
    sqlx::query(count_functions).execute(&superuser).await?;
    let stack = Stack::on(servers).await?;
    let source = Source::new(
        stack.query.address,
        "/v1/events/stream",
        &stack.tenant.auditor_key,
    );
    let mut shown = source.open().await?;
    stack.caller()?.place(&new_order_id(), "customer-1").await?;
    event_ids(&mut shown, 1).await?;
    let reads = async || -> anyhow::Result<i64> {
        let calls =
            "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_user_functions WHERE funcname = 'read_tail'";
        Ok(sqlx::query_scalar(calls).fetch_one(&superuser).await?)
    };
    let before = reads().await?;
    let more = shown.within(QUIET).await?;
    assert!(more.is_none(), "{more:?}");
    let count = reads().await? - before;
    assert!(count <= READS_MAX, "{count} reads");
    Ok(())
}

#[tokio::test]
async fn a_row_that_cannot_be_read_ends_the_streams_of_its_tenant_and_no_others() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let (caller, stranger) = (stack.caller()?, stranger(&stack).await?);
    // As the program writes it that comes next.
    for statement in [
        "CREATE FUNCTION public.put_on_hold() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN NEW.status := 'on_hold'; RETURN NEW; END
         $$",
        &format!(
            "CREATE TRIGGER put_on_hold BEFORE INSERT ON read_model.order_list_g1
                 FOR EACH ROW WHEN (NEW.tenant_id = '{}') EXECUTE FUNCTION public.put_on_hold()",
            caller.tenant.tenant_id
        ),
    ] {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&stack.superuser)
            .await?;
    }
    let address = stack.query.address;
    let open = async |key| Source::new(address, "/v1/orders/stream", key).open().await;
    let mut of_caller = open(&caller.tenant.frontend_key).await?;
    let mut of_stranger = open(&stranger.tenant.frontend_key).await?;
    caller.place(&new_order_id(), "customer-1").await?;
    let id = new_order_id();
    stranger.place(&id, "customer-1").await?;
    assert_eq!(of_stranger.next().await?.json()["order_id"], id.as_str());
    let end = of_caller.next().await?;
    assert_eq!(
        (end.name.as_str(), &end.json()["code"]),
        ("failed", &"INTERNAL".into())
    );
    Ok(())
}

#[tokio::test]
async fn what_streams_do_is_counted() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let caller = stack.caller()?;
    let source = Source::new(
        stack.query.address,
        "/v1/events/stream",
        &stack.tenant.auditor_key,
    );
    let mut streams = [source.open().await?, source.open().await?];
    caller.place(&new_order_id(), "customer-1").await?;
    for stream in &mut streams {
        event_ids(stream, 1).await?;
    }
    let admin = stack.query.admin;
    assert_eq!(metrics::sum(admin, "daybook_streams_open").await?, 2.0);
    assert_eq!(metrics::sum(admin, "daybook_stream_deliveries_total").await?, 2.0);
    drop(streams);
    wait::until("streams whose readers have gone are closed", async || {
        Ok(metrics::sum(admin, "daybook_streams_open").await? == 0.0)
    })
    .await?;
    Ok(())
}
