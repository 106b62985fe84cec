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
use sqlx::PgPool;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::database::{self, ReadFailure};

/// How many look-ups are with Postgres at one time. One more hides the time between an answer and the next question; many
/// more would only make the batches smaller.
pub const LANES: usize = 2;

/// How many orders one look-up asks for.
const BATCH_MAX: usize = 256;

/// How many callers may wait.
const WAITING_MAX: usize = 10_000;

type Found = Result<Option<Arc<Document>>, ReadFailure>;

/// One caller who waits for one order.
struct Waiter {
    order_id: String,
    answer: oneshot::Sender<Found>,
}

/// Who waits, by tenant, and whose turn it is.
#[derive(Default)]
struct Queue {
    waiters: HashMap<Uuid, Vec<Waiter>>,
    turns: VecDeque<Uuid>,
    len: usize,
}

impl Queue {
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

    /// The waiters of the tenant whose turn it is; whoever is left over gets another turn, after the other tenants.
    fn pop(&mut self) -> Option<(Uuid, Vec<Waiter>)> {
        let tenant_id = self.turns.pop_front()?;
        let mut batch = self.waiters.remove(&tenant_id)?;
        if batch.len() > BATCH_MAX {
            let rest = batch.split_off(BATCH_MAX);
            self.waiters.insert(tenant_id, rest);
            self.turns.push_back(tenant_id);
        }
        self.len -= batch.len();
        Some((tenant_id, batch))
    }
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    bell: Notify,
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
    /// When the read failed, or too many wait already.
    pub async fn find(&self, tenant_id: Uuid, order_id: String) -> Result<Option<Arc<Document>>, ApiError> {
        let (answer, answered) = oneshot::channel();
        {
            let mut queue = self.0.queue();
            if queue.len >= WAITING_MAX {
                return Err(ApiError::overloaded("too many reads wait for the database"));
            }
            queue.push(tenant_id, Waiter { order_id, answer });
        }
        self.0.bell.notify_one();
        let found = answered.await.map_err(|_gone| ApiError::shutting_down())?;
        Ok(found?)
    }

    /// One lane: looks up what waits, batch after batch, until the token is cancelled. Run [`LANES`] of these.
    ///
    /// # Errors
    /// None; the signature is that of a supervised task.
    pub async fn run_lane(self, pool: PgPool, shutdown: CancellationToken) -> anyhow::Result<()> {
        loop {
            let batch = self.0.queue().pop();
            match batch {
                Some((tenant_id, waiters)) => look_up(&pool, tenant_id, waiters).await,
                None => {
                    if shutdown
                        .run_until_cancelled(self.0.bell.notified())
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
    let found = database::read(pool, LOOKUP_TIMEOUT, move |connection| {
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
                    answer,
                },
            );
        }
    }

    fn pop(queue: &mut Queue) -> Option<(Uuid, usize)> {
        queue.pop().map(|(tenant_id, waiters)| (tenant_id, waiters.len()))
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
}
