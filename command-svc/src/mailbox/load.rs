//! Loading an aggregate: its stream, page by page, folded from nothing.

use std::error::Error;
use std::ops::RangeInclusive;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use daybook_domain::aggregate::Aggregate;
use daybook_domain::event::{DecodeError, Event as _};
use daybook_event_store::{Direction, EventStore, RecordedEvent, may_go_on};
use daybook_service::shares::{Shares, SharesOptions};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use thiserror::Error;
use uuid::Uuid;

use super::cached::Cached;

/// Events in one page of a long stream.
const PAGE_EVENTS_MAX: u32 = 2_000;

/// How often a load begins again because an event that it had read is another one now.
const RESTARTS_MAX: u32 = 3;

/// Where streams are read. Postgres is one; the other is the simulation's model of the log.
pub trait ReadStream: Send + Sync + 'static {
    /// At most `limit` events of a stream with versions in `versions`, in order.
    fn read_page<'a>(
        &'a self,
        tenant_id: Uuid,
        partition: i32,
        stream_id: &'a str,
        versions: RangeInclusive<u64>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<RecordedEvent>, Box<dyn Error + Send + Sync>>>;
}

impl ReadStream for EventStore {
    fn read_page<'a>(
        &'a self,
        tenant_id: Uuid,
        partition: i32,
        stream_id: &'a str,
        versions: RangeInclusive<u64>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<RecordedEvent>, Box<dyn Error + Send + Sync>>> {
        let read = self.read_stream(
            tenant_id,
            partition,
            stream_id,
            versions,
            limit,
            Direction::Forward,
        );
        read.map(|page| page.map_err(Into::into)).boxed()
    }
}

/// How many aggregates are loaded at once: as many as there are connections for it, so that a load that has begun goes on
/// without waiting. None is refused: the commands that wait for one were admitted, and so they are not too many.
#[must_use]
pub fn load_shares(connections: u32) -> Shares {
    Shares::new(SharesOptions {
        quota: "loads under way",
        places: connections as usize,
        waiting_max: usize::MAX,
        wait_max: Duration::MAX,
    })
}

/// Why an aggregate could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The log could not be read.
    #[error("cannot read the stream")]
    Read(#[source] Box<dyn Error + Send + Sync>),
    /// An event could not be understood.
    #[error("cannot understand the event at position {position}")]
    Decode {
        /// Where it is.
        position: u64,
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
    /// The stream changed under the load again and again: another server answers each time.
    #[error("the stream is another one on each look")]
    Unstable,
    /// The domain panicked over an event.
    #[error("the domain panicked over the stream")]
    Panicked,
}

/// Loads an aggregate, from `base` on if that is still a part of its stream. The caller spawns it: a read that is under
/// way must not be dropped.
pub(super) async fn load<A: Aggregate>(
    log: Arc<dyn ReadStream>,
    tenant_id: Uuid,
    partition: i32,
    stream_id: Arc<str>,
    mut base: Option<Cached<A>>,
) -> Result<Cached<A>, LoadError> {
    for _ in 0..RESTARTS_MAX {
        let from = base.take().unwrap_or_else(Cached::new);
        let fold = fold(&*log, tenant_id, partition, &stream_id, from);
        let folded = AssertUnwindSafe(fold).catch_unwind().await;
        if let Some(cached) = folded.unwrap_or(Err(LoadError::Panicked))? {
            return Ok(cached);
        }
    }
    Err(LoadError::Unstable)
}

/// Folds the stream over a state. Each page begins with the newest event before it; `None` when that is another one now,
/// or gone: a standby was promoted in between, and what was read is not the beginning of what follows.
async fn fold<A: Aggregate>(
    log: &dyn ReadStream,
    tenant_id: Uuid,
    partition: i32,
    stream_id: &str,
    mut cached: Cached<A>,
) -> Result<Option<Cached<A>>, LoadError> {
    loop {
        let versions = cached.version().max(1)..=u64::MAX;
        let page = log
            .read_page(tenant_id, partition, stream_id, versions, PAGE_EVENTS_MAX)
            .await
            .map_err(LoadError::Read)?;
        let is_last = !may_go_on(&page, PAGE_EVENTS_MAX);
        let mut events = page.into_iter();
        if cached.newest().is_some() && events.next().map(|event| event.event_id) != cached.newest() {
            return Ok(None);
        }
        for recorded in events {
            let event = A::Event::decode(&recorded.event_type, recorded.schema_version, &recorded.payload)
                .map_err(|source| LoadError::Decode {
                    position: recorded.position,
                    source,
                })?;
            cached.apply(&event, recorded.event_id);
        }
        if is_last {
            return Ok(Some(cached));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use daybook_domain::ids::OrderId;
    use daybook_domain::order::{Command, Event, NewLine, State};
    use time::OffsetDateTime;

    use super::*;
    use crate::mailbox::cached::Bases;

    const PAGE: u64 = PAGE_EVENTS_MAX as u64;

    /// A primary, and a standby that is promoted after the first page: their histories are the same up to `fork`.
    struct Failover {
        primary: Vec<RecordedEvent>,
        standby: Vec<RecordedEvent>,
        pages: Mutex<u32>,
    }

    impl ReadStream for Failover {
        fn read_page<'a>(
            &'a self,
            _tenant_id: Uuid,
            _partition: i32,
            _stream_id: &'a str,
            versions: RangeInclusive<u64>,
            limit: u32,
        ) -> BoxFuture<'a, Result<Vec<RecordedEvent>, Box<dyn Error + Send + Sync>>> {
            let mut pages = self.pages.lock().expect("nothing panics with it");
            *pages += 1;
            let log = if *pages == 1 { &self.primary } else { &self.standby };
            let wanted = log
                .iter()
                .filter(|event| versions.contains(&event.stream_version));
            let page = wanted.take(limit as usize).cloned().collect();
            async move { Ok(page) }.boxed()
        }
    }

    fn text<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a valid text")
    }

    /// An order whose quantity is changed again and again, from `fork` on to `quantity`.
    fn history(events: u64, fork: u64, quantity: u32) -> Vec<RecordedEvent> {
        let place = Command::Place {
            order_id: OrderId::from_uuid(Uuid::from_u128(7)),
            reference: None,
            customer_id: text("ada"),
            currency: text("EUR"),
            lines: vec![NewLine {
                sku: text("PEN"),
                quantity: 1,
                unit_price_minor: 100,
            }],
            shipping_address: None,
            expected_total_minor: None,
        };
        let (mut state, mut recorded) = (State::default(), Vec::new());
        for version in 1..=events {
            let command = match version {
                1 => place.clone(),
                _ => Command::ChangeQuantity {
                    line_number: 1,
                    quantity: if version < fork {
                        2 + u32::from(version % 2 == 0)
                    } else {
                        quantity + u32::from(version % 2 == 0)
                    },
                },
            };
            let event = state.decide(command).expect("it is granted").remove(0);
            state = state.evolve(&event);
            let of_fork = if version < fork {
                0
            } else {
                u128::from(quantity) << 64
            };
            recorded.push(RecordedEvent {
                partition: 0,
                position: version,
                tenant_id: Uuid::nil(),
                category: State::CATEGORY.to_owned(),
                stream_id: "ord".to_owned(),
                stream_version: version,
                event_id: Uuid::from_u128(of_fork + u128::from(version)),
                event_type: event.event_type().to_owned(),
                schema_version: event.schema_version(),
                payload: event.encode(),
                metadata: "{}".into(),
                recorded_at: OffsetDateTime::UNIX_EPOCH,
            });
        }
        recorded
    }

    fn failover(fork: u64, pages: u32) -> Arc<Failover> {
        Arc::new(Failover {
            primary: history(2 * PAGE, fork, 5),
            standby: history(PAGE + 10, fork, 9),
            pages: Mutex::new(pages),
        })
    }

    /// Loads from the primary, then from the standby; gives the state, and how many pages were read.
    async fn loaded(log: &Arc<Failover>, base: Option<Cached<State>>) -> (Cached<State>, u32) {
        let before = *log.pages.lock().expect("nothing panics with it");
        let reading = Arc::clone(log) as Arc<dyn ReadStream>;
        let cached = load::<State>(reading, Uuid::nil(), 0, "ord".into(), base).await;
        let after = *log.pages.lock().expect("nothing panics with it");
        (cached.unwrap_or_else(|error| panic!("{error}")), after - before)
    }

    /// The newest event of the standby, whose history is its own from the fork on.
    const NEWEST_OF_STANDBY: Uuid = Uuid::from_u128((9 << 64) + PAGE as u128 + 10);

    #[tokio::test]
    async fn a_load_whose_pages_straddle_a_failover_begins_again() {
        let (cached, pages) = loaded(&failover(PAGE - 5, 0), None).await;
        assert_eq!(cached.version(), PAGE + 10);
        assert_eq!(cached.newest(), Some(NEWEST_OF_STANDBY));
        assert_eq!(
            pages, 4,
            "a page of each server, and both of the second one again"
        );
    }

    #[tokio::test]
    async fn a_load_goes_on_where_the_servers_agree() {
        let (cached, pages) = loaded(&failover(PAGE + 5, 0), None).await;
        assert_eq!(cached.version(), PAGE + 10);
        assert_eq!(pages, 2);
    }

    #[tokio::test]
    async fn a_load_goes_on_from_a_state_that_is_still_a_part_of_the_stream() {
        let log = failover(PAGE + 5, 1);
        let (all, pages) = loaded(&log, None).await;
        assert_eq!(pages, 2);
        let mut base = Cached::new();
        for recorded in &log.standby[..usize::try_from(PAGE).expect("it is small")] {
            let event = Event::decode(&recorded.event_type, recorded.schema_version, &recorded.payload);
            base.apply(&event.expect("an event"), recorded.event_id);
        }
        let (from_base, pages) = loaded(&log, Bases::loaded(&base).confirmed()).await;
        assert_eq!(pages, 1, "only what follows the base is read");
        assert_eq!(from_base.aggregate(), all.aggregate());
        assert_eq!(
            (from_base.version(), from_base.newest()),
            (all.version(), all.newest())
        );
    }

    #[tokio::test]
    async fn a_state_that_the_log_does_not_have_is_not_gone_on_from() {
        let log = failover(PAGE - 5, 0);
        let mut base = Cached::new();
        for recorded in &log.primary {
            let event = Event::decode(&recorded.event_type, recorded.schema_version, &recorded.payload);
            base.apply(&event.expect("an event"), recorded.event_id);
        }
        *log.pages.lock().expect("nothing panics with it") = 1;
        let (cached, pages) = loaded(&log, Bases::loaded(&base).confirmed()).await;
        assert_eq!(cached.newest(), Some(NEWEST_OF_STANDBY));
        assert_eq!(pages, 3, "a look at the base, and then the whole stream");
    }
}
