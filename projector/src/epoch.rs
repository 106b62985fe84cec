//! Leaving a server that was superseded: an old primary lives on, cut off, and the sessions that lead to it stay open.
//!
//! There nothing seems wrong. But the stream carries a later epoch than the log has, and so the sessions are made anew: their
//! address may lead to another server by now.

use std::time::Duration;

use daybook_event_bus::consume;
use tokio_util::sync::CancellationToken;

use crate::worker::Context;

/// How often log and stream are compared.
const COMPARE_INTERVAL: Duration = Duration::from_secs(2);

/// Compares a partition's log and stream until told to stop.
pub(crate) async fn watch(
    context: Context,
    partition: i32,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let pause = || tokio::time::sleep(COMPARE_INTERVAL);
    while shutdown.run_until_cancelled(pause()).await.is_some() {
        // Whoever cannot read the log is about to connect anew as it is.
        let Ok(head) = context.store.head(partition).await else {
            continue;
        };
        if consume::is_superseded(&context.bus, partition, head.epoch).await {
            tracing::warn!(partition, "the log was superseded; all sessions are made anew");
            context.reconnect();
        }
    }
    Ok(())
}
