//! What can be read, the same for every transport: who may see what, how fresh, in what order, page by page.
//!
//! REST and gRPC only translate. They hand in values that have been understood, and get values that are sent as they are.

pub(crate) mod changes;
pub(crate) mod correlation;
pub(crate) mod customers;
pub(crate) mod feed;
pub(crate) mod history;
pub(crate) mod order;
pub(crate) mod orders;
mod replay;
pub(crate) mod stock;

use std::sync::Arc;
use std::time::Duration;

use daybook_event_store::RecordedEvent;
use daybook_read_model::ReadModel;
use daybook_read_model::access_path::Keyset;
use daybook_service::sealing::KeyRing;
use daybook_service::shares::Shares;
use daybook_service::{ApiError, identity::Principal};
use uuid::Uuid;

use crate::cursor::{Cursors, Question};
use crate::database::SharedReads;
use crate::freshness::{Demand, Freshness, Staleness, Tokens};
use crate::loader::OrderLoader;

/// How many items a page has when the caller does not say.
pub(crate) const LIMIT_DEFAULT: u32 = 20;

/// How many items a page has at the most.
pub(crate) const LIMIT_MAX: u32 = 100;

/// How long a page of a list may take in Postgres. Every list comes from an index, in a few milliseconds: what takes longer is
/// ended before its like fills the connections.
const LIST_TIMEOUT: Duration = Duration::from_secs(2);

/// Everything that reads need. Cheap to clone.
#[derive(Clone)]
pub struct Reads(Arc<Parts>);

struct Parts {
    shared: SharedReads,
    replays: Shares,
    loader: OrderLoader,
    freshness: Freshness,
    cursors: Cursors,
    ring: KeyRing,
}

/// What was read, and how fresh it is.
#[derive(Clone, Debug)]
pub struct Answer<T> {
    /// What was read.
    pub data: T,
    /// How fresh it is.
    pub staleness: Staleness,
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The items of this page.
    pub items: Vec<T>,
    /// What asks for the next page; none on the last one.
    pub next_cursor: Option<String>,
}

impl Reads {
    /// Reads through `shared`, as a role that row-level security holds to one tenant at a time. The ring seals what callers
    /// hold for us.
    pub fn new(shared: SharedReads, loader: OrderLoader, freshness: Freshness, ring: KeyRing) -> Self {
        Self(Arc::new(Parts {
            shared,
            replays: replay::shares(),
            loader,
            freshness,
            cursors: Cursors::new(ring.clone()),
            ring,
        }))
    }

    /// The consistency tokens of a caller.
    pub fn tokens(&self, caller: &Principal) -> Tokens {
        Tokens::new(&self.0.ring, caller)
    }

    /// The connections that tenants share.
    pub(crate) fn shared(&self) -> &SharedReads {
        &self.0.shared
    }

    /// Waits until a read model is as fresh as demanded, and says how fresh an answer is that is read after this.
    async fn freshen<M: ReadModel>(
        &self,
        caller: &Principal,
        demand: Option<&Demand>,
    ) -> Result<Staleness, ApiError> {
        if let Some(demand) = demand {
            self.0.freshness.reach(Some(M::NAME), demand).await?;
        }
        let progress = self.0.freshness.of(M::NAME, caller.tenant_partition);
        Ok(Staleness::new(progress, self.tokens(caller)))
    }

    /// Waits until the log that is read is as fresh as demanded, and says how fresh an answer is that is read from it after this.
    async fn freshen_log(&self, caller: &Principal, demand: Option<&Demand>) -> Result<Staleness, ApiError> {
        if let Some(demand) = demand {
            self.0.freshness.reach(None, demand).await?;
        }
        let progress = self.0.freshness.of_log(caller.tenant_partition);
        Ok(Staleness::new(progress, self.tokens(caller)))
    }

    /// The place where a page begins that a cursor asks for.
    fn open(&self, question: &Question, cursor: Option<&str>) -> Result<Option<Keyset>, ApiError> {
        let Some(cursor) = cursor else {
            return Ok(None);
        };
        let place = self.0.cursors.open(question, cursor)?;
        serde_json::from_slice(&place)
            .map(Some)
            .map_err(|_| ApiError::invalid_cursor())
    }

    /// The cursor that asks for the page behind a place.
    fn seal(&self, question: &Question, place: &Keyset) -> String {
        let place = serde_json::to_vec(place).expect("strings can be written as JSON");
        self.0.cursors.seal(question, &place)
    }
}

/// The event that a page ended with: what the cursor of a history or of the feed holds. Another event in its place says that this is
/// another history.
#[derive(Clone, Copy)]
struct Place {
    /// Its version in its stream, or its position in the log.
    number: u64,
    event_id: Uuid,
}

impl Place {
    fn new(number: u64, event: &RecordedEvent) -> Self {
        let event_id = event.event_id;
        Self { number, event_id }
    }

    fn sealed(self) -> Vec<u8> {
        [&self.number.to_be_bytes()[..], self.event_id.as_bytes()].concat()
    }

    /// Reads what a verified cursor holds.
    fn open(place: &[u8]) -> Result<Self, ApiError> {
        let (number, event_id) = place.split_first_chunk().ok_or_else(ApiError::invalid_cursor)?;
        Ok(Self {
            number: u64::from_be_bytes(*number),
            event_id: Uuid::from_slice(event_id).map_err(|_| ApiError::invalid_cursor())?,
        })
    }
}

/// The page out of what was found when one item more than its limit was asked for: that one says that there are more.
fn page<T>(mut found: Vec<T>, limit: u32, cursor_after: impl FnOnce(&T) -> String) -> Page<T> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let has_more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().filter(|_| has_more);
    Page {
        next_cursor: last.map(cursor_after),
        items: found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_cursor_only_when_there_are_more() {
        let after = |item: &i32| format!("after {item}");
        let more = page(vec![1, 2, 3], 2, after);
        assert_eq!(
            (more.items, more.next_cursor.as_deref()),
            (vec![1, 2], Some("after 2"))
        );
        let last = page(vec![1, 2], 2, after);
        assert_eq!((last.items, last.next_cursor), (vec![1, 2], None));
        assert_eq!(page(Vec::new(), 2, after).next_cursor, None);
    }
}
