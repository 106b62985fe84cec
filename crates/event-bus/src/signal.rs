//! Signals on core NATS: how far a projection has come, and that there is work that no replica of the projector has.
//!
//! A signal wakes those who wait for it. It may be lost, late or double: whoever needs the truth reads it in the database,
//! and polls as a fallback.

use std::time::Duration;

use daybook_event_store::EpochId;
use futures::{Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bus::{Bus, BusError};

/// Subjects of the deployment.
const APPLIED: &str = "applied";
const FREED: &str = "freed";

/// How long a full queue may hold up a signal; after that it is dropped.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_millis(50);

/// A projection has applied everything up to a position, and committed. It is told again every few seconds while there is
/// nothing more to apply: whoever reads from a log of an earlier epoch finds out by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The projection's name, as in its checkpoint.
    pub projection: String,
    /// The partition of the log.
    pub partition: i32,
    /// The number of the log's epoch.
    pub log_epoch: i32,
    /// The generation of the log.
    pub log_generation: Uuid,
    /// The position of the newest event that is applied.
    pub position: u64,
}

impl Applied {
    /// The epoch of the log that the projection works in.
    pub fn epoch(&self) -> EpochId {
        EpochId {
            number: self.log_epoch,
            generation: self.log_generation,
        }
    }
}

/// Tells everyone. A hint never fails: without a connection it is dropped.
pub async fn announce(bus: &Bus, applied: &Applied) {
    let Applied {
        projection,
        partition,
        ..
    } = applied;
    let subject = bus.subject(format_args!("{APPLIED}.{projection}.{partition}"));
    let payload = serde_json::to_vec(applied).expect("strings and numbers always serialize");
    send(bus, subject, payload).await;
}

/// Tells the replicas of the projector that one has given work back, or that there is new work.
pub async fn announce_freed(bus: &Bus) {
    send(bus, bus.subject(FREED), Vec::new()).await;
    // Whoever tells may be about to end, and what is not sent by then never is.
    if bus.is_connected() {
        let _ = tokio::time::timeout(ANNOUNCE_TIMEOUT, bus.client().flush()).await;
    }
}

async fn send(bus: &Bus, subject: String, payload: Vec<u8>) {
    if !bus.is_connected() {
        return;
    }
    let publish = bus.client().publish(subject, payload.into());
    match tokio::time::timeout(ANNOUNCE_TIMEOUT, publish).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = %error, "a signal was not sent"),
        Err(_) => tracing::debug!("a signal was not sent in time"),
    }
}

/// Everything that is announced from now on, by every projection. Survives outages; what was announced meanwhile is
/// lost.
///
/// # Errors
/// [`BusError::Subscribe`] when the client is closed, [`BusError::Stuck`] when it takes no commands.
pub async fn subscribe(bus: &Bus) -> Result<impl Stream<Item = Applied> + Send + Unpin + 'static, BusError> {
    let everything = bus.subject(format_args!("{APPLIED}.>"));
    let signals = bus.subscribe(everything).await?;
    Ok(signals.filter_map(|message| std::future::ready(decode(&message.payload))))
}

/// Every time that work is given back. Survives outages; what was announced meanwhile is lost.
///
/// # Errors
/// As [`subscribe`].
pub async fn subscribe_freed(bus: &Bus) -> Result<impl Stream<Item = ()> + Send + Unpin + 'static, BusError> {
    let signals = bus.subscribe(bus.subject(FREED)).await?;
    Ok(signals.map(|_| ()))
}

fn decode(payload: &[u8]) -> Option<Applied> {
    serde_json::from_slice(payload)
        .inspect_err(|error| tracing::debug!(error = %error, "a signal cannot be read"))
        .ok()
}
