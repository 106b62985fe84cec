//! Exports as their callers ask for them, and tenants with much or little to export.

use anyhow::{Context as _, ensure};
use daybook_event_store::NewCommand;
use daybook_tests::client::Answer;
use daybook_tests::database::Database;
use daybook_tests::orders::{new_key, new_order_id};
use daybook_tests::rest::Rest;
use daybook_tests::{log, wait};
use http::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use uuid::Uuid;

/// How many events [`many`] appends: enough for four chunks.
pub(crate) const MANY: usize = 4_000;

/// Asks for an export.
pub(crate) async fn ask(rest: &Rest, body: &Value) -> anyhow::Result<Answer> {
    rest.command("/v1/event-exports", &new_key(), body).await
}

/// The address of the operation of an export that was taken.
pub(crate) async fn taken(rest: &Rest, body: &Value) -> anyhow::Result<String> {
    let answer = ask(rest, body).await?;
    ensure!(answer.status == 202, "{answer:?}");
    Ok(answer.header("location").to_owned())
}

pub(crate) async fn get(rest: &Rest, path: &str) -> anyhow::Result<Answer> {
    rest.send(Method::GET, path, &[], "").await
}

/// Waits until an operation has ended.
pub(crate) async fn ended(rest: &Rest, location: &str) -> anyhow::Result<Value> {
    wait::value("the operation has ended", async || {
        let answer = get(rest, location).await?;
        ensure!(answer.status == 200, "{answer:?}");
        let operation = answer.json()["data"].clone();
        Ok(operation["ended_at"].is_string().then_some(operation))
    })
    .await
}

/// An export that succeeds: its operation, and the answer with its file, which is what the manifest says.
pub(crate) async fn exported(rest: &Rest, body: &Value) -> anyhow::Result<(Value, Answer)> {
    let location = taken(rest, body).await?;
    whole(rest, &location).await
}

/// The same, of an export that was taken.
pub(crate) async fn whole(rest: &Rest, location: &str) -> anyhow::Result<(Value, Answer)> {
    let operation = ended(rest, location).await?;
    ensure!(operation["state"] == "SUCCEEDED", "{operation}");
    let file = get(rest, &format!("{location}/output")).await?;
    ensure!(file.status == 200, "{file:?}");
    let manifest = &operation["manifest"];
    let sha256 = hex::encode(Sha256::digest(&file.body));
    assert_eq!(manifest["sha256"], sha256, "{operation}");
    assert_eq!(manifest["bytes"], file.body.len(), "{operation}");
    assert_eq!(file.header("etag"), format!("\"{sha256}\""));
    assert_eq!(file.header("content-length"), file.body.len().to_string());
    Ok((operation, file))
}

/// The lines of a file of NDJSON.
pub(crate) fn lines(file: &Answer) -> anyhow::Result<Vec<&str>> {
    Ok(std::str::from_utf8(&file.body)?.lines().collect())
}

/// Appends many events of a tenant that no service has decided.
pub(crate) async fn many(database: &Database, tenant_id: Uuid) -> anyhow::Result<()> {
    const OF_A_COMMAND: usize = 100;
    let pool = database.pool("daybook_command").await?;
    let mut connection = pool.acquire().await?;
    for number in 0..MANY / OF_A_COMMAND {
        let payload = json!({"number": number, "text": "x".repeat(600)}).to_string();
        let events = (0..OF_A_COMMAND).map(|_| log::event(payload.clone())).collect();
        let commands: [NewCommand; 1] = [log::command(tenant_id, &new_order_id(), None, events)];
        let judgement = daybook_event_store::append(&mut connection, log::PARTITION, &commands).await?;
        ensure!(log::is_written_whole(&commands, &judgement), "{judgement:?}");
    }
    Ok(())
}

/// How many chunks of files there are.
pub(crate) async fn chunks(superuser: &PgPool) -> anyhow::Result<i64> {
    let count = "SELECT count(*) FROM event_store.operation_output";
    Ok(sqlx::query_scalar(count).fetch_one(superuser).await?)
}

/// Has whoever writes a file wait before it keeps its third chunk. Dropping what is returned lets it go on.
#[expect(clippy::disallowed_methods, reason = "it is to stay open")]
pub(crate) async fn hold(superuser: &PgPool) -> anyhow::Result<sqlx::Transaction<'static, sqlx::Postgres>> {
    sqlx::raw_sql(
        "CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
         BEGIN
             PERFORM pg_advisory_xact_lock_shared(4711);
             RETURN NEW;
         END
         $$;
         CREATE TRIGGER hold BEFORE INSERT ON event_store.operation_output FOR EACH ROW WHEN (NEW.number = 2)
         EXECUTE FUNCTION public.hold()",
    )
    .execute(superuser)
    .await?;
    let mut holding = superuser.begin().await.context("a transaction begins")?;
    sqlx::query("SELECT pg_advisory_xact_lock(4711)")
        .execute(&mut *holding)
        .await?;
    Ok(holding)
}

/// Waits until whoever writes a file is held.
pub(crate) async fn is_held(superuser: &PgPool) -> anyhow::Result<()> {
    wait::until("two chunks are kept, and the third is to be", async || {
        let waiting =
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted";
        let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(superuser).await?;
        Ok(waiting == 1 && chunks(superuser).await? == 2)
    })
    .await
}
