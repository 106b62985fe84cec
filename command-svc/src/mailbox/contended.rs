//! The aggregates that other replicas write to as well, of late.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::cache::Stream;

/// How long an aggregate counts as contended after a conflict with another replica's event.
const CONTENDED_FOR: Duration = Duration::from_secs(5);

/// How many aggregates are contended at most; conflicts on more than that are not noted.
const CONTENDED_MAX: usize = 10_000;

/// The contended aggregates. A look costs next to nothing while there are none.
#[derive(Debug, Default)]
pub struct Contended {
    is_any: AtomicBool,
    streams: Mutex<HashMap<Stream, Contention>>,
}

#[derive(Debug)]
struct Contention {
    until: Instant,
    /// The replica whose caller sent the newest command that arrived here.
    newest_origin: Option<Uuid>,
    /// Until when commands count as coming from several replicas.
    shared_until: Instant,
}

impl Contended {
    /// Notes that other replicas write to an aggregate: it is contended from now on, for five seconds.
    pub fn note(&self, stream: &Stream) {
        let now = Instant::now();
        let mut streams = self.streams();
        if let Some(contention) = streams.get_mut(stream) {
            contention.until = now + CONTENDED_FOR;
            return;
        }
        if streams.len() >= CONTENDED_MAX {
            streams.retain(|_, contention| now < contention.until);
        }
        if streams.len() < CONTENDED_MAX {
            let contention = Contention {
                until: now + CONTENDED_FOR,
                newest_origin: None,
                shared_until: now,
            };
            streams.insert(stream.clone(), contention);
            self.is_any.store(true, Ordering::Relaxed);
        }
    }

    /// Whether an aggregate is contended.
    pub fn contains(&self, stream: &Stream) -> bool {
        if !self.is_any.load(Ordering::Relaxed) {
            return false;
        }
        let mut streams = self.streams();
        let Some(contention) = streams.get(stream) else {
            return false;
        };
        let is_contended = Instant::now() < contention.until;
        if !is_contended {
            streams.remove(stream);
            self.is_any.store(!streams.is_empty(), Ordering::Relaxed);
        }
        is_contended
    }

    /// Notes through which replica a command for a contended aggregate came, and returns whether commands have come
    /// through several in the last five seconds. While they have, whoever forwards goes on; once only one is left, it may
    /// as well decide by itself.
    pub fn is_shared(&self, stream: &Stream, origin: Uuid) -> bool {
        let now = Instant::now();
        let mut streams = self.streams();
        let Some(contention) = streams.get_mut(stream) else {
            return false;
        };
        if contention.newest_origin.is_some_and(|newest| newest != origin) {
            contention.shared_until = now + CONTENDED_FOR;
        }
        contention.newest_origin = Some(origin);
        now < contention.shared_until
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<Stream, Contention>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn stream(number: u32) -> Stream {
        (Uuid::nil(), format!("ord_{number}").into())
    }

    #[tokio::test(start_paused = true)]
    async fn an_aggregate_is_contended_for_five_seconds_after_each_conflict() {
        let contended = Contended::default();
        assert!(!contended.contains(&stream(1)));
        contended.note(&stream(1));
        advance(Duration::from_secs(4)).await;
        contended.note(&stream(1));
        advance(Duration::from_millis(4_999)).await;
        assert!(contended.contains(&stream(1)) && !contended.contains(&stream(2)));
        advance(Duration::from_millis(1)).await;
        assert!(!contended.contains(&stream(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_aggregate_is_shared_while_commands_come_through_several_replicas() {
        let contended = Contended::default();
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        contended.note(&stream(1));
        assert!(!contended.is_shared(&stream(1), one));
        assert!(!contended.is_shared(&stream(1), one));
        assert!(contended.is_shared(&stream(1), other));
        assert!(contended.is_shared(&stream(1), other));
        advance(CONTENDED_FOR).await;
        assert!(
            !contended.is_shared(&stream(1), other),
            "it comes through one alone"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_crowd_of_conflicts_takes_more_memory_than_its_share() {
        let contended = Contended::default();
        for number in 0..2 * u32::try_from(CONTENDED_MAX).expect("it is small") {
            contended.note(&stream(number));
        }
        assert_eq!(contended.streams().len(), CONTENDED_MAX);
        advance(CONTENDED_FOR).await;
        contended.note(&stream(u32::MAX));
        assert!(contended.contains(&stream(u32::MAX)), "those of old make room");
    }
}
