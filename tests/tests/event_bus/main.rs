//! The bus on a real nats-server and a real Postgres: a log that is published and read, whatever happens to either.

mod consuming;
mod deployments;
mod publishing;
mod settings;
mod users;

use std::time::Instant;

use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use daybook_devstack::testing::temporary_directory;
use daybook_devstack::{Nats, NatsOptions, NatsUser};
use daybook_event_bus::consume::{Batch, Reader, ReaderError, ReaderOptions};
use daybook_event_bus::publish::{PublishError, Publisher, PublisherHandle, PublisherOptions};
use daybook_event_bus::{Bus, Deployment, message};
use daybook_event_store::{Committed, EventStore, RecordedEvent, SeenEpoch, append};
use daybook_tests::database::Database;
use daybook_tests::log::{self, PARTITION};
use daybook_tests::nats::{self, STREAM};
use daybook_tests::orders::new_order_id;
use daybook_tests::wait::{self, DEADLINE};
use futures::TryStreamExt as _;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// Whose events they are.
const TENANT: Uuid = Uuid::from_u128(0xda_1b00c);

/// A private NATS, a log in a database of its own, and a verb for everything that the tests do to them.
struct Stack {
    nats: Nats,
    pool: PgPool,
    store: EventStore,
    _database: Database,
    _directory: tempfile::TempDir,
}

/// A publisher that runs.
struct Publishing {
    handle: PublisherHandle,
    seen: SeenEpoch,
    committed: mpsc::Sender<Committed>,
    task: JoinHandle<Result<(), PublishError>>,
}

impl Stack {
    async fn start() -> anyhow::Result<Self> {
        let directory = temporary_directory()?;
        let nats = Nats::start(NatsOptions::new(directory.path().join("nats"))).await?;
        let (database, pool) = log_of_its_own().await?;
        Ok(Self {
            nats,
            store: EventStore::new(pool.clone()),
            pool,
            _database: database,
            _directory: directory,
        })
    }

    /// Goes on with the other log, and keeps this one in its place.
    fn exchange(&mut self, other: &mut PgPool) {
        std::mem::swap(&mut self.pool, other);
        self.store = EventStore::new(self.pool.clone());
    }

    /// A connection with the rights of one of the services.
    async fn bus(&self, user: NatsUser) -> anyhow::Result<Bus> {
        connected(&self.nats.url_of(user), &Deployment::default()).await
    }

    async fn publisher(&self) -> anyhow::Result<Publishing> {
        self.publisher_with(PublisherOptions::default()).await
    }

    async fn publisher_with(&self, options: PublisherOptions) -> anyhow::Result<Publishing> {
        let bus = self.bus(NatsUser::Command).await?;
        Ok(self.publisher_on(bus, options))
    }

    fn publisher_on(&self, bus: Bus, options: PublisherOptions) -> Publishing {
        let (committed, receiver) = mpsc::channel(64);
        let seen = SeenEpoch::default();
        let (handle, work) = Publisher::new(
            bus,
            self.store.clone(),
            self.store.clone(),
            PARTITION,
            receiver,
            seen.clone(),
            options,
        );
        Publishing {
            handle,
            seen,
            committed,
            task: tokio::spawn(work),
        }
    }

    async fn reader(&self, after: u64) -> anyhow::Result<Reader> {
        let bus = self.bus(NatsUser::Projector).await?;
        Ok(Reader::new(
            bus,
            self.store.clone(),
            PARTITION,
            after,
            ReaderOptions::default(),
        ))
    }

    /// Commits events in one transaction and returns what a publisher is told of it.
    async fn commit(&self, count: usize) -> anyhow::Result<Committed> {
        let payloads = (0..count)
            .map(|index| format!(r#"{{"number": {index}}}"#))
            .collect();
        self.commit_payloads(payloads).await
    }

    async fn commit_payloads(&self, payloads: Vec<String>) -> anyhow::Result<Committed> {
        let after = self.store.head(PARTITION).await?.position;
        let count = payloads.len();
        let events = payloads.into_iter().map(log::event).collect();
        let batch = [log::command(TENANT, &new_order_id(), None, events)];
        let mut connection = self.pool.acquire().await?;
        let judgement = append(&mut connection, PARTITION, &batch).await?;
        ensure!(
            log::is_written_whole(&batch, &judgement),
            "the append was not accepted: {judgement:?}"
        );
        let events = log::events_after(&self.pool, after).await?;
        ensure!(events.len() == count, "someone else appends as well");
        Ok(Committed {
            generation: judgement.epoch.generation,
            events,
            at: Instant::now(),
        })
    }

    async fn log(&self) -> anyhow::Result<Vec<RecordedEvent>> {
        log::events(&self.pool).await
    }

    /// Everything that the stream holds.
    async fn stream(&self) -> anyhow::Result<Vec<RecordedEvent>> {
        let count = self.raw_stream().await?.cached_info().state.messages;
        let events = nats::events(&self.jetstream().await?, usize::try_from(count)?).await?;
        let events = events.map_ok(|(event, _)| event).try_collect();
        let collected = tokio::time::timeout(DEADLINE, events).await;
        collected.context("the stream does not give what it holds")?
    }

    /// Sets the log back behind a position, as a disk that is rolled back does.
    async fn set_back(&self, position: i64) -> anyhow::Result<()> {
        let statement = format!(
            "ALTER TABLE event_store.event DISABLE TRIGGER event_is_immutable;
             DELETE FROM event_store.event WHERE position > {position};
             ALTER TABLE event_store.event ENABLE TRIGGER event_is_immutable"
        );
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Opens the next epoch of the log, which parts from the one before behind a position.
    async fn fork(&self, behind: u64) -> anyhow::Result<()> {
        let attached = "
            SELECT a FROM event_store.log AS l
            CROSS JOIN LATERAL event_store.fork(l.partition, 0, 'a test', $1) AS a
        ";
        let _epoch: i32 = sqlx::query_scalar(attached)
            .bind(behind.cast_signed())
            .fetch_one(&self.pool)
            .await?;
        Ok(())
    }

    /// Waits until the stream holds the log from its first message on, and compares them one by one.
    async fn stream_equals_log(&self, publishing: &Publishing) -> anyhow::Result<()> {
        let head = self.store.head(PARTITION).await?.position;
        publishing.published(head).await?;
        let (log, stream) = (self.log().await?, self.stream().await?);
        ensure!(
            log.len() as u64 == head,
            "the log has {} events of {head}",
            log.len()
        );
        let first = stream.first().map_or(head, |event| event.position - 1);
        ensure!(
            log[usize::try_from(first)?..] == stream,
            "the stream differs from the log"
        );
        Ok(())
    }

    /// JetStream's own view, for what our code does not do.
    async fn raw_stream(&self) -> anyhow::Result<jetstream::stream::Stream> {
        Ok(self.jetstream().await?.get_stream(STREAM).await?)
    }

    /// A subject of the stream, and of no event.
    async fn foreign_subject(&self) -> anyhow::Result<String> {
        // Not by way of the head: a test may hold the events.
        let generation: Uuid = sqlx::query_scalar("SELECT generation FROM event_store.log")
            .fetch_one(&self.pool)
            .await?;
        Ok(format!("daybook.events.0.{generation}.foreign"))
    }

    /// Puts something into the stream that the log does not know.
    async fn publish_foreign(&self) -> anyhow::Result<()> {
        let subject = self.foreign_subject().await?;
        let jetstream = self.jetstream().await?;
        jetstream.publish(subject, "not ours".into()).await?.await?;
        Ok(())
    }

    /// Puts a message into the stream that is nothing but these headers, whatever they are.
    async fn publish_headers(&self, headers: &[u8]) -> anyhow::Result<()> {
        nats::publish_headers(&self.nats.url(), &self.foreign_subject().await?, headers).await
    }

    /// Puts an event into the stream, at its position, whatever the log holds there.
    async fn publish_forged(&self, event: &RecordedEvent, generation: Uuid) -> anyhow::Result<()> {
        let message = message::encode(event, generation, &Deployment::default());
        self.jetstream()
            .await?
            .publish_with_headers(message.subject, message.headers, message.payload)
            .await?
            .await?;
        Ok(())
    }

    /// JetStream, as the administrator.
    async fn jetstream(&self) -> anyhow::Result<jetstream::Context> {
        nats::jetstream(&self.nats.url()).await
    }
}

/// A bus that has its connection.
async fn connected(url: &str, deployment: &Deployment) -> anyhow::Result<Bus> {
    let bus = Bus::connect(url, deployment, "test").await?;
    wait::until("a connection to NATS", async || Ok(bus.is_connected())).await?;
    Ok(bus)
}

impl Publishing {
    /// Tells the publisher of a commit, as the appender does: what does not fit is left to the log.
    fn tell(&self, committed: Committed) {
        let _ = self.committed.try_send(committed);
    }

    /// Tells the publisher of a commit and waits for room if need be.
    async fn tell_all(&self, committed: Committed) -> anyhow::Result<()> {
        Ok(self.committed.send(committed).await?)
    }

    /// Waits until the publisher knows that `position` is in the stream.
    async fn published(&self, position: u64) -> anyhow::Result<()> {
        let mut published = self.handle.published_position();
        let reached = published.wait_for(|published| *published >= position);
        let reached = tokio::time::timeout(DEADLINE, reached).await;
        reached.with_context(|| format!("position {position} was not published"))??;
        Ok(())
    }

    async fn stop(self) -> anyhow::Result<()> {
        drop(self.committed);
        let ended = tokio::time::timeout(DEADLINE, self.task).await;
        Ok(ended.context("the publisher did not stop")???)
    }

    /// Ends the publisher on the spot, as a crash would.
    async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Reads until `position`, checking that positions are consecutive. Returns all events and the batches' sources.
async fn read_to(reader: &mut Reader, position: u64) -> anyhow::Result<Vec<RecordedEvent>> {
    let mut events = Vec::new();
    while events
        .last()
        .is_none_or(|event: &RecordedEvent| event.position < position)
    {
        events.extend(next(reader).await?.events);
    }
    for pair in events.windows(2) {
        ensure!(
            pair[1].position == pair[0].position + 1,
            "{} follows {}",
            pair[1].position,
            pair[0].position
        );
    }
    Ok(events)
}

async fn next(reader: &mut Reader) -> anyhow::Result<Batch> {
    Ok(attempt(reader).await??)
}

/// One call of the reader, which may fail but not hang.
async fn attempt(reader: &mut Reader) -> anyhow::Result<Result<Batch, ReaderError>> {
    let batch = tokio::time::timeout(DEADLINE, reader.next_batch(500)).await;
    batch.context("no events came")
}

/// A log in a database of its own, and of the same first epoch as every other one.
async fn log_of_its_own() -> anyhow::Result<(Database, PgPool)> {
    let database = Database::create_alike().await?;
    database.add_tenants(&[TENANT]).await?;
    let pool = PgPool::connect(&database.superuser_url()).await?;
    Ok((database, pool))
}
