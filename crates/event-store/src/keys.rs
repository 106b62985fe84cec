//! The two tables of idempotency keys, and their turn: see `migrations/event-store/0008_key_tables.sql`.

use daybook_postgres::{LOOKUP_TIMEOUT, bounded};
use sqlx::postgres::types::PgInterval;
use sqlx::{FromRow, PgConnection, PgPool, Row as _};
use time::{Duration, OffsetDateTime};

pub(crate) const TEND: &str = "SELECT event_store.tend_keys(make_interval(days => $1))";

pub(crate) const TURN: &str = "SELECT event_store.turn_keys()";

pub(crate) const TABLES: &str =
    "SELECT is_current, keys, bytes, counted, turned_at FROM event_store.key_tables()";

/// One of the two tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyTable {
    /// Whether new keys go there.
    pub is_current: bool,
    /// About how many keys it holds; `None` when it was never counted.
    pub keys: Option<u64>,
    /// Bytes on disk, indexes included.
    pub bytes: u64,
    /// The part of the retention time that has passed since the tables rotated.
    pub counted: Duration,
    /// When they did.
    pub turned_at: OffsetDateTime,
}

impl FromRow<'_, sqlx::postgres::PgRow> for KeyTable {
    fn from_row(row: &sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
        let counted: PgInterval = row.try_get("counted")?;
        Ok(Self {
            is_current: row.try_get("is_current")?,
            keys: u64::try_from(row.try_get::<i64, _>("keys")?).ok(),
            bytes: row.try_get::<i64, _>("bytes")?.cast_unsigned(),
            counted: Duration::days(i64::from(counted.days)) + Duration::microseconds(counted.microseconds),
            turned_at: row.try_get("turned_at")?,
        })
    }
}

/// The result of a call that has the tables take turns when it is time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "event_store.key_turn", rename_all = "snake_case")]
pub enum KeyTurn {
    /// They rotated.
    Turned,
    /// The older table holds keys that must be kept.
    Early,
    /// It was time, and somebody holds the older table: nothing was changed.
    InUse,
}

/// Counts the time that has passed, and has the tables take turns once the older holds nothing that must be kept. To be
/// called at least once an hour.
///
/// # Errors
/// When the database does not answer.
pub async fn tend(pool: &PgPool, retention_days: u16) -> Result<KeyTurn, sqlx::Error> {
    bounded(pool, LOOKUP_TIMEOUT, move |connection| {
        let tended = sqlx::query_scalar(TEND).bind(i32::from(retention_days));
        Box::pin(tended.fetch_one(connection))
    })
    .await
}

/// Empties the older table now, whatever its age, and makes it the current one. Only an administrator may.
///
/// # Errors
/// When the database does not answer, or does not let this role.
pub async fn turn(connection: &mut PgConnection) -> Result<KeyTurn, sqlx::Error> {
    sqlx::query_scalar(TURN).fetch_one(connection).await
}

/// The two tables, the current one first.
///
/// # Errors
/// When the database does not answer.
pub async fn tables(connection: &mut PgConnection) -> Result<Vec<KeyTable>, sqlx::Error> {
    sqlx::query_as(TABLES).fetch_all(connection).await
}
