//! When a call is made again: exponential backoff with jitter, as in "Exponential Backoff And Jitter" (AWS Architecture Blog,
//! 2015), and no sooner than the service asks for.

use std::time::{Duration, Instant};

use crate::Refusal;

/// How long a command is tried, from its first attempt on. A service that is restarting is back within half a minute.
pub(crate) const GIVE_UP_AFTER: Duration = Duration::from_secs(30);

/// How long one attempt may take, so that there is time for others where its answer never comes.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);

/// The backoff after the first attempt that failed; it doubles with each one.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// The longest backoff.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The attempts of one call.
#[derive(Debug)]
pub struct Attempts {
    give_up_after: Duration,
    began: Instant,
    backoff: Duration,
}

impl Attempts {
    /// Attempts that begin now and go on for so long.
    #[must_use]
    pub fn new(give_up_after: Duration) -> Self {
        Self {
            give_up_after,
            began: Instant::now(),
            backoff: BACKOFF_MIN,
        }
    }

    /// How long the next attempt may take.
    pub(crate) fn patience(&self) -> Duration {
        self.time_left().min(ATTEMPT_MAX)
    }

    /// How long to wait before the next attempt; `None` when there is to be none: it could not succeed, or not in time. Never the
    /// same for all callers: they were refused together.
    pub fn pause_after(&mut self, refusal: &Refusal) -> Option<Duration> {
        let jitter = self.backoff.mul_f64(rand::random_range(0.5..1.5));
        let pause = refusal.retry_after.unwrap_or_default() + jitter;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        (refusal.is_transient() && pause < self.time_left()).then_some(pause)
    }

    fn time_left(&self) -> Duration {
        self.give_up_after.saturating_sub(self.began.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    fn refused(status: Status) -> Refusal {
        status.into()
    }

    fn asks_for(pause: Duration) -> Refusal {
        Refusal {
            retry_after: Some(pause),
            ..refused(Status::unavailable(""))
        }
    }

    #[test]
    fn the_backoff_doubles_up_to_its_end() {
        let mut attempts = Attempts::new(GIVE_UP_AFTER);
        let unavailable = refused(Status::unavailable("restarting"));
        let mut expected = BACKOFF_MIN;
        for _ in 0..8 {
            let pause = attempts.pause_after(&unavailable).expect("there is time");
            assert!(pause >= expected / 2 && pause <= expected * 3 / 2, "{pause:?}");
            expected = (expected * 2).min(BACKOFF_MAX);
        }
    }

    #[test]
    fn what_cannot_succeed_is_not_tried_again() {
        let mut attempts = Attempts::new(GIVE_UP_AFTER);
        for status in [Status::invalid_argument(""), Status::unauthenticated("")] {
            assert_eq!(attempts.pause_after(&refused(status)), None);
        }
    }

    #[test]
    fn nothing_is_tried_beyond_its_time() {
        let mut attempts = Attempts::new(Duration::from_millis(1));
        assert_eq!(attempts.pause_after(&refused(Status::unavailable(""))), None);
    }

    #[test]
    fn a_service_that_asks_for_a_pause_gets_it_however_long_unless_the_time_is_up_before() {
        let mut attempts = Attempts::new(GIVE_UP_AFTER);
        let pause = GIVE_UP_AFTER / 2;
        let waits = attempts.pause_after(&asks_for(pause));
        assert!(waits > Some(pause), "{waits:?}");
        assert_eq!(attempts.pause_after(&asks_for(GIVE_UP_AFTER)), None);
    }

    #[test]
    fn one_attempt_leaves_time_for_others() {
        let attempts = Attempts::new(GIVE_UP_AFTER);
        assert!(
            attempts.patience() < GIVE_UP_AFTER / 2,
            "{:?}",
            attempts.patience()
        );
    }
}
