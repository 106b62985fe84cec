//! Lines of one order take turns.
//!
//! Orders are placed side by side and may overtake each other. Lines with the same idempotency key may not, or it would
//! be left to chance which of them is placed and which one is refused for its other content: the first one of the file
//! is placed, always.

use std::collections::HashMap;
use std::convert::Infallible;

use tokio::sync::oneshot;

/// From how many keys on those that are done are forgotten.
const KEYS_MIN: usize = 4_096;

/// The lines that are on their way, by key.
pub(crate) struct Turns {
    /// Closes when the last line with the key is done.
    last: HashMap<String, oneshot::Receiver<Infallible>>,
    /// At which size to look for keys that are done: twice of what was left, so that it costs little for each line.
    forget_at: usize,
}

/// A line's place behind the earlier ones with its key. The next one's turn comes when it is dropped.
pub(crate) struct Turn {
    earlier: Option<oneshot::Receiver<Infallible>>,
    _end: oneshot::Sender<Infallible>,
}

impl Turns {
    /// Nothing is on its way.
    pub(crate) fn new() -> Self {
        Self {
            last: HashMap::new(),
            forget_at: KEYS_MIN,
        }
    }

    /// The place behind all lines with this key so far.
    pub(crate) fn take(&mut self, key: &str) -> Turn {
        if self.last.len() >= self.forget_at {
            self.last
                .retain(|_, end| end.try_recv() == Err(oneshot::error::TryRecvError::Empty));
            self.forget_at = KEYS_MIN.max(self.last.len() * 2);
        }
        let (end, is_over) = oneshot::channel();
        Turn {
            earlier: self.last.insert(key.to_owned(), is_over),
            _end: end,
        }
    }
}

impl Turn {
    /// Waits until the earlier lines with the key are done.
    pub(crate) async fn come(&mut self) {
        if let Some(earlier) = self.earlier.take() {
            let Err(_closed) = earlier.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_line_waits_for_the_earlier_one_with_its_key() {
        let mut turns = Turns::new();
        let first = turns.take("a");
        let mut second = turns.take("a");
        assert!(second.come().now_or_never().is_none());
        drop(first);
        let mut third = turns.take("a");
        assert!(third.come().now_or_never().is_none());
    }

    #[test]
    fn a_line_waits_for_no_other_key_and_for_nothing_that_is_done() {
        let mut turns = Turns::new();
        let _other = turns.take("a");
        drop(turns.take("b"));
        assert!(turns.take("b").come().now_or_never().is_some());
    }

    #[test]
    fn keys_that_are_done_are_forgotten_and_others_are_not() {
        let mut turns = Turns::new();
        let _on_its_way = turns.take("first");
        (0..10 * KEYS_MIN).for_each(|number| drop(turns.take(&number.to_string())));
        assert!(turns.last.len() <= KEYS_MIN, "{}", turns.last.len());
        assert!(turns.take("first").come().now_or_never().is_none());
    }
}
