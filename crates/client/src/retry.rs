//! When a call is made again: exponential backoff with jitter, as in "Exponential Backoff And Jitter" (AWS Architecture Blog,
//! 2015), and no sooner than the service asks for.

use std::time::{Duration, Instant};

use crate::Refusal;

/// How long and how often a command is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// How long a command is tried, from its first attempt on. A service that is restarting is back within half a minute.
    pub give_up_after: Duration,
    /// The backoff after the first attempt that failed; it doubles with each one.
    pub backoff_min: Duration,
    /// The longest backoff, and the longest that a service's own hint is followed.
    pub backoff_max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            give_up_after: Duration::from_secs(30),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
        }
    }
}

/// The attempts of one command.
#[derive(Debug)]
pub(crate) struct Attempts {
    retry: Retry,
    began: Instant,
    backoff: Duration,
}

impl Attempts {
    pub(crate) fn new(retry: Retry) -> Self {
        Self {
            retry,
            began: Instant::now(),
            backoff: retry.backoff_min,
        }
    }

    /// How long an attempt may still take.
    pub(crate) fn time_left(&self) -> Duration {
        self.retry.give_up_after.saturating_sub(self.began.elapsed())
    }

    /// How long to wait before the next attempt; `None` when there is to be none. Never the same for all callers: they
    /// were refused together.
    pub(crate) fn next_after(&mut self, refusal: &Refusal) -> Option<Duration> {
        let jitter = self.backoff.mul_f64(rand::random_range(0.5..1.5));
        let asked_for = refusal.retry_after.unwrap_or_default();
        let wait = asked_for.min(self.retry.backoff_max) + jitter;
        self.backoff = (self.backoff * 2).min(self.retry.backoff_max);
        (refusal.is_transient() && wait < self.time_left()).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    fn refused(status: Status) -> Refusal {
        status.into()
    }

    #[test]
    fn the_backoff_doubles_up_to_its_end() {
        let retry = Retry::default();
        let mut attempts = Attempts::new(retry);
        let unavailable = refused(Status::unavailable("restarting"));
        let mut expected = retry.backoff_min;
        for _ in 0..8 {
            let wait = attempts.next_after(&unavailable).expect("there is time");
            assert!(wait >= expected / 2 && wait <= expected * 3 / 2, "{wait:?}");
            expected = (expected * 2).min(retry.backoff_max);
        }
    }

    #[test]
    fn what_cannot_succeed_is_not_tried_again() {
        let mut attempts = Attempts::new(Retry::default());
        for status in [Status::invalid_argument(""), Status::unauthenticated("")] {
            assert_eq!(attempts.next_after(&refused(status)), None);
        }
    }

    #[test]
    fn nothing_is_tried_beyond_its_time() {
        let mut attempts = Attempts::new(Retry {
            give_up_after: Duration::from_millis(1),
            ..Retry::default()
        });
        assert_eq!(attempts.next_after(&refused(Status::unavailable(""))), None);
    }

    #[test]
    fn a_service_that_asks_for_a_pause_gets_it() {
        let mut refusal = refused(Status::unavailable(""));
        refusal.retry_after = Some(Duration::from_secs(1));
        let wait = Attempts::new(Retry::default()).next_after(&refusal);
        assert!(wait > Some(Duration::from_secs(1)), "{wait:?}");
    }
}
