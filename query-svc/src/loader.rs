//! Reads of single orders, gathered: while one look-up is with Postgres the next ones wait together, and go as one.
//!
//! It is group commit the other way round. Nothing ever waits for a timer: alone, an order is looked up at once; under
//! load a hundred callers share one round trip. Each look-up is for one tenant, since that is what row-level security
//! holds it to; tenants take turns, so one that asks for much does not push another aside.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use daybook_postgres::LOOKUP_TIMEOUT;
use daybook_read_model::order_details::{self, Document};
use daybook_service::ApiError;
use daybook_service::error::RETRY_AFTER_DEFAULT;
use daybook_service::shares::half_of_the_rest;
use sqlx::PgPool;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::database::{self, ReadFailure};

/// How many look-ups are with Postgres at one time, each on a connection of its own; of one tenant at most half of what the
/// others leave. Two of a tenant hide the time between an answer and the next question; many more would only make the
/// batches smaller.
pub(crate) const WORKERS: u32 = 4;

/// How many orders one look-up asks for.
const BATCH_MAX: usize = 256;

/// How many callers may wait; of one tenant at most half of what the others leave.
const WAITING_MAX: usize = 10_000;

/// The name of a tenant's share, as its refusal says it.
const QUOTA: &str = "reads of single orders under way";

type Found = Result<Option<Arc<Document>>, ReadFailure>;

/// One caller who waits for one order.
struct Waiter {
    order_id: String,
    /// When it stops waiting, where that is soon.
    until: Option<Instant>,
    answer: oneshot::Sender<Found>,
}

/// Who waits, by tenant, whose turn it is, and whose look-ups are under way.
#[derive(Default)]
struct Queue {
    waiters: HashMap<Uuid, Vec<Waiter>>,
    turns: VecDeque<Uuid>,
    len: usize,
    under_way: Vec<Uuid>,
}

impl Queue {
    fn check_room(&self, tenant_id: Uuid) -> Result<(), ApiError> {
        if self.len >= WAITING_MAX {
            return Err(ApiError::overloaded("too many reads wait for the database"));
        }
        let of_tenant = self.waiters.get(&tenant_id).map_or(0, Vec::len);
        if of_tenant >= half_of_the_rest(WAITING_MAX, self.len - of_tenant) {
            return Err(ApiError::rate_limited(QUOTA, RETRY_AFTER_DEFAULT));
        }
        Ok(())
    }

    fn push(&mut self, tenant_id: Uuid, waiter: Waiter) {
        self.len += 1;
        match self.waiters.entry(tenant_id) {
            Entry::Occupied(mut waiters) => waiters.get_mut().push(waiter),
            Entry::Vacant(none) => {
                none.insert(vec![waiter]);
                self.turns.push_back(tenant_id);
            }
        }
    }

    fn may_begin(&self, tenant_id: Uuid) -> bool {
        let of_tenant = self.under_way.iter().filter(|id| **id == tenant_id).count();
        let of_others = self.under_way.len() - of_tenant;
        of_tenant < half_of_the_rest(WORKERS as usize, of_others)
    }

    /// The place of the tenant whose turn it is.
    fn next(&self) -> Option<usize> {
        self.turns.iter().position(|id| self.may_begin(*id))
    }

    /// The waiters of the tenant whose turn it is; whoever is left over gets another turn, after the other tenants. Their
    /// look-up is under way until [`Self::end`].
    fn begin(&mut self) -> Option<(Uuid, Vec<Waiter>)> {
        let tenant_id = self.turns.remove(self.next()?)?;
        let mut batch = self.waiters.remove(&tenant_id)?;
        if batch.len() > BATCH_MAX {
            let rest = batch.split_off(BATCH_MAX);
            self.waiters.insert(tenant_id, rest);
            self.turns.push_back(tenant_id);
        }
        self.len -= batch.len();
        self.under_way.push(tenant_id);
        Some((tenant_id, batch))
    }

    fn end(&mut self, tenant_id: Uuid) {
        let place = self.under_way.iter().position(|id| *id == tenant_id);
        place.map(|place| self.under_way.swap_remove(place));
    }
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    notify: Notify,
}

impl Shared {
    /// Nothing panics while the lock is held, so what a poisoned one holds is whole.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks orders up. Cheap to clone.
#[derive(Clone, Default)]
pub struct OrderLoader(Arc<Shared>);

impl OrderLoader {
    /// A tenant's order, as its read model has it at some moment after this call; `None` when the tenant has none of
    /// this id.
    ///
    /// # Errors
    /// When the read failed, or too many wait already, of all tenants or of this one.
    pub async fn find(&self, tenant_id: Uuid, order_id: String) -> Result<Option<Arc<Document>>, ApiError> {
        let (answer, answered) = oneshot::channel();
        {
            let mut queue = self.0.queue();
            queue.check_room(tenant_id)?;
            let until = database::caller_stops_waiting();
            let waiter = Waiter {
                order_id,
                until,
                answer,
            };
            queue.push(tenant_id, waiter);
        }
        self.0.notify.notify_one();
        let found = answered.await.map_err(|_gone| ApiError::shutting_down())?;
        Ok(found?)
    }

    /// One worker: looks up what waits, batch after batch, until the token is cancelled. Run [`WORKERS`] of these.
    ///
    /// # Errors
    /// None; the signature is that of a supervised task.
    pub async fn run_worker(self, pool: PgPool, shutdown: CancellationToken) -> anyhow::Result<()> {
        loop {
            let (batch, is_more) = {
                let mut queue = self.0.queue();
                (queue.begin(), queue.next().is_some())
            };
            match batch {
                Some((tenant_id, waiters)) => {
                    if is_more {
                        self.0.notify.notify_one();
                    }
                    look_up(&pool, tenant_id, waiters).await;
                    self.0.queue().end(tenant_id);
                }
                None => {
                    if shutdown
                        .run_until_cancelled(self.0.notify.notified())
                        .await
                        .is_none()
                    {
                        return Ok(());
                    }
                }
            }
        }
    }
}

impl fmt::Debug for OrderLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrderLoader")
            .field("waiting", &self.0.queue().len)
            .finish()
    }
}

/// One look-up. Who has gone away meanwhile is not asked for.
async fn look_up(pool: &PgPool, tenant_id: Uuid, mut waiters: Vec<Waiter>) {
    waiters.retain(|waiter| !waiter.answer.is_closed());
    if waiters.is_empty() {
        return;
    }
    let order_ids: HashSet<_> = waiters.iter().map(|waiter| waiter.order_id.clone()).collect();
    let order_ids: Arc<[String]> = order_ids.into_iter().collect();
    // When the last of them stops waiting.
    let until = waiters
        .iter()
        .map(|waiter| waiter.until)
        .collect::<Option<Vec<_>>>();
    let until = until.and_then(|moments| moments.into_iter().max());
    let found = database::read_until(pool, LOOKUP_TIMEOUT, until, move |connection| {
        let order_ids = Arc::clone(&order_ids);
        Box::pin(async move { order_details::find_documents(connection, tenant_id, &order_ids).await })
    })
    .await;
    match found {
        Ok(documents) => answer(waiters, documents),
        Err(failure) => waiters
            .into_iter()
            .for_each(|waiter| waiter.answer(Err(failure.clone()))),
    }
}

fn answer(waiters: Vec<Waiter>, documents: Vec<Document>) {
    let documents: HashMap<_, _> = documents
        .into_iter()
        .map(|document| (document.order_id.clone(), Arc::new(document)))
        .collect();
    for waiter in waiters {
        let document = documents.get(&waiter.order_id).cloned();
        waiter.answer(Ok(document));
    }
}

impl Waiter {
    fn answer(self, found: Found) {
        // Who has gone away needs no answer.
        let _ = self.answer.send(found);
    }
}

#[cfg(test)]
mod tests {
    use daybook_service::Code;

    use super::*;

    const ANNE: Uuid = Uuid::from_u128(1);
    const BERT: Uuid = Uuid::from_u128(2);

    fn push(queue: &mut Queue, tenant_id: Uuid, count: usize) {
        for number in 0..count {
            let (answer, _) = oneshot::channel();
            queue.push(
                tenant_id,
                Waiter {
                    order_id: format!("ord_{number}"),
                    until: None,
                    answer,
                },
            );
        }
    }

    /// Begins a look-up.
    fn begin(queue: &mut Queue) -> Option<(Uuid, usize)> {
        queue
            .begin()
            .map(|(tenant_id, waiters)| (tenant_id, waiters.len()))
    }

    /// Begins and ends one.
    fn pop(queue: &mut Queue) -> Option<(Uuid, usize)> {
        let begun = begin(queue);
        begun.iter().for_each(|(tenant_id, _)| queue.end(*tenant_id));
        begun
    }

    #[test]
    fn all_that_wait_for_one_tenant_go_together() {
        let mut queue = Queue::default();
        push(&mut queue, ANNE, 3);
        push(&mut queue, BERT, 1);
        push(&mut queue, ANNE, 2);
        assert_eq!(pop(&mut queue), Some((ANNE, 5)));
        assert_eq!(pop(&mut queue), Some((BERT, 1)));
        assert_eq!(pop(&mut queue), None);
        assert_eq!(queue.len, 0);
    }

    #[test]
    fn a_tenant_that_asks_for_much_waits_for_its_next_turn() {
        let mut queue = Queue::default();
        push(&mut queue, ANNE, BATCH_MAX + 1);
        push(&mut queue, BERT, 1);
        assert_eq!(pop(&mut queue), Some((ANNE, BATCH_MAX)));
        assert_eq!(pop(&mut queue), Some((BERT, 1)));
        assert_eq!(pop(&mut queue), Some((ANNE, 1)));
        assert_eq!(queue.len, 0);
    }

    #[test]
    fn a_tenant_has_half_of_the_workers_that_the_others_leave_and_half_of_the_places_to_wait() {
        let mut queue = Queue::default();
        push(&mut queue, ANNE, 5 * BATCH_MAX);
        assert_eq!(begin(&mut queue), Some((ANNE, BATCH_MAX)));
        assert_eq!(begin(&mut queue), Some((ANNE, BATCH_MAX)));
        assert_eq!(begin(&mut queue), None);
        push(&mut queue, BERT, 1);
        assert_eq!(begin(&mut queue), Some((BERT, 1)));
        queue.end(ANNE);
        assert_eq!(begin(&mut queue), Some((ANNE, BATCH_MAX)));
        let left = WAITING_MAX / 2 - queue.len;
        push(&mut queue, ANNE, left);
        let refused = queue.check_room(ANNE).expect_err("it has its half");
        assert_eq!(refused.code(), &Code::RateLimited);
        queue.check_room(BERT).expect("the other half is for others");
    }
}
