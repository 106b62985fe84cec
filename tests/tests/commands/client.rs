//! The typed client, on real services.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use daybook_client::{Commands, Connection, Failure, Queries};
use daybook_devstack::Proxy;
use daybook_devstack::proxy::Direction;
use daybook_proto::orders::v1::PlaceOrderRequest;
use daybook_tests::client::credential;
use daybook_tests::command::{self, Command as _};
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::stack::Stack;
use daybook_tests::wait;
use serde_json::Value;

/// How many events an order has.
async fn events_of(stack: &Stack, order_id: &str) -> anyhow::Result<i64> {
    let count = "SELECT count(*) FROM event_store.event WHERE stream_id = $1";
    Ok(sqlx::query_scalar(count)
        .bind(order_id)
        .fetch_one(&stack.superuser)
        .await?)
}

#[tokio::test]
async fn a_command_whose_answer_is_lost_is_sent_again_under_its_key_and_what_it_did_is_read()
-> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let (proxy, url) = Proxy::in_front_of(&stack.command.url()).await?;
    let commands = Commands::new(Connection::open(&url)?.with(credential(&stack.tenant.service_key)?));
    commands.send(place(&new_order_id(), "ada")).await?;

    proxy.black_hole(Direction::ToClient);
    let order_id = new_order_id();
    let without_key = PlaceOrderRequest {
        request_id: String::new(),
        ..place(&order_id, "ada")
    };
    let sending = tokio::spawn(async move { commands.send_and_tell(without_key).await });
    wait::until("the order is recorded", async || {
        Ok(events_of(&stack, &order_id).await? == 1)
    })
    .await?;
    proxy.heal();
    proxy.reset();

    let sent = sending.await??;
    ensure!(sent.is_replay, "the first attempt was answered: nothing was lost");
    ensure!(events_of(&stack, &order_id).await? == 1, "it was done twice");
    let queries = Connection::open(&stack.query.url())?.with(credential(&stack.tenant.frontend_key)?);
    let path = format!("/v1/orders/{order_id}");
    let order: Value = Queries::new(queries).read_after(&sent.receipt, &path).await?;
    ensure!(order["data"]["version"] == 1, "{order}");
    Ok(())
}

#[tokio::test]
async fn what_a_service_refuses_is_said_with_its_code_and_not_sent_again() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let connection = Connection::connect(&stack.command.url()).await?;
    let commands = Commands::new(connection.with(credential(&stack.tenant.service_key)?));
    let refused = commands.send(command::confirm(&new_order_id())).await;
    let Err(Failure::CommandRefused { refusal, .. }) = refused else {
        anyhow::bail!("it was not refused: {refused:?}");
    };
    ensure!(refusal.code == "RESOURCE_NOT_FOUND", "{refusal}");
    ensure!(!refusal.is_transient(), "{refusal}");
    Ok(())
}

#[tokio::test]
async fn a_command_whose_first_answer_is_lost_and_that_is_then_refused_is_unknown_and_found_by_its_key()
-> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let (proxy, url) = Proxy::in_front_of(&stack.command.url()).await?;
    let through = |url: &str| {
        let connection = Connection::open(url)?.with(credential(&stack.tenant.service_key)?);
        anyhow::Ok(Commands::new(connection))
    };
    let commands = through(&url)?;
    commands.send(place(&new_order_id(), "ada")).await?;

    proxy.black_hole(Direction::ToClient);
    let order_id = new_order_id();
    let without_key = PlaceOrderRequest {
        request_id: String::new(),
        ..place(&order_id, "ada")
    };
    let command = without_key.clone();
    let sending = tokio::spawn(async move { commands.send(command).await });
    wait::until("the order is recorded", async || {
        Ok(events_of(&stack, &order_id).await? == 1)
    })
    .await?;
    // Who answers now takes no commands.
    proxy.heal();
    proxy.redirect(server_of(&stack.query.url())?);

    let failed = sending.await?;
    let Err(Failure::Unknown { key, last }) = failed else {
        anyhow::bail!("the answer to the first attempt was lost: {failed:?}");
    };
    ensure!(last.code == "METHOD_NOT_ALLOWED", "{last}");
    let sent = through(&stack.command.url())?
        .send_and_tell(without_key.with_key(&key))
        .await?;
    ensure!(sent.is_replay, "it was recorded under another key");
    ensure!(events_of(&stack, &order_id).await? == 1, "it was done twice");
    Ok(())
}

fn server_of(url: &str) -> anyhow::Result<SocketAddr> {
    let address = url.strip_prefix("http://").context("it is http")?;
    Ok(address.parse()?)
}

#[tokio::test]
async fn a_command_outlives_a_connection_that_falls_silent() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let (proxy, url) = Proxy::in_front_of(&stack.command.url()).await?;
    let commands = Commands::new(Connection::open(&url)?.with(credential(&stack.tenant.service_key)?));
    commands.send(place(&new_order_id(), "ada")).await?;

    proxy.black_hole(Direction::Both);
    let order_id = new_order_id();
    let command = place(&order_id, "ada");
    let sending = tokio::spawn(async move { commands.send_and_tell(command).await });
    wait::until("the command is lost", async || Ok(proxy.swallowed() > 0)).await?;
    // What is there stays silent; whoever connects anew reaches a service.
    proxy.heal();
    let sent = sending.await??;
    ensure!(!sent.is_replay, "the first attempt was lost");
    ensure!(events_of(&stack, &order_id).await? == 1, "it was done twice");
    Ok(())
}
