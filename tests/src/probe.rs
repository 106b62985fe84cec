//! Callers with a deadline that go on whatever happens, and note how long each answer took.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::Caller;
use crate::command::Command as _;
use crate::ledger::{Ledger, Tally};
use crate::orders::{new_key, new_order_id, place};

/// How long a caller waits after a call that was not answered as it should be.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Commands with a deadline, sent one after another by each of several workers.
#[derive(Debug)]
pub struct Probe {
    ledger: Ledger,
    slowest_us: Arc<AtomicU64>,
    stop: CancellationToken,
    workers: JoinSet<()>,
}

impl Probe {
    /// Starts `workers` workers that place orders; each call has this deadline.
    #[must_use]
    pub fn start(caller: &Caller, workers: usize, deadline: Duration) -> Self {
        let mut probe = Self {
            ledger: Ledger::default(),
            slowest_us: Arc::default(),
            stop: CancellationToken::new(),
            workers: JoinSet::new(),
        };
        for _ in 0..workers {
            let (caller, ledger) = (caller.clone(), probe.ledger.clone());
            let (slowest_us, stop) = (Arc::clone(&probe.slowest_us), probe.stop.clone());
            probe.workers.spawn(async move {
                while !stop.is_cancelled() {
                    let command = place(&new_order_id(), "probe").with_key(&new_key());
                    let sent = Instant::now();
                    let answer = command.clone().send(caller.commands(), deadline).await;
                    let micros = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
                    slowest_us.fetch_max(micros, Ordering::Relaxed);
                    ledger.note(&command, &answer);
                    if answer.is_err() {
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                }
            });
        }
        probe
    }

    /// How many commands had which outcome so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.ledger.tally()
    }

    /// The longest time that a call has taken so far.
    #[must_use]
    pub fn slowest(&self) -> Duration {
        Duration::from_micros(self.slowest_us.load(Ordering::Relaxed))
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
