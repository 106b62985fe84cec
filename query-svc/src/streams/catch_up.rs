//! What was recorded before a reader joined: read by itself, page by page, in its tenant's share of connections. What others have
//! recorded in between is passed over with the read model `event_index`, as far as that has come.
//!
//! What is read is bound to the place where the reader joined. Should the log go on in another epoch meanwhile, nothing more is read
//! of it: the tail ends the reader's buffer, and the reader joins again.

use std::sync::Arc;

use daybook_event_store::{RecordedEvent, TailRange};
use daybook_postgres::QUERY_TIMEOUT;
use daybook_read_model::order_list;
use daybook_service::{ApiError, identity::Principal};

use super::buffer::Delivery;
use super::feed::{Feed, Source};
use super::place::Place;
use super::room::Room;
use super::rows::Changed;
use crate::reads::Reads;
use crate::reads::history::Stream;

/// How many events of an aggregate are read at once.
const PAGE_EVENTS: u32 = 32;

/// How many positions of the log are read at once, other tenants' included. Where there are more, the read model is asked that knows
/// which of them are the tenant's.
const PAGE_POSITIONS: u32 = 2_000;

/// How many events are asked of that at once.
const PAGE_INDEXED: u32 = 200;

/// No event is read behind as many bytes: each reader holds a page until it is sent.
pub(super) const PAGE_BYTES: u32 = 64 * 1_024;

/// How a reader catches up, as far as it has come.
#[derive(Debug)]
pub(super) struct CatchUp {
    /// Up to here: what comes behind it is handed over.
    up_to: Place,
    /// Of an aggregate, the version to go on with, once it is known.
    next_version: Option<u64>,
    room: Room,
}

/// A part of what was recorded meanwhile.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) deliveries: Vec<Arc<Delivery>>,
    /// Everything up to here has been read.
    pub(super) position: u64,
}

impl CatchUp {
    /// What is read is held in the room.
    pub(super) fn new(up_to: Place, room: Room) -> Self {
        Self {
            up_to,
            next_version: None,
            room,
        }
    }

    /// The place up to which is read.
    pub(super) fn up_to(&self) -> Place {
        self.up_to
    }

    /// The next page behind a position.
    ///
    /// # Errors
    /// What the read fails with.
    pub(super) async fn page(
        &mut self,
        reads: &Reads,
        caller: &Principal,
        feed: &Feed,
        after: u64,
    ) -> Result<Page, ApiError> {
        match (&feed.stream, feed.source) {
            (Some(stream), _) => self.aggregate(reads, caller, feed, stream, after).await,
            (None, Source::Log) => {
                let (events, position) = self.events(reads, caller, after).await?;
                let shown = events.into_iter().filter(|event| feed.shows(event));
                Ok(Page {
                    deliveries: self.deliveries(shown),
                    position,
                })
            }
            (None, Source::OrderList) => {
                let (events, position) = self.events(reads, caller, after).await?;
                Ok(Page {
                    deliveries: self.rows(reads, caller, &events).await?,
                    position,
                })
            }
        }
    }

    async fn aggregate(
        &mut self,
        reads: &Reads,
        caller: &Principal,
        feed: &Feed,
        stream: &Stream,
        after: u64,
    ) -> Result<Page, ApiError> {
        let next = match self.next_version {
            Some(next) => next,
            None => reads.version_after(caller, stream, after).await?,
        };
        let events = reads
            .stream_page(caller, stream, next, (PAGE_EVENTS, PAGE_BYTES))
            .await?;
        let (last, up_to) = (events.last(), self.up_to.position);
        self.next_version = Some(last.map_or(next, |last| last.stream_version + 1));
        // However few they are, there may be more: an empty page is the last one.
        let position = last.map_or(up_to, |last| last.position.min(up_to));
        let shown = events
            .into_iter()
            .filter(|event| event.position <= up_to && feed.shows(event));
        Ok(Page {
            deliveries: self.deliveries(shown),
            position,
        })
    }

    /// The next events of the tenant, and how far they are all that there are: from the read model and the log, as far as the one
    /// has come, or else from the log, with what others have recorded in between.
    async fn events(
        &self,
        reads: &Reads,
        caller: &Principal,
        after: u64,
    ) -> Result<(Vec<RecordedEvent>, u64), ApiError> {
        let Place { epoch, position } = self.up_to;
        if position - after > u64::from(PAGE_POSITIONS) {
            let (positions, bounds) = (after + 1..position + 1, (PAGE_INDEXED, PAGE_BYTES));
            let found = reads.indexed(caller, epoch.generation, positions, bounds).await?;
            if let Some(found) = found {
                return Ok((found.events, found.until - 1));
            }
        }
        self.log(reads, caller, after).await
    }

    /// The events of the tenant in the next positions of the log, and how far that is.
    async fn log(
        &self,
        reads: &Reads,
        caller: &Principal,
        after: u64,
    ) -> Result<(Vec<RecordedEvent>, u64), ApiError> {
        let range = TailRange {
            partition: caller.tenant_partition,
            after,
            up_to: self.up_to.position,
            positions_max: PAGE_POSITIONS,
            bytes_max: PAGE_BYTES,
        };
        let page = reads.tail(caller, range).await?;
        if page.epoch != self.up_to.epoch {
            return Err(ApiError::overloaded(
                "the log goes on in another epoch than it had",
            ));
        }
        // A standby that is behind has it later; what is missing now must not be passed over.
        match page.up_to > after {
            true => Ok((page.events, page.up_to)),
            false => Err(ApiError::overloaded("the log has not come as far as it had")),
        }
    }

    fn deliveries(&self, events: impl Iterator<Item = RecordedEvent>) -> Vec<Arc<Delivery>> {
        let delivery = |event| Delivery::of_event(&self.room, self.up_to.epoch, event);
        events.map(delivery).collect()
    }

    /// A row that has changed again since the reader joined is left to the tail: what that has read before may be older.
    async fn rows(
        &self,
        reads: &Reads,
        caller: &Principal,
        events: &[RecordedEvent],
    ) -> Result<Vec<Arc<Delivery>>, ApiError> {
        let changed = Changed::by(events);
        let (tenant_id, ids) = (
            caller.tenant_id,
            Arc::<[_]>::from_iter(changed.order_ids().cloned()),
        );
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = reads.shared().read(tenant_id, QUERY_TIMEOUT, move |connection| {
            let ids = Arc::clone(&ids);
            Box::pin(async move { order_list::find(connection, tenant_id, &ids).await })
        });
        let mut rows = rows.await?;
        rows.retain(|row| row.position <= self.up_to.position);
        Ok(changed.deliveries(&self.room, self.up_to.epoch, rows))
    }
}
