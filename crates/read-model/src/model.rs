//! The trait of read models: a pure fold over rows, and the statements that keep them.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Postgres};
use thiserror::Error;
use uuid::Uuid;

use crate::{Advance, Event};

/// About how many bytes the texts of a row take that are short: ids, names, a currency.
const SHORT_TEXTS_BYTES: usize = 256;

/// A read model: which rows an event touches, what it makes of each, and how rows are loaded and stored.
///
/// The fold is pure, so the same one serves live updates, rebuilds and "as of" reads. Loading and storing are one
/// statement each for any number of rows. A statement that stores can be a whole transaction of its own: it advances the
/// checkpoint as well when it is given an [`Advance`]. Otherwise the caller owns the transaction.
pub trait ReadModel: Send + Sync + 'static {
    /// Its name: of the projection, of the view, and of the tables up to their generation.
    const NAME: &'static str;

    /// The categories whose events it folds. It never meets an event of another one, nor does it matter to it whether
    /// such an event can be decoded.
    const CATEGORIES: Categories;

    /// The key of a row.
    type Key: Key;

    /// A row, its key and position included.
    type Row: Clone + fmt::Debug + PartialEq + Send + Sync + for<'r> FromRow<'r, PgRow>;

    /// The statement that loads the rows of many keys: `SELECT … FROM unnest($1, $2) … JOIN …_g{generation} …`, with the
    /// parameters of [`Key::bind`].
    const LOAD: &'static str;

    /// The statement that inserts rows: `INSERT INTO …_g{generation} … SELECT unnest($1), unnest($2), …`, each parameter
    /// once, and nothing after them.
    const INSERT: &'static str;

    /// For rows that many events share: what goes before [`Self::INSERT`] to delete the rows that the new ones replace,
    /// `WITH … AS (DELETE …)` with the same parameters. `position` is then the end of the unique key. Such a row costs the
    /// same for every batch while somebody holds a snapshot; one that is updated in place becomes slower with each.
    /// Where there is nothing, rows are updated.
    const REPLACE: &'static str = "";

    /// The clause by which it overwrites existing rows: `ON CONFLICT … DO UPDATE … WHERE position < excluded.position`.
    const OVERWRITE: &'static str;

    /// Whether a row can change after the event that opens it. Where none can, none is kept in memory for the next batch.
    const ROWS_CHANGE: bool = true;

    /// A row as the JSON document of its aggregate, as the contract shows it. `None` where rows are not about one
    /// aggregate each, or hold only a part of it.
    const DOCUMENT: Option<fn(&Self::Row) -> String> = None;

    /// Every other statement of its file, by name.
    const STATEMENTS: &'static [(&'static str, &'static str)];

    /// The rows that an event touches. It must follow from the event alone.
    fn keys(event: &Event) -> impl IntoIterator<Item = Self::Key>;

    /// Whether the event is the first that ever touches its keys: then there is no row to load. (When the event is
    /// delivered again there is one; folding from nothing leads to the same row, and storing it changes nothing.)
    fn opens(event: &Event) -> bool;

    /// The key of a row.
    fn key(row: &Self::Row) -> Self::Key;

    /// The position of the event that last changed a row.
    fn position(row: &Self::Row) -> u64;

    /// About how many bytes of memory a row takes. To be said where rows may be large.
    fn size_bytes(_row: &Self::Row) -> usize {
        size_of::<Self::Row>() + SHORT_TEXTS_BYTES
    }

    /// Applies an event that the row has not seen yet; gives the changed row, or nothing where the event changes nothing.
    /// Called by [`Self::fold`].
    fn change(
        key: &Self::Key,
        row: Option<&Self::Row>,
        event: &Event,
    ) -> Result<Option<Self::Row>, FoldError>;

    /// As [`Self::change`], of a row that nobody else needs: what is large is changed where it is, and is lost with an error.
    fn change_owned(
        key: &Self::Key,
        row: Option<Self::Row>,
        event: &Event,
    ) -> Result<Option<Self::Row>, FoldError> {
        let changed = Self::change(key, row.as_ref(), event)?;
        Ok(changed.or(row))
    }

    /// Applies an event; gives the changed row, or nothing where the event changes nothing. An event that the row has seen
    /// changes nothing. A row is never removed.
    fn fold(key: &Self::Key, row: Option<&Self::Row>, event: &Event) -> Result<Option<Self::Row>, FoldError> {
        if row.is_some_and(|row| Self::position(row) >= event.position) {
            return Ok(None);
        }
        Self::change(key, row, event)
    }

    /// Applies a history to a row, or to nothing where it begins with the first event of the key.
    fn replay<'a>(
        key: &Self::Key,
        row: Option<Self::Row>,
        events: impl IntoIterator<Item = &'a Event>,
    ) -> Result<Option<Self::Row>, FoldError> {
        events.into_iter().try_fold(row, |row, event| match &row {
            Some(seen) if Self::position(seen) >= event.position => Ok(row),
            _ => Self::change_owned(key, row, event),
        })
    }

    /// The rows that there are of these keys; where rows may be large, those of the first keys: a row is loaded while those
    /// before it have less than `bytes_max` bytes, so that of one key at least is.
    fn load(
        connection: &mut PgConnection,
        tables: Generation,
        keys: &[Self::Key],
        _bytes_max: usize,
    ) -> impl Future<Output = Result<Loaded<Self::Key, Self::Row>, sqlx::Error>> + Send {
        async move {
            let query = Self::Key::bind(sqlx::query(tables.fill(Self::LOAD)), keys);
            let records = query.fetch_all(connection).await?;
            let rows = records.iter().map(Self::Row::from_row);
            let rows: Result<_, _> = rows.map(|row| row.map(|row| (Self::key(&row), row))).collect();
            Ok(Loaded {
                rows: rows?,
                keys: keys.len(),
            })
        }
    }

    /// The columns of the rows, as the parameters of [`Self::INSERT`].
    fn bind<'q>(query: RowsQuery<'q>, rows: &[&'q Self::Row]) -> RowsQuery<'q>;

    /// Stores rows of keys that are known to have none (the event opened them, or loading found nothing), at half the
    /// cost of [`Self::store`]. A key that has one after all violates the unique key.
    fn insert(
        connection: &mut PgConnection,
        tables: Generation,
        rows: &[&Self::Row],
        advance: Option<&Advance>,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send {
        write::<Self>(connection, tables, "", "", rows, advance)
    }

    /// Stores rows, each key at most once; a stored row whose position is the same or higher stays as it is.
    fn store(
        connection: &mut PgConnection,
        tables: Generation,
        rows: &[&Self::Row],
        advance: Option<&Advance>,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send {
        write::<Self>(connection, tables, Self::REPLACE, Self::OVERWRITE, rows, advance)
    }
}

/// What was loaded.
#[derive(Debug)]
pub struct Loaded<K, R> {
    /// The rows that there are.
    pub rows: HashMap<K, R>,
    /// Of how many keys, from the first on: one at least, unless there were none.
    pub keys: usize,
}

/// Whose events a read model folds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Categories {
    /// Events of every category, known to this program or not. Such a model looks at no bodies, so that an event that
    /// cannot be decoded is like any other.
    Every,
    /// Events of these categories. One of their events that cannot be decoded is poison.
    Named(&'static [&'static str]),
}

impl Categories {
    /// Whether events of a category are among them; `None` is one that this program does not know.
    pub fn include(self, category: Option<&str>) -> bool {
        match self {
            Self::Every => true,
            Self::Named(names) => category.is_some_and(|category| names.contains(&category)),
        }
    }
}

/// A statement with the columns of many rows.
pub type RowsQuery<'q> = Query<'q, Postgres, PgArguments>;

async fn write<M: ReadModel + ?Sized>(
    connection: &mut PgConnection,
    tables: Generation,
    replace: &'static str,
    overwrite: &'static str,
    rows: &[&M::Row],
    advance: Option<&Advance>,
) -> Result<(), sqlx::Error> {
    let statement = write_statement(replace, M::INSERT, overwrite, advance.is_some());
    let query = M::bind(sqlx::query(tables.fill(&statement)), rows);
    let query = match advance {
        Some(advance) => advance.bind(query),
        None => query,
    };
    query.execute(connection).await.map(drop)
}

/// An `INSERT` that replaces or overwrites or does neither, and that advances the checkpoint or does not. The rows come
/// from the call that advances, so it is made before any row is inserted; where it fails, the whole statement does.
pub(crate) fn write_statement(replace: &str, insert: &str, overwrite: &str, advances: bool) -> String {
    if !advances {
        return format!("{replace}{insert}{overwrite}");
    }
    let advance = Advance::call(insert.matches('$').count() + 1);
    format!("{replace}{insert} FROM {advance} {overwrite}")
}

/// Why a fold rejects an event. The log and the row contradict each other, so no later event of the key can be folded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FoldError {
    /// Only some events begin an aggregate: placing an order, say.
    #[error("no aggregate begins with {event_type}")]
    NotBegun {
        /// The type of the event that came instead.
        event_type: &'static str,
    },
    /// An event of the stream is missing, or one came twice under two positions.
    #[error("version {actual} came where version {expected} is next")]
    Gap {
        /// The version that is next.
        expected: u64,
        /// The version that came.
        actual: u64,
    },
    /// The event is about a part that the row does not have.
    #[error("there is no {part} {id}")]
    Unknown {
        /// The missing part ("line").
        part: &'static str,
        /// Which.
        id: String,
    },
    /// An amount or a count does not fit.
    #[error("an amount does not fit its 64 bits")]
    Overflow,
}

/// Checks that an event is the one that follows version `before` of its stream (0: nothing yet).
pub(crate) fn check_next_version(before: u64, event: &Event) -> Result<(), FoldError> {
    let expected = before + 1;
    if event.stream_version == expected {
        return Ok(());
    }
    Err(FoldError::Gap {
        expected,
        actual: event.stream_version,
    })
}

/// The key of a row.
pub trait Key: Clone + fmt::Debug + Eq + Ord + Hash + Send + Sync + Sized {
    /// The columns of the keys, as the parameters of [`ReadModel::LOAD`].
    fn bind<'q>(query: RowsQuery<'q>, keys: &'q [Self]) -> RowsQuery<'q>;
}

/// The key of read models with one row per aggregate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey {
    /// Whose aggregate it is.
    pub tenant_id: Uuid,
    /// The aggregate's TypeID.
    pub stream_id: String,
}

impl StreamKey {
    /// The aggregate that an event is about.
    pub fn of(event: &Event) -> Self {
        Self {
            tenant_id: event.tenant_id,
            stream_id: event.stream_id.clone(),
        }
    }
}

impl Key for StreamKey {
    fn bind<'q>(query: RowsQuery<'q>, keys: &'q [Self]) -> RowsQuery<'q> {
        query
            .bind(column(keys, |key| key.tenant_id))
            .bind(column(keys, |key| key.stream_id.as_str()))
    }
}

/// The number of a set of tables of a projection: 1 for the first, one more for each rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(i32);

impl Generation {
    /// The tables that the migrations make.
    pub const FIRST: Self = Self(1);

    /// Takes a number that is 1 or more.
    pub fn new(number: i32) -> Option<Self> {
        (number >= 1).then_some(Self(number))
    }

    /// The number.
    pub fn get(self) -> i32 {
        self.0
    }

    /// Names this generation's table in a statement: `…_g{generation}` becomes `…_g1`.
    ///
    /// Each generation's text is prepared once per connection, since statements are cached by their text.
    pub(crate) fn fill(self, statement: &str) -> AssertSqlSafe<String> {
        // A number cannot break out of the statement, and everything else in it is made of literals of this crate.
        AssertSqlSafe(statement.replace("{generation}", &self.0.to_string()))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The settings that a connection which loads and stores rows needs.
///
/// Statements are prepared once and planned for good, perhaps while a table is still empty, where reading all of it
/// looks cheapest; that plan would stay in use until the statistics are renewed, a minute of heavy writing later. So
/// the index is taken always. (A table without one is still read as a whole, at a cost that looks so high that it would
/// be compiled first; hence no such compilation.)
pub fn connect_options(options: PgConnectOptions) -> PgConnectOptions {
    options.options([("enable_seqscan", "off"), ("jit", "off")])
}

/// One column of many rows, as a statement's `unnest` takes it. (`SELECT unnest($1), unnest($2)` hands rows on one by
/// one; `FROM unnest($1, $2)` gathers them first, and costs a third more.)
pub(crate) fn column<R, T>(rows: impl IntoIterator<Item = R>, value: impl Fn(R) -> T) -> Vec<T> {
    rows.into_iter().map(value).collect()
}
