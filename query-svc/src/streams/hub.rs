//! The tails of this process: one for each partition and source that somebody reads from.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use daybook_service::error::DATABASE;
use daybook_service::{ApiError, identity::Principal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::buffer::Buffer;
use super::feed::{Feed, Source};
use super::tail::{Join, Joined, Reading, Tail};

/// How long a reader waits to join: as long as a look-up may take, and a tail's pause.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How many readers may wait to join a tail. They wait for one read of it.
const JOINS_MAX: usize = 1_024;

/// The tails of this process.
pub(super) struct Hub {
    reading: Reading,
    tails: Mutex<HashMap<(Source, i32), mpsc::Sender<Join>>>,
}

impl Hub {
    pub(super) fn new(reading: Reading) -> Self {
        let tails = Mutex::default();
        Self { reading, tails }
    }

    /// Joins the tail that a feed needs: `buffer` gets everything that comes behind the place where it joins.
    ///
    /// # Errors
    /// `DEPENDENCY_UNAVAILABLE` when the tail cannot read.
    pub(super) async fn join(
        &self,
        caller: &Principal,
        feed: &Arc<Feed>,
        buffer: &Arc<Buffer>,
    ) -> Result<Joined, ApiError> {
        let joined = timeout(JOIN_TIMEOUT, async {
            loop {
                let (sender, joined) = oneshot::channel();
                let join = Join {
                    tenant_id: caller.tenant_id,
                    feed: Arc::clone(feed),
                    buffer: Arc::clone(buffer),
                    joined: sender,
                };
                // A tail whose last reader has gone ends, perhaps just now: then there is a new one.
                let tail = self.tail(feed.source, caller.tenant_partition);
                if tail.send(join).await.is_ok()
                    && let Ok(joined) = joined.await
                {
                    return joined;
                }
            }
        });
        joined
            .await
            .map_err(|elapsed| ApiError::dependency_unavailable(DATABASE, elapsed))
    }

    /// The tail of a source, which is started where there is none.
    fn tail(&self, source: Source, partition: i32) -> mpsc::Sender<Join> {
        // Nothing panics while the lock is held, so what a poisoned one holds is whole.
        let mut tails = self.tails.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tail) = tails.get(&(source, partition)).filter(|tail| !tail.is_closed()) {
            return tail.clone();
        }
        let (sender, joins) = mpsc::channel(JOINS_MAX);
        tokio::spawn(Tail::new(source, partition, self.reading.clone()).run(joins));
        tails.insert((source, partition), sender.clone());
        sender
    }
}
