//! How streams end, and how many there may be.

use std::time::Duration;

use anyhow::ensure;
use daybook_service::identity::Scope;
use daybook_tests::orders::new_order_id;
use daybook_tests::sse::{Source, Stream};
use daybook_tests::stack::{Role, Stack};
use daybook_tests::tenant::Tenant;
use daybook_tests::{check, wait};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;

/// How long a process may take to stop that has streams open. It may go on for eight seconds where callers do not end.
const STOPPED_WITHIN: Duration = Duration::from_secs(4);

/// How many of them are opened at a time.
const OPENED_AT_ONCE: usize = 8;

const EVENTS: &str = "/v1/events/stream";

#[tokio::test]
async fn a_revoked_key_ends_its_streams_and_no_others() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let often = [("DAYBOOK_STREAM_RECHECK_SECONDS", "1")];
    let query = stack.servers.run(Role::Query, &often).await?;
    let revoked = stack.tenant.key_with(&stack.superuser, Scope::EventsRead).await?;
    let mut ended = Source::new(query.address, EVENTS, &revoked).open().await?;
    let mut goes_on = Source::new(query.address, EVENTS, &stack.tenant.auditor_key)
        .open()
        .await?;
    sqlx::query("UPDATE event_store.api_key SET revoked_at = now() WHERE prefix = $1")
        .bind(&revoked["dbk_live_".len()..][..8])
        .execute(&stack.superuser)
        .await?;
    let end = ended.next().await?;
    assert_eq!(end.name, "revoked");
    assert_eq!(end.json()["code"], "UNAUTHENTICATED");
    ensure!(ended.poll().await?.is_none(), "it is the end");
    assert_eq!(
        Source::new(query.address, EVENTS, &revoked).refusal().await?,
        "UNAUTHENTICATED"
    );
    stack.caller()?.place(&new_order_id(), "customer-1").await?;
    ensure!(goes_on.next().await?.name.is_empty(), "the other key is good");
    Ok(())
}

#[tokio::test]
async fn two_hundred_open_streams_are_told_that_the_process_stops_and_do_not_hold_it_up() -> anyhow::Result<()>
{
    let mut stack = Stack::start().await?;
    let id = new_order_id();
    stack.caller()?.place(&id, "customer-1").await?;
    // Streams begin with what is new, and that it is not any more.
    check::caught_up(&stack.superuser).await?;
    let of_order = format!("/v1/orders/{id}/events/stream");
    let paths = [EVENTS, "/v1/orders/stream", &of_order];
    let sources = (0..200).map(|number| {
        let path = paths[number % paths.len()];
        Source::new(stack.query.address, path, &stack.tenant.auditor_key)
    });
    let sources: Vec<_> = sources.collect();
    let open = async |source: &Source<'_>| {
        // A machine that is busy with other things may need more time than a request has.
        wait::value("the stream is opened", async || Ok(source.open().await.ok())).await
    };
    let opening = stream::iter(&sources).map(open).buffered(OPENED_AT_ONCE);
    let mut streams: Vec<Stream> = opening.try_collect().await?;
    let stopping = Instant::now();
    stack.query.service.stop().await?;
    let stopped = stopping.elapsed();
    ensure!(stopped < STOPPED_WITHIN, "it took {stopped:?}");
    for stream in &mut streams {
        let end = stream.next().await?;
        ensure!(
            end.name == "shutdown" && end.json()["code"] == "SHUTTING_DOWN",
            "{end:?}"
        );
        ensure!(stream.poll().await?.is_none(), "it is the end");
    }
    // What a browser does then.
    stack.query.service.restart().await?;
    let resumed = sources[0].clone().behind(streams[0].last_id());
    resumed.open().await?;
    Ok(())
}

#[tokio::test]
async fn a_tenant_has_its_share_of_streams_and_all_have_theirs_together() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let few = [("DAYBOOK_STREAMS_MAX", "3"), ("DAYBOOK_TENANT_STREAMS_MAX", "2")];
    let query = stack.servers.run(Role::Query, &few).await?;
    let other = Tenant::create(&stack.superuser).await?;
    let of_tenant = Source::new(query.address, EVENTS, &stack.tenant.auditor_key);
    let of_other = Source::new(query.address, EVENTS, &other.auditor_key);
    let first = of_tenant.open().await?;
    let _second = of_tenant.open().await?;
    assert_eq!(of_tenant.refusal().await?, "RATE_LIMITED");
    let _third = of_other.open().await?;
    assert_eq!(of_other.refusal().await?, "OVERLOADED");
    drop(first);
    let again = wait::value("a place is free again", async || Ok(of_other.open().await.ok()));
    let _again: Stream = again.await?;
    Ok(())
}
