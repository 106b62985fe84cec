//! How far the live tables of each projection have come, and the step that takes tables further.

use daybook_event_store::Digest;
use sqlx::{FromRow, PgConnection, PgExecutor, Row as _};
use uuid::Uuid;

use crate::model::RowsQuery;
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

const LIVE_OF: &str = "
    SELECT c.projection, c.partition, c.position, c.log_generation, c.generation
    FROM read_model.projection AS p
    JOIN read_model.checkpoint AS c ON c.projection = p.name AND c.generation = p.live_generation
    WHERE p.name = $1 AND c.partition = $2
";

const ADVANCE: &str = "SELECT read_model.advance($1, $2, $3, $4, $5, $6, $7, $8, $9)";

/// Every statement of this file, by name.
pub(crate) const STATEMENTS: &[(&str, &str)] = &[
    ("checkpoint.live", LIVE),
    ("checkpoint.live_of", LIVE_OF),
    ("checkpoint.advance", ADVANCE),
];

/// A step of a checkpoint, by compare-and-set: from where a worker left it to where its rows will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    /// The projection's name.
    pub projection: &'static str,
    /// The generation of its tables.
    pub tables: Generation,
    /// The partition of the log.
    pub partition: i32,
    /// The fencing number of the worker's lease.
    pub fence: i64,
    /// The generation of the log that the positions belong to.
    pub log_generation: Uuid,
    /// The position that the checkpoint must have before.
    pub from: u64,
    /// The position that it has afterwards.
    pub to: u64,
    /// The ids of the events in between, to be compared with the log's: enough for events that were read from a log.
    pub event_ids: Option<Vec<Uuid>>,
    /// The digest of the events in between ([`digest_of_all`](daybook_event_store::digest_of_all)), for events that came some
    /// other way.
    pub digest: Option<Digest>,
}

impl Advance {
    /// SQLSTATE of the exception when the checkpoint is not where this worker left it.
    const FENCED_OFF: &'static str = "DBK01";

    /// SQLSTATE of the exception when the log does not hold these events.
    const NOT_IN_LOG: &'static str = "DBK02";

    /// The constraint that lets one step begin at a position. (The lock on the fence comes before it; this is what holds
    /// were the lock ever missing.)
    const ONE_STEP: &'static str = "checkpoint_step_pkey";

    /// Whether an error says that the checkpoint is not where this worker left it.
    pub fn is_refused(error: &sqlx::Error) -> bool {
        error.as_database_error().is_some_and(|error| {
            error.code().as_deref() == Some(Self::FENCED_OFF) || error.constraint() == Some(Self::ONE_STEP)
        })
    }

    /// Whether an error says that the log does not hold the events that were to be applied.
    pub fn is_refuted(error: &sqlx::Error) -> bool {
        error
            .as_database_error()
            .is_some_and(|error| error.code().as_deref() == Some(Self::NOT_IN_LOG))
    }

    /// Advances the checkpoint, for a batch that changes no row.
    pub async fn execute(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        self.bind(sqlx::query(ADVANCE))
            .execute(connection)
            .await
            .map(drop)
    }

    /// The call in a statement's `FROM`, its parameters counted from this one.
    pub(crate) fn call(first: usize) -> String {
        let parameters: Vec<String> = (first..first + 9).map(|number| format!("${number}")).collect();
        format!("read_model.advance({})", parameters.join(", "))
    }

    /// Its parameters, behind those that are bound already.
    pub(crate) fn bind<'q>(&self, query: RowsQuery<'q>) -> RowsQuery<'q> {
        query
            .bind(self.projection)
            .bind(self.tables.get())
            .bind(self.partition)
            .bind(self.fence)
            .bind(self.log_generation)
            .bind(self.from.cast_signed())
            .bind(self.to.cast_signed())
            .bind(self.event_ids.clone())
            .bind(self.digest.map(Vec::from))
    }
}

/// How far every projection's live tables have come, in every partition.
pub async fn live(database: impl PgExecutor<'_>) -> Result<Vec<LiveCheckpoint>, sqlx::Error> {
    sqlx::query_as(LIVE).fetch_all(database).await
}

/// How far one projection's live tables have come, in one partition; `None` where there is no such one.
pub async fn live_of(
    database: impl PgExecutor<'_>,
    projection: &str,
    partition: i32,
) -> Result<Option<LiveCheckpoint>, sqlx::Error> {
    sqlx::query_as(LIVE_OF)
        .bind(projection)
        .bind(partition)
        .fetch_optional(database)
        .await
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
