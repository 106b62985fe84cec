//! Callers that send commands until they are told to stop, and keep a ledger of what they were told.
//!
//! Each caller takes one aggregate after another, of every kind in turn, through its life; or all of them meet on a few hot
//! orders ([`hot`]). Half of the callers send a command again, under the same key, until they know what became of it, as
//! a careful service does; the other half go on, so that unknown outcomes stay in the ledger. Which command comes when
//! does not depend on chance.

pub mod hot;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::client::Caller;
use crate::command::{self, Command};
use crate::ledger::{Ledger, Outcome, Tally};
use crate::orders::{new_order_id, place};
use crate::{stock, wait};

/// How long a caller waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a caller waits before it asks a service again that did not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// How many customers there are: few, so that their totals are written all the time.
const CUSTOMERS: usize = 20;

/// What aggregates go through, a line for each kind. The round makes one differ from another.
const LIVES: &[fn(round: usize) -> Life] = &[an_order, a_stock_item];

/// The commands on one aggregate, one after another.
type Life = Vec<Box<dyn Step>>;

/// A command of any kind.
trait Step: Send + Sync {
    fn sent_by<'a>(&'a self, worker: &'a Worker) -> BoxFuture<'a, Outcome>;
}

impl<C: Command> Step for C {
    fn sent_by<'a>(&'a self, worker: &'a Worker) -> BoxFuture<'a, Outcome> {
        worker.send(self).boxed()
    }
}

fn an_order(round: usize) -> Life {
    let id = &new_order_id();
    let end: Box<dyn Step> = if round.is_multiple_of(3) {
        Box::new(command::cancel(id))
    } else {
        Box::new(command::confirm(id))
    };
    vec![
        Box::new(place(id, &format!("customer-{}", round % CUSTOMERS))),
        Box::new(command::change_quantity(id, 3)),
        Box::new(command::add_line(id, "MC", 1, 500)),
        end,
        // A refusal that is remembered: lines are fixed now, or the order is closed.
        Box::new(command::remove_line(id, 1)),
    ]
}

fn a_stock_item(round: usize) -> Life {
    let sku = format!("SKU-{:X}", Uuid::now_v7().simple());
    let (id, orders) = (&stock::stock_item_id(&sku), [new_order_id(), new_order_id()]);
    let end: Box<dyn Step> = if round.is_multiple_of(3) {
        Box::new(stock::release(id, &orders[0], Some(1)))
    } else {
        Box::new(stock::dispatch(id, &orders[0], None))
    };
    vec![
        Box::new(stock::register(&sku)),
        Box::new(stock::receive(id, 10)),
        Box::new(stock::reserve(id, &orders[0], 4)),
        // A refusal that is remembered: there are six left.
        Box::new(stock::reserve(id, &orders[1], 7)),
        end,
        Box::new(stock::adjust(id, -1)),
    ]
}

/// Load that is running.
#[derive(Debug)]
pub struct Load {
    ledger: Ledger,
    stop: CancellationToken,
    workers: JoinSet<()>,
}

impl Load {
    /// Starts `workers` workers on each caller, each with aggregates of its own.
    #[must_use]
    pub fn start(callers: &[Caller], workers: usize) -> Self {
        Self::spawn(callers, workers, Worker::run)
    }

    /// Starts `workers` workers on each caller, all on the same few orders.
    #[must_use]
    pub fn on_hot_orders(callers: &[Caller], workers: usize, orders: usize) -> Self {
        let orders = Arc::new(hot::Orders::new(orders));
        Self::spawn(callers, workers, move |worker, _| {
            hot::run(worker, Arc::clone(&orders))
        })
    }

    fn spawn<R, F>(callers: &[Caller], workers: usize, run: R) -> Self
    where
        R: Fn(Worker, usize) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let mut load = Self {
            ledger: Ledger::default(),
            stop: CancellationToken::new(),
            workers: JoinSet::new(),
        };
        for number in 0..workers {
            for caller in callers {
                let worker = Worker {
                    caller: caller.clone(),
                    ledger: load.ledger.clone(),
                    stop: load.stop.clone(),
                    is_careful: number % 2 == 0,
                };
                load.workers.spawn(run(worker, number));
            }
        }
        load
    }

    /// How many commands had which outcome so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.ledger.tally()
    }

    /// Data were put back: what was accepted up to now may be gone. Waits first until so many commands were accepted since
    /// that no answer of before is under way any more.
    ///
    /// # Errors
    /// When none are.
    pub async fn doubt(&self) -> anyhow::Result<()> {
        self.progress(100).await?;
        self.ledger.doubt();
        Ok(())
    }

    /// Waits until `more` more commands have been accepted than now.
    ///
    /// # Errors
    /// When that does not happen.
    pub async fn progress(&self, more: usize) -> anyhow::Result<()> {
        let wanted = self.tally().accepted + more;
        wait::until("more commands are accepted", async || {
            Ok(self.tally().accepted >= wanted)
        })
        .await
    }

    /// Stops it and returns the ledger when every call has ended.
    pub async fn stop(mut self) -> Ledger {
        self.stop.cancel();
        while let Some(ended) = self.workers.join_next().await {
            ended.expect("a worker does not panic");
        }
        self.ledger
    }
}

struct Worker {
    caller: Caller,
    ledger: Ledger,
    stop: CancellationToken,
    is_careful: bool,
}

impl Worker {
    async fn run(self, number: usize) {
        for round in number.. {
            for step in LIVES[round % LIVES.len()](round / LIVES.len()) {
                if self.stop.is_cancelled() {
                    return;
                }
                step.sent_by(&self).await;
            }
        }
    }

    /// Sends a command until its outcome is known, or once.
    async fn send(&self, command: &impl Command) -> Outcome {
        loop {
            let answer = command.clone().send(self.caller.commands(), PATIENCE).await;
            let outcome = self.ledger.note(command, &answer);
            if outcome != Outcome::Unknown {
                return outcome;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
            if !self.is_careful || self.stop.is_cancelled() {
                return Outcome::Unknown;
            }
        }
    }
}
