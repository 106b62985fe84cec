//! The history of one aggregate, straight from the log: complete, in order, every payload byte for byte.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use daybook_domain::aggregates::Kind;
use daybook_domain::ids::OrderId;
use daybook_event_store::{Direction, EventStore, RecordedEvent, TailPage, TailRange, may_go_on};
use daybook_service::{ApiError, identity::Principal};

use super::changes::Change;
use super::{Answer, Page, Place, Reads, page};
use crate::cursor::Question;
use crate::freshness::Demand;

/// How many of an aggregate's newest events are looked at before a version is searched for among all.
const NEWEST_EVENTS: u32 = 32;

/// An aggregate: its kind, and an id that this kind has.
#[derive(Clone, Debug)]
pub struct Stream {
    kind: &'static Kind,
    id: String,
}

/// Which page of which history.
#[derive(Clone, Debug)]
pub struct ListEvents {
    /// Whose history.
    pub stream: Stream,
    /// The versions of interest, both ends included, from 1.
    pub versions: RangeInclusive<u64>,
    /// Which way.
    pub direction: Direction,
    /// How many, 1 to [`LIMIT_MAX`](super::LIMIT_MAX).
    pub limit: u32,
    /// Where the page begins: what the page before gave.
    pub cursor: Option<String>,
    /// Whether to tell what each event changed.
    pub diff: bool,
}

/// An event of a history.
#[derive(Clone, Debug)]
pub struct HistoryEvent {
    /// What was recorded.
    pub recorded: RecordedEvent,
    /// What it changed in the document of its aggregate; `None` where that was not asked for, or there is no document.
    pub changes: Option<Vec<Change>>,
}

impl From<RecordedEvent> for HistoryEvent {
    /// Without what it changed.
    fn from(recorded: RecordedEvent) -> Self {
        let changes = None;
        Self { recorded, changes }
    }
}

/// Where the history of an order is, since every kind of aggregate has one. What is no order's id gets into no address.
pub(crate) fn successor_of_order_events(order_id: &str) -> String {
    match order_id.parse::<OrderId>() {
        Ok(id) => format!("/v1/orders/{id}/events"),
        Err(_) => "/v1/orders".to_owned(),
    }
}

impl Reads {
    /// A page of a history.
    ///
    /// # Errors
    /// `RESOURCE_NOT_FOUND` when the caller's tenant has no such aggregate, `INVALID_CURSOR` when the cursor is not from this
    /// very history, `POSITION_UNKNOWN` when the log no longer has the event that it stands for, `PAYLOAD_TOO_LARGE` when it
    /// is too much to tell what the events changed, and what demanding freshness can end in.
    pub async fn events(
        &self,
        caller: &Principal,
        list: &ListEvents,
        demand: Option<&Demand>,
    ) -> Result<Answer<Page<HistoryEvent>>, ApiError> {
        let question = list.question(caller);
        let last = match &list.cursor {
            Some(cursor) => Some(Place::open(&self.0.cursors.open(&question, cursor)?)?),
            None => None,
        };
        let staleness = self.freshen_log(caller, demand).await?;
        let (versions, limit) = match last {
            Some(last) => (list.versions_from(last.number), list.limit + 2),
            None => (list.versions.clone(), list.limit + 1),
        };
        let mut found = self.stream(caller, list, versions, limit).await?;
        let is_cut = found.len() < limit as usize && may_go_on(&found, limit);
        // A page begins with the last event of the page before: another one in its place is another history.
        if let Some(last) = last {
            if found.first().map(|event| event.event_id) != Some(last.event_id) {
                return Err(ApiError::position_unknown());
            }
            found.remove(0);
        }
        if last.is_none() && found.is_empty() {
            self.check_exists(caller, &list.stream).await?;
        }
        let cursor_after = |last: &RecordedEvent| {
            let place = Place::new(last.stream_version, last);
            self.0.cursors.seal(&question, &place.sealed())
        };
        let Page { items, next_cursor } = match is_cut {
            true => Page {
                next_cursor: found.last().map(cursor_after),
                items: found,
            },
            false => page(found, list.limit, cursor_after),
        };
        let mut changes = match list.diff {
            true => self.changes(caller, &list.stream, &items).await?,
            false => HashMap::new(),
        };
        let items = items.into_iter().map(|recorded| HistoryEvent {
            changes: changes.remove(&recorded.event_id),
            recorded,
        });
        Ok(Answer {
            data: Page {
                items: items.collect(),
                next_cursor,
            },
            staleness,
        })
    }

    async fn stream(
        &self,
        caller: &Principal,
        list: &ListEvents,
        versions: RangeInclusive<u64>,
        limit: u32,
    ) -> Result<Vec<RecordedEvent>, ApiError> {
        self.stream_events(caller, &list.stream, versions, limit, list.direction)
            .await
    }

    /// Whether the caller's tenant has an aggregate.
    ///
    /// # Errors
    /// `RESOURCE_NOT_FOUND` when it has not.
    pub(crate) async fn check_exists(&self, caller: &Principal, stream: &Stream) -> Result<(), ApiError> {
        let first = self
            .stream_events(caller, stream, 1..=1, 1, Direction::Forward)
            .await?;
        match first.is_empty() {
            true => Err(ApiError::not_found(stream.kind.category, &stream.id)),
            false => Ok(()),
        }
    }

    /// The version of an aggregate's first event behind a position of the log; where there is none yet, the next version.
    /// Versions rise with positions, so it is among the newest, or else found by bisection.
    pub(crate) async fn version_after(
        &self,
        caller: &Principal,
        stream: &Stream,
        position: u64,
    ) -> Result<u64, ApiError> {
        let newest = self
            .stream_events(caller, stream, 1..=u64::MAX, NEWEST_EVENTS, Direction::Backward)
            .await?;
        let behind = newest.iter().take_while(|event| event.position > position);
        let first = match behind.last() {
            Some(first) => first.stream_version,
            None => return Ok(newest.first().map_or(1, |newest| newest.stream_version + 1)),
        };
        let (mut low, mut high) = (1, first);
        if newest.last().is_some_and(|oldest| oldest.position <= position) {
            low = first;
        }
        while low < high {
            let middle = low.midpoint(high);
            let event = self
                .stream_events(caller, stream, middle..=middle, 1, Direction::Forward)
                .await?;
            match event.first().is_some_and(|event| event.position <= position) {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        Ok(low)
    }

    /// The events of the caller's tenant in a range of the log.
    pub(crate) async fn tail(&self, caller: &Principal, range: TailRange) -> Result<TailPage, ApiError> {
        let tenant_id = caller.tenant_id;
        let read = async move |store: EventStore| store.read_tail(range, vec![tenant_id]).await;
        self.0.shared.read_log(tenant_id, read).await
    }

    /// The next events of an aggregate from a version on, as many as fit: none only where there are none.
    pub(crate) async fn stream_page(
        &self,
        caller: &Principal,
        stream: &Stream,
        from: u64,
        (limit, bytes_max): (u32, u32),
    ) -> Result<Vec<RecordedEvent>, ApiError> {
        let (tenant_id, partition) = (caller.tenant_id, caller.tenant_partition);
        let stream_id = stream.id.clone();
        let read = async move |store: EventStore| {
            store
                .read_stream_within(tenant_id, partition, &stream_id, from, limit, bytes_max)
                .await
        };
        self.0.shared.read_log(tenant_id, read).await
    }

    /// Some events of an aggregate.
    pub(crate) async fn stream_events(
        &self,
        caller: &Principal,
        stream: &Stream,
        versions: RangeInclusive<u64>,
        limit: u32,
        direction: Direction,
    ) -> Result<Vec<RecordedEvent>, ApiError> {
        let (tenant_id, partition) = (caller.tenant_id, caller.tenant_partition);
        let stream_id = stream.id.clone();
        let read = async move |store: EventStore| {
            store
                .read_stream(tenant_id, partition, &stream_id, versions, limit, direction)
                .await
        };
        self.0.shared.read_log(tenant_id, read).await
    }
}

impl Stream {
    /// The aggregate of this kind and id.
    ///
    /// # Errors
    /// What an id of this kind has to be.
    pub fn of_kind(kind: &'static Kind, id: &str) -> Result<Self, String> {
        kind.check_id(id).map(|()| Self {
            kind,
            id: id.to_owned(),
        })
    }

    /// The aggregate of this id; `None` when no kind has such ids.
    pub fn of_any_kind(id: &str) -> Option<Self> {
        let kind = Kind::by_id(id)?;
        Some(Self {
            kind,
            id: id.to_owned(),
        })
    }

    /// The category of its events.
    pub(super) fn category(&self) -> &'static str {
        self.kind.category
    }

    /// The aggregate's TypeID.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }
}

impl ListEvents {
    /// The question that cursors are bound to: all but the size of a page.
    fn question(&self, caller: &Principal) -> Question {
        let direction = match self.direction {
            Direction::Forward => "asc",
            Direction::Backward => "desc",
        };
        Question::new(caller.tenant_id, "events")
            .with("stream_id", &self.stream.id)
            .with("from_version", &self.versions.start().to_string())
            .with("to_version", &self.versions.end().to_string())
            .with("order", direction)
    }

    /// What is left of the versions from one of them on.
    fn versions_from(&self, last: u64) -> RangeInclusive<u64> {
        match self.direction {
            Direction::Forward => last..=*self.versions.end(),
            Direction::Backward => *self.versions.start()..=last,
        }
    }
}
