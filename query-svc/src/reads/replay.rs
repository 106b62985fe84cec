//! Histories that are folded anew, for what was and for what each event changed.
//!
//! A history may be long, and folding it is work that nothing interrupts. So it is done on threads of its own, of a few
//! histories at a time, which the tenants share like connections: whoever waits for its turn holds nothing yet. A history that
//! is longer than [`REPLAY_EVENTS_MAX`] is folded no further.

use std::ops::{ControlFlow, RangeInclusive};
use std::panic::resume_unwind;
use std::sync::Arc;

use daybook_event_store::{Direction, EventStore, RecordedEvent, may_go_on};
use daybook_postgres::ACQUIRE_TIMEOUT;
use daybook_read_model::{DecodeError, Event, FoldError};
use daybook_service::error::{Code, RETRY_AFTER_DEFAULT};
use daybook_service::identity::Principal;
use daybook_service::shares::{Shares, SharesOptions};
use daybook_service::{ApiError, request};
use thiserror::Error;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::Reads;

/// How many histories are folded at one time.
const REPLAYS_MAX: usize = 4;

/// How many requests may wait for that.
const WAITING_MAX: usize = 1_024;

/// How many events of a history are folded at the most.
const REPLAY_EVENTS_MAX: u64 = 100_000;

/// How many events of a history are read at once.
const CHUNK_EVENTS: u32 = 1_000;

/// Why a history could not be folded.
#[derive(Debug, Error)]
pub(super) enum ReplayError {
    /// A newer program has recorded it.
    #[error("this program does not know {event_type} in schema version {schema_version}")]
    Unknown { event_type: String, schema_version: u32 },
    /// The log holds what nobody can read, which is a fault of ours.
    #[error("cannot decode an event of {stream_id}")]
    Decode {
        stream_id: String,
        #[source]
        source: Arc<DecodeError>,
    },
    /// The log holds what the fold rejects, which is a fault of ours.
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
        let message = error.to_string();
        match error {
            // Another replica may be newer, or this one be replaced.
            ReplayError::Unknown {
                event_type,
                schema_version,
            } => Self::new(Code::ReadModelBehind, message)
                .with_detail("event_type", event_type)
                .with_detail("schema_version", schema_version)
                .with_retry_after(RETRY_AFTER_DEFAULT),
            ReplayError::Decode { .. } | ReplayError::Fold { .. } => Self::internal(error),
        }
    }
}

/// The history changed while it was read: the log has forked.
#[derive(Debug, Error)]
#[error("version {0} of the history is another event than it was")]
struct Forked(u64);

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
    /// What `fold` fails with, `PAYLOAD_TOO_LARGE` when the history is too long, `DEPENDENCY_UNAVAILABLE` when the log has forked
    /// meanwhile, and what waiting for a place can end in.
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
        // It goes where the work goes, which nobody can cancel.
        let held = (self.0.replays.place(caller.tenant_id).await?, request::hold());
        let read = move |versions| self.chunk(caller, stream_id, versions);
        let fold = move |state: &mut (S, _), event: &RecordedEvent| fold(&mut state.0, event);
        let (state, _held) = replayed(read, last, (state, held), fold).await?;
        Ok(state)
    }

    async fn chunk(
        &self,
        caller: &Principal,
        stream_id: &str,
        versions: RangeInclusive<u64>,
    ) -> Result<Vec<RecordedEvent>, ApiError> {
        let (tenant_id, partition, stream_id) =
            (caller.tenant_id, caller.tenant_partition, stream_id.to_owned());
        let read = async move |store: EventStore| {
            store
                .read_stream(
                    tenant_id,
                    partition,
                    &stream_id,
                    versions,
                    CHUNK_EVENTS,
                    Direction::Forward,
                )
                .await
        };
        self.0.shared.read_log(tenant_id, read).await
    }
}

/// Folds what is read, chunk by chunk, up to version `last`.
async fn replayed<S, F, R>(
    read: impl Fn(RangeInclusive<u64>) -> R,
    last: u64,
    state: S,
    fold: F,
) -> Result<S, ApiError>
where
    S: Send + 'static,
    F: Fn(&mut S, &RecordedEvent) -> Result<ControlFlow<()>, ApiError> + Send + 'static,
    R: Future<Output = Result<Vec<RecordedEvent>, ApiError>>,
{
    let mut work = (state, fold);
    let mut newest: Option<(u64, Uuid)> = None;
    loop {
        let mut events = read(newest.map_or(1, |(version, _)| version)..=last).await?;
        let may_go_on = may_go_on(&events, CHUNK_EVENTS);
        if let Some(newest) = newest {
            check_same(newest, &events)?;
            events.remove(0);
        }
        let Some(event) = events.last() else {
            break;
        };
        let version = event.stream_version;
        if version > REPLAY_EVENTS_MAX {
            return Err(too_long());
        }
        newest = Some((version, event.event_id));
        let folded;
        (work, folded) = fold_chunk(work, events).await?;
        if folded?.is_break() || !may_go_on || version >= last {
            break;
        }
    }
    Ok(work.0)
}

/// A chunk begins with the last event of the chunk before: another one in its place is another history. Whoever asks again reads that
/// from its first event.
fn check_same((version, event_id): (u64, Uuid), events: &[RecordedEvent]) -> Result<(), ApiError> {
    match events.first() {
        Some(first) if first.event_id == event_id => Ok(()),
        _ => Err(ApiError::dependency_unavailable("database", Forked(version))),
    }
}

/// Folds a chunk on a thread of its own, and gives back what it was done with.
async fn fold_chunk<S, F>(
    (mut state, fold): (S, F),
    events: Vec<RecordedEvent>,
) -> Result<((S, F), Result<ControlFlow<()>, ApiError>), ApiError>
where
    S: Send + 'static,
    F: Fn(&mut S, &RecordedEvent) -> Result<ControlFlow<()>, ApiError> + Send + 'static,
{
    let folding = spawn_blocking(move || {
        let mut folded = Ok(ControlFlow::Continue(()));
        for event in &events {
            folded = fold(&mut state, event);
            if !matches!(folded, Ok(ControlFlow::Continue(()))) {
                break;
            }
        }
        ((state, fold), folded)
    });
    match folding.await {
        Ok(folded) => Ok(folded),
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_stopped) => Err(ApiError::shutting_down()),
        },
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
        Err(source) if is_unknown(source) => Err(ReplayError::Unknown {
            event_type: event.event_type,
            schema_version: recorded.schema_version,
        }),
        Err(source) => Err(ReplayError::Decode {
            stream_id: event.stream_id,
            source: Arc::clone(source),
        }),
    }
}

/// Whether it is the type or its version that this program does not know.
fn is_unknown(error: &DecodeError) -> bool {
    use daybook_domain::event::DecodeError::{Malformed, UnknownType, UnknownVersion};
    match error {
        DecodeError::UnknownCategory { .. }
        | DecodeError::Payload(UnknownType { .. } | UnknownVersion { .. }) => true,
        DecodeError::Payload(Malformed { .. })
        | DecodeError::Metadata(_)
        | DecodeError::OccurredAtOutOfRange => false,
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    /// The event of a version in a history of this number.
    fn event(history: u128, version: u64) -> RecordedEvent {
        RecordedEvent {
            partition: 0,
            position: version,
            tenant_id: Uuid::nil(),
            category: "order".to_owned(),
            stream_id: "ord_1".to_owned(),
            stream_version: version,
            event_id: Uuid::from_u128(history * 10_000 + u128::from(version)),
            event_type: "order.placed".to_owned(),
            schema_version: 1,
            payload: "{}".to_owned(),
            metadata: "{}".into(),
            recorded_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    /// The versions that are folded of a log that forks behind a version, into another history, once its first chunk was read.
    async fn folded(forks_behind: u64) -> Result<Vec<u64>, ApiError> {
        let read = |versions: RangeInclusive<u64>| {
            let is_first = *versions.start() == 1;
            let history = move |version| u128::from(!is_first && version > forks_behind);
            let versions = versions.take_while(|version| *version <= 1_500);
            let events = versions.map(move |version| event(history(version), version));
            std::future::ready(Ok::<Vec<_>, ApiError>(
                events.take(CHUNK_EVENTS as usize).collect(),
            ))
        };
        let fold = |folded: &mut Vec<u64>, event: &RecordedEvent| {
            folded.push(event.stream_version);
            Ok(ControlFlow::Continue(()))
        };
        replayed(read, u64::MAX, Vec::new(), fold).await
    }

    #[tokio::test]
    async fn a_long_history_is_folded_chunk_by_chunk_each_event_once() -> Result<(), ApiError> {
        let whole: Vec<_> = (1..=1_500).collect();
        assert_eq!(folded(u64::MAX).await?, whole);
        assert_eq!(folded(1_000).await?, whole, "what was read is of both histories");
        Ok(())
    }

    #[tokio::test]
    async fn a_history_of_which_the_log_has_lost_a_part_that_was_read_is_folded_no_further() {
        let refused = folded(990).await.expect_err("events 991 to 1,000 are others now");
        assert_eq!(refused.code(), &Code::DependencyUnavailable);
    }
}
