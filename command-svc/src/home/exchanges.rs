//! The commands that arrived of late: a message that somebody captured is not handled a second time.
//!
//! Its key makes a second time harmless where the first one was recorded. A command that was refused has no such key, and
//! its caller may have been told so.

use std::collections::HashSet;

use tokio::time::Instant;
use uuid::Uuid;

use super::seal::GOOD_FOR;

/// How many commands may arrive while a message is good. What comes above that goes back.
const EXCHANGES_MAX: usize = 65_536;

/// The exchanges of the last seconds, for at least as long as a message of theirs is good.
pub(super) struct Exchanges {
    newer: HashSet<Uuid>,
    older: HashSet<Uuid>,
    newer_since: Instant,
}

/// Whether an exchange is known.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// It is from now on.
    New,
    /// It was before.
    Again,
    /// There is no room to remember it.
    Full,
}

impl Default for Exchanges {
    fn default() -> Self {
        Self {
            newer: HashSet::new(),
            older: HashSet::new(),
            newer_since: Instant::now(),
        }
    }
}

impl Exchanges {
    /// Notes an exchange.
    pub(super) fn note(&mut self, exchange: Uuid, now: Instant) -> Noted {
        if now >= self.newer_since + GOOD_FOR {
            self.older = std::mem::take(&mut self.newer);
            self.newer_since = now;
        }
        if self.older.contains(&exchange) || self.newer.contains(&exchange) {
            Noted::Again
        } else if self.newer.len() == EXCHANGES_MAX {
            Noted::Full
        } else {
            self.newer.insert(exchange);
            Noted::New
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_once_for_as_long_as_it_is_good() {
        let (mut exchanges, first) = (Exchanges::default(), Uuid::from_u128(1));
        let start = exchanges.newer_since;
        for halves in 0..8 {
            let (now, exchange) = (start + GOOD_FOR / 2 * halves, Uuid::from_u128(halves.into()));
            assert_eq!(exchanges.note(exchange, now), Noted::New, "{halves}");
            assert_eq!(exchanges.note(exchange, now + GOOD_FOR), Noted::Again, "{halves}");
        }
        assert_eq!(
            exchanges.note(first, start + GOOD_FOR * 20),
            Noted::New,
            "it is too old by then"
        );
    }

    #[test]
    fn no_crowd_of_commands_takes_more_memory_than_its_share() {
        let mut exchanges = Exchanges::default();
        let now = exchanges.newer_since;
        for number in 0..EXCHANGES_MAX {
            assert_eq!(exchanges.note(Uuid::from_u128(number as u128), now), Noted::New);
        }
        let next = Uuid::from_u128(EXCHANGES_MAX as u128);
        assert_eq!(exchanges.note(next, now), Noted::Full);
        assert_eq!(exchanges.note(next, now + GOOD_FOR), Noted::New);
    }
}
