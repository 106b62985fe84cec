//! Places that tenants share fairly: of a pool's connections, so that no tenant's slow work keeps all others from theirs.
//!
//! A tenant has at most half of the places that the others leave, so a tenant that takes all it gets leaves room for the next
//! one. Whoever finds no place waits for it, tenant by tenant in turns, and as many may wait as there is room for, shared out
//! alike; one more is refused at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use uuid::Uuid;

use crate::error::{ApiError, RETRY_AFTER_DEFAULT};

/// How many there may be, and how long is waited.
#[derive(Clone, Copy, Debug)]
pub struct SharesOptions {
    /// The name of the share, in refusals.
    pub quota: &'static str,
    /// How many places there are.
    pub places: usize,
    /// How many may wait for one.
    pub waiting_max: usize,
    /// How long one may wait.
    pub wait_max: Duration,
}

/// The places, and who waits for one. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shares {
    options: SharesOptions,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    waiting: usize,
    tenants: HashMap<Uuid, OfTenant>,
    /// The tenants that wait, whose turn is next first.
    turns: VecDeque<Uuid>,
}

#[derive(Debug, Default)]
struct OfTenant {
    taken: usize,
    waiting: VecDeque<oneshot::Sender<()>>,
}

/// A tenant's place until it is dropped.
#[derive(Debug)]
pub struct Place {
    shares: Shares,
    tenant_id: Uuid,
    /// Says when the place is there; `None` when it is.
    turn: Option<oneshot::Receiver<()>>,
}

impl Shares {
    /// Places that are all free.
    #[must_use]
    pub fn new(options: SharesOptions) -> Self {
        Self {
            options,
            state: Arc::default(),
        }
    }

    /// A place for a tenant, when it is its turn.
    ///
    /// # Errors
    /// `RATE_LIMITED` when as many of the tenant's wait as may, or one waited too long for a place of the tenant's own share;
    /// `OVERLOADED` when as many of all wait as may, or one waited too long while all places were taken.
    pub async fn place(&self, tenant_id: Uuid) -> Result<Place, ApiError> {
        let mut place = self.stand_in_line(tenant_id)?;
        if let Some(turn) = &mut place.turn {
            let waited = timeout(self.options.wait_max, turn).await;
            waited
                .map_err(|_elapsed| self.waited_too_long())?
                .expect("nobody is forgotten who waits");
            place.turn = None;
        }
        Ok(place)
    }

    fn stand_in_line(&self, tenant_id: Uuid) -> Result<Place, ApiError> {
        let mut state = self.state();
        if !state.may_begin(tenant_id, self.options.places) {
            self.check_room(&state, tenant_id)?;
        }
        let (sender, turn) = oneshot::channel();
        state.wait(tenant_id, sender);
        state.hand_out(self.options.places);
        drop(state);
        Ok(Place {
            shares: self.clone(),
            tenant_id,
            turn: Some(turn),
        })
    }

    /// Whether one more of a tenant's may wait.
    fn check_room(&self, state: &State, tenant_id: Uuid) -> Result<(), ApiError> {
        let waiting_max = self.options.waiting_max;
        let of_tenant = state
            .tenants
            .get(&tenant_id)
            .map_or(0, |tenant| tenant.waiting.len());
        if state.waiting >= waiting_max {
            return Err(self.all_is_full());
        }
        if of_tenant >= half_of_the_rest(waiting_max, state.waiting - of_tenant) {
            return Err(self.share_is_full());
        }
        Ok(())
    }

    /// While there is a free place, it is the tenant's own work that it waits for.
    fn waited_too_long(&self) -> ApiError {
        if self.state().taken < self.options.places {
            self.share_is_full()
        } else {
            self.all_is_full()
        }
    }

    fn share_is_full(&self) -> ApiError {
        ApiError::rate_limited(self.options.quota, RETRY_AFTER_DEFAULT)
    }

    fn all_is_full(&self) -> ApiError {
        ApiError::overloaded(format!("too many {}", self.options.quota))
    }

    /// Nothing panics while the lock is held, so what a poisoned one holds is whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let shares = self.shares.clone();
        let mut state = shares.state();
        let is_taken = self.turn.take().is_none_or(|mut turn| turn.try_recv().is_ok());
        state.leave(self.tenant_id, is_taken);
        state.hand_out(shares.options.places);
    }
}

impl State {
    fn may_begin(&self, tenant_id: Uuid, places: usize) -> bool {
        let of_tenant = self.tenants.get(&tenant_id).map_or(0, |tenant| tenant.taken);
        self.taken < places && of_tenant < half_of_the_rest(places, self.taken - of_tenant)
    }

    fn wait(&mut self, tenant_id: Uuid, turn: oneshot::Sender<()>) {
        let of_tenant = self.tenants.entry(tenant_id).or_default();
        if of_tenant.waiting.is_empty() {
            self.turns.push_back(tenant_id);
        }
        of_tenant.waiting.push_back(turn);
        self.waiting += 1;
    }

    /// Gives free places to those who wait.
    fn hand_out(&mut self, places: usize) {
        // While all are taken nobody is asked: thousands of tenants may wait.
        while self.taken < places
            && let Some(next) = self.turns.iter().position(|id| self.may_begin(*id, places))
        {
            let tenant_id = self.turns.remove(next).expect("it was found there");
            let of_tenant = self.tenants.get_mut(&tenant_id).expect("who has a turn waits");
            let turn = of_tenant.waiting.pop_front().expect("who has a turn waits");
            of_tenant.taken += 1;
            self.taken += 1;
            self.waiting -= 1;
            if !of_tenant.waiting.is_empty() {
                self.turns.push_back(tenant_id);
            }
            turn.send(()).expect("who goes away leaves the line");
        }
    }

    /// One place is free again, or one does not wait any more.
    fn leave(&mut self, tenant_id: Uuid, is_taken: bool) {
        let of_tenant = self
            .tenants
            .get_mut(&tenant_id)
            .expect("it has or awaits a place");
        if is_taken {
            of_tenant.taken -= 1;
            self.taken -= 1;
        } else {
            of_tenant.waiting.retain(|turn| !turn.is_closed());
            self.waiting -= 1;
            if of_tenant.waiting.is_empty() {
                self.turns.retain(|turn| *turn != tenant_id);
            }
        }
        if of_tenant.waiting.is_empty() && of_tenant.taken == 0 {
            self.tenants.remove(&tenant_id);
        }
    }
}

/// A tenant's share of places when the others have so many.
#[must_use]
pub fn half_of_the_rest(places: usize, of_others: usize) -> usize {
    places.saturating_sub(of_others).div_ceil(2)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures::FutureExt as _;

    use super::*;
    use crate::error::Code;

    const ANNE: Uuid = Uuid::from_u128(1);
    const BERT: Uuid = Uuid::from_u128(2);
    const CLEO: Uuid = Uuid::from_u128(3);
    const DORA: Uuid = Uuid::from_u128(4);

    fn shares() -> Shares {
        Shares::new(SharesOptions {
            quota: "tests",
            places: 4,
            waiting_max: 4,
            wait_max: Duration::ZERO,
        })
    }

    fn at_once(shares: &Shares, tenant_id: Uuid) -> Option<Place> {
        let place = shares.place(tenant_id).now_or_never()?;
        Some(place.expect("it is not refused"))
    }

    #[tokio::test]
    async fn a_tenant_has_half_of_what_the_others_leave_and_the_next_one_finds_a_place() {
        let shares = shares();
        let _of_anne = [ANNE, ANNE].map(|id| at_once(&shares, id).expect("half of four"));
        assert!(at_once(&shares, ANNE).is_none());
        let of_bert = at_once(&shares, BERT).expect("half of two");
        assert!(at_once(&shares, BERT).is_none());
        let _of_cleo = at_once(&shares, CLEO).expect("the last one");
        assert!(at_once(&shares, CLEO).is_none());
        drop(of_bert);
        assert!(at_once(&shares, ANNE).is_none(), "it has its half");
        assert!(at_once(&shares, BERT).is_some());
    }

    /// Whether a place that was waited for is there.
    fn is_there(place: &mut Place) -> bool {
        let turn = place.turn.as_mut().expect("it was waited for");
        let is_there = turn.try_recv().is_ok();
        if is_there {
            place.turn = None;
        }
        is_there
    }

    #[tokio::test]
    async fn who_waits_has_its_turn_as_soon_as_its_tenant_has_room_and_gives_back_what_it_gets() {
        let shares = shares();
        let mut of_anne = vec![at_once(&shares, ANNE), at_once(&shares, ANNE)];
        let [of_bert, of_cleo] = [BERT, CLEO].map(|id| at_once(&shares, id));
        let wait = |id| shares.stand_in_line(id).expect("there is room");
        let (gone, mut anne, mut dora) = (wait(ANNE), wait(ANNE), wait(DORA));
        drop(gone);
        drop(of_bert);
        assert!(
            is_there(&mut dora) && !is_there(&mut anne),
            "she has half of the rest"
        );
        of_anne.pop();
        assert!(!is_there(&mut anne), "one place is for the next tenant");
        drop(of_cleo);
        assert!(is_there(&mut anne));
        drop((of_anne, anne, dora));
        let state = shares.state();
        assert!(state.tenants.is_empty() && state.turns.is_empty());
        assert_eq!((state.taken, state.waiting), (0, 0));
    }

    #[tokio::test]
    async fn one_too_many_is_refused_at_once_and_who_waits_too_long_later() {
        let shares = shares();
        let _of_anne = [at_once(&shares, ANNE), at_once(&shares, ANNE)];
        let waiting = [ANNE, ANNE].map(|id| shares.stand_in_line(id).expect("half of four"));
        let refused = shares.place(ANNE).now_or_never().expect("at once");
        assert_eq!(refused.expect_err("refused").code(), &Code::RateLimited);
        drop(waiting);
        let late = shares.place(ANNE).await;
        assert_eq!(
            late.expect_err("refused").code(),
            &Code::RateLimited,
            "there are places for others"
        );
        let _waiting_of_anne = [ANNE, ANNE].map(|id| shares.stand_in_line(id).expect("half of four"));

        let _others = [at_once(&shares, BERT), at_once(&shares, CLEO)];
        let late = shares.place(BERT).await;
        assert_eq!(late.expect_err("refused").code(), &Code::Overloaded);
        let _waiting = [BERT, CLEO].map(|id| shares.stand_in_line(id).expect("there is room"));
        let refused = shares.place(Uuid::nil()).now_or_never().expect("at once");
        let refused = refused.expect_err("refused").to_problem();
        assert_eq!(
            (&refused["code"], &refused["detail"]),
            (&"OVERLOADED".into(), &"too many tests".into())
        );
    }

    #[test]
    fn thousands_of_tenants_that_wait_cost_one_another_no_time() {
        let shares = Shares::new(SharesOptions {
            waiting_max: usize::MAX,
            ..shares().options
        });
        let begun = Instant::now();
        let line = (0..10_000).map(|number| shares.stand_in_line(Uuid::from_u128(number)));
        let mut line: VecDeque<_> = line.map(|place| place.expect("there is room")).collect();
        while let Some(place) = line.pop_front() {
            drop(place);
        }
        // It takes a hundredth of this, and six times as much where each is looked at for each.
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert!(shares.state().tenants.is_empty());
    }
}
