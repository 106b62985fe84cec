//! The connections that may be open.
//!
//! When all places are taken, the connection is closed that has been open for the longest time without showing a valid key:
//! anonymous callers, however many and however silent, keep nobody else out. Nor does a tenant: where anonymous connections
//! are few, the oldest goes of the tenant that has the most, if it has more than half of what the others leave. So newcomers,
//! who are anonymous until their first request, have the time to send it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::gauge::Gauge;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::shares::half_of_the_rest;

/// One in so many places is for newcomers, whatever a tenant has.
const NEWCOMERS: usize = 8;

/// A place for each connection.
#[derive(Debug)]
pub(super) struct Seats {
    max: usize,
    taken: Mutex<Taken>,
    /// Shows how many are taken.
    gauge: Gauge,
}

#[derive(Debug, Default)]
struct Taken {
    count: usize,
    next_number: u64,
    /// Connections that may be closed for others, the oldest of each caller first.
    by_caller: HashMap<Caller, BTreeMap<u64, Ending>>,
}

/// The caller of a connection, by the key that came last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Caller {
    /// It has shown no valid key.
    Anonymous,
    /// The deployment's operators, who belong to no tenant, count as one.
    Tenant(Option<Uuid>),
    /// Nobody is asked for a key, and no connection is closed for another.
    Anybody,
}

#[derive(Clone, Debug, Default)]
struct Ending {
    asked: CancellationToken,
    ended: CancellationToken,
}

/// The place of one connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    holder: Arc<Holder>,
    ending: Ending,
}

/// The holder of a place.
#[derive(Debug)]
pub(super) struct Holder {
    seats: Arc<Seats>,
    number: u64,
    caller: Mutex<Caller>,
}

impl Seats {
    pub(super) fn new(max: usize, gauge: Gauge) -> Arc<Self> {
        Arc::new(Self {
            max,
            taken: Mutex::default(),
            gauge,
        })
    }

    /// A place, for which another connection may have to go; `None` when none has to.
    pub(super) async fn take(self: &Arc<Self>) -> Option<Seat> {
        loop {
            let other = {
                let mut taken = self.taken();
                if taken.count < self.max {
                    return Some(self.seat(&mut taken));
                }
                let caller = taken.who_gives_way(self.max)?;
                taken.remove_oldest(caller)?
            };
            other.asked.cancel();
            other.ended.cancelled().await;
        }
    }

    fn seat(self: &Arc<Self>, taken: &mut Taken) -> Seat {
        let (number, ending) = (taken.next_number, Ending::default());
        taken.next_number += 1;
        taken.count += 1;
        taken.insert(Caller::Anonymous, number, ending.clone());
        self.gauge.inc();
        let holder = Holder {
            seats: Arc::clone(self),
            number,
            caller: Mutex::new(Caller::Anonymous),
        };
        Seat {
            holder: Arc::new(holder),
            ending,
        }
    }

    /// Nothing panics while the lock is held, so what a poisoned one holds is whole.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn insert(&mut self, caller: Caller, number: u64, ending: Ending) {
        self.by_caller.entry(caller).or_default().insert(number, ending);
    }

    fn remove(&mut self, caller: Caller, number: u64) -> Option<Ending> {
        let of_caller = self.by_caller.get_mut(&caller)?;
        let ending = of_caller.remove(&number);
        if of_caller.is_empty() {
            self.by_caller.remove(&caller);
        }
        ending
    }

    fn remove_oldest(&mut self, caller: Caller) -> Option<Ending> {
        let (&oldest, _) = self.by_caller.get(&caller)?.first_key_value()?;
        self.remove(caller, oldest)
    }

    /// Whose connection is closed for another one.
    fn who_gives_way(&self, max: usize) -> Option<Caller> {
        let anonymous = self.by_caller.get(&Caller::Anonymous).map_or(0, BTreeMap::len);
        if anonymous < max.div_ceil(NEWCOMERS)
            && let Some(tenant) = self.tenant_that_has_too_many(max)
        {
            return Some(tenant);
        }
        (anonymous > 0).then_some(Caller::Anonymous)
    }

    /// The one that has the most, if it has more than half of what the others leave.
    fn tenant_that_has_too_many(&self, max: usize) -> Option<Caller> {
        let tenants = self
            .by_caller
            .iter()
            .filter(|(caller, _)| matches!(caller, Caller::Tenant(_)));
        let (most, theirs) =
            tenants.max_by_key(|(_, theirs)| (theirs.len(), Reverse(theirs.keys().next().copied())))?;
        let of_others = self.count - theirs.len();
        (theirs.len() > half_of_the_rest(max, of_others)).then_some(*most)
    }
}

impl Seat {
    pub(super) fn holder(&self) -> Arc<Holder> {
        Arc::clone(&self.holder)
    }

    /// Waits until somebody else needs the place.
    pub(super) async fn is_needed(&self) {
        self.ending.asked.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let seats = &self.holder.seats;
        let caller = self.holder.caller();
        let mut taken = seats.taken();
        taken.remove(*caller, self.holder.number);
        taken.count -= 1;
        drop(taken);
        seats.gauge.dec();
        self.ending.ended.cancel();
    }
}

impl Holder {
    /// Notes who calls over this connection now.
    pub(super) fn is(&self, caller: Caller) {
        let mut before = self.caller();
        if *before != caller {
            let mut taken = self.seats.taken();
            // One that has been asked to go is in no list.
            if let Some(ending) = taken.remove(*before, self.number) {
                taken.insert(caller, self.number, ending);
            }
            *before = caller;
        }
    }

    /// It is locked before what all share, never after.
    fn caller(&self) -> MutexGuard<'_, Caller> {
        self.caller.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEDY: Caller = Caller::Tenant(None);

    /// A connection that goes when it is asked to.
    async fn open(seats: &Arc<Seats>) -> Arc<Holder> {
        let seat = seats.take().await.expect("somebody gives way");
        let holder = seat.holder();
        tokio::spawn(async move { seat.is_needed().await });
        holder
    }

    fn count(seats: &Seats, caller: Caller) -> usize {
        let taken = seats.taken();
        taken.by_caller.get(&caller).map_or(0, BTreeMap::len)
    }

    #[tokio::test]
    async fn newcomers_do_not_close_one_another_where_a_tenant_has_too_many() {
        let seats = Seats::new(16, Gauge::default());
        for _ in 0..16 {
            open(&seats).await.is(GREEDY);
        }
        let newcomers = [open(&seats).await, open(&seats).await];
        for (number, newcomer) in (1..).zip(newcomers) {
            let tenant = Caller::Tenant(Some(Uuid::from_u128(number)));
            newcomer.is(tenant);
            assert_eq!(count(&seats, tenant), 1, "it has been closed");
        }
        assert_eq!(count(&seats, GREEDY), 14);
    }

    #[tokio::test]
    async fn anonymous_callers_take_few_places_from_a_tenant_that_has_too_many_and_none_from_others() {
        let seats = Seats::new(16, Gauge::default());
        let tenants = (1..=8).map(|number| Caller::Tenant(Some(Uuid::from_u128(number))));
        for caller in tenants.chain([GREEDY; 8]) {
            open(&seats).await.is(caller);
        }
        for _ in 0..32 {
            open(&seats).await;
        }
        assert_eq!(count(&seats, Caller::Anonymous), 2);
        assert_eq!(count(&seats, GREEDY), 6);
    }
}
