//! The tables `read_model.fence` and `checkpoint_step`: how far a generation of tables has come, and who may take it
//! further.
//!
//! Whoever works on a generation holds a [`Lease`] on its checkpoint, for as long as its replica lives
//! ([`replica`](crate::replica)). Each new owner gets the next fencing number, and every step names the number and the
//! position that it starts from, so that a worker that was superseded without noticing (a zombie) changes nothing.
//!
//! A snapshot that somebody holds for an hour slows nothing down: a batch inserts a step and updates no row, and a lease is
//! written only when its owner changes (`migrations/read-model/0002_projections.sql`).

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection as _, FromRow, PgConnection, Postgres, Row as _, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

use daybook_event_bus::Bus;
use daybook_event_bus::signal::{self, Applied};
use daybook_event_store::EpochId;
use daybook_read_model::{Advance, Generation};

use crate::registry;

/// How often whoever holds a lease and does not use it asks whether it is lost.
pub const LEASE_CHECK_INTERVAL: std::time::Duration = std::time::Duration::from_secs(3);

const OPEN: &str = "
    SELECT read_model.open(p.name, g.generation)
    FROM read_model.projection AS p
    CROSS JOIN LATERAL (
        SELECT p.live_generation
        UNION
        SELECT r.generation FROM read_model.rebuild AS r WHERE r.projection = p.name AND r.status = 'running'
    ) AS g (generation)
";

const CLAIM: &str = "SELECT c.generation, c.number FROM read_model.claim($1, $2, $3, $4) AS c";

const STATE: &str = "
    SELECT c.position, h.epoch, c.log_generation AS generation, c.failed_at IS NOT NULL AS failed,
           read_model.is_in_log(c.partition, c.position, c.event_id) AS is_in_log,
           c.log_generation = h.generation AS is_newest
    FROM read_model.checkpoint AS c
    CROSS JOIN LATERAL event_store.head(c.partition) AS h
    WHERE c.projection = $1 AND c.generation = $2 AND c.partition = $3
";

const IS_HELD: &str = "
    SELECT EXISTS (
        SELECT FROM read_model.checkpoint AS c
        CROSS JOIN LATERAL event_store.head(c.partition) AS h
        WHERE c.projection = $1 AND c.generation = $2 AND c.partition = $3 AND c.fence = $4
          AND c.log_generation = h.generation AND c.position <= h.head
    )
";

const RELEASE: &str = "
    UPDATE read_model.fence AS f SET owner = NULL
    WHERE f.projection = $1 AND f.generation = $2 AND f.partition = $3 AND f.number = $4
";

const RELEASE_LIVE: &str = "
    UPDATE read_model.fence AS f SET owner = NULL
    FROM read_model.projection AS p
    WHERE p.name = f.projection AND p.live_generation = f.generation
      AND f.projection = $1 AND f.partition = $2 AND f.owner = $3
";

const FAIL: &str = "
    UPDATE read_model.fence AS f
    SET error = $5, error_position = $6, failed_at = coalesce(f.failed_at, clock_timestamp())
    WHERE f.projection = $1 AND f.generation = $2 AND f.partition = $3 AND f.number = $4
";

const NEWEST: &str = "
    SELECT max(least(c.position, h.head))
    FROM read_model.checkpoint AS c
    JOIN read_model.projection AS p ON p.name = c.projection AND p.live_generation = c.generation
    CROSS JOIN LATERAL event_store.head(c.partition) AS h
    WHERE c.partition = $1 AND event_store.has(c.partition, c.log_generation, c.position)
";

const LIVE: &str = "
    SELECT p.name, c.partition, p.live_generation, c.position, h.head, c.error, c.error_position, c.failed_at,
           EXISTS (SELECT FROM read_model.rebuild AS r WHERE r.projection = p.name AND r.status = 'running')
               AS is_rebuilding,
           (SELECT (greatest(0, extract(epoch FROM clock_timestamp() - e.recorded_at)) * 1000)::bigint
            FROM event_store.event AS e
            WHERE e.partition = c.partition AND e.position = c.position + 1) AS lag_ms
    FROM read_model.projection AS p
    JOIN read_model.checkpoint AS c ON c.projection = p.name AND c.generation = p.live_generation
    CROSS JOIN LATERAL event_store.head(c.partition) AS h
    WHERE $1::text IS NULL OR p.name = $1
    ORDER BY p.name, c.partition
";

/// Every SQL statement of this file, by name, for the test that prepares each against the migrated schema.
pub const STATEMENTS: &[(&str, &str)] = &[
    ("open", OPEN),
    ("claim", CLAIM),
    ("state", STATE),
    ("is_held", IS_HELD),
    ("release", RELEASE),
    ("release_live", RELEASE_LIVE),
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
    /// The replica that holds it.
    pub owner: Uuid,
    /// The fencing number.
    pub fence: i64,
    /// Everything up to here is applied.
    pub position: u64,
    /// The epoch of the log that it was acquired in, and that the position belongs to.
    pub epoch: EpochId,
    /// Whether the projection is marked as failed.
    pub failed: bool,
}

impl Lease {
    /// The step from where the checkpoint stands to `position`, over events that were read from the log.
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
            log_generation: self.epoch.generation,
            from: self.position,
            to: position,
            event_ids: None,
            digest: None,
        }
    }
}

/// Tells everyone how far the tables of a lease have come.
pub(crate) async fn announce(bus: &Bus, lease: &Lease) {
    let applied = Applied {
        projection: lease.key.projection.to_owned(),
        partition: lease.key.partition,
        log_epoch: lease.epoch.number,
        log_generation: lease.epoch.generation,
        position: lease.position,
    };
    signal::announce(bus, &applied).await;
}

/// The result of an attempt to get a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// It is ours.
    Held(Lease),
    /// It was not acquired, since it is of no use: the live tables hold what the log has not, whose history forked before that.
    BeyondFork,
    /// It is ours, and as useless: the same of the tables that a rebuild fills.
    RebuildBeyondFork(Lease),
    /// Another replica that lives holds it, the generation is neither live nor being rebuilt, or the log has just gone on in
    /// another epoch.
    Refused,
}

/// Opens checkpoints at the beginning of every partition that a projection has none for.
pub async fn open_all(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(OPEN).execute(connection).await.map(drop)
}

/// Takes the lease on the live tables of a projection, unless another replica that lives has it.
pub async fn claim_live(
    connection: &mut PgConnection,
    projection: &'static str,
    partition: i32,
    owner: Uuid,
) -> Result<Claim, sqlx::Error> {
    claim(connection, projection, None, partition, owner).await
}

/// Takes the lease on tables that a running rebuild fills, unless another replica that lives has it.
pub async fn claim_rebuilt(
    connection: &mut PgConnection,
    key: Key,
    owner: Uuid,
) -> Result<Claim, sqlx::Error> {
    claim(connection, key.projection, Some(key.tables), key.partition, owner).await
}

async fn claim(
    connection: &mut PgConnection,
    projection: &'static str,
    rebuilt: Option<Generation>,
    partition: i32,
    owner: Uuid,
) -> Result<Claim, sqlx::Error> {
    let claiming = sqlx::query(CLAIM)
        .bind(projection)
        .bind(rebuilt.map(Generation::get))
        .bind(partition)
        .bind(owner);
    let Some(row) = claiming.fetch_optional(&mut *connection).await? else {
        return Ok(Claim::Refused);
    };
    let key = Key {
        projection,
        tables: registry::generation(row.try_get("generation")?)?,
        partition,
    };
    let Some(fence) = row.try_get("number")? else {
        return Ok(Claim::BeyondFork);
    };
    // A statement of its own: it sees what the last owner committed while the new number was waited for, and from then on
    // the last owner commits nothing.
    let state = on(STATE, key).fetch_optional(connection).await?;
    state.map_or(Ok(Claim::Refused), |row| claimed(key, owner, fence, &row))
}

fn claimed(key: Key, owner: Uuid, fence: i64, row: &PgRow) -> Result<Claim, sqlx::Error> {
    let lease = Lease {
        key,
        owner,
        fence,
        position: row.try_get::<i64, _>("position")?.cast_unsigned(),
        epoch: EpochId::from_row(row)?,
        failed: row.try_get("failed")?,
    };
    Ok(match (row.try_get("is_in_log")?, row.try_get("is_newest")?) {
        (true, true) => Claim::Held(lease),
        // The next epoch was opened this very moment: the next claim goes on in it.
        (true, false) => Claim::Refused,
        (false, _) => Claim::RebuildBeyondFork(lease),
    })
}

/// Whether a lease is held still, and the log is the one that it was acquired for.
pub async fn is_held(connection: &mut PgConnection, lease: &Lease) -> Result<bool, sqlx::Error> {
    let row = held(IS_HELD, lease).fetch_one(connection).await?;
    row.try_get(0)
}

/// Gives a lease back, so that another replica may take it.
pub async fn release(connection: &mut PgConnection, lease: &Lease) -> Result<(), sqlx::Error> {
    held(RELEASE, lease).execute(connection).await.map(drop)
}

/// Gives whatever lease on the live tables is recorded in the name of `owner` back; `false` when there is none. For an owner
/// that does not know whether it got one, and does not work with it.
pub async fn release_live(
    connection: &mut PgConnection,
    projection: &str,
    partition: i32,
    owner: Uuid,
) -> Result<bool, sqlx::Error> {
    let releasing = sqlx::query(RELEASE_LIVE)
        .bind(projection)
        .bind(partition)
        .bind(owner);
    let released = releasing.execute(connection).await?;
    Ok(released.rows_affected() > 0)
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

type Statement = sqlx::query::Query<'static, Postgres, sqlx::postgres::PgArguments>;

fn on(statement: &'static str, key: Key) -> Statement {
    sqlx::query(statement)
        .bind(key.projection)
        .bind(key.tables.get())
        .bind(key.partition)
}

fn held(statement: &'static str, lease: &Lease) -> Statement {
    on(statement, lease.key).bind(lease.fence)
}

/// Begins a transaction that advances the checkpoint, in one round trip. After an error the connection is good for nothing
/// but to be closed.
///
/// The transaction holds the fence, so the rows that it goes on to write have one writer.
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
        event_ids,
        digest,
    } = advance;
    let literal = |text: Option<String>| text.map_or_else(|| "NULL".to_owned(), |text| format!("'{text}'"));
    let event_ids = literal(event_ids.as_ref().map(|ids| {
        let ids: Vec<_> = ids.iter().map(|id| id.simple().to_string()).collect();
        format!("{{{}}}", ids.join(","))
    }));
    let digest = literal(digest.map(|digest| format!("\\x{}", hex::encode(digest))));
    let statement = format!(
        "BEGIN; SELECT read_model.advance(
            '{projection}', {tables}, {partition}, {fence}, '{log_generation}', {from}, {to},
            {event_ids}, {digest})"
    );
    // Numbers, UUIDs and a name that is a constant of this program: nothing that could break out of the statement.
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
