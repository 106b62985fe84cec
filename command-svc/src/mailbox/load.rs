//! Loading an aggregate: its stream, page by page, folded from nothing.

use std::collections::HashMap;
use std::error::Error;
use std::ops::RangeInclusive;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use daybook_domain::aggregate::Aggregate;
use daybook_domain::event::{DecodeError, Event as _};
use daybook_event_store::{Direction, EventStore, RecordedEvent};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use thiserror::Error;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::slot::Cached;

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

/// How many aggregates are loaded at once: as many as there are connections for it, and of one tenant half as many. So a
/// load that has begun goes on without waiting, and no tenant's loads keep all others from theirs.
#[derive(Debug)]
pub struct LoadShares {
    all: Semaphore,
    of_tenant_max: usize,
    by_tenant: Mutex<HashMap<Uuid, Arc<Semaphore>>>,
}

impl LoadShares {
    /// For this many connections.
    #[must_use]
    pub fn new(connections: u32) -> Self {
        let all = connections as usize;
        Self {
            all: Semaphore::new(all),
            of_tenant_max: all.div_ceil(2),
            by_tenant: Mutex::default(),
        }
    }

    /// Does a tenant's load when it is its turn.
    pub(super) async fn load<T>(&self, tenant_id: Uuid, load: impl Future<Output = T>) -> T {
        let of_tenant = Arc::clone(
            self.by_tenant()
                .entry(tenant_id)
                .or_insert_with(|| Arc::new(Semaphore::new(self.of_tenant_max))),
        );
        let loaded = {
            let _of_tenant = of_tenant.acquire().await.expect("it is never closed");
            let _of_all = self.all.acquire().await.expect("it is never closed");
            load.await
        };
        // The map and this one: nobody else loads for the tenant.
        let mut by_tenant = self.by_tenant();
        if Arc::strong_count(&of_tenant) == 2 {
            by_tenant.remove(&tenant_id);
        }
        loaded
    }

    fn by_tenant(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Semaphore>>> {
        self.by_tenant.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

/// Loads an aggregate. The caller spawns it: a read that is under way must not be dropped.
pub(super) async fn load<A: Aggregate>(
    log: Arc<dyn ReadStream>,
    tenant_id: Uuid,
    partition: i32,
    stream_id: Arc<str>,
) -> Result<Cached<A>, LoadError> {
    for _ in 0..RESTARTS_MAX {
        let fold = fold(&*log, tenant_id, partition, &stream_id);
        let folded = AssertUnwindSafe(fold).catch_unwind().await;
        if let Some(cached) = folded.unwrap_or(Err(LoadError::Panicked))? {
            return Ok(cached);
        }
    }
    Err(LoadError::Unstable)
}

/// Folds the stream. Each page begins with the last event of the page before; `None` when that is another one now, or
/// gone: a standby was promoted in between, and what was read is not the beginning of what follows.
async fn fold<A: Aggregate>(
    log: &dyn ReadStream,
    tenant_id: Uuid,
    partition: i32,
    stream_id: &str,
) -> Result<Option<Cached<A>>, LoadError> {
    let mut cached = Cached::new();
    loop {
        let versions = cached.version().max(1)..=u64::MAX;
        let page = log
            .read_page(tenant_id, partition, stream_id, versions, PAGE_EVENTS_MAX)
            .await
            .map_err(LoadError::Read)?;
        let is_last = page.len() < PAGE_EVENTS_MAX as usize;
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
