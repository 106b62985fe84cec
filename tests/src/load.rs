//! Callers that send commands until they are told to stop, and keep a ledger of what they were told.
//!
//! Each caller places an order, changes it, and confirms or cancels it, over and over; or all of them meet on a few hot
//! orders ([`hot`]). Half of the callers send a command again, under the same key, until they know what became of it, as
//! a careful service does; the other half go on, so that unknown outcomes stay in the ledger. Which command comes when
//! does not depend on chance.

pub mod hot;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::Caller;
use crate::command::{self, Command};
use crate::ledger::{Ledger, Outcome, Tally};
use crate::orders::{new_order_id, place};
use crate::wait;

/// How long a caller waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a caller waits before it asks a service again that did not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// How many customers there are: few, so that their totals are written all the time.
const CUSTOMERS: usize = 20;

/// Load that is running.
#[derive(Debug)]
pub struct Load {
    ledger: Ledger,
    stop: CancellationToken,
    workers: JoinSet<()>,
}

impl Load {
    /// Starts `workers` workers on each caller, each with orders of its own.
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

    /// Waits until `more` more commands have been accepted than now.
    ///
    /// # Errors
    /// When that does not happen.
    pub async fn progress(&self, more: usize) -> anyhow::Result<()> {
        let wanted = self.tally().accepted + more;
        wait::until("more commands are accepted", async || {
            Ok((self.tally().accepted >= wanted).then_some(()))
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
        let mut round = number;
        while !self.stop.is_cancelled() {
            self.live_of_an_order(round).await;
            round += 1;
        }
    }

    async fn live_of_an_order(&self, round: usize) {
        let order_id = new_order_id();
        let customer = format!("customer-{}", round % CUSTOMERS);
        let placed = self.send(place(&order_id, &customer)).await;
        if placed != Outcome::Unknown {
            self.send(command::change_quantity(&order_id, 3)).await;
            self.send(command::add_line(&order_id, "MC", 1, 500)).await;
        }
        if round.is_multiple_of(3) {
            self.send(command::cancel(&order_id)).await;
        } else {
            self.send(command::confirm(&order_id)).await;
        }
        // A refusal that is remembered: lines are fixed now, or the order is closed.
        self.send(command::remove_line(&order_id, 1)).await;
    }

    /// Sends a command until its outcome is known, or once.
    async fn send<C: Command>(&self, command: C) -> Outcome {
        loop {
            let answer = command.clone().send(self.caller.commands(), PATIENCE).await;
            let outcome = self.ledger.note(&command, &answer);
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
