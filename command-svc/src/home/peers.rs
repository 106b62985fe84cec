//! Which replicas live, and which of them is an aggregate's home.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long a replica may take to answer a command.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// A replica that announced nothing for this long is no peer any more: two announcements may be lost.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// How long a replica that did not answer is left alone.
const LEFT_ALONE_FOR: Duration = Duration::from_secs(5);

/// How many peers are known at most. More than that are not looked for.
const PEERS_MAX: usize = 256;

/// The other replicas, as one of them knows them.
pub(super) struct Peers {
    own: Uuid,
    by_id: HashMap<Uuid, Peer>,
}

struct Peer {
    last_seen_at: Instant,
    left_alone_until: Option<Instant>,
    /// How many wait for its answers.
    waiting: usize,
    /// Since when somebody has waited, and it has answered nobody.
    asked_at: Option<Instant>,
    /// Cancelled when it is found silent, so that nobody waits for it any longer.
    silent: CancellationToken,
}

impl Peer {
    fn is_alive(&self, now: Instant) -> bool {
        now < self.last_seen_at + SILENCE_MAX
    }

    fn is_eligible(&self, now: Instant) -> bool {
        self.is_alive(now) && self.left_alone_until.is_none_or(|until| until <= now)
    }
}

impl Peers {
    pub(super) fn new(own: Uuid) -> Self {
        let by_id = HashMap::new();
        Self { own, by_id }
    }

    /// Notes that a replica lives.
    pub(super) fn announced(&mut self, id: Uuid, now: Instant) {
        if id == self.own {
            return;
        }
        if let Some(peer) = self.by_id.get_mut(&id) {
            peer.last_seen_at = now;
            return;
        }
        self.by_id.retain(|_, peer| peer.is_alive(now));
        if self.by_id.len() < PEERS_MAX {
            let peer = Peer {
                last_seen_at: now,
                left_alone_until: None,
                waiting: 0,
                asked_at: None,
                silent: CancellationToken::new(),
            };
            self.by_id.insert(id, peer);
        }
    }

    /// Notes that a replica is stopping. What it was asked before it still answers.
    pub(super) fn left(&mut self, id: Uuid) {
        self.by_id.remove(&id);
    }

    /// Notes that a replica is gone.
    pub(super) fn gone(&mut self, id: Uuid) {
        if let Some(peer) = self.by_id.remove(&id) {
            peer.silent.cancel();
        }
    }

    /// Notes that a replica is asked; the token is cancelled when nobody should wait for it any longer. `None` when it is
    /// not known.
    fn asked(&mut self, id: Uuid, now: Instant) -> Option<CancellationToken> {
        let peer = self.by_id.get_mut(&id)?;
        peer.waiting += 1;
        peer.asked_at.get_or_insert(now);
        // One that was left alone is asked by one caller first.
        if let Some(until) = &mut peer.left_alone_until {
            *until = now + PATIENCE;
        }
        Some(peer.silent.clone())
    }

    /// Notes that somebody who asked a replica waits no longer, for whatever reason.
    fn waits_no_longer(&mut self, id: Uuid) {
        if let Some(peer) = self.by_id.get_mut(&id) {
            peer.waiting = peer.waiting.saturating_sub(1);
            if peer.waiting == 0 {
                peer.asked_at = None;
            }
        }
    }

    /// Notes that a replica answered.
    pub(super) fn answered(&mut self, id: Uuid) {
        if let Some(peer) = self.by_id.get_mut(&id) {
            peer.asked_at = None;
            peer.left_alone_until = None;
        }
    }

    /// Notes that a replica did not answer in the time that somebody had. It is left alone when it has answered nobody for
    /// as long as it may take, which is then returned: one slow command says nothing about the replica, and neither does a
    /// caller in a hurry.
    pub(super) fn did_not_answer(&mut self, id: Uuid, now: Instant) -> bool {
        let Some(peer) = self.by_id.get_mut(&id) else {
            return false;
        };
        let is_silent = peer.asked_at.is_some_and(|asked_at| asked_at + PATIENCE <= now);
        if is_silent {
            peer.left_alone_until = Some(now + LEFT_ALONE_FOR);
            peer.asked_at = None;
            std::mem::take(&mut peer.silent).cancel();
        }
        is_silent
    }

    /// The home of an aggregate: the live replica with the greatest weight. When one goes, only what was at home there
    /// finds another home.
    pub(super) fn home_of(&self, tenant_id: Uuid, stream_id: &str, now: Instant) -> Uuid {
        let eligible = self.by_id.iter().filter(|(_, peer)| peer.is_eligible(now));
        let ids = eligible.map(|(id, _)| *id).chain([self.own]);
        let home = ids.max_by_key(|id| (weight(tenant_id, stream_id, *id), *id));
        home.expect("oneself is among them")
    }
}

/// Somebody who waits for a replica's answer, until this is dropped.
pub(super) struct Waiter<'a> {
    peers: &'a Mutex<Peers>,
    id: Uuid,
    /// Cancelled when nobody should wait for it any longer.
    pub(super) silent: CancellationToken,
}

impl<'a> Waiter<'a> {
    /// Somebody who asks a replica now; `None` when it is not known.
    pub(super) fn new(peers: &'a Mutex<Peers>, id: Uuid, now: Instant) -> Option<Self> {
        let silent = lock(peers).asked(id, now)?;
        Some(Self { peers, id, silent })
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        lock(self.peers).waits_no_longer(self.id);
    }
}

pub(super) fn lock(peers: &Mutex<Peers>) -> MutexGuard<'_, Peers> {
    peers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much a replica is the home of an aggregate (rendezvous hashing: Thaler and Ravishankar, 1998).
fn weight(tenant_id: Uuid, stream_id: &str, replica: Uuid) -> [u8; 32] {
    Sha256::new()
        .chain_update(tenant_id)
        .chain_update(replica)
        .chain_update(stream_id)
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: Uuid = Uuid::from_u128(1);

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number << 64)
    }

    /// The replica `own` among `others`, all of which have just announced themselves.
    fn replica(own: u128, others: &[u128], now: Instant) -> Peers {
        let mut peers = Peers::new(id(own));
        for other in others {
            peers.announced(id(*other), now);
        }
        peers
    }

    /// Whether a replica is the home of everything itself.
    fn is_alone(peers: &Peers, now: Instant) -> bool {
        orders().all(|order| peers.home_of(TENANT, &order, now) == peers.own)
    }

    fn orders() -> impl Iterator<Item = String> {
        (0..300).map(|number| format!("ord_{number}"))
    }

    #[test]
    fn every_replica_chooses_the_same_home_and_each_is_the_home_of_its_share() {
        let now = Instant::now();
        let replicas = [
            replica(1, &[2, 3], now),
            replica(2, &[3, 1], now),
            replica(3, &[1, 2, 3], now),
        ];
        let mut homes = HashMap::new();
        for order in orders() {
            let home = replicas[0].home_of(TENANT, &order, now);
            assert!(
                replicas
                    .iter()
                    .all(|one| one.home_of(TENANT, &order, now) == home)
            );
            *homes.entry(home).or_insert(0) += 1;
        }
        assert!(
            homes.len() == 3 && homes.values().all(|orders| *orders > 60),
            "{homes:?}"
        );
    }

    #[test]
    fn when_a_replica_goes_only_its_own_aggregates_move() {
        let now = Instant::now();
        let (mut before, mut after) = (replica(1, &[2, 3], now), replica(1, &[2, 3], now));
        after.left(id(3));
        for order in orders() {
            let home = before.home_of(TENANT, &order, now);
            assert!(home == id(3) || after.home_of(TENANT, &order, now) == home);
        }
        before.left(id(2));
        before.left(id(3));
        assert!(is_alone(&before, now));
    }

    #[test]
    fn a_silent_replica_is_no_peer_after_three_seconds() {
        let now = Instant::now();
        let mut peers = replica(1, &[2], now);
        assert!(!is_alone(&peers, now + Duration::from_millis(2_999)));
        assert!(is_alone(&peers, now + Duration::from_secs(3)));
        peers.announced(id(2), now + Duration::from_secs(4));
        assert!(!is_alone(&peers, now + Duration::from_secs(4)));
    }

    #[test]
    fn a_replica_that_answers_nobody_is_left_alone_for_a_while_though_it_announces_itself() {
        let now = Instant::now();
        let mut peers = replica(1, &[2], now);
        let others_wait = peers.asked(id(2), now).expect("it is known");
        assert!(peers.did_not_answer(id(2), now + PATIENCE));
        assert!(others_wait.is_cancelled());
        let later = now + Duration::from_secs(4);
        peers.announced(id(2), later);
        assert!(is_alone(&peers, later));
        assert!(!is_alone(&peers, now + PATIENCE + LEFT_ALONE_FOR));
    }

    #[test]
    fn a_replica_that_was_left_alone_is_asked_by_one_caller_until_it_answers() {
        let now = Instant::now();
        let mut peers = replica(1, &[2], now);
        peers.asked(id(2), now);
        peers.did_not_answer(id(2), now + PATIENCE);
        let later = now + PATIENCE + LEFT_ALONE_FOR;
        peers.announced(id(2), later);
        let waits = peers.asked(id(2), later).expect("it is known");
        assert!(is_alone(&peers, later) && !waits.is_cancelled());
        peers.answered(id(2));
        assert!(!is_alone(&peers, later));
    }

    #[test]
    fn a_slow_command_and_a_caller_in_a_hurry_say_nothing_about_a_replica() {
        let now = Instant::now();
        let mut peers = replica(1, &[2], now);
        peers.asked(id(2), now);
        assert!(
            !peers.did_not_answer(id(2), now + Duration::from_millis(25)),
            "the caller was in a hurry"
        );
        peers.asked(id(2), now + Duration::from_millis(900));
        peers.answered(id(2));
        peers.asked(id(2), now + Duration::from_millis(950));
        assert!(
            !peers.did_not_answer(id(2), now + PATIENCE),
            "another one was answered meanwhile"
        );
        assert!(peers.did_not_answer(id(2), now + Duration::from_millis(950) + PATIENCE));
    }

    #[test]
    fn a_caller_who_went_away_says_nothing_about_a_replica() {
        let start = Instant::now();
        let peers = Mutex::new(replica(1, &[2], start));
        let ask = |after| Waiter::new(&peers, id(2), start + after).expect("it is known");
        let (goes_away, stays) = (ask(Duration::ZERO), ask(PATIENCE / 4));
        drop(goes_away);
        assert!(
            lock(&peers).did_not_answer(id(2), start + PATIENCE),
            "somebody waited all the time"
        );
        drop(stays);
        drop(ask(PATIENCE));
        let hurried = ask(3 * PATIENCE);
        assert!(!lock(&peers).did_not_answer(id(2), start + 3 * PATIENCE + PATIENCE / 4));
        drop(hurried);
    }

    #[test]
    fn no_crowd_of_announcements_takes_more_memory_than_its_share() {
        let now = Instant::now();
        let mut peers = Peers::new(id(1));
        for number in 2..10_000 {
            peers.announced(id(number), now);
        }
        assert_eq!(peers.by_id.len(), PEERS_MAX);
        let later = now + SILENCE_MAX;
        peers.announced(id(10_000), later);
        assert!(!is_alone(&peers, later), "the silent ones make room");
    }
}
