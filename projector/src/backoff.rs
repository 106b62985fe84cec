//! How long to wait before something that failed is tried again.

use std::time::Duration;

/// The pause after the first failed attempt; it doubles.
const PAUSE_FIRST: Duration = Duration::from_millis(50);

/// The longest pause between two attempts.
const PAUSE_LAST: Duration = Duration::from_secs(30);

/// The pause after this many failed attempts in a row.
pub(crate) fn pause(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    (PAUSE_FIRST * 2_u32.pow(doublings)).min(PAUSE_LAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_limit() {
        let pauses = [1, 2, 3, 10, u32::MAX].map(|attempts| pause(attempts).as_millis());
        assert_eq!(pauses, [50, 100, 200, 25_600, 30_000]);
    }
}
