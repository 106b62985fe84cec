//! The tenant's event feed: the events of all its aggregates, of a category that this program knows or not, in the order of the log.
//!
//! Which events there are comes from the read model `event_index`, and the events themselves from the log.

use std::ops::Range;

use daybook_event_store::{EventStore, RecordedEvent};
use daybook_read_model::access_path::Scan;
use daybook_read_model::checkpoint;
use daybook_read_model::event_index::{self, Filter, Period, Row};
use daybook_read_model::{EventIndex, ReadModel as _};
use daybook_service::{ApiError, identity::Principal};
use uuid::Uuid;

use super::history::HistoryEvent;
use super::{Answer, LIST_TIMEOUT, Page, Place, Reads, page};
use crate::cursor::Question;
use crate::freshness::{Demand, Staleness};

/// How many bytes of payload and metadata an answer has before its last event. With that one, the largest, and all that is around
/// them it is less than the 4 MiB that gRPC clients take.
const ANSWER_BYTES_MAX: u32 = 2 * 1_024 * 1_024;

/// Which page of the feed.
#[derive(Clone, Debug)]
pub struct ListFeed {
    /// Which events.
    pub filter: Filter,
    /// When they were recorded.
    pub period: Period,
    /// Which way, and from which index.
    pub scan: Scan<Row>,
    /// How many, 1 to [`LIMIT_MAX`](super::LIMIT_MAX).
    pub limit: u32,
    /// Where the page begins: what the page before gave.
    pub cursor: Option<String>,
}

/// A stretch of the feed.
#[derive(Debug)]
pub struct Stretch {
    /// The events, oldest first.
    pub events: Vec<RecordedEvent>,
    /// They are all that there are before this position.
    pub until: u64,
}

impl Reads {
    /// A page of the caller's event feed. It ends early where its events are large.
    ///
    /// # Errors
    /// `INVALID_CURSOR` when the cursor is not from this very list, `POSITION_UNKNOWN` when the log no longer has the event that it
    /// stands for, `READ_MODEL_BEHIND` when the index is still of a history that is gone and none of the page is left, and what
    /// demanding freshness can end in.
    pub async fn feed(
        &self,
        caller: &Principal,
        list: ListFeed,
        demand: Option<&Demand>,
    ) -> Result<Answer<Page<HistoryEvent>>, ApiError> {
        let question = list.question(caller);
        let last = match &list.cursor {
            Some(cursor) => Some(Place::open(&self.0.cursors.open(&question, cursor)?)?),
            None => None,
        };
        let mut staleness = self.freshen::<EventIndex>(caller, demand).await?;
        if let Some(Place { number, event_id }) = last
            && self
                .recorded(caller, vec![(number, event_id)], ANSWER_BYTES_MAX)
                .await?
                .is_empty()
        {
            return Err(ApiError::position_unknown());
        }
        let (tenant_id, limit) = (caller.tenant_id, list.limit);
        let rows = self
            .0
            .shared
            .read(tenant_id, LIST_TIMEOUT, move |connection| {
                let (filter, period, scan) = (list.filter.clone(), list.period, list.scan);
                let after = last.map(|last| last.number);
                Box::pin(async move {
                    event_index::list(connection, tenant_id, (&filter, period), scan, after, limit + 1).await
                })
            })
            .await?;
        let newest = rows.iter().map(|row| row.position).max();
        staleness.include(newest.unwrap_or(0));
        let found = self.recorded(caller, places(&rows), ANSWER_BYTES_MAX).await?;
        if found.is_empty() && !rows.is_empty() {
            return Err(self.is_behind(caller, &staleness));
        }
        let is_cut = is_cut(&found, &rows);
        let cursor_after = |last: &RecordedEvent| {
            let place = Place::new(last.position, last);
            self.0.cursors.seal(&question, &place.sealed())
        };
        let Page { items, next_cursor } = page(found, limit, cursor_after);
        let last_shown = items.last().filter(|_| is_cut);
        let next_cursor = next_cursor.or_else(|| last_shown.map(cursor_after));
        let items = items.into_iter().map(HistoryEvent::from).collect();
        Ok(Answer {
            data: Page { items, next_cursor },
            staleness,
        })
    }

    /// The caller's events that pass the filter and are at these positions, as far as the read model has come: at most `limit` of
    /// them, and as many as fit an answer, but at least one where there is one. The scan is one that begins with the oldest.
    ///
    /// # Errors
    /// What reads can end in.
    pub async fn stretch(
        &self,
        caller: &Principal,
        (filter, scan): (Filter, Scan<Row>),
        positions: Range<u64>,
        limit: u32,
    ) -> Result<Stretch, ApiError> {
        let tenant_id = caller.tenant_id;
        let end = positions.end;
        let rows = self
            .0
            .shared
            .read(tenant_id, LIST_TIMEOUT, move |connection| {
                let (filter, positions) = (filter.clone(), positions.clone());
                Box::pin(async move {
                    event_index::list_at(connection, tenant_id, &filter, scan, positions, None, limit).await
                })
            })
            .await?;
        let events = self.recorded(caller, places(&rows), ANSWER_BYTES_MAX).await?;
        let has_all = rows.len() < limit as usize && !is_cut(&events, &rows);
        let last = events.last().filter(|_| !has_all);
        Ok(Stretch {
            until: last.map_or(end, |last| last.position + 1),
            events,
        })
    }

    /// All of the caller's events at these positions, as far as the read model has come in this generation of the log: at most
    /// `limit`, and none behind `bytes_max` bytes of payload and metadata, but at least one where there is one. `None` where it has
    /// come to none of the positions, and where the log has none of the events any more.
    ///
    /// # Errors
    /// What reads can end in.
    pub(crate) async fn indexed(
        &self,
        caller: &Principal,
        log_generation: Uuid,
        positions: Range<u64>,
        (limit, bytes_max): (u32, u32),
    ) -> Result<Option<Stretch>, ApiError> {
        let (tenant_id, partition) = (caller.tenant_id, caller.tenant_partition);
        let scan = Filter::default().scan(None).map_err(ApiError::internal)?;
        let read = self.0.shared.read(tenant_id, LIST_TIMEOUT, move |connection| {
            let Range { start, end } = positions;
            Box::pin(async move {
                // Before the rows, and on the same connection: so they are of the same server, and have all up to there.
                let checkpoint = checkpoint::live_of(&mut *connection, EventIndex::NAME, partition).await?;
                let checkpoint = checkpoint.filter(|checkpoint| checkpoint.log_generation == log_generation);
                let end = checkpoint.map_or(0, |checkpoint| end.min(checkpoint.position + 1));
                if end <= start {
                    return Ok(None);
                }
                let filter = Filter::default();
                let rows =
                    event_index::list_at(connection, tenant_id, &filter, scan, start..end, None, limit);
                Ok(Some((rows.await?, end)))
            })
        });
        let Some((rows, end)) = read.await? else {
            return Ok(None);
        };
        let events = self.recorded(caller, places(&rows), bytes_max).await?;
        let has_all = rows.len() < limit as usize && !is_cut(&events, &rows);
        let until = match has_all {
            true => Some(end),
            false => events.last().map(|last| last.position + 1),
        };
        Ok(until.map(|until| Stretch { events, until }))
    }

    /// An answer with this staleness, seen from the log as it is now.
    fn is_behind(&self, caller: &Principal, staleness: &Staleness) -> ApiError {
        let log = self.0.freshness.of_log(caller.tenant_partition);
        let log = Staleness::new(log, self.tokens(caller));
        let token = |staleness: &Staleness| staleness.token().unwrap_or_default();
        ApiError::read_model_behind(token(staleness), token(&log))
    }

    /// Those of the caller's events that the log still has, in the order in which they are given, and as many as fit an answer.
    async fn recorded(
        &self,
        caller: &Principal,
        events: Vec<(u64, Uuid)>,
        bytes_max: u32,
    ) -> Result<Vec<RecordedEvent>, ApiError> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let (tenant_id, partition) = (caller.tenant_id, caller.tenant_partition);
        let read =
            async move |store: EventStore| store.read_events(tenant_id, partition, &events, bytes_max).await;
        self.0.shared.read_log(tenant_id, read).await
    }
}

/// Which events these rows are of.
fn places(rows: &[Row]) -> Vec<(u64, Uuid)> {
    rows.iter().map(|row| (row.position, row.event_id)).collect()
}

/// Whether some were left out at the end: they are too large together, or the log has forked since and no longer has them.
fn is_cut(events: &[RecordedEvent], rows: &[Row]) -> bool {
    events.last().map(|event| event.position) != rows.last().map(|row| row.position)
}

impl ListFeed {
    /// The question that cursors are bound to: all but the size of a page.
    fn question(&self, caller: &Principal) -> Question {
        let question = Question::new(caller.tenant_id, "feed")
            .with_moment("recorded_after", self.period.after)
            .with_moment("recorded_before", self.period.before)
            .with("sort", &self.scan.order().to_string());
        let filters = self.filter.given();
        filters.fold(question, |question, (name, value)| question.with(name, value))
    }
}
