//! What the servers underneath can do: the limits that our figures are held against.

use std::fmt::Write as _;
use std::future::IntoFuture as _;
use std::time::Instant;

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, StorageType};
use daybook_tests::log::METADATA;
use daybook_tests::nats;
use daybook_tests::stack::Servers;
use futures::stream::{FuturesUnordered, StreamExt as _};
use sqlx::PgPool;
use sqlx::postgres::{PgPoolCopyExt as _, PgPoolOptions};
use uuid::Uuid;

use crate::Options;
use crate::append::PAYLOAD;
use crate::load::{self, Load};
use crate::report::{Goal, Report};

/// Rows in the COPY.
const COPY_ROWS: usize = 200_000;

/// Rows that are formatted and sent at once.
const COPY_CHUNK_ROWS: usize = 2_000;

/// Connections that insert one row in a transaction each.
const INSERT_CONNECTIONS: u32 = 64;

/// Messages that wait for their acknowledgement.
const PUBLISH_WINDOW: usize = 2_048;

/// The name of the COPY's row, for ratios.
pub(crate) const COPY: &str = "raw: COPY of the same rows";

/// The name of the lone row: what one writer waits for when nothing but the row and its commit is asked of the server.
pub(crate) const LONE_INSERT: &str = "raw: one INSERT per transaction, one connection, p50";

pub(crate) async fn measure(options: &Options, servers: &Servers, report: &mut Report) -> anyhow::Result<()> {
    let superuser = servers.database.superuser().await?;
    for _ in 0..options.runs {
        settle(&superuser).await?;
        report.note(COPY, copy(&superuser).await?, "events/s", Goal::None);
        let lone = inserts(1, options, servers, &superuser).await?;
        report.note(LONE_INSERT, lone.quantile_ms(0.5), "ms", Goal::None);
        let crowd = inserts(INSERT_CONNECTIONS, options, servers, &superuser).await?;
        report.note(
            "raw: one INSERT per transaction, 64 connections",
            crowd.rate(),
            "events/s",
            Goal::None,
        );
        report.note(
            "raw: plain JetStream publishing",
            publish(options, servers).await?,
            "messages/s",
            Goal::None,
        );
    }
    Ok(())
}

/// The log's own table, with its keys, and nothing else in it.
async fn fresh_table(superuser: &PgPool) -> anyhow::Result<()> {
    sqlx::raw_sql(
        "DROP TABLE IF EXISTS raw_event; CREATE TABLE raw_event (LIKE event_store.event INCLUDING ALL)",
    )
    .execute(superuser)
    .await?;
    settle(superuser).await
}

/// Brings a young server to the state of one that has run for a while: what was written is on disk, and the segments of
/// the write-ahead log are there to be used again. A fresh server fills each new one with zeros first.
pub(crate) async fn settle(superuser: &PgPool) -> anyhow::Result<()> {
    sqlx::raw_sql("CHECKPOINT").execute(superuser).await?;
    Ok(())
}

/// Segments that a young server is made to fill: 1 GiB, the most that one measurement writes.
const SEGMENTS: i32 = 64;

/// Fills segments of the write-ahead log, for [`settle`] to set them free.
pub(crate) async fn fill_segments(superuser: &PgPool) -> anyhow::Result<()> {
    for _ in 0..SEGMENTS {
        sqlx::query("SELECT pg_logical_emit_message(false, 'bench', repeat('x', 1024)), pg_switch_wal()")
            .execute(superuser)
            .await?;
    }
    settle(superuser).await
}

async fn copy(superuser: &PgPool) -> anyhow::Result<f64> {
    fresh_table(superuser).await?;
    let rows: Vec<String> = (0..COPY_ROWS / COPY_CHUNK_ROWS).map(rows).collect();
    let started = Instant::now();
    let mut copy = superuser.copy_in_raw("COPY raw_event (partition, position, tenant_number, category, stream_id, stream_version, event_id, event_type, schema_version, payload, metadata, recorded_at) FROM STDIN").await?;
    for chunk in rows {
        copy.send(chunk.into_bytes()).await?;
    }
    copy.finish().await?;
    Ok(COPY_ROWS as f64 / started.elapsed().as_secs_f64())
}

fn rows(chunk: usize) -> String {
    let mut text = String::new();
    for row in 1..=COPY_CHUNK_ROWS {
        let position = chunk * COPY_CHUNK_ROWS + row;
        writeln!(
            text,
            "0\t{position}\t1\torder\t{}\t1\t{}\torder.placed\t2\t{PAYLOAD}\t{METADATA}\t2026-11-01T00:00:00Z",
            daybook_tests::orders::new_order_id(),
            Uuid::now_v7(),
        )
        .expect("writing to a string does not fail");
    }
    text
}

async fn inserts(
    connections: u32,
    options: &Options,
    servers: &Servers,
    superuser: &PgPool,
) -> anyhow::Result<Load> {
    fresh_table(superuser).await?;
    sqlx::query("CREATE SEQUENCE IF NOT EXISTS raw_position CACHE 1")
        .execute(superuser)
        .await?;
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .min_connections(connections)
        .test_before_acquire(false)
        .connect(&servers.database.superuser_url())
        .await?;
    let insert = move |pool: PgPool| async move {
        sqlx::query(
            "INSERT INTO raw_event (partition, position, tenant_number, category, stream_id, stream_version, event_id,
                                    event_type, schema_version, payload, metadata, recorded_at)
             VALUES (0, nextval('raw_position'), 1, 'order', $1, 1, $2, 'order.placed', 2, $3::json, $4::json, now())",
        )
        .bind(daybook_tests::orders::new_order_id())
        .bind(Uuid::now_v7())
        .bind(PAYLOAD)
        .bind(METADATA)
        .execute(&pool)
        .await?;
        Ok(pool)
    };
    let load = load::closed(connections as usize, options.duration(), |_| pool.clone(), insert).await?;
    pool.close().await;
    Ok(load)
}

async fn publish(options: &Options, servers: &Servers) -> anyhow::Result<f64> {
    let client = nats::connect(&servers.nats.url()).await?;
    let context = jetstream::new(client);
    let name = "RAW";
    let _ = context.delete_stream(name).await;
    context
        .create_stream(Config {
            name: name.to_owned(),
            subjects: vec!["raw.>".to_owned()],
            storage: StorageType::File,
            ..Config::default()
        })
        .await?;
    let (started, mut published) = (Instant::now(), 0_u64);
    let mut waiting = FuturesUnordered::new();
    while started.elapsed() < options.duration() {
        while waiting.len() < PUBLISH_WINDOW {
            waiting.push(context.publish("raw.events", PAYLOAD.into()).await?.into_future());
        }
        if let Some(acknowledged) = waiting.next().await {
            acknowledged?;
            published += 1;
        }
    }
    Ok(published as f64 / started.elapsed().as_secs_f64())
}
