//! The tables `read_model.projection` and `read_model.rebuild`: which generation is live, and what is being rebuilt.
//!
//! The steps of a rebuild are SQL functions (`migrations/read-model/0002_projections.sql`), because each changes tables,
//! view and registry in one transaction.

use sqlx::{FromRow, PgConnection, Row as _};
use thiserror::Error;
use time::OffsetDateTime;

use daybook_read_model::Generation;

use crate::checkpoint::Lease;

/// The constraint that allows one running rebuild of a projection.
const ONE_RUNNING: &str = "rebuild_running_key";

/// SQLSTATE that `INTO STRICT` raises when there is no such row.
const NO_DATA_FOUND: &str = "P0002";

const INTRODUCE: &str = "SELECT read_model.introduce($1)";
const START: &str = "SELECT read_model.start_rebuild($1, $2, $3)";
const BEGIN_ANEW: &str = "SELECT generation, failed FROM read_model.begin_anew($1, $2, $3, $4)";
const COUNT_INDEXES: &str = "SELECT count(*) FROM read_model.further_indexes($1, $2)";
const MAKE_INDEX: &str = "SELECT read_model.make_index($1, $2, $3)";
const FINISH_FILL: &str = "SELECT read_model.finish_fill($1, $2)";
const FAIL: &str = "SELECT read_model.fail_rebuild($1, $2, $3, $4, $5)";
const GO_LIVE: &str = "SELECT read_model.go_live($1, $2)";

const RUNNING: &str = "
    SELECT r.generation, r.indexed_at IS NOT NULL AS is_indexed
    FROM read_model.rebuild AS r
    WHERE r.projection = $1 AND r.status = 'running'
";

const HOLD_LIVE: &str = "
    SELECT f.partition
    FROM read_model.projection AS p
    JOIN read_model.fence AS f ON f.projection = p.name AND f.generation = p.live_generation
    WHERE p.name = $1
    ORDER BY f.partition
    FOR NO KEY UPDATE OF p, f
";

const LIVE_POSITIONS: &str = "
    SELECT c.partition, c.position
    FROM read_model.projection AS p
    JOIN read_model.checkpoint AS c ON c.projection = p.name AND c.generation = p.live_generation
    CROSS JOIN LATERAL event_store.head(c.partition) AS h
    WHERE p.name = $1 AND event_store.has(c.partition, c.log_generation, c.position) AND c.position <= h.head
";

const PROGRESS: &str = "
    SELECT r.projection, r.generation, r.status, r.started_at, r.ended_at, r.error,
           CASE WHEN r.status = 'failed' THEN 0
                ELSE coalesce((SELECT sum(c.position) FROM read_model.checkpoint AS c
                               WHERE c.projection = r.projection AND c.generation = r.generation), 0)
           END::bigint AS position,
           (SELECT sum(h.head) FROM event_store.log AS l CROSS JOIN LATERAL event_store.head(l.partition) AS h)::bigint
               AS head,
           extract(epoch FROM coalesce(r.ended_at, clock_timestamp()) - r.started_at)::float8 AS seconds
    FROM read_model.rebuild AS r
    WHERE r.projection = $1 AND r.generation = $2
";

/// Every SQL statement of this file, by name, for the test that prepares each against the migrated schema.
pub const STATEMENTS: &[(&str, &str)] = &[
    ("introduce", INTRODUCE),
    ("start", START),
    ("begin_anew", BEGIN_ANEW),
    ("count_indexes", COUNT_INDEXES),
    ("make_index", MAKE_INDEX),
    ("finish_fill", FINISH_FILL),
    ("fail", FAIL),
    ("go_live", GO_LIVE),
    ("running", RUNNING),
    ("hold_live", HOLD_LIVE),
    ("live_positions", LIVE_POSITIONS),
    ("progress", PROGRESS),
];

/// Why a rebuild was not started.
#[derive(Debug, Error)]
pub enum StartError {
    /// There is no projection of this name.
    #[error("there is no such projection")]
    Unknown,
    /// One is running.
    #[error("a rebuild of this projection is running")]
    Running,
    /// The database did not do it.
    #[error("cannot start a rebuild")]
    Database(#[source] sqlx::Error),
}

/// A rebuild that is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// The generation that it fills.
    pub tables: Generation,
    /// Whether the fill is over and the indexes are there.
    pub is_indexed: bool,
}

/// How far a rebuild is.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct Progress {
    /// The projection's name.
    pub projection: String,
    /// The generation that it fills.
    pub generation: i32,
    /// `running`, `done` or `failed`.
    pub status: String,
    /// When it started.
    pub started_at: OffsetDateTime,
    /// When it ended.
    pub ended_at: Option<OffsetDateTime>,
    /// Why it failed.
    pub error: Option<String>,
    /// Events applied, summed over partitions.
    #[sqlx(try_from = "i64")]
    pub position: u64,
    /// Events to apply, summed over partitions.
    #[sqlx(try_from = "i64")]
    pub head: u64,
    /// How long it has run or did run.
    pub seconds: f64,
}

/// Registers a projection with empty tables, unless it is registered.
pub async fn introduce(connection: &mut PgConnection, name: &str) -> Result<(), sqlx::Error> {
    sqlx::query(INTRODUCE)
        .bind(name)
        .execute(connection)
        .await
        .map(drop)
}

/// Starts a rebuild: makes the next generation's tables and notes that it is to be filled.
pub async fn start_rebuild(
    connection: &mut PgConnection,
    name: &str,
    reason: &str,
    requested_by: &str,
) -> Result<Generation, StartError> {
    let starting = sqlx::query_scalar(START)
        .bind(name)
        .bind(reason)
        .bind(requested_by);
    let number = starting.fetch_one(connection).await.map_err(start_error)?;
    generation(number).map_err(StartError::Database)
}

fn start_error(error: sqlx::Error) -> StartError {
    match error.as_database_error() {
        Some(database) if database.constraint() == Some(ONE_RUNNING) => StartError::Running,
        Some(database) if database.code().as_deref() == Some(NO_DATA_FOUND) => StartError::Unknown,
        _ => StartError::Database(error),
    }
}

/// The result of beginning anew with tables that hold what the log has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// A rebuild was started, which fills this generation.
    Rebuild(Generation),
    /// The projection was marked as failed: its last rebuild would fail again.
    Failed,
    /// Either was done before.
    Before,
}

/// Starts the rebuild of live tables that hold what the log has not.
pub async fn begin_anew(
    connection: &mut PgConnection,
    name: &str,
    partition: i32,
    reason: &str,
    requested_by: &str,
) -> Result<Begun, sqlx::Error> {
    let beginning = sqlx::query(BEGIN_ANEW)
        .bind(name)
        .bind(partition)
        .bind(reason)
        .bind(requested_by);
    let row = beginning.fetch_one(connection).await?;
    Ok(match (row.try_get("generation")?, row.try_get("failed")?) {
        (Some(tables), _) => Begun::Rebuild(generation(tables)?),
        (None, true) => Begun::Failed,
        (None, false) => Begun::Before,
    })
}

/// The rebuild of a projection that is running.
pub async fn running_rebuild(
    connection: &mut PgConnection,
    name: &str,
) -> Result<Option<Running>, sqlx::Error> {
    let row = sqlx::query(RUNNING).bind(name).fetch_optional(connection).await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Running {
        tables: generation(row.try_get("generation")?)?,
        is_indexed: row.try_get("is_indexed")?,
    }))
}

/// How many indexes a filled generation is to get, besides its unique keys.
pub async fn count_indexes(
    connection: &mut PgConnection,
    name: &str,
    tables: Generation,
) -> Result<i64, sqlx::Error> {
    let counting = sqlx::query_scalar(COUNT_INDEXES).bind(name).bind(tables.get());
    counting.fetch_one(connection).await
}

/// Makes one of these indexes, unless it is there. They are numbered from 1, in the order worth starting them.
pub async fn make_index(
    connection: &mut PgConnection,
    name: &str,
    tables: Generation,
    number: i64,
) -> Result<(), sqlx::Error> {
    let making = sqlx::query(MAKE_INDEX).bind(name).bind(tables.get()).bind(number);
    making.execute(connection).await.map(drop)
}

/// Makes the indexes that are missing still, notes that all are there, and has the tables analyzed; once, however often it
/// is asked for.
pub async fn finish_fill(
    connection: &mut PgConnection,
    name: &str,
    tables: Generation,
) -> Result<(), sqlx::Error> {
    sqlx::query(FINISH_FILL)
        .bind(name)
        .bind(tables.get())
        .execute(connection)
        .await
        .map(drop)
}

/// Ends a rebuild that cannot go on, and throws its tables away; `false` when the lease on them is lost. There is no `error` where
/// the log was set back, and the tables hold what it has not.
pub async fn fail_rebuild(
    connection: &mut PgConnection,
    lease: &Lease,
    error: Option<&str>,
) -> Result<bool, sqlx::Error> {
    let failing = sqlx::query_scalar(FAIL)
        .bind(lease.key.projection)
        .bind(lease.key.tables.get())
        .bind(lease.key.partition)
        .bind(lease.fence)
        .bind(error);
    failing.fetch_one(connection).await
}

/// Holds the live workers of a projection still until the transaction ends, and says where they stand, by partition.
/// Those that stand in a log that is gone do not count.
pub async fn hold_live(transaction: &mut PgConnection, name: &str) -> Result<Vec<(i32, u64)>, sqlx::Error> {
    sqlx::query(HOLD_LIVE)
        .bind(name)
        .execute(&mut *transaction)
        .await?;
    // A statement of its own: it sees what was committed while the fences were waited for.
    let positions = sqlx::query_as::<_, (i32, i64)>(LIVE_POSITIONS)
        .bind(name)
        .fetch_all(transaction)
        .await?;
    Ok(positions
        .into_iter()
        .map(|(partition, position)| (partition, position.cast_unsigned()))
        .collect())
}

/// Makes a rebuilt generation live; `false` when it is not far enough.
pub async fn go_live(
    transaction: &mut PgConnection,
    name: &str,
    tables: Generation,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(GO_LIVE)
        .bind(name)
        .bind(tables.get())
        .fetch_one(transaction)
        .await
}

/// How far a rebuild is; `None` when there never was one.
pub async fn progress(
    connection: &mut PgConnection,
    name: &str,
    generation: i32,
) -> Result<Option<Progress>, sqlx::Error> {
    sqlx::query_as(PROGRESS)
        .bind(name)
        .bind(generation)
        .fetch_optional(connection)
        .await
}

/// A generation of tables, as the database numbers it.
pub(crate) fn generation(number: i32) -> Result<Generation, sqlx::Error> {
    Generation::new(number)
        .ok_or_else(|| sqlx::Error::Decode("a generation of tables is not positive".into()))
}
