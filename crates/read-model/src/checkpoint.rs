//! How far the live tables of each projection have come.

use sqlx::{FromRow, PgPool, Row as _};
use uuid::Uuid;

use crate::{Generation, row};

/// How far a projection's live tables have come in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveCheckpoint {
    /// The projection's name.
    pub projection: String,
    /// The partition of the log.
    pub partition: i32,
    /// Everything up to here is applied.
    pub position: u64,
    /// The generation of the log that the position belongs to.
    pub log_generation: Uuid,
    /// The generation of the tables.
    pub generation: Generation,
}

const LIVE: &str = "
    SELECT c.projection, c.partition, c.position, c.log_generation, c.generation
    FROM read_model.projection AS p
    JOIN read_model.checkpoint AS c ON c.projection = p.name AND c.generation = p.live_generation
    ORDER BY c.projection, c.partition
";

/// Every statement of this file, by name.
pub(crate) const STATEMENTS: &[(&str, &str)] = &[("checkpoint.live", LIVE)];

/// How far every projection's live tables have come, in every partition.
pub async fn live(pool: &PgPool) -> Result<Vec<LiveCheckpoint>, sqlx::Error> {
    sqlx::query_as(LIVE).fetch_all(pool).await
}

impl<'r> FromRow<'r, sqlx::postgres::PgRow> for LiveCheckpoint {
    fn from_row(record: &'r sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
        let generation: i32 = record.try_get("generation")?;
        Ok(Self {
            projection: record.try_get("projection")?,
            partition: record.try_get("partition")?,
            position: row::number(record, "position")?,
            log_generation: record.try_get("log_generation")?,
            generation: Generation::new(generation).ok_or_else(|| sqlx::Error::ColumnDecode {
                index: "generation".to_owned(),
                source: format!("{generation} is not the number of a generation").into(),
            })?,
        })
    }
}
