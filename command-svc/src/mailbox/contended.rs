//! The aggregates that other replicas write to as well, of late.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use daybook_service::shares::half_of_the_rest;
use tokio::time::Instant;
use uuid::Uuid;

use super::cache::Stream;

/// How long an aggregate counts as contended after a conflict with another replica's event.
const CONTENDED_FOR: Duration = Duration::from_secs(5);

/// How many aggregates are contended at most, at about 200 bytes each; conflicts on more than that are not noted. A tenant may
/// have half of what all others leave free.
const CONTENDED_MAX: usize = 100_000;

/// How many marks the aggregates share: with some of them contended, hardly another one has the same mark.
const MARKS: usize = 16_384;

/// The contended aggregates. A look at one that is not costs next to nothing, and takes no lock.
#[derive(Debug)]
pub struct Contended {
    /// Whether an aggregate that has this mark may be contended.
    marks: Box<[AtomicBool]>,
    streams: Mutex<Streams>,
}

#[derive(Debug)]
struct Streams {
    by_tenant: HashMap<Uuid, HashMap<Arc<str>, Contention>>,
    count: usize,
    swept_at: Instant,
}

#[derive(Debug)]
struct Contention {
    until: Instant,
    /// The replica whose caller sent the newest command that arrived here.
    newest_origin: Option<Uuid>,
    /// Until when commands count as coming from several replicas.
    shared_until: Instant,
}

impl Default for Contended {
    fn default() -> Self {
        let streams = Streams {
            by_tenant: HashMap::new(),
            count: 0,
            swept_at: Instant::now(),
        };
        Self {
            marks: (0..MARKS).map(|_| AtomicBool::new(false)).collect(),
            streams: Mutex::new(streams),
        }
    }
}

impl Contended {
    /// Notes that other replicas write to an aggregate: it is contended from now on, for five seconds.
    pub fn note(&self, stream: &Stream) {
        self.streams().note(stream);
        self.marks[mark(stream)].store(true, Ordering::Relaxed);
    }

    /// Whether an aggregate is contended.
    pub fn contains(&self, stream: &Stream) -> bool {
        self.marks[mark(stream)].load(Ordering::Relaxed)
            && self
                .streams()
                .get_mut(stream)
                .is_some_and(|contention| Instant::now() < contention.until)
    }

    /// Notes through which replica a command for a contended aggregate came, and returns whether commands have come
    /// through several in the last five seconds. While they have, whoever forwards goes on; once only one is left, it may
    /// as well decide by itself.
    pub fn is_shared(&self, stream: &Stream, origin: Uuid) -> bool {
        let mut streams = self.streams();
        streams.get_mut(stream).is_some_and(|one| one.is_shared(origin))
    }

    /// Notes that another replica forwarded a command for an aggregate, which is contended then; otherwise as
    /// [`Self::is_shared`].
    pub fn forwarded(&self, stream: &Stream, origin: Uuid) -> bool {
        self.note(stream);
        self.is_shared(stream, origin)
    }

    /// The contended aggregates. Every few seconds those whose time is over are forgotten.
    fn streams(&self) -> MutexGuard<'_, Streams> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now >= streams.swept_at + CONTENDED_FOR {
            let marks = streams.sweep(now);
            for (mark, is_set) in self.marks.iter().zip(marks) {
                mark.store(is_set, Ordering::Relaxed);
            }
        }
        streams
    }
}

impl Streams {
    fn get_mut(&mut self, (tenant_id, stream_id): &Stream) -> Option<&mut Contention> {
        self.by_tenant.get_mut(tenant_id)?.get_mut(stream_id)
    }

    fn note(&mut self, stream: &Stream) {
        let now = Instant::now();
        let until = now + CONTENDED_FOR;
        if let Some(contention) = self.get_mut(stream) {
            contention.until = until;
            return;
        }
        let of_tenant = self.by_tenant.get(&stream.0).map_or(0, HashMap::len);
        if of_tenant >= half_of_the_rest(CONTENDED_MAX, self.count - of_tenant) {
            return;
        }
        let contention = Contention {
            until,
            newest_origin: None,
            shared_until: now,
        };
        let of_tenant = self.by_tenant.entry(stream.0).or_default();
        of_tenant.insert(Arc::clone(&stream.1), contention);
        self.count += 1;
    }

    /// Forgets the aggregates whose time is over. Returns the marks of those that are left.
    fn sweep(&mut self, now: Instant) -> Vec<bool> {
        let mut marks = vec![false; MARKS];
        self.count = 0;
        self.by_tenant.retain(|tenant_id, streams| {
            streams.retain(|_, contention| now < contention.until);
            for stream_id in streams.keys() {
                marks[mark(&(*tenant_id, Arc::clone(stream_id)))] = true;
            }
            self.count += streams.len();
            !streams.is_empty()
        });
        self.swept_at = now;
        marks
    }
}

impl Contention {
    fn is_shared(&mut self, origin: Uuid) -> bool {
        let now = Instant::now();
        if self.newest_origin.is_some_and(|newest| newest != origin) {
            self.shared_until = now + CONTENDED_FOR;
        }
        self.newest_origin = Some(origin);
        now < self.shared_until
    }
}

/// The number of an aggregate's mark. Whoever chooses ids to have the same one costs others a lock, and no more.
fn mark(stream: &Stream) -> usize {
    let mut hasher = DefaultHasher::new();
    stream.hash(&mut hasher);
    hasher.finish() as usize % MARKS
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
    async fn no_tenants_conflicts_take_more_than_half_of_what_all_others_leave() {
        let contended = Contended::default();
        let crowd = 0..u32::try_from(CONTENDED_MAX).expect("it is small");
        for number in crowd.clone() {
            contended.note(&stream(number));
        }
        assert_eq!(contended.streams().count, CONTENDED_MAX / 2);
        let of_others = |number: u32| (Uuid::from_u128(number.into()), "ord_1".into());
        for number in crowd {
            contended.note(&of_others(number + 1));
        }
        assert!(contended.contains(&of_others(1)));
        assert_eq!(contended.streams().count, CONTENDED_MAX);
        advance(CONTENDED_FOR).await;
        contended.note(&stream(u32::MAX));
        assert!(contended.contains(&stream(u32::MAX)), "those of old make room");
    }

    #[tokio::test(start_paused = true)]
    async fn aggregates_whose_time_is_over_are_forgotten_though_there_is_room() {
        let contended = Contended::default();
        (0..100).for_each(|number| contended.note(&stream(number)));
        advance(CONTENDED_FOR).await;
        contended.note(&stream(100));
        assert_eq!(contended.streams().count, 1);
        let is_marked = |mark: &AtomicBool| mark.load(Ordering::Relaxed);
        assert_eq!(contended.marks.iter().filter(|mark| is_marked(mark)).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_at_an_aggregate_takes_no_lock_when_others_are_contended() {
        let contended = Contended::default();
        contended.note(&stream(1));
        let other = (2..).map(stream).find(|other| mark(other) != mark(&stream(1)));
        let _locked = contended.streams();
        assert!(!contended.contains(&other.expect("there are many marks")));
    }
}
