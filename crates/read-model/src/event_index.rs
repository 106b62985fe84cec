//! The read model `event_index`: where in the log a tenant's events are, one short row for each, by what they are found by.
//!
//! Owns the tables `read_model.event_index_g<generation>` and the reads of the view `read_model.event_index`. What the log says
//! anyway is read from there, by position. It takes the events of every category and looks at no body, so one that this program
//! cannot decode is indexed like any other. Which filters there are is in one table, [`ACCESS_PATHS`].

#[cfg(test)]
mod tests;

use std::ops::Range;

use serde::Deserialize;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, PgExecutor, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::access_path::{self, AccessPath, Bounds, Keyset, NotServed, Ordered, Scan, Sort, bind_page};
use crate::model::column;
use crate::{Categories, Event, FoldError, Key, ReadModel, RowsQuery, row};

/// The read model.
#[derive(Debug)]
pub enum EventIndex {}

/// An event's position, and the values that it is found by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Whose event it is.
    pub tenant_id: Uuid,
    /// Its position in the tenant's partition of the log.
    pub position: u64,
    /// Its id: positions come again when the log's history forks.
    pub event_id: Uuid,
    /// When it was committed; never decreases along the positions.
    pub recorded_at: OffsetDateTime,
    /// The aggregate's id.
    pub stream_id: String,
    /// The event's type ("order.placed").
    pub event_type: String,
    /// The actor that the caller named.
    pub actor: Option<String>,
    /// Shared by all events that one request caused.
    pub correlation_id: Option<String>,
}

/// The key of a row: an event of a tenant, which lives in one partition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventKey {
    /// Whose event it is.
    pub tenant_id: Uuid,
    /// Its position.
    pub position: u64,
}

impl Key for EventKey {
    fn bind<'q>(query: RowsQuery<'q>, keys: &'q [Self]) -> RowsQuery<'q> {
        query
            .bind(column(keys, |key| key.tenant_id))
            .bind(column(keys, |key| key.position.cast_signed()))
    }
}

/// Which events are listed: those that meet every condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only events of this type.
    pub event_type: Option<String>,
    /// Only events of this aggregate.
    pub stream_id: Option<String>,
    /// Asked for by this actor.
    pub actor: Option<String>,
    /// Caused by the request with this correlation id.
    pub correlation_id: Option<String>,
}

/// When the events that are listed were recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Period {
    /// Then or later.
    pub after: Option<OffsetDateTime>,
    /// Before then.
    pub before: Option<OffsetDateTime>,
}

const EVENT_TYPE: &str = "event_type";
const STREAM_ID: &str = "stream_id";
const ACTOR: &str = "actor";
const CORRELATION_ID: &str = "correlation_id";
const PERIOD: &[&str] = &["recorded_after", "recorded_before"];

const POSITION: Ordered<Row> = Ordered {
    name: "position",
    column: "position",
    is_mirrored: false,
    value: |row| row.position.to_string(),
};
const POSITION_WITHIN: Ordered<Row> = Ordered {
    column: "position_within",
    ..POSITION
};

const ALL: AccessPath<Row> = AccessPath {
    index: "pkey",
    equal: &[],
    each: None,
    range: PERIOD,
    needs_range: false,
    order: &[POSITION],
    both_ways: true,
};

const fn within(equal: &'static [&'static str]) -> AccessPath<Row> {
    AccessPath {
        index: equal[0],
        equal,
        order: &[POSITION_WITHIN],
        ..ALL
    }
}

/// Every combination of filters that is served, and by which index.
pub static ACCESS_PATHS: [AccessPath<Row>; 5] = [
    ALL,
    within(&[EVENT_TYPE]),
    within(&[STREAM_ID]),
    within(&[ACTOR]),
    within(&[CORRELATION_ID]),
];

/// Beyond every position.
const POSITIONS_END: u64 = i64::MAX.cast_unsigned();

impl Filter {
    /// The scan that answers this filter and sort. Without a sort the oldest events come first.
    ///
    /// # Errors
    /// When no index serves them together.
    pub fn scan(&self, sort: Option<&Sort>) -> Result<Scan<Row>, NotServed> {
        let given: Vec<_> = self.given().map(|(name, _)| name).collect();
        let sort = sort.cloned().unwrap_or_else(|| Sort::parse(POSITION.name));
        access_path::scan(&ACCESS_PATHS, &given, &sort)
    }

    /// The conditions that there are, by name.
    pub fn given(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let filters = [
            (EVENT_TYPE, &self.event_type),
            (STREAM_ID, &self.stream_id),
            (ACTOR, &self.actor),
            (CORRELATION_ID, &self.correlation_id),
        ];
        filters
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }
}

const LIST: &str = "
    SELECT tenant_id, position, event_id, recorded_at, stream_id, event_type, actor, correlation_id
    FROM read_model.page(NULL::read_model.event_index, $1, $2, $3, $4, $5, $6, $7, $8, $9)
";

/// The tenant's events that pass the filter and were recorded in the period, in the order of its scan, after the given position
/// in that order, at most `limit` of them.
///
/// One round trip, and one more for each end of the period; row-level security holds them to the tenant.
pub async fn list(
    connection: &mut PgConnection,
    tenant_id: Uuid,
    (filter, period): (&Filter, Period),
    scan: Scan<Row>,
    after: Option<u64>,
    limit: u32,
) -> Result<Vec<Row>, sqlx::Error> {
    let mut positions = 0..POSITIONS_END;
    if let Some(moment) = period.after {
        let first = first_since(connection, tenant_id, moment).await?;
        positions.start = first.unwrap_or(positions.end);
    }
    if let Some(moment) = period.before {
        let first = first_since(connection, tenant_id, moment).await?;
        positions.end = first.unwrap_or(positions.end);
    }
    list_at(connection, tenant_id, filter, scan, positions, after, limit).await
}

/// The tenant's events that pass the filter and are at these positions, in the order of its scan, after the given position in
/// that order, at most `limit` of them.
///
/// One round trip; row-level security holds it to the tenant.
pub async fn list_at(
    database: impl PgExecutor<'_>,
    tenant_id: Uuid,
    filter: &Filter,
    scan: Scan<Row>,
    positions: Range<u64>,
    after: Option<u64>,
    limit: u32,
) -> Result<Vec<Row>, sqlx::Error> {
    let bound = |position: u64| Some(position.min(POSITIONS_END).to_string());
    let bounds = Bounds {
        equal: filter.given().map(|(_, value)| value).collect(),
        from: bound(positions.start),
        before: bound(positions.end),
        ..Bounds::default()
    };
    let after = after.map(|position| Keyset(vec![position.to_string()]));
    bind_page(
        sqlx::query_as(LIST),
        tenant_id,
        scan,
        &bounds,
        after.as_ref(),
        limit,
    )
    .fetch_all(database)
    .await
}

const FIRST_SINCE: &str = "SELECT read_model.first_event_since($1, $2)";

/// The position of the tenant's first event that was recorded then or later.
async fn first_since(
    connection: &mut PgConnection,
    tenant_id: Uuid,
    moment: OffsetDateTime,
) -> Result<Option<u64>, sqlx::Error> {
    let first: Option<i64> = sqlx::query_scalar(FIRST_SINCE)
        .bind(tenant_id)
        .bind(moment)
        .fetch_one(connection)
        .await?;
    Ok(first.map(i64::cast_unsigned))
}

const LOAD: &str = "
    SELECT e.tenant_id, e.position, e.event_id, e.recorded_at, e.stream_id, e.event_type, e.actor, e.correlation_id
    FROM unnest($1::uuid[], $2::bigint[]) AS k (tenant_id, position)
    JOIN read_model.event_index_g{generation} AS e ON e.tenant_id = k.tenant_id AND e.position = k.position
";

const INSERT: &str = "
    INSERT INTO read_model.event_index_g{generation} AS e
        (tenant_id, position, event_id, recorded_at, stream_id, event_type, actor, correlation_id)
    SELECT unnest($1::uuid[]), unnest($2::bigint[]), unnest($3::uuid[]), unnest($4::timestamptz[]), unnest($5::text[]),
           unnest($6::text[]), unnest($7::text[]), unnest($8::text[])
";

/// A row of the same position is the same row.
const OVERWRITE: &str = "ON CONFLICT DO NOTHING";

impl ReadModel for EventIndex {
    const NAME: &'static str = "event_index";
    const CATEGORIES: Categories = Categories::Every;
    type Key = EventKey;
    type Row = Row;
    const LOAD: &'static str = LOAD;
    const INSERT: &'static str = INSERT;
    const OVERWRITE: &'static str = OVERWRITE;
    const ROWS_CHANGE: bool = false;
    const STATEMENTS: &'static [(&'static str, &'static str)] = &[
        ("event_index.list", LIST),
        ("event_index.first_since", FIRST_SINCE),
    ];

    fn keys(event: &Event) -> impl IntoIterator<Item = EventKey> {
        [EventKey {
            tenant_id: event.tenant_id,
            position: event.position,
        }]
    }

    fn opens(_: &Event) -> bool {
        true
    }

    fn key(row: &Row) -> EventKey {
        EventKey {
            tenant_id: row.tenant_id,
            position: row.position,
        }
    }

    fn position(row: &Row) -> u64 {
        row.position
    }

    fn change(_: &EventKey, _: Option<&Row>, event: &Event) -> Result<Option<Row>, FoldError> {
        let Attribution {
            actor,
            correlation_id,
        } = Attribution::of(event);
        Ok(Some(Row {
            tenant_id: event.tenant_id,
            position: event.position,
            event_id: event.event_id,
            recorded_at: event.recorded_at,
            stream_id: event.stream_id.clone(),
            event_type: event.event_type.clone(),
            actor: actor.filter(|text| is_searchable(text)),
            correlation_id: correlation_id.filter(|text| is_searchable(text)),
        }))
    }

    fn bind<'q>(query: RowsQuery<'q>, rows: &[&'q Row]) -> RowsQuery<'q> {
        query
            .bind(column(rows, |row| row.tenant_id))
            .bind(column(rows, |row| row.position.cast_signed()))
            .bind(column(rows, |row| row.event_id))
            .bind(column(rows, |row| row.recorded_at))
            .bind(column(rows, |row| row.stream_id.as_str()))
            .bind(column(rows, |row| row.event_type.as_str()))
            .bind(column(rows, |row| row.actor.as_deref()))
            .bind(column(rows, |row| row.correlation_id.as_deref()))
    }
}

/// The metadata that an event is found by.
#[derive(Default, Deserialize)]
struct Attribution {
    actor: Option<String>,
    correlation_id: Option<String>,
}

impl Attribution {
    /// Values that cannot be read are absent.
    fn of(event: &Event) -> Self {
        serde_json::from_str(&event.metadata).unwrap_or_default()
    }
}

/// The most bytes of an actor and a correlation id in the index: an entry of an index has room for 2,700, and the command service
/// takes 128.
pub const SEARCHABLE_BYTES_MAX: usize = 256;

/// Whether a text can be in an index. The log takes any JSON, and no event may stop this projection.
fn is_searchable(text: &str) -> bool {
    !text.is_empty() && text.len() <= SEARCHABLE_BYTES_MAX && !text.contains('\0')
}

impl<'r> FromRow<'r, PgRow> for Row {
    fn from_row(record: &'r PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            tenant_id: record.try_get("tenant_id")?,
            position: row::number(record, "position")?,
            event_id: record.try_get("event_id")?,
            recorded_at: record.try_get("recorded_at")?,
            stream_id: record.try_get("stream_id")?,
            event_type: record.try_get("event_type")?,
            actor: record.try_get("actor")?,
            correlation_id: record.try_get("correlation_id")?,
        })
    }
}
