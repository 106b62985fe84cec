//! Verbs: an import is taken, looked at, and ends.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::ensure;
use daybook_tests::client::Answer;
use daybook_tests::rest::Rest;
use daybook_tests::stack::Backend;
use daybook_tests::{check, log, wait};
use http::Method;
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

/// A kind of operations that no program knows yet.
pub(crate) const UNKNOWN_KIND: &str = "of-tomorrow";

pub(crate) const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");

pub(crate) fn rest(backend: &Backend, replica: usize) -> Rest {
    Rest::new(&backend.commands[replica].url(), &backend.tenant.service_key)
}

pub(crate) fn order(number: usize) -> String {
    format!(
        r#"{{"order":"made-up-{number:06}","customer":"ada","currency":"USD","placed_at":"1997-01-01T00:00:00Z","lines":[{{"sku":"CD","quantity":1,"unit_price_minor":{}}}]}}"#,
        number % 1_000 + 1
    )
}

pub(crate) fn orders(count: usize) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        writeln!(text, "{}", order(number)).expect("a string takes everything");
        text
    })
}

pub(crate) async fn import(rest: &Rest, path: &str, key: &str, input: &str) -> anyhow::Result<Answer> {
    let headers = [NDJSON, ("idempotency-key", key)];
    rest.send(Method::POST, path, &headers, input.to_owned()).await
}

/// The address of the operation of an import that was taken.
pub(crate) async fn taken(rest: &Rest, key: &str, input: &str) -> anyhow::Result<String> {
    let answer = import(rest, "/v1/imports", key, input).await?;
    ensure!(answer.status == 202, "{answer:?}");
    Ok(answer.header("location").to_owned())
}

pub(crate) async fn get(rest: &Rest, path: &str) -> anyhow::Result<Value> {
    let answer = rest.send(Method::GET, path, &[], "").await?;
    ensure!(answer.status == 200, "{path}: {answer:?}");
    Ok(answer.json()["data"].clone())
}

/// Waits until an operation has ended.
pub(crate) async fn ended(rest: &Rest, location: &str) -> anyhow::Result<Value> {
    wait::value("the operation has ended", async || {
        let operation = get(rest, location).await?;
        Ok(operation["ended_at"].is_string().then_some(operation))
    })
    .await
}

/// What is left of the inputs of all operations.
pub(crate) async fn chunks_left(superuser: &PgPool) -> anyhow::Result<i64> {
    let count = "SELECT count(*) FROM event_store.operation_input";
    Ok(sqlx::query_scalar(count).fetch_one(superuser).await?)
}

pub(crate) async fn operations(superuser: &PgPool) -> anyhow::Result<i64> {
    let count = "SELECT count(*) FROM event_store.operation";
    Ok(sqlx::query_scalar(count).fetch_one(superuser).await?)
}

/// The orders that are in the log, each once, and each as the domain would have it.
pub(crate) async fn placed(backend: &Backend) -> anyhow::Result<usize> {
    let events = log::events(&backend.superuser).await?;
    check::log(&events)?;
    let streams: BTreeSet<_> = events.iter().map(|event| &event.stream_id).collect();
    ensure!(streams.len() == events.len(), "an order was placed twice");
    Ok(events.len())
}

/// An operation as a service leaves it in the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) number: u128,
    pub(crate) kind: &'a str,
    /// The size of its input, once that has been submitted.
    pub(crate) input_bytes: Option<i64>,
    /// How long ago it was created and, where that is so, ended.
    pub(crate) created_days_ago: i32,
    pub(crate) ended_days_ago: Option<i32>,
}

impl Row<'_> {
    pub(crate) fn id(self) -> Uuid {
        Uuid::from_u128(self.number)
    }

    /// One whose input still arrives.
    pub(crate) fn arriving(number: u128) -> Self {
        Self {
            number,
            kind: UNKNOWN_KIND,
            input_bytes: None,
            created_days_ago: 0,
            ended_days_ago: None,
        }
    }

    /// One that waits for a program that knows its kind.
    pub(crate) fn waiting(number: u128, input_bytes: i64) -> Self {
        Self {
            input_bytes: Some(input_bytes),
            ..Self::arriving(number)
        }
    }

    pub(crate) async fn insert(self, superuser: &PgPool, tenant_id: Uuid) -> anyhow::Result<()> {
        let insert = "
            INSERT INTO event_store.operation (operation_id, tenant_id, kind, key, tenant_partition, key_prefix, key_name, input_bytes,
                                               input_sha256, input_lines, input_chunks, created_at, ended_at)
            SELECT $1, $2, $3, $1::text, 0, 'prefix', 'name', $4,
                   CASE WHEN $4 IS NOT NULL THEN ''::bytea END, 0 * $4, (0 * $4)::integer,
                   clock_timestamp() - make_interval(days => $5), clock_timestamp() - make_interval(days => $6)";
        sqlx::query(insert)
            .bind(self.id())
            .bind(tenant_id)
            .bind(self.kind)
            .bind(self.input_bytes)
            .bind(self.created_days_ago)
            .bind(self.ended_days_ago)
            .execute(superuser)
            .await?;
        Ok(())
    }
}
