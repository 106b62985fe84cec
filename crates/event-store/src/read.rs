//! Reads of the log: one stream, a range of positions.

use std::time::Duration;

use daybook_postgres::{CONNECT_TIMEOUT, LOOKUP_TIMEOUT, bounded, reconnect, until, within};
use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{Connection as _, FromRow as _, PgConnection, PgPool, Postgres, Row as _};
use thiserror::Error;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use crate::RecordedEvent;
use crate::lineage::{self, Attached, Epoch, EpochId, Lineage, SeenEpoch, Witnesses};

/// Why the log could not be read.
#[derive(Debug, Error)]
#[error("cannot {doing}")]
pub struct ReadError {
    doing: &'static str,
    #[source]
    source: sqlx::Error,
}

impl ReadError {
    fn while_doing(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self { doing, source }
    }
}

/// A statement that gives events.
type Rows = Query<'static, Postgres, PgArguments>;

/// Which way a stream is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The oldest event first.
    Forward,
    /// The newest event first.
    Backward,
}

/// The head of a partition of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogHead {
    /// The newest epoch: another one after every fork of the log's history.
    pub epoch: EpochId,
    /// The position of the newest event, 0 when there is none.
    pub position: u64,
    /// When the newest event was recorded; `None` when there is none.
    pub recorded_at: Option<OffsetDateTime>,
    /// The id of the newest event; `None` when there is none.
    pub event_id: Option<Uuid>,
    /// Whether a standby was asked, which may be behind.
    pub is_standby: bool,
}

pub(crate) const READ_STREAM: &str = "
    SELECT $2 AS partition, position, $1 AS tenant_id, category, stream_id, stream_version, event_id, event_type,
           schema_version, payload::text AS payload, metadata::text AS metadata, recorded_at
    FROM event_store.read_stream($1, $2, $3, $4, $5, $6, $7, $8)
";

pub(crate) const READ_EVENTS: &str = "
    SELECT $2 AS partition, position, $1 AS tenant_id, category, stream_id, stream_version, event_id, event_type,
           schema_version, payload::text AS payload, metadata::text AS metadata, recorded_at
    FROM event_store.read_events($1, $2, $3, $4, $5)
";

/// An event is read while those before it have less than $4 bytes of payload and metadata, so the first one always is. No
/// value is fetched in order to count it.
pub(crate) const READ_LOG: &str = "
    SELECT e.partition, e.position, t.tenant_id, e.category, e.stream_id, e.stream_version, e.event_id, e.event_type,
           e.schema_version, e.payload::text AS payload, e.metadata::text AS metadata, e.recorded_at
    FROM (
        SELECT e.*, sum(event_store.size_bytes(e.payload) + event_store.size_bytes(e.metadata))
            OVER (ORDER BY e.position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
        FROM (
            SELECT e.* FROM event_store.event AS e
            WHERE e.partition = $1 AND e.position > $2
            ORDER BY e.position
            LIMIT $3
        ) AS e
    ) AS e
    LEFT JOIN event_store.tenant AS t ON t.number = e.tenant_number
    WHERE coalesce(e.bytes_before, 0) < $4
    ORDER BY e.position
";

/// There is one row at least, without an event where none is new.
pub(crate) const READ_TAIL: &str = "
    SELECT r.epoch, r.generation, r.up_to, $1 AS partition, r.position, r.tenant_id, r.category, r.stream_id,
           r.stream_version, r.event_id, r.event_type, r.schema_version, r.payload::text AS payload,
           r.metadata::text AS metadata, r.recorded_at
    FROM event_store.read_tail($1, $2, $3, $4, $5, $6) AS r
";

/// There is one row at least, without an event where there is none.
pub(crate) const READ_TENANT: &str = "
    SELECT r.epoch, r.generation, r.up_to, $2 AS partition, r.position, $1 AS tenant_id, r.category, r.stream_id,
           r.stream_version, r.event_id, r.event_type, r.schema_version, r.payload::text AS payload,
           r.metadata::text AS metadata, r.recorded_at
    FROM event_store.read_tenant($1, $2, $3, $4, $5, $6, $7, $8, $9) AS r
";

/// No event is read beyond as many bytes of payload and metadata.
const READ_BYTES_MAX: usize = 8 * 1_024 * 1_024;

pub(crate) const HEAD: &str = "
    SELECT epoch, generation, head, recorded_at, event_id, is_standby FROM event_store.head($1)
";

pub(crate) const PARTITIONS: &str = "
    SELECT partition FROM event_store.log ORDER BY partition
";

/// Which positions of the log are read for tenants that are followed.
#[derive(Debug, Clone)]
pub struct TailRange {
    /// The partition of the log.
    pub partition: i32,
    /// Behind this position.
    pub after: u64,
    /// Up to this one, where the log has come so far.
    pub up_to: u64,
    /// No more positions than this, other tenants' included.
    pub positions_max: u32,
    /// No event behind as many bytes of payload and metadata.
    pub bytes_max: u32,
}

/// Which of a tenant's events are read.
#[derive(Debug, Clone)]
pub struct TenantRange {
    /// Whose events.
    pub tenant_id: Uuid,
    /// The tenant's partition of the log.
    pub partition: i32,
    /// Behind this position.
    pub after: u64,
    /// Up to this one.
    pub up_to: u64,
    /// No more positions than this, other tenants' included.
    pub positions_max: u32,
    /// No more events than this.
    pub events_max: u32,
    /// No event behind as many bytes of payload and metadata.
    pub bytes_max: u32,
    /// Of this type alone.
    pub event_type: Option<String>,
    /// Of this aggregate alone.
    pub stream_id: Option<String>,
}

/// The events of a range.
#[derive(Debug, Clone)]
pub struct TailPage {
    /// The log's epoch as this was read.
    pub epoch: EpochId,
    /// All up to here was looked at; not behind the beginning of the range where nothing is new.
    pub up_to: u64,
    /// The events of the tenants, in order.
    pub events: Vec<RecordedEvent>,
}

/// How much longer a read may take for each event that it asks for, beside [`LOOKUP_TIMEOUT`].
const EVENT_TIMEOUT: Duration = Duration::from_millis(1);

pub(crate) const CHECK_APPEND: &str = "SELECT event_store.check_append()";

/// Why an append would fail now.
#[derive(Debug, Error)]
pub enum NotAppendable {
    /// The database says why.
    #[error("{0}")]
    Refused(String),
    /// There is a later epoch elsewhere.
    #[error("the log was superseded: its epoch is {epoch}, and there is {seen}")]
    Superseded {
        /// The log's newest epoch.
        epoch: i32,
        /// The epoch that was met elsewhere.
        seen: i32,
    },
    /// The database does not answer.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Reads the log. What may be read depends on the role that the pool logs in as. Every read waits for Postgres for a
/// bounded time, and is never dropped half-way.
#[derive(Debug, Clone)]
pub struct EventStore {
    pool: PgPool,
    until: Option<Instant>,
}

impl EventStore {
    /// Reads through `pool`.
    pub fn new(pool: PgPool) -> Self {
        Self { pool, until: None }
    }

    /// The same, for a caller who stops waiting at a moment: the server ends what it reads for a tenant then.
    #[must_use]
    pub fn until(self, until: Option<Instant>) -> Self {
        Self { until, ..self }
    }

    /// The events of one stream with versions in `versions` (both ends included), at most `limit` and about 8 MiB of them, but
    /// at least one where there is one. [`may_go_on`] says whether there may be more.
    pub async fn read_stream(
        &self,
        tenant_id: Uuid,
        partition: i32,
        stream_id: &str,
        versions: std::ops::RangeInclusive<u64>,
        limit: u32,
        direction: Direction,
    ) -> Result<Vec<RecordedEvent>, ReadError> {
        let stream = (tenant_id, partition, stream_id.to_owned());
        let rows = stream_rows(stream, &versions, limit, direction, READ_BYTES_MAX);
        let read = self.read(time_for(limit), move |connection| {
            Box::pin(events(connection, rows))
        });
        read.await.map_err(ReadError::while_doing("read a stream"))
    }

    /// The events of one stream from a version on, at most `limit` and about `bytes_max` bytes of payload and metadata of them, but
    /// at least one where there is one: that there are fewer than `limit` does not mean that there are no more.
    pub async fn read_stream_within(
        &self,
        tenant_id: Uuid,
        partition: i32,
        stream_id: &str,
        from: u64,
        limit: u32,
        bytes_max: u32,
    ) -> Result<Vec<RecordedEvent>, ReadError> {
        let stream = (tenant_id, partition, stream_id.to_owned());
        let (versions, forward) = (from..=u64::MAX, Direction::Forward);
        let rows = stream_rows(stream, &versions, limit, forward, bytes_max as usize);
        let read = self.read(time_for(limit), move |connection| {
            Box::pin(events(connection, rows))
        });
        read.await.map_err(ReadError::while_doing("read a stream"))
    }

    /// Those of these events of a tenant that the log still has, by position and id, in the order in which they are given: as
    /// long as those before have less than `bytes_max` of payload and metadata, but at least one where there is one.
    pub async fn read_events(
        &self,
        tenant_id: Uuid,
        partition: i32,
        events: &[(u64, Uuid)],
        bytes_max: u32,
    ) -> Result<Vec<RecordedEvent>, ReadError> {
        let (positions, ids): (Vec<_>, Vec<_>) = events
            .iter()
            .map(|(position, id)| (at_most_i64(*position), *id))
            .unzip();
        let limit = time_for(u32::try_from(events.len()).unwrap_or(u32::MAX));
        let read = self.read(limit, move |connection| {
            let rows = sqlx::query(READ_EVENTS)
                .bind(tenant_id)
                .bind(partition)
                .bind(positions)
                .bind(ids)
                .bind(i64::from(bytes_max));
            Box::pin(self::events(connection, rows))
        });
        read.await.map_err(ReadError::while_doing("read events"))
    }

    /// The events of every tenant after `after`, in order, at most `limit` and about 8 MiB of them, but at least one where
    /// there is one: that there are fewer than `limit` does not mean that there are no more. Only the publisher's and the
    /// projector's roles see any.
    pub async fn read_log(
        &self,
        partition: i32,
        after: u64,
        limit: u32,
    ) -> Result<Vec<RecordedEvent>, ReadError> {
        self.read_log_within(partition, after, limit, READ_BYTES_MAX)
            .await
    }

    /// As [`Self::read_log`], about `bytes_max` bytes of payload and metadata at the most.
    pub async fn read_log_within(
        &self,
        partition: i32,
        after: u64,
        limit: u32,
        bytes_max: usize,
    ) -> Result<Vec<RecordedEvent>, ReadError> {
        let bytes_max = i64::try_from(bytes_max).unwrap_or(i64::MAX).max(1);
        let read = bounded(&self.pool, time_for(limit), move |connection| {
            let rows = sqlx::query(READ_LOG)
                .bind(partition)
                .bind(at_most_i64(after))
                .bind(i64::from(limit))
                .bind(bytes_max);
            Box::pin(events(connection, rows))
        });
        read.await.map_err(ReadError::while_doing("read the log"))
    }

    /// The events of some tenants in a range, in order. Nothing for no tenants.
    pub async fn read_tail(&self, range: TailRange, tenants: Vec<Uuid>) -> Result<TailPage, ReadError> {
        let read = self.read(time_for(range.positions_max), move |connection| {
            let rows = sqlx::query(READ_TAIL)
                .bind(range.partition)
                .bind(at_most_i64(range.after))
                .bind(at_most_i64(range.up_to))
                .bind(range.positions_max.cast_signed())
                .bind(i64::from(range.bytes_max))
                .bind(tenants);
            Box::pin(tail_page(connection, rows))
        });
        read.await
            .map_err(ReadError::while_doing("read what is new in the log"))
    }

    /// A tenant's events in a range, in order.
    pub async fn read_tenant(&self, range: TenantRange) -> Result<TailPage, ReadError> {
        let read = self.read(time_for(range.positions_max), move |connection| {
            let rows = sqlx::query(READ_TENANT)
                .bind(range.tenant_id)
                .bind(range.partition)
                .bind(at_most_i64(range.after))
                .bind(at_most_i64(range.up_to))
                .bind(i64::from(range.positions_max))
                .bind(range.events_max.cast_signed())
                .bind(i64::from(range.bytes_max))
                .bind(range.event_type)
                .bind(range.stream_id);
            Box::pin(tail_page(connection, rows))
        });
        read.await
            .map_err(ReadError::while_doing("read a tenant's part of the log"))
    }

    /// The partitions of the log, in order.
    pub async fn partitions(&self) -> Result<Vec<i32>, ReadError> {
        let read = bounded(&self.pool, LOOKUP_TIMEOUT, |connection| {
            Box::pin(sqlx::query_scalar(PARTITIONS).fetch_all(connection))
        });
        read.await
            .map_err(ReadError::while_doing("read the partitions of the log"))
    }

    /// The head of a partition.
    pub async fn head(&self, partition: i32) -> Result<LogHead, ReadError> {
        let read = bounded(&self.pool, LOOKUP_TIMEOUT, move |connection| {
            Box::pin(head(connection, partition))
        });
        read.await
            .map_err(ReadError::while_doing("read the head of the log"))
    }

    /// As [`Self::head`], on a new connection: the address may lead to another server by now than it did.
    pub async fn head_anew(&self, partition: i32) -> Result<LogHead, ReadError> {
        let options = self.pool.connect_options();
        let read = async {
            let mut connection = PgConnection::connect_with(&options).await?;
            let head = head(&mut connection, partition).await?;
            connection.close().await?;
            Ok::<_, sqlx::Error>(head)
        };
        within(CONNECT_TIMEOUT + LOOKUP_TIMEOUT, read)
            .await
            .map_err(ReadError::while_doing(
                "read the head of the log on a new connection",
            ))
    }

    /// The epochs of a partition.
    pub async fn lineage(&self, partition: i32) -> Result<Lineage, ReadError> {
        let read = bounded(&self.pool, LOOKUP_TIMEOUT, move |connection| {
            Box::pin(
                sqlx::query_as(lineage::EPOCHS)
                    .bind(partition)
                    .fetch_all(connection),
            )
        });
        let epochs: Result<Vec<Epoch>, _> = read.await;
        epochs
            .map(Lineage::from_iter)
            .map_err(ReadError::while_doing("read the lineage of the log"))
    }

    /// Makes sure that the newest epoch has all that the caller knows of, and opens the next one if not, with a number above
    /// `seen`. It fails on a standby, and for a role that may not append.
    pub async fn attach(
        &self,
        partition: i32,
        witnesses: Witnesses,
        seen: i32,
    ) -> Result<Attached, ReadError> {
        let attaching = bounded(&self.pool, LOOKUP_TIMEOUT, move |connection| {
            Box::pin(async move { lineage::attach(connection, partition, &witnesses, seen).await })
        });
        attaching
            .await
            .map_err(ReadError::while_doing("attach to the log"))
    }

    /// Whether the pool's role could append: a primary answers that takes writes and makes them durable, and lets this role
    /// call `event_store.append`. Nothing is written, and a partition that is busy is no reason to say no.
    ///
    /// # Errors
    /// Why not.
    pub async fn check_append(&self) -> Result<(), NotAppendable> {
        let read = bounded(&self.pool, LOOKUP_TIMEOUT, |connection| {
            Box::pin(sqlx::query_scalar::<_, Option<String>>(CHECK_APPEND).fetch_one(connection))
        });
        let refusal = read
            .await
            .map_err(ReadError::while_doing("check whether an append could succeed"))?;
        refusal.map_or(Ok(()), |reason| Err(NotAppendable::Refused(reason)))
    }

    /// Reads for a tenant, within `limit` and up to the moment when the caller stops waiting.
    async fn read<T, W>(&self, limit: Duration, work: W) -> Result<T, sqlx::Error>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send + 'static,
    {
        let moment = self.until;
        let read = bounded(&self.pool, limit, move |connection| {
            Box::pin(until(connection, moment, work))
        });
        read.await
    }

    /// Whether no later epoch than a partition's newest was met elsewhere.
    ///
    /// # Errors
    /// [`NotAppendable::Superseded`] when one was.
    pub async fn check_epoch(&self, partition: i32, seen: &SeenEpoch) -> Result<(), NotAppendable> {
        let (own, latest) = (self.head(partition).await?.epoch, seen.latest());
        if own >= latest {
            return Ok(());
        }
        let elsewhere = seen.head_elsewhere(self, partition, own).await;
        if elsewhere.is_some_and(|head| head.epoch != own) {
            reconnect();
        }
        Err(NotAppendable::Superseded {
            epoch: own.number,
            seen: latest.number,
        })
    }
}

/// Whether there may be more behind what a read of at most `limit` events of a stream gave.
#[must_use]
pub fn may_go_on(read: &[RecordedEvent], limit: u32) -> bool {
    let bytes = read
        .iter()
        .map(|event| event.payload.len() + event.metadata.len());
    read.len() >= limit as usize || bytes.sum::<usize>() >= READ_BYTES_MAX
}

/// The events of one stream: of which tenant, in which partition, and its id.
fn stream_rows(
    (tenant_id, partition, stream_id): (Uuid, i32, String),
    versions: &std::ops::RangeInclusive<u64>,
    limit: u32,
    direction: Direction,
    bytes_max: usize,
) -> Rows {
    sqlx::query(READ_STREAM)
        .bind(tenant_id)
        .bind(partition)
        .bind(stream_id)
        .bind(at_most_i64(*versions.start()))
        .bind(at_most_i64(*versions.end()))
        .bind(limit.cast_signed())
        .bind(direction == Direction::Backward)
        .bind(i64::try_from(bytes_max).unwrap_or(i64::MAX))
}

async fn events(connection: &mut PgConnection, rows: Rows) -> Result<Vec<RecordedEvent>, sqlx::Error> {
    let rows = rows.fetch(connection);
    rows.and_then(async |row| RecordedEvent::from_row(&row))
        .try_collect()
        .await
}

async fn tail_page(connection: &mut PgConnection, rows: Rows) -> Result<TailPage, sqlx::Error> {
    let rows = rows.fetch_all(connection).await?;
    let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let epoch = EpochId::from_row(first)?;
    let up_to = first.try_get::<i64, _>("up_to")?.cast_unsigned();
    let has_event = first.try_get::<Option<i64>, _>("position")?.is_some();
    let events = match has_event {
        true => rows
            .iter()
            .map(RecordedEvent::from_row)
            .collect::<Result<_, _>>()?,
        false => Vec::new(),
    };
    Ok(TailPage { epoch, up_to, events })
}

async fn head(connection: &mut PgConnection, partition: i32) -> Result<LogHead, sqlx::Error> {
    let row = sqlx::query(HEAD).bind(partition).fetch_one(connection).await?;
    Ok(LogHead {
        epoch: EpochId::from_row(&row)?,
        position: row.try_get::<i64, _>("head")?.cast_unsigned(),
        recorded_at: row.try_get("recorded_at")?,
        event_id: row.try_get("event_id")?,
        is_standby: row.try_get("is_standby")?,
    })
}

/// How long reading this many events may take.
fn time_for(events: u32) -> Duration {
    LOOKUP_TIMEOUT + EVENT_TIMEOUT * events
}

/// Versions and positions above `i64::MAX` do not exist, so a bound there is as good as the largest.
fn at_most_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
