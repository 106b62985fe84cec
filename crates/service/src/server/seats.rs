//! The connections that may be open.
//!
//! When all places are taken, the connection is closed that has been open for the longest time without showing a valid key:
//! strangers, however many and however silent, keep nobody else out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::gauge::Gauge;
use tokio_util::sync::CancellationToken;

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
    /// Those who have not shown a valid key, the oldest first.
    strangers: BTreeMap<u64, Ending>,
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

/// Who has a place.
#[derive(Debug)]
pub(super) struct Holder {
    seats: Arc<Seats>,
    number: u64,
    is_known: AtomicBool,
}

impl Seats {
    pub(super) fn new(max: usize, gauge: Gauge) -> Arc<Self> {
        Arc::new(Self {
            max,
            taken: Mutex::default(),
            gauge,
        })
    }

    /// A place, for which the oldest stranger may have to go; `None` when all have shown a key.
    pub(super) async fn take(self: &Arc<Self>) -> Option<Seat> {
        loop {
            let stranger = {
                let mut taken = self.taken();
                if taken.count < self.max {
                    return Some(self.seat(&mut taken));
                }
                taken.strangers.pop_first()?.1
            };
            stranger.asked.cancel();
            stranger.ended.cancelled().await;
        }
    }

    fn seat(self: &Arc<Self>, taken: &mut Taken) -> Seat {
        let (number, ending) = (taken.next_number, Ending::default());
        taken.next_number += 1;
        taken.count += 1;
        taken.strangers.insert(number, ending.clone());
        self.gauge.inc();
        let holder = Holder {
            seats: Arc::clone(self),
            number,
            is_known: AtomicBool::new(false),
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
        let mut taken = seats.taken();
        taken.strangers.remove(&self.holder.number);
        taken.count -= 1;
        drop(taken);
        seats.gauge.dec();
        self.ending.ended.cancel();
    }
}

impl Holder {
    /// Notes that a valid key has come over this connection, which keeps its place from now on.
    pub(super) fn is_no_stranger(&self) {
        if !self.is_known.swap(true, Ordering::Relaxed) {
            self.seats.taken().strangers.remove(&self.number);
        }
    }
}
