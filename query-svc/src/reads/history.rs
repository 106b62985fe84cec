//! The history of one aggregate, straight from the log: complete, in order, every payload byte for byte.

use std::ops::RangeInclusive;

use daybook_domain::aggregates::Kind;
use daybook_event_store::{Direction, EventStore, RecordedEvent};
use daybook_service::{ApiError, identity::Principal};

use super::{Answer, Page, Reads, page};
use crate::cursor::Question;

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
}

impl Reads {
    /// A page of a history.
    ///
    /// # Errors
    /// `RESOURCE_NOT_FOUND` when the caller's tenant has no such aggregate, `INVALID_CURSOR` when the cursor is not from this
    /// very history.
    pub async fn events(
        &self,
        caller: &Principal,
        list: &ListEvents,
    ) -> Result<Answer<Page<RecordedEvent>>, ApiError> {
        let question = list.question(caller);
        let versions = match &list.cursor {
            Some(cursor) => list.versions_after(version(&self.0.cursors.open(&question, cursor)?)?),
            None => list.versions.clone(),
        };
        let staleness = self.0.freshness.of_log(caller.tenant_partition);
        let found = self.stream(caller, list, versions, list.limit + 1).await?;
        if found.is_empty() && self.stream(caller, list, 1..=1, 1).await?.is_empty() {
            return Err(ApiError::not_found(list.stream.kind.category, &list.stream.id));
        }
        let cursor_after =
            |last: &RecordedEvent| self.0.cursors.seal(&question, &last.stream_version.to_be_bytes());
        Ok(Answer {
            data: page(found, list.limit, cursor_after),
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
        let (tenant_id, partition, direction) = (caller.tenant_id, caller.tenant_partition, list.direction);
        let stream_id = list.stream.id.clone();
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

    /// What is left of the versions after one of them.
    fn versions_after(&self, last: u64) -> RangeInclusive<u64> {
        match self.direction {
            Direction::Forward => last.saturating_add(1)..=*self.versions.end(),
            Direction::Backward => *self.versions.start()..=last.saturating_sub(1),
        }
    }
}

/// The version that a verified cursor holds.
fn version(place: &[u8]) -> Result<u64, ApiError> {
    place
        .try_into()
        .map(u64::from_be_bytes)
        .map_err(|_| ApiError::invalid_cursor())
}
