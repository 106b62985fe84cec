//! The check that every fault test ends with, once everything has healed.
//!
//! 1. Every accepted command has exactly its events, no command has events twice, a refused one has none, and an unknown
//!    one has all or none; and these are the events that the domain makes of what was sent ([`ledger`]).
//! 2. Positions are 1..head without holes, stream versions are 1..n without holes, and each event follows from the state
//!    before it by the rules of its own domain ([`log`]).
//! 3. The JetStream stream agrees with the log event by event ([`bus`]).
//! 4. Every read model equals a fresh fold of the log, row by row ([`read_models`]).

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use daybook_event_store::{EventStore, RecordedEvent};
use daybook_read_model::{Event, Generation, ReadModel, checkpoint, each_read_model};
use daybook_simulation::meaning::Streams;
pub use daybook_simulation::meaning::log;
use futures::StreamExt as _;
use sqlx::{AssertSqlSafe, PgPool};

use crate::ledger::{Ledger, Outcome};
use crate::log::{self as event_log, PARTITION};
use crate::{nats, sealing, wait};

/// Waits until bus and read models have everything, and makes the whole check.
///
/// # Errors
/// What is wrong, when anything is.
pub async fn everything(superuser: &PgPool, nats_url: &str, ledger: &Ledger) -> anyhow::Result<()> {
    // First what does not wait for anything: a log that contradicts itself would stop the read models.
    let events = recorded(superuser, ledger).await?;
    caught_up(superuser).await?;
    bus(superuser, nats_url, &events).await?;
    read_models(superuser, &events).await
}

/// The same, where foreign messages were put into the stream: it may have been made anew from one of them on.
///
/// # Errors
/// What is wrong, when anything is.
pub async fn everything_repaired(superuser: &PgPool, nats_url: &str, ledger: &Ledger) -> anyhow::Result<()> {
    let events = recorded(superuser, ledger).await?;
    caught_up(superuser).await?;
    bus_from_its_beginning(nats_url, superuser, &events).await?;
    read_models(superuser, &events).await
}

/// The log, which means something and is what callers were told.
///
/// # Errors
/// What is wrong, when anything is.
pub async fn recorded(superuser: &PgPool, ledger: &Ledger) -> anyhow::Result<Vec<RecordedEvent>> {
    let events = event_log::events(superuser).await?;
    log(&events)?;
    self::ledger(ledger, &events)?;
    Ok(events)
}

/// Waits until every read model has everything that is in the log now.
///
/// # Errors
/// When that does not happen.
pub async fn caught_up(superuser: &PgPool) -> anyhow::Result<u64> {
    let head = event_log::head(superuser).await?;
    wait::until("every read model has the whole log", async || {
        let live = checkpoint::live(superuser).await?;
        let has_all = live.iter().all(|checkpoint| checkpoint.position >= head);
        Ok(!live.is_empty() && has_all)
    })
    .await?;
    Ok(head)
}

/// What callers sent, and what they were told, is what is in the log.
///
/// # Errors
/// The first command of which that is not true.
pub fn ledger(ledger: &Ledger, events: &[RecordedEvent]) -> anyhow::Result<()> {
    let entries = ledger.entries();
    let mut by_key = HashMap::<String, Vec<&RecordedEvent>>::new();
    let mut streams = Streams::default();
    for event in events {
        let key = event.decoded_metadata().idempotency_key;
        let entry = entries.get(&key).with_context(|| format!("nobody sent {key}"))?;
        entry
            .leads_to(&streams, event)
            .with_context(|| format!("the event of {key} at {} is not what was sent", event.position))?;
        streams.take(event)?;
        by_key.entry(key).or_default().push(event);
    }
    for (key, entry) in entries.iter() {
        let events = by_key.get(key).map_or(&[][..], Vec::as_slice);
        match &entry.outcome {
            Outcome::Accepted(receipt) => {
                ensure!(
                    events.len() == 1,
                    "{key} was accepted and has {} events",
                    events.len()
                );
                let last = events[0];
                let told = sealing::token(last.tenant_id, &receipt.consistency_token)?.position;
                ensure!(
                    told == last.position,
                    "{key} was told {told}, but its event is at {}",
                    last.position
                );
                ensure!(
                    last.stream_id == receipt.stream_id && last.stream_version == receipt.stream_version,
                    "{key} was told version {} of {}, but it is {} of {}",
                    receipt.stream_version,
                    receipt.stream_id,
                    last.stream_version,
                    last.stream_id
                );
            }
            Outcome::Refused(code) => {
                ensure!(events.is_empty(), "{key} was refused with {code} but has events");
            }
            // Every command makes one event, so "all" is one.
            Outcome::Unknown => ensure!(events.len() <= 1, "{key} has its events more than once"),
        }
    }
    Ok(())
}

/// The stream holds the log: waits until it has its head, and then compares it event by event. It begins with the log, or
/// behind a fork of the log's history.
///
/// # Errors
/// The first difference.
pub async fn bus(superuser: &PgPool, nats_url: &str, events: &[RecordedEvent]) -> anyhow::Result<()> {
    let first = bus_from_its_beginning(nats_url, superuser, events).await?;
    let lineage = EventStore::new(superuser.clone()).lineage(PARTITION).await?;
    ensure!(lineage.has_epoch_from(first), "the stream begins at {first}");
    Ok(())
}

/// The same, wherever the stream begins, which is returned.
async fn bus_from_its_beginning(
    nats_url: &str,
    superuser: &PgPool,
    events: &[RecordedEvent],
) -> anyhow::Result<u64> {
    let lineage = EventStore::new(superuser.clone()).lineage(PARTITION).await?;
    let head = events.last().map_or(0, |event| event.position);
    let context = nats::jetstream(nats_url).await?;
    let state = wait::value("the stream has the whole log", async || {
        let Ok(stream) = context.get_stream(nats::STREAM).await else {
            return Ok(None);
        };
        let state = stream.cached_info().state.clone();
        Ok((state.last_sequence >= head).then_some(state))
    })
    .await?;
    let first = state.first_sequence.max(1);
    ensure!(
        state.last_sequence == head && state.messages == head + 1 - first,
        "the stream has {} messages, {} to {}, the log has {head}",
        state.messages,
        state.first_sequence,
        state.last_sequence
    );
    let events = &events[usize::try_from(first - 1)?..];
    let mut published = pin!(nats::events(&context, events.len()).await?);
    for event in events {
        let (message, of) = published.next().await.context("the stream ends early")??;
        ensure!(
            message == *event && lineage.has(of, event.position),
            "the message at {} is another event than the log's",
            message.position
        );
    }
    Ok(first)
}

/// Every read model is what the log folds to.
///
/// # Errors
/// The first row that is not.
pub async fn read_models(superuser: &PgPool, events: &[RecordedEvent]) -> anyhow::Result<()> {
    let events = decoded(events)?;
    each_read_model!(M => read_model::<M>(superuser, &events).await?);
    Ok(())
}

/// The events that folds are given.
///
/// # Errors
/// When one of a category that this program knows cannot be decoded.
pub fn decoded(events: &[RecordedEvent]) -> anyhow::Result<Vec<Event>> {
    let decode = |recorded: &RecordedEvent| {
        let event = Event::decode(recorded);
        match &event.body {
            Err(error) if Event::known_category(recorded).is_some() => Err(Arc::clone(error).into()),
            _ => Ok(event),
        }
    };
    events.iter().map(decode).collect()
}

/// A read model is what the log folds to.
///
/// # Errors
/// The first row that is not.
pub async fn read_model<M: ReadModel>(superuser: &PgPool, events: &[Event]) -> anyhow::Result<()> {
    let folded = fold::<M>(events)?;
    let tables = live_generation(superuser, M::NAME).await?;
    let keys: Vec<M::Key> = folded.keys().cloned().collect();
    let mut connection = superuser.acquire().await?;
    let stored = M::load(&mut connection, tables, &keys, usize::MAX).await?.rows;
    for (key, row) in &folded {
        ensure!(
            stored.get(key) == Some(row),
            "{} has for {key:?}\n  {:?}\nbut the log folds to\n  {row:?}",
            M::NAME,
            stored.get(key)
        );
    }
    let count = format!("SELECT count(*) FROM read_model.{}_g{tables}", M::NAME);
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(count))
        .fetch_one(&mut *connection)
        .await?;
    ensure!(
        rows.cast_unsigned() == folded.len() as u64,
        "{} has {rows} rows, the log folds to {}",
        M::NAME,
        folded.len()
    );
    Ok(())
}

/// The rows that events lead to.
///
/// # Errors
/// When a fold refuses one.
pub fn fold<M: ReadModel>(events: &[Event]) -> anyhow::Result<BTreeMap<M::Key, M::Row>> {
    let mut rows = BTreeMap::new();
    for event in events {
        for key in M::keys(event) {
            if let Some(row) = M::fold(&key, rows.get(&key), event)? {
                rows.insert(key, row);
            }
        }
    }
    Ok(rows)
}

/// The generation of tables that queries see.
///
/// # Errors
/// When there is no such projection.
pub async fn live_generation(superuser: &PgPool, projection: &str) -> anyhow::Result<Generation> {
    let number: i32 = sqlx::query_scalar("SELECT live_generation FROM read_model.projection WHERE name = $1")
        .bind(projection)
        .fetch_one(superuser)
        .await?;
    Generation::new(number).context("generations are counted from 1")
}

/// The digest of all rows of a table or view of the read models.
///
/// # Errors
/// When there is none.
pub async fn digest(superuser: &PgPool, table: &str) -> anyhow::Result<String> {
    let digest = format!(
        "SELECT count(*) || ' ' || coalesce(md5(string_agg(t::text, E'\\n' ORDER BY t::text COLLATE \"C\")), '')
         FROM read_model.{table} AS t"
    );
    Ok(sqlx::query_scalar(AssertSqlSafe(digest))
        .fetch_one(superuser)
        .await?)
}
