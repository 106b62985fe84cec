//! When a process that works with a log that was superseded looks whether new connections lead to the one that took its place.

use std::time::{Duration, Instant};

use crate::lineage::EpochId;

/// First pause before new connections are tried again; it doubles up to `PAUSE_LAST`.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_LAST: Duration = Duration::from_secs(30);

/// The attempts so far. They begin anew when either of the two epochs is another.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    /// The log's epoch, and the later one that was met.
    epochs: (EpochId, EpochId),
    next: Option<(Instant, Duration)>,
}

impl Attempts {
    /// Whether it is time for one, which then counts as made.
    pub(crate) fn is_due(&mut self, now: Instant, log: EpochId, later: EpochId) -> bool {
        if self.epochs != (log, later) {
            *self = Self {
                epochs: (log, later),
                next: None,
            };
        }
        let (at, pause) = self.next.unwrap_or((now, PAUSE_FIRST));
        let is_due = now >= at;
        if is_due {
            self.next = Some((now + pause, (pause * 2).min(PAUSE_LAST)));
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn epoch(number: i32) -> EpochId {
        let generation = Uuid::from_u128(number.unsigned_abs().into());
        EpochId { number, generation }
    }

    #[test]
    fn new_connections_are_tried_at_once_and_then_less_and_less_often() {
        let (mut attempts, start) = (Attempts::default(), Instant::now());
        let quarters = (0..4 * 600).map(|quarter| start + Duration::from_millis(250) * quarter);
        let made: Vec<_> = quarters
            .filter(|now| attempts.is_due(*now, epoch(1), epoch(2)))
            .map(|at| at.duration_since(start).as_secs())
            .collect();
        assert_eq!(made[..7], [0, 0, 1, 3, 7, 15, 31]);
        assert_eq!(made.len(), 7 + 18, "every half minute: {made:?}");
    }

    #[test]
    fn they_are_tried_at_once_when_either_epoch_is_another() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        assert!(attempts.is_due(now, epoch(1), epoch(2)));
        assert!(!attempts.is_due(now, epoch(1), epoch(2)));
        assert!(attempts.is_due(now, epoch(1), epoch(3)));
        assert!(attempts.is_due(now, epoch(2), epoch(3)));
        assert!(!attempts.is_due(now, epoch(2), epoch(3)));
    }
}
