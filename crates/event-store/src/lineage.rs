//! The lineage of a partition: the epochs of its log, one for each history that it has had.
//!
//! The rules are written beside the functions, in `migrations/event-store/0004_lineage.sql`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{FromRow, PgConnection};
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use crate::append::{Judgement, chains, events};
use crate::attempts::Attempts;
use crate::command::NewCommand;
use crate::read::{EventStore, LogHead};

/// Events that a process remembers to have seen recorded, the fewer the older they are.
const WITNESSES_MAX: usize = 64;

/// How much later another epoch may be than the log's. Beyond that somebody has invented it, to stop all commands.
const EPOCHS_AHEAD_MAX: i32 = 1_000;

/// How long a process that has just started waits for NATS before it appends.
const FIRST_LOOK_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) const ATTACH: &str = "
    SELECT epoch, generation, opened FROM event_store.attach($1, $2, $3, $4, $5)
";

pub(crate) const EPOCHS: &str = "
    SELECT number, generation, from_position FROM event_store.epoch WHERE partition = $1 ORDER BY number
";

/// One history of the log, as a link of its [`Lineage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRow)]
pub struct Epoch {
    /// Greater than those of all epochs that were known when it was opened.
    pub number: i32,
    /// Its permanent name.
    pub generation: Uuid,
    /// Its first position. The events of earlier epochs before that belong to it, too.
    #[sqlx(try_from = "i64")]
    pub from_position: u64,
}

/// The epochs of a partition, the newest last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lineage(Vec<Epoch>);

impl FromIterator<Epoch> for Lineage {
    /// From epochs in the order of their numbers.
    fn from_iter<I: IntoIterator<Item = Epoch>>(epochs: I) -> Self {
        Self(epochs.into_iter().collect())
    }
}

impl Lineage {
    /// Whether an epoch begins at a position.
    #[must_use]
    pub fn has_epoch_from(&self, position: u64) -> bool {
        self.0.iter().any(|epoch| epoch.from_position == position)
    }

    /// The newest epoch; `None` when there is none at all.
    #[must_use]
    pub fn newest(&self) -> Option<EpochId> {
        let newest = self.0.last()?;
        Some(EpochId {
            number: newest.number,
            generation: newest.generation,
        })
    }

    /// The last position that a generation recorded and the log still has: `u64::MAX` for the newest one, `None` for one
    /// that is not in the lineage.
    #[must_use]
    pub fn valid_up_to(&self, generation: Uuid) -> Option<u64> {
        let index = self.0.iter().position(|epoch| epoch.generation == generation)?;
        let later = self.0[index + 1..].iter().map(|epoch| epoch.from_position - 1);
        Some(later.min().unwrap_or(u64::MAX))
    }

    /// Whether the log has what a generation recorded at a position, and before it.
    #[must_use]
    pub fn has(&self, generation: Uuid, position: u64) -> bool {
        self.valid_up_to(generation).is_some_and(|last| position <= last)
    }
}

/// An epoch by its number and generation. The later one is the greater: where two were opened under one number, the
/// generations decide, for everybody alike.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, FromRow)]
pub struct EpochId {
    /// Its number.
    #[sqlx(rename = "epoch")]
    pub number: i32,
    /// Its generation.
    pub generation: Uuid,
}

impl EpochId {
    /// Whether nobody can have opened it, as far as a log of this epoch knows.
    #[must_use]
    pub fn is_invented(self, log: Self) -> bool {
        self.number > log.number.saturating_add(EPOCHS_AHEAD_MAX)
    }
}

/// The latest epoch that this process has met anywhere: a log with an earlier one was superseded. Cheap to clone; the
/// publisher, who sees the bus, tells the appender.
#[derive(Debug, Clone, Default)]
pub struct SeenEpoch {
    latest: Arc<Mutex<EpochId>>,
    /// Looks for the log of that epoch.
    attempts: Arc<Mutex<Attempts>>,
    /// Whether the publisher has compared stream and log; nobody does where there is none.
    looked: Option<Arc<watch::Sender<bool>>>,
}

impl SeenEpoch {
    /// For a process with a publisher. A stream that is ahead of the log is all that tells a process that remembers
    /// nothing of data that were put back: its first append waits until the publisher has looked, or for a moment.
    #[must_use]
    pub fn with_publisher() -> Self {
        Self {
            looked: Some(Arc::new(watch::Sender::new(false))),
            ..Self::default()
        }
    }

    /// The publisher has compared stream and log.
    pub fn note_look(&self) {
        if let Some(looked) = &self.looked {
            looked.send_replace(true);
        }
    }

    /// Waits until the publisher has looked, for a bounded time: without NATS, commands go on.
    pub(crate) async fn first_look(&self) {
        if let Some(looked) = &self.looked {
            let mut looks = looked.subscribe();
            let _ = timeout(FIRST_LOOK_TIMEOUT, looks.wait_for(|looked| *looked)).await;
        }
    }

    /// Notes an epoch.
    pub fn note(&self, epoch: EpochId) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = epoch.max(*latest);
    }

    /// Where the log stands that new connections lead to, for a process whose own are of a log that is in this epoch and was
    /// superseded: their address may lead to another server by now. Asked at once, and then less and less often; `None` when
    /// it is not time to ask, and when there was no answer.
    pub async fn head_elsewhere(&self, store: &EventStore, partition: i32, log: EpochId) -> Option<LogHead> {
        let is_due = {
            let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
            attempts.is_due(Instant::now(), log, self.latest())
        };
        if !is_due {
            return None;
        }
        match store.head_anew(partition).await {
            Ok(head) => Some(head),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(partition, error, "cannot see where new connections lead");
                None
            }
        }
    }

    /// The latest so far; number 0 when none was met.
    #[must_use]
    pub fn latest(&self) -> EpochId {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An epoch that a session has found to be the newest.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Attached {
    /// The epoch.
    #[sqlx(flatten)]
    pub id: EpochId,
    /// Why it was opened just now; `None` when it was open before.
    pub opened: Option<String>,
}

/// Events of a generation of the log that a caller remembers.
#[derive(Debug, Clone, Default)]
pub struct Witnesses {
    generation: Uuid,
    /// Positions and ids of events, the newest last.
    events: VecDeque<(u64, Uuid)>,
}

impl Witnesses {
    /// Of a stream: an event with its position that was recorded in a generation, and one before it that the log has,
    /// where there is one.
    #[must_use]
    pub fn of_stream(generation: Uuid, event: (u64, Uuid), known: Option<(u64, Uuid)>) -> Self {
        Self {
            generation,
            events: known.into_iter().chain([event]).collect(),
        }
    }

    /// Remembers the newest event of a batch.
    pub(crate) fn note(&mut self, commands: &[NewCommand], judgement: &Judgement) {
        let newest = chains(commands)
            .into_iter()
            .zip(&judgement.chains)
            .filter_map(|(chain, judged)| {
                let written = commands.get(chain.start..judged.written_end)?;
                let ids: Vec<Uuid> = written
                    .iter()
                    .flat_map(events)
                    .map(|event| event.event_id)
                    .collect();
                let last = *ids.last()?;
                Some((judged.first_position + ids.len() as u64 - 1, last))
            })
            .max();
        if let Some(newest) = newest {
            if self.events.len() == WITNESSES_MAX {
                // Every other of the older half, so that they reach far back and are close together at the end.
                let mut index = 0;
                self.events.retain(|_| {
                    index += 1;
                    index > WITNESSES_MAX / 2 || index % 2 == 1
                });
            }
            self.events.push_back(newest);
        }
    }

    /// Forgets the events of another generation: they were checked when this one's epoch was opened.
    pub(crate) fn begin(&mut self, generation: Uuid) {
        if self.generation != generation {
            *self = Self {
                generation,
                events: VecDeque::new(),
            };
        }
    }
}

/// Makes sure that the newest epoch is this server's and has all that the caller remembers; opens the next one if not.
pub(crate) async fn attach(
    connection: &mut PgConnection,
    partition: i32,
    witnesses: &Witnesses,
    seen: i32,
) -> Result<Attached, sqlx::Error> {
    let (positions, ids): (Vec<i64>, Vec<Uuid>) = witnesses
        .events
        .iter()
        .map(|(position, id)| (position.cast_signed(), *id))
        .unzip();
    let attached: Attached = sqlx::query_as(ATTACH)
        .bind(partition)
        .bind(witnesses.generation)
        .bind(positions)
        .bind(ids)
        .bind(seen)
        .fetch_one(connection)
        .await?;
    if let Some(reason) = &attached.opened {
        tracing::warn!(
            partition,
            epoch = attached.id.number,
            reason,
            "the log goes on in a new epoch"
        );
    }
    Ok(attached)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(number: i32, from_position: u64) -> Epoch {
        Epoch {
            number,
            generation: Uuid::from_u128(number.unsigned_abs().into()),
            from_position,
        }
    }

    #[test]
    fn what_an_epoch_recorded_holds_below_every_later_fork() {
        let epochs = [epoch(1, 1), epoch(2, 101), epoch(5, 51), epoch(6, 201)];
        let lineage: Lineage = epochs.into_iter().collect();
        let valid_up_to = |number: u128| lineage.valid_up_to(Uuid::from_u128(number));
        assert_eq!(valid_up_to(1), Some(50));
        assert_eq!(valid_up_to(2), Some(50));
        assert_eq!(valid_up_to(5), Some(200));
        assert_eq!(valid_up_to(6), Some(u64::MAX));
        assert_eq!(valid_up_to(3), None);
        assert!(lineage.has(Uuid::from_u128(1), 50) && !lineage.has(Uuid::from_u128(1), 51));
        assert!(!lineage.has(Uuid::from_u128(3), 0));
    }
}
