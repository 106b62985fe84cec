//! Leaving a server that was superseded: an old primary lives on, cut off, and the sessions that lead to it stay open.
//!
//! There nothing seems wrong. But the stream carries a later epoch than the log has. Then new sessions are tried, and once they
//! lead to another log all are made anew. Where they lead to the same one nothing would be gained: it may be that an
//! administrator has to open the next epoch, and meanwhile other partitions go on.
//!
//! Only who works in a partition looks. Whoever takes over what others leave works there, too.

use std::time::Duration;

use daybook_event_bus::consume::{self, EpochUnread};
use daybook_event_store::{EpochId, LogHead, SeenEpoch};
use tokio_util::sync::CancellationToken;

use crate::feed::Feed;
use crate::worker::Context;

/// How often log and stream are compared.
const COMPARE_INTERVAL: Duration = Duration::from_secs(2);

/// Compares a partition's log and stream, while a worker has a place in the feed, until told to stop.
pub async fn watch(
    context: Context,
    partition: i32,
    feed: Feed,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut watch = Watch {
        context,
        partition,
        seen: SeenEpoch::default(),
        is_unread: false,
    };
    let reason_to_look = async || {
        tokio::time::sleep(COMPARE_INTERVAL).await;
        feed.wanted().await;
    };
    while shutdown.run_until_cancelled(reason_to_look()).await.is_some() {
        // Whoever cannot read the log is about to connect anew as it is.
        if let Ok(head) = watch.context.store.head(partition).await {
            watch.compare(head).await;
        }
    }
    Ok(())
}

struct Watch {
    context: Context,
    partition: i32,
    seen: SeenEpoch,
    /// Whether the stream does not tell its epoch.
    is_unread: bool,
}

impl Watch {
    async fn compare(&mut self, head: LogHead) {
        match consume::superseding(&self.context.bus, self.partition, head.epoch).await {
            Ok(later) => {
                self.is_unread = false;
                self.context.metrics.superseded(self.partition, later.is_some());
                if let Some(later) = later {
                    self.superseded(head.epoch, later).await;
                }
            }
            Err(error) => self.unread(&error),
        }
    }

    /// Has the sessions made anew if new ones lead to another log.
    async fn superseded(&self, log: EpochId, later: EpochId) {
        let Context { store, .. } = &self.context;
        self.seen.note(later);
        let Some(elsewhere) = self.seen.head_elsewhere(store, self.partition, log).await else {
            return;
        };
        let leads_elsewhere = elsewhere.epoch != log;
        tracing::warn!(
            self.partition,
            epoch = log.number,
            stream.epoch = later.number,
            leads_elsewhere,
            "the log was superseded; all sessions are made anew once new ones lead to another log"
        );
        if leads_elsewhere {
            self.context.reconnect();
        }
    }

    /// One line when the stream begins not to tell; without a connection that is no news.
    fn unread(&mut self, error: &EpochUnread) {
        if self.context.bus.is_connected() && !std::mem::replace(&mut self.is_unread, true) {
            let error = error as &dyn std::error::Error;
            tracing::warn!(
                self.partition,
                error,
                "it is not seen whether the log was superseded"
            );
        }
    }
}
