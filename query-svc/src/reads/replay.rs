//! Histories that are folded anew, for what was and for what each event changed.
//!
//! A history may be long, and folding it is work that nothing interrupts. So it is done on threads of its own, of a few
//! histories at a time, which the tenants share like connections: whoever waits for its turn holds nothing yet. A history that
//! is longer than [`REPLAY_EVENTS_MAX`] is folded no further.

use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::sync::Arc;

use daybook_event_store::{Direction, EventStore, RecordedEvent, may_go_on};
use daybook_postgres::ACQUIRE_TIMEOUT;
use daybook_read_model::{DecodeError, Event, FoldError};
use daybook_service::error::Code;
use daybook_service::identity::Principal;
use daybook_service::shares::{Shares, SharesOptions};
use daybook_service::{ApiError, request};
use thiserror::Error;
use tokio::task::spawn_blocking;

use super::Reads;

/// How many histories are folded at one time.
const REPLAYS_MAX: usize = 4;

/// How many requests may wait for that.
const WAITING_MAX: usize = 1_024;

/// How many events of a history are folded at the most.
const REPLAY_EVENTS_MAX: u64 = 100_000;

/// How many events of a history are read at once.
const CHUNK_EVENTS: u32 = 1_000;

/// Why a history could not be folded. The log holds what the fold rejects, which is a fault of ours.
#[derive(Debug, Error)]
pub(super) enum ReplayError {
    #[error("cannot decode an event of {stream_id}")]
    Decode {
        stream_id: String,
        #[source]
        source: Arc<DecodeError>,
    },
    #[error("cannot fold an event of {stream_id}")]
    Fold {
        stream_id: String,
        #[source]
        source: FoldError,
    },
}

impl ReplayError {
    pub(super) fn fold(event: &RecordedEvent, source: FoldError) -> Self {
        Self::Fold {
            stream_id: event.stream_id.clone(),
            source,
        }
    }
}

impl From<ReplayError> for ApiError {
    fn from(error: ReplayError) -> Self {
        Self::internal(error)
    }
}

/// The places of histories that are folded.
pub(super) fn shares() -> Shares {
    Shares::new(SharesOptions {
        quota: "histories being folded",
        places: REPLAYS_MAX,
        waiting_max: WAITING_MAX,
        wait_max: ACQUIRE_TIMEOUT,
    })
}

impl Reads {
    /// Folds the events of a stream into a state, from the first one up to version `last`, or until `fold` says that it has
    /// enough.
    ///
    /// # Errors
    /// What `fold` fails with, `PAYLOAD_TOO_LARGE` when the history is too long, and what waiting for a place can end in.
    pub(super) async fn replay<S, F>(
        &self,
        caller: &Principal,
        stream_id: &str,
        last: u64,
        state: S,
        fold: F,
    ) -> Result<S, ApiError>
    where
        S: Send + 'static,
        F: Fn(&mut S, &RecordedEvent) -> Result<ControlFlow<()>, ApiError> + Send + 'static,
    {
        // They go where the work goes, which nobody can cancel.
        let place = self.0.replays.place(caller.tenant_id).await?;
        let mut work = (state, fold, place, request::hold());
        let mut next = 1;
        while next <= last {
            let events = self.chunk(caller, stream_id, next, last).await?;
            let Some(newest) = events.last().map(|event| event.stream_version) else {
                break;
            };
            if newest > REPLAY_EVENTS_MAX {
                return Err(too_long());
            }
            next = newest + 1;
            let is_last = !may_go_on(&events, CHUNK_EVENTS);
            let folding = spawn_blocking(move || {
                let (state, fold, ..) = &mut work;
                let folded = events.iter().try_for_each(|event| match fold(state, event) {
                    Ok(ControlFlow::Continue(())) => ControlFlow::Continue(()),
                    Ok(ControlFlow::Break(())) => ControlFlow::Break(Ok(())),
                    Err(error) => ControlFlow::Break(Err(error)),
                });
                (work, folded)
            });
            let folded;
            (work, folded) = match folding.await {
                Ok(folded) => folded,
                Err(ended) => match ended.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    Err(_stopped) => return Err(ApiError::shutting_down()),
                },
            };
            match folded {
                ControlFlow::Break(Err(error)) => return Err(error),
                ControlFlow::Continue(()) if !is_last => {}
                ControlFlow::Break(Ok(())) | ControlFlow::Continue(()) => break,
            }
        }
        let (state, ..) = work;
        Ok(state)
    }

    async fn chunk(
        &self,
        caller: &Principal,
        stream_id: &str,
        from: u64,
        to: u64,
    ) -> Result<Vec<RecordedEvent>, ApiError> {
        let (tenant_id, partition, stream_id) =
            (caller.tenant_id, caller.tenant_partition, stream_id.to_owned());
        let read = async move |store: EventStore| {
            let (versions, forward) = (from..=to, Direction::Forward);
            store
                .read_stream(tenant_id, partition, &stream_id, versions, CHUNK_EVENTS, forward)
                .await
        };
        self.0.shared.read_log(tenant_id, read).await
    }
}

fn too_long() -> ApiError {
    let message = format!("no more than {REPLAY_EVENTS_MAX} events are folded; ask for an earlier version");
    ApiError::new(Code::PayloadTooLarge, message).with_detail("limit_events", REPLAY_EVENTS_MAX)
}

/// The event that was recorded.
pub(super) fn decode(recorded: &RecordedEvent) -> Result<Event, ReplayError> {
    let event = Event::decode(recorded);
    match &event.body {
        Ok(_) => Ok(event),
        Err(source) => Err(ReplayError::Decode {
            stream_id: event.stream_id,
            source: Arc::clone(source),
        }),
    }
}
