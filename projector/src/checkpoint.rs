//! The table `read_model.checkpoint`: how far a generation of tables has come, and who may take it further.
//!
//! Whoever works on a generation holds a [`Lease`] on its checkpoint, by this database's clock. Each new owner gets the
//! next fencing number, and every write names the number and the position that it starts from, so that a worker that was
//! superseded without noticing (a zombie) changes nothing.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection as _, FromRow, PgConnection, Postgres, Row as _, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

use daybook_read_model::{Advance, Generation};

/// A lease that has not been renewed for ten seconds may be taken by anyone (the statements below say so too).
/// It is renewed by every advance, and this often while there is nothing to advance over.
pub const LEASE_RENEWAL: std::time::Duration = std::time::Duration::from_secs(3);

const OPEN: &str = "
    INSERT INTO read_model.checkpoint (projection, generation, partition, log_generation)
    SELECT p.name, g.generation, l.partition, l.generation
    FROM read_model.projection AS p
    CROSS JOIN event_store.log AS l
    CROSS JOIN LATERAL (
        SELECT p.live_generation
        UNION
        SELECT r.generation FROM read_model.rebuild AS r WHERE r.projection = p.name AND r.status = 'running'
    ) AS g (generation)
    ON CONFLICT DO NOTHING
";

const CLAIM: &str = "
    UPDATE read_model.checkpoint AS c
    SET owner = $4, fence = c.fence + 1, lease_until = clock_timestamp() + interval '10 seconds'
    FROM event_store.log AS l
    WHERE c.projection = $1 AND c.generation = $2 AND c.partition = $3 AND l.partition = c.partition
      AND (c.owner IS NULL OR c.owner = $4 OR c.lease_until < clock_timestamp())
    RETURNING c.fence, c.position, c.log_generation, c.failed_at IS NOT NULL AS failed,
              l.generation AS newest_log_generation, l.head
";

const RENEW: &str = "
    UPDATE read_model.checkpoint AS c
    SET lease_until = clock_timestamp() + interval '10 seconds'
    FROM event_store.log AS l
    WHERE c.projection = $1 AND c.generation = $2 AND c.partition = $3 AND c.fence = $4
      AND l.partition = c.partition AND l.generation = c.log_generation AND l.head >= c.position
";

const RELEASE: &str = "
    UPDATE read_model.checkpoint AS c
    SET owner = NULL, lease_until = '-infinity'
    WHERE c.projection = $1 AND c.generation = $2 AND c.partition = $3 AND c.fence = $4
";

const FAIL: &str = "
    UPDATE read_model.checkpoint AS c
    SET error = $5, error_position = $6, failed_at = coalesce(c.failed_at, clock_timestamp()),
        lease_until = clock_timestamp() + interval '10 seconds'
    WHERE c.projection = $1 AND c.generation = $2 AND c.partition = $3 AND c.fence = $4
";

const NEWEST: &str = "
    SELECT max(least(c.position, l.head))
    FROM read_model.checkpoint AS c
    JOIN read_model.projection AS p ON p.name = c.projection AND p.live_generation = c.generation
    JOIN event_store.log AS l ON l.partition = c.partition AND l.generation = c.log_generation
    WHERE c.partition = $1
";

const LIVE: &str = "
    SELECT p.name, c.partition, p.live_generation, c.position, l.head, c.error, c.error_position, c.failed_at,
           EXISTS (SELECT FROM read_model.rebuild AS r WHERE r.projection = p.name AND r.status = 'running')
               AS is_rebuilding,
           (SELECT (greatest(0, extract(epoch FROM clock_timestamp() - e.recorded_at)) * 1000)::bigint
            FROM event_store.event AS e
            WHERE e.partition = c.partition AND e.position = c.position + 1) AS lag_ms
    FROM read_model.projection AS p
    JOIN read_model.checkpoint AS c ON c.projection = p.name AND c.generation = p.live_generation
    JOIN event_store.log AS l ON l.partition = c.partition
    WHERE $1::text IS NULL OR p.name = $1
    ORDER BY p.name, c.partition
";

/// Every SQL statement of this file, by name, for the test that prepares each against the migrated schema.
pub const STATEMENTS: &[(&str, &str)] = &[
    ("open", OPEN),
    ("claim", CLAIM),
    ("renew", RENEW),
    ("release", RELEASE),
    ("fail", FAIL),
    ("newest", NEWEST),
    ("live", LIVE),
];

/// Which checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// The projection's name.
    pub projection: &'static str,
    /// The generation of its tables.
    pub tables: Generation,
    /// The partition of the log.
    pub partition: i32,
}

/// The right to advance a checkpoint, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The checkpoint.
    pub key: Key,
    /// The fencing number.
    pub fence: i64,
    /// Everything up to here is applied.
    pub position: u64,
    /// The generation of the log that the position belongs to.
    pub log_generation: Uuid,
    /// Whether the projection is marked as failed.
    pub failed: bool,
}

impl Lease {
    /// The step from where the checkpoint stands to `position`.
    pub fn advance_to(&self, position: u64) -> Advance {
        let Key {
            projection,
            tables,
            partition,
        } = self.key;
        Advance {
            projection,
            tables,
            partition,
            fence: self.fence,
            log_generation: self.log_generation,
            from: self.position,
            to: position,
        }
    }
}

/// What came of an attempt to get a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// It is ours.
    Held(Lease),
    /// It is ours, but it is no use: the position belongs to a log that is gone (restored), or does not exist in it yet.
    OfAnotherLog(Lease),
    /// Somebody else holds it, or the generation has been thrown away.
    Refused,
}

/// Opens checkpoints at the beginning of every partition that a projection has none for.
pub async fn open_all(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(OPEN).execute(connection).await.map(drop)
}

/// Takes the lease when nobody has it, when it has run out, or when `owner` has it already.
pub async fn claim(connection: &mut PgConnection, key: Key, owner: Uuid) -> Result<Claim, sqlx::Error> {
    let row = sqlx::query(CLAIM)
        .bind(key.projection)
        .bind(key.tables.get())
        .bind(key.partition)
        .bind(owner)
        .fetch_optional(connection)
        .await?;
    row.map_or(Ok(Claim::Refused), |row| claimed(key, &row))
}

fn claimed(key: Key, row: &PgRow) -> Result<Claim, sqlx::Error> {
    let lease = Lease {
        key,
        fence: row.try_get("fence")?,
        position: row.try_get::<i64, _>("position")?.cast_unsigned(),
        log_generation: row.try_get("log_generation")?,
        failed: row.try_get("failed")?,
    };
    let head = row.try_get::<i64, _>("head")?.cast_unsigned();
    let newest: Uuid = row.try_get("newest_log_generation")?;
    Ok(if newest == lease.log_generation && lease.position <= head {
        Claim::Held(lease)
    } else {
        Claim::OfAnotherLog(lease)
    })
}

/// Renews a lease; `false` when it is lost, or the log is another one.
pub async fn renew(connection: &mut PgConnection, lease: &Lease) -> Result<bool, sqlx::Error> {
    let done = held(RENEW, lease).execute(connection).await?;
    Ok(done.rows_affected() == 1)
}

/// Gives a lease back, so that another process need not wait for its end.
pub async fn release(connection: &mut PgConnection, lease: &Lease) -> Result<(), sqlx::Error> {
    held(RELEASE, lease).execute(connection).await.map(drop)
}

/// Marks the projection as failed before the event at `position`; the next advance clears the mark.
pub async fn fail(
    connection: &mut PgConnection,
    lease: &Lease,
    position: u64,
    error: &str,
) -> Result<(), sqlx::Error> {
    let failing = held(FAIL, lease).bind(error).bind(position.cast_signed());
    failing.execute(connection).await.map(drop)
}

fn held<'a>(
    statement: &'static str,
    lease: &'a Lease,
) -> sqlx::query::Query<'a, Postgres, sqlx::postgres::PgArguments> {
    sqlx::query(statement)
        .bind(lease.key.projection)
        .bind(lease.key.tables.get())
        .bind(lease.key.partition)
        .bind(lease.fence)
}

/// Begins a transaction that advances the checkpoint, in one round trip. After an error the connection is good for nothing
/// but to be closed.
///
/// The transaction holds the checkpoint's row, so the rows that it goes on to write have one writer.
pub async fn begin_advance<'c>(
    connection: &'c mut PgConnection,
    advance: &Advance,
) -> Result<Transaction<'c, Postgres>, sqlx::Error> {
    let Advance {
        projection,
        tables,
        partition,
        fence,
        log_generation,
        from,
        to,
    } = advance;
    let statement = format!(
        "BEGIN; SELECT read_model.advance(
            '{projection}', {tables}, {partition}, {fence}, '{log_generation}', {from}, {to})"
    );
    // Numbers, a UUID and a name that is a constant of this program: nothing that could break out of the statement.
    connection.begin_with(AssertSqlSafe(statement)).await
}

/// The newest position that a live projection has reached in a partition; 0 when there is none.
pub async fn newest_live(connection: &mut PgConnection, partition: i32) -> Result<u64, sqlx::Error> {
    let newest = sqlx::query_scalar::<_, Option<i64>>(NEWEST).bind(partition);
    let newest = newest.fetch_one(connection).await?;
    Ok(newest.map_or(0, i64::cast_unsigned))
}

/// A live projection on one partition, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Live {
    /// The projection's name.
    pub name: String,
    /// The partition of the log.
    pub partition: i32,
    /// The generation of tables that queries see.
    pub live_generation: i32,
    /// Everything up to here is applied.
    #[sqlx(try_from = "i64")]
    pub position: u64,
    /// The position of the newest event of the log.
    #[sqlx(try_from = "i64")]
    pub head: u64,
    /// Why the projection is failed, if it is.
    pub error: Option<String>,
    /// The event that it cannot take.
    pub error_position: Option<i64>,
    /// Since when.
    pub failed_at: Option<OffsetDateTime>,
    /// Whether new tables are being filled.
    pub is_rebuilding: bool,
    /// The age of the oldest event that is not applied, in milliseconds.
    pub lag_ms: Option<i64>,
}

/// The live projections on all partitions, or one projection, by name.
pub async fn live(connection: &mut PgConnection, name: Option<&str>) -> Result<Vec<Live>, sqlx::Error> {
    sqlx::query_as(LIVE).bind(name).fetch_all(connection).await
}
