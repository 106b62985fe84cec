//! A private NATS, a database of its own, and a verb for everything that the tests do to them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use daybook_devstack::testing::{TestCluster, temporary_directory, test_cluster};
use daybook_devstack::{Nats, NatsOptions, NatsUser};
use daybook_event_bus::consume::{Batch, Reader, ReaderError, ReaderOptions};
use daybook_event_bus::publish::{PublishError, Publisher, PublisherHandle, PublisherOptions};
use daybook_event_bus::{Bus, Deployment, bus, message};
use daybook_event_store::{
    Committed, Decision, EventStore, Intent, NewCommand, NewEvent, RecordedEvent, SeenEpoch, append,
};
use futures::StreamExt as _;
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// How long anything may take before the test has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The partition of all tests.
pub(crate) const PARTITION: i32 = 0;

/// Its stream.
pub(crate) const STREAM: &str = "daybook_EVENTS_0";

pub(crate) struct Stack {
    pub(crate) nats: Nats,
    pub(crate) pool: PgPool,
    pub(crate) store: EventStore,
    appended: u64,
    cluster: TestCluster,
    _directory: tempfile::TempDir,
}

/// Another log than the stack's, to be exchanged for it.
pub(crate) struct OtherLog {
    pool: PgPool,
    store: EventStore,
    appended: u64,
}

/// A publisher that runs.
pub(crate) struct Publishing {
    pub(crate) handle: PublisherHandle,
    pub(crate) seen: SeenEpoch,
    committed: mpsc::Sender<Committed>,
    task: JoinHandle<Result<(), PublishError>>,
}

impl Stack {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let directory = temporary_directory()?;
        let nats = Nats::start(NatsOptions::new(directory.path().join("nats"))).await?;
        let cluster = test_cluster().await?;
        let pool = PgPool::connect(&database(&cluster).await?).await?;
        let store = EventStore::new(pool.clone());
        Ok(Self {
            nats,
            pool,
            store,
            appended: 0,
            cluster,
            _directory: directory,
        })
    }

    /// A log in a database of its own, and of the same first epoch.
    pub(crate) async fn other_log(&self) -> anyhow::Result<OtherLog> {
        let pool = PgPool::connect(&database(&self.cluster).await?).await?;
        Ok(OtherLog {
            store: EventStore::new(pool.clone()),
            pool,
            appended: 0,
        })
    }

    /// Goes on with the other log, and keeps this one in its place.
    pub(crate) fn exchange(&mut self, other: &mut OtherLog) {
        std::mem::swap(&mut self.pool, &mut other.pool);
        std::mem::swap(&mut self.store, &mut other.store);
        std::mem::swap(&mut self.appended, &mut other.appended);
    }

    /// A connection with the rights of one of the services.
    pub(crate) async fn bus(&self, user: NatsUser) -> anyhow::Result<Bus> {
        connected(&self.nats.url_of(user), &Deployment::default()).await
    }

    pub(crate) async fn publisher(&self) -> anyhow::Result<Publishing> {
        self.publisher_with(PublisherOptions::default()).await
    }

    pub(crate) async fn publisher_with(&self, options: PublisherOptions) -> anyhow::Result<Publishing> {
        let bus = self.bus(NatsUser::Command).await?;
        Ok(self.publisher_on(bus, options))
    }

    pub(crate) fn publisher_on(&self, bus: Bus, options: PublisherOptions) -> Publishing {
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

    pub(crate) async fn reader(&self, after: u64) -> anyhow::Result<Reader> {
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
    pub(crate) async fn commit(&mut self, count: usize) -> anyhow::Result<Committed> {
        let payloads = (0..count)
            .map(|index| format!(r#"{{"number": {index}}}"#))
            .collect();
        self.commit_payloads(payloads).await
    }

    pub(crate) async fn commit_payloads(&mut self, payloads: Vec<String>) -> anyhow::Result<Committed> {
        let after = self.store.head(PARTITION).await?.position;
        let count = payloads.len() as u64;
        self.appended += 1;
        let mut connection = self.pool.acquire().await?;
        let batch = [command(self.appended, payloads)];
        let judgement = append(&mut connection, PARTITION, &batch).await?;
        ensure!(
            judgement.stands_whole(&batch),
            "the append was not accepted: {judgement:?}"
        );
        ensure!(
            judgement.chains[0].first_position == after + 1,
            "someone else appends as well"
        );
        let events = self.log_after(after).await?;
        ensure!(events.len() as u64 == count, "the log has other events");
        Ok(Committed {
            generation: judgement.generation,
            events,
            at: Instant::now(),
        })
    }

    pub(crate) async fn log(&self) -> anyhow::Result<Vec<RecordedEvent>> {
        self.log_after(0).await
    }

    async fn log_after(&self, after: u64) -> anyhow::Result<Vec<RecordedEvent>> {
        let mut events = Vec::<RecordedEvent>::new();
        loop {
            let last = events.last().map_or(after, |event| event.position);
            let read = self.store.read_log(PARTITION, last, u32::MAX).await?;
            if read.is_empty() {
                return Ok(events);
            }
            events.extend(read);
        }
    }

    /// Everything that the stream holds, with a look at each message as a stranger would take it.
    pub(crate) async fn stream(&self) -> anyhow::Result<Vec<RecordedEvent>> {
        let stream = self.raw_stream().await?;
        let expected = stream.cached_info().state.messages;
        let config = pull::Config {
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::None,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await?;
        let mut messages = consumer.messages().await?.take(usize::try_from(expected)?);
        let mut events = Vec::new();
        while let Some(message) = messages.next().await {
            let message = message?;
            let headers = message.headers.as_ref().context("a message has no headers")?;
            let (event, _) = message::decode(headers, &message.payload)?;
            let sequence = message
                .info()
                .map_err(|error| anyhow::anyhow!(error))?
                .stream_sequence;
            ensure!(
                event.position == sequence,
                "position {} is at {sequence}",
                event.position
            );
            events.push(event);
        }
        Ok(events)
    }

    /// Sets the log back behind a position, as a disk that is rolled back does.
    pub(crate) async fn set_back(&self, position: i64) -> anyhow::Result<()> {
        let mut transaction = self.pool.begin().await?;
        sqlx::raw_sql("ALTER TABLE event_store.event DISABLE TRIGGER event_is_immutable")
            .execute(&mut *transaction)
            .await?;
        sqlx::query("DELETE FROM event_store.event WHERE position > $1")
            .bind(position)
            .execute(&mut *transaction)
            .await?;
        sqlx::raw_sql("ALTER TABLE event_store.event ENABLE TRIGGER event_is_immutable")
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }

    /// Opens the next epoch of the log, which parts from the one before behind a position.
    pub(crate) async fn fork(&self, behind: u64) -> anyhow::Result<()> {
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
    pub(crate) async fn stream_equals_log(&self, publishing: &Publishing) -> anyhow::Result<()> {
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
    pub(crate) async fn raw_stream(&self) -> anyhow::Result<async_nats::jetstream::stream::Stream> {
        Ok(self.jetstream().await?.get_stream(STREAM).await?)
    }

    /// Puts something into the stream that the log does not know.
    pub(crate) async fn publish_foreign(&self) -> anyhow::Result<()> {
        // Not by way of the head: a test may hold the events.
        let generation: Uuid = sqlx::query_scalar("SELECT generation FROM event_store.log")
            .fetch_one(&self.pool)
            .await?;
        let subject = format!("daybook.events.0.{generation}.foreign");
        let jetstream = self.jetstream().await?;
        jetstream.publish(subject, "not ours".into()).await?.await?;
        Ok(())
    }

    /// Puts an event into the stream, at its position, whatever the log holds there.
    pub(crate) async fn publish_forged(&self, event: &RecordedEvent, generation: Uuid) -> anyhow::Result<()> {
        let message = message::encode(event, generation, &Deployment::default());
        self.jetstream()
            .await?
            .publish_with_headers(message.subject, message.headers, message.payload)
            .await?
            .await?;
        Ok(())
    }

    /// JetStream, as the administrator.
    pub(crate) async fn jetstream(&self) -> anyhow::Result<async_nats::jetstream::Context> {
        let (servers, options) = bus::servers(&self.nats.url())?;
        Ok(async_nats::jetstream::new(options.connect(servers).await?))
    }
}

/// A bus that has its connection.
pub(crate) async fn connected(url: &str, deployment: &Deployment) -> anyhow::Result<Bus> {
    let bus = Bus::connect(url, deployment).await?;
    eventually("a connection to NATS", async || Ok(bus.is_connected())).await?;
    Ok(bus)
}

impl Publishing {
    /// Tells the publisher of a commit, as the appender does: what does not fit is left to the log.
    pub(crate) fn tell(&self, committed: Committed) {
        let _ = self.committed.try_send(committed);
    }

    /// Tells the publisher of a commit and waits for room if need be.
    pub(crate) async fn tell_all(&self, committed: Committed) -> anyhow::Result<()> {
        Ok(self.committed.send(committed).await?)
    }

    /// Waits until the publisher knows that `position` is in the stream.
    pub(crate) async fn published(&self, position: u64) -> anyhow::Result<()> {
        let mut published = self.handle.published_position();
        let reached = published.wait_for(|published| *published >= position);
        let reached = tokio::time::timeout(DEADLINE, reached).await;
        reached.with_context(|| format!("position {position} was not published"))??;
        Ok(())
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        drop(self.committed);
        let ended = tokio::time::timeout(DEADLINE, self.task).await;
        Ok(ended.context("the publisher did not stop")???)
    }

    /// Ends the publisher on the spot, as a crash would.
    pub(crate) async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Reads until `position`, checking that positions are consecutive. Returns all events and the batches' sources.
pub(crate) async fn read_to(reader: &mut Reader, position: u64) -> anyhow::Result<Vec<RecordedEvent>> {
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

pub(crate) async fn next(reader: &mut Reader) -> anyhow::Result<Batch> {
    Ok(attempt(reader).await??)
}

/// One call of the reader, which may fail but not hang.
pub(crate) async fn attempt(reader: &mut Reader) -> anyhow::Result<Result<Batch, ReaderError>> {
    let batch = tokio::time::timeout(DEADLINE, reader.next_batch(500)).await;
    batch.context("no events came")
}

/// Waits for a condition.
pub(crate) async fn eventually(
    what: &str,
    mut holds: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + DEADLINE;
    while !holds().await? {
        ensure!(
            Instant::now() < deadline,
            "{what} did not come in {} s",
            DEADLINE.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Whose events they are.
const TENANT: Uuid = Uuid::from_u128(0xda_1b00c);

fn command(number: u64, payloads: Vec<String>) -> NewCommand {
    NewCommand {
        tenant_id: TENANT,
        key: format!("key-{number}").into(),
        fingerprints: vec![0],
        stream_id: format!("ord_{number}").into(),
        category: "order",
        intent: Intent::Write(Decision {
            decided_on: None,
            metadata: Arc::from(r#"{"correlation_id": "c-1", "reason": "100 % sure"}"#),
            events: payloads.into_iter().map(event).collect(),
            rejection: None,
        }),
    }
}

fn event(payload: String) -> NewEvent {
    NewEvent {
        event_id: Uuid::now_v7(),
        event_type: "order.placed",
        schema_version: 1,
        payload,
    }
}

/// A database of its own with the event store's schema.
async fn database(cluster: &TestCluster) -> anyhow::Result<String> {
    let migrator = daybook_event_store::migrator();
    let checksums = migrator.iter().flat_map(|migration| migration.checksum.iter());
    let fingerprint = checksums.fold(0_u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
    });
    let template = format!("event_bus_{fingerprint:x}");
    cluster
        .ensure_template(&template, async |url| -> anyhow::Result<()> {
            let mut connection = PgConnection::connect(&url).await?;
            daybook_event_store::migrator().run(&mut connection).await?;
            sqlx::query("INSERT INTO event_store.tenant (tenant_id, name, partition) VALUES ($1, 'test', 0)")
                .bind(TENANT)
                .execute(&mut connection)
                .await?;
            Ok(connection.close().await?)
        })
        .await?;
    let name = format!("event_bus_test_{}", Uuid::now_v7().simple());
    cluster.create_database(&name, Some(&template)).await?;
    Ok(cluster.superuser_url(&name))
}
