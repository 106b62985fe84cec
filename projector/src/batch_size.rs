//! How many events are applied at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What is done in so short a time may be followed by twice as many events.
const QUICK: Duration = Duration::from_secs(2);

/// How many events are applied at a time: half as many after what took too long, so that a batch that is too much for its
/// time is not tried again and again; more again when batches are quick.
#[derive(Debug)]
pub(crate) struct BatchSize {
    events: AtomicUsize,
    events_max: usize,
}

impl BatchSize {
    /// As many as may be, to begin with.
    pub(crate) fn up_to(events_max: usize) -> Self {
        Self {
            events: AtomicUsize::new(events_max),
            events_max,
        }
    }

    /// How many events are to be applied now.
    pub(crate) fn events(&self) -> usize {
        self.events.load(Ordering::Relaxed)
    }

    /// The database did not do so many in time, or not at all.
    pub(crate) fn took_too_long(&self, tried: usize) {
        let fewer = self.events().min(tried) / 2;
        self.events.store(fewer.max(1), Ordering::Relaxed);
    }

    /// A batch was applied within this time.
    pub(crate) fn took(&self, time: Duration) {
        if time < QUICK {
            let more = (self.events() * 2).min(self.events_max);
            self.events.store(more, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_shrink_to_one_event_while_they_take_too_long_and_grow_again_while_they_are_quick() {
        let size = BatchSize::up_to(2_000);
        size.took_too_long(2_000);
        assert_eq!(size.events(), 1_000);
        size.took_too_long(90);
        assert_eq!(size.events(), 45, "there were no more");
        (0..20).for_each(|_| size.took_too_long(45));
        assert_eq!(size.events(), 1);
        size.took(Duration::from_secs(7));
        assert_eq!(size.events(), 1, "twice as many would take too long");
        size.took(Duration::from_millis(3));
        assert_eq!(size.events(), 2);
        (0..20).for_each(|_| size.took(Duration::from_millis(3)));
        assert_eq!(size.events(), 2_000);
    }
}
