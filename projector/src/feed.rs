//! The newest events of a partition, read and decoded once for all projections of this process.
//!
//! A feed keeps a *window*: the newest batches that came from the bus. A worker that stands inside the window takes
//! everything after its position at once, so its batches grow with the load; one that stands at its end waits; one that
//! stands before it reads the log alone until it has caught up. There is no queue per worker that could fill up.
//!
//! A full window does not move past a worker that stands inside it while no other one waits at its end, and not for longer
//! than `PATIENCE`: the slowest does not set the pace of the others. It reads alone then. What is not in the window is in the
//! log, so nothing depends on the feed but speed. What all workers have is dropped.
//!
//! It reads only while a worker of this process has a place in it: a replica that holds no lease in a partition reads and
//! decodes nothing of it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use daybook_event_bus::consume::{Reader, ReaderOptions};
use daybook_postgres::{LOOKUP_TIMEOUT, within};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::batch::Batch;
use crate::checkpoint;
use crate::database::Connector;
use crate::memory::WINDOW_BYTES_MAX;
use crate::worker::Context;

/// How many events the window holds before it is moved.
const WINDOW_EVENTS_MAX: usize = 16_384;

/// How many events are read at a time.
const READ_EVENTS_MAX: usize = 1_000;

/// For how long a full window waits for a worker inside it.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long to wait before a reader that failed is made anew.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// The newest events of one partition. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Feed(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    window: Mutex<Window>,
    /// Counts the changes of the window.
    changed: watch::Sender<u64>,
    /// Notified when a worker has moved on.
    moved: Notify,
    /// Up to here the stream was found to hold what the log does not: these positions are read from the log.
    distrusted: watch::Sender<u64>,
    /// Whether any worker has a place in the window.
    is_wanted: watch::Sender<bool>,
}

/// Batches whose positions are consecutive, from `start + 1` to `end`.
#[derive(Debug, Default)]
struct Window {
    /// How many bytes of events it holds before it is moved.
    bytes_max: usize,
    /// Whether anything reads into it.
    is_fed: bool,
    log_generation: Option<Uuid>,
    start: u64,
    end: u64,
    events: usize,
    bytes: usize,
    batches: VecDeque<Arc<Batch>>,
    workers: HashMap<u64, u64>,
    next_worker: u64,
}

/// The feed's answer to a worker.
#[derive(Debug)]
pub enum Taken {
    /// Events after its position, in order.
    Batches(Vec<Arc<Batch>>),
    /// It has everything.
    CaughtUp,
    /// It stands outside the window: the log has what it needs.
    Elsewhere,
}

impl Default for Feed {
    /// With a window as large as any has.
    fn default() -> Self {
        Self::within(WINDOW_BYTES_MAX)
    }
}

impl Feed {
    /// A feed whose window holds about so many bytes of events, and at least one batch.
    pub fn within(bytes_max: usize) -> Self {
        let window = Window {
            bytes_max,
            ..Window::default()
        };
        Self(Arc::new(Shared {
            window: Mutex::new(window),
            ..Shared::default()
        }))
    }

    /// A place in the feed for one worker.
    pub fn subscribe(&self) -> Subscription {
        let mut window = self.0.window();
        let worker = window.next_worker;
        window.next_worker += 1;
        Subscription {
            shared: Arc::clone(&self.0),
            changes: self.0.changed.subscribe(),
            worker,
        }
    }

    /// Waits until a worker has a place in the feed.
    pub(crate) async fn wanted(&self) {
        let mut wanted = self.0.is_wanted.subscribe();
        if wanted.wait_for(|is_wanted| *is_wanted).await.is_err() {
            // The sender lives as long as `self`.
            std::future::pending().await
        }
    }

    /// Reads a partition into the window while a worker wants it, until it is told to stop. The bus's reader falls back to
    /// the log by itself.
    pub async fn run(
        self,
        context: Context,
        partition: i32,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        while shutdown.run_until_cancelled(self.wanted()).await.is_some() {
            // Before the window begins anew: what is distrusted after that ends this reader.
            let mut distrusted = self.0.distrusted.subscribe();
            let distrusted_up_to = *distrusted.borrow_and_update();
            let failure = match start_position(&context.connector, partition).await {
                Ok(start) => {
                    self.0.restart(start, None);
                    let options = ReaderOptions {
                        distrusted_up_to,
                        prefetch_bytes: context.memory.prefetch_bytes,
                        ready_bytes: context.memory.ready_bytes,
                        metrics: context.metrics.reader.clone(),
                        ..ReaderOptions::default()
                    };
                    let (bus, store) = (context.bus.clone(), context.store.clone());
                    let reader = Reader::new(bus, store, partition, start, options);
                    let failure = self.follow(reader, distrusted, &shutdown).await;
                    // Nothing reads into it any more: workers read the log alone.
                    self.0.window().clear();
                    failure
                }
                Err(error) => Some(anyhow::Error::from(error)),
            };
            if let Some(error) = failure {
                tracing::warn!(
                    partition,
                    error.chain = format!("{error:#}"),
                    "a feed is started anew"
                );
                let _ = shutdown
                    .run_until_cancelled(tokio::time::sleep(RESTART_PAUSE))
                    .await;
            }
        }
        Ok(())
    }

    /// Reads until told to stop, until no worker wants it, until the reader fails, or until a worker finds that the log does
    /// not hold what was read.
    async fn follow(
        &self,
        mut reader: Reader,
        mut distrusted: watch::Receiver<u64>,
        shutdown: &CancellationToken,
    ) -> Option<anyhow::Error> {
        let mut wanted = self.0.is_wanted.subscribe();
        loop {
            let read = tokio::select! {
                () = shutdown.cancelled() => return None,
                Ok(_) = wanted.wait_for(|is_wanted| !is_wanted) => return None,
                Ok(()) = distrusted.changed() => return Some(anyhow::anyhow!("the log does not hold what the stream does")),
                read = reader.next_batch(READ_EVENTS_MAX) => read,
            };
            let read = match read {
                Ok(read) => read,
                Err(error) => return Some(error.into()),
            };
            if !self.0.window().is_fed {
                // All workers left, though another one may have come since.
                return None;
            }
            if let Some(batch) = Batch::decode(read.generation, read.events, read.source, read.delivered_at) {
                shutdown.run_until_cancelled(self.push(Arc::new(batch))).await?;
            }
        }
    }

    /// Adds a batch at the end, when there is room.
    pub async fn push(&self, batch: Arc<Batch>) {
        let patience = tokio::time::Instant::now() + PATIENCE;
        loop {
            let moved = self.0.moved.notified();
            let is_late = tokio::time::Instant::now() >= patience;
            if self.0.window().make_room(is_late) {
                break;
            }
            let _ = tokio::time::timeout_at(patience, moved).await;
        }
        self.0.append(batch);
    }
}

/// The feed begins where the most advanced projection stands: whoever is not that far catches up alone.
async fn start_position(connector: &Connector, partition: i32) -> Result<u64, sqlx::Error> {
    let mut connection = connector.connect("feed").await?;
    within(
        LOOKUP_TIMEOUT,
        checkpoint::newest_live(&mut connection, partition),
    )
    .await
}

impl Shared {
    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether any worker has a place in the window.
    fn want(&self, window: &Window) {
        let wanted = !window.workers.is_empty();
        self.is_wanted
            .send_if_modified(|is_wanted| std::mem::replace(is_wanted, wanted) != wanted);
    }

    fn restart(&self, start: u64, log_generation: Option<Uuid>) {
        let mut window = self.window();
        window.clear();
        window.is_fed = true;
        window.start = start;
        window.end = start;
        window.log_generation = log_generation;
        drop(window);
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// A batch that does not continue the window, or is of another log, begins a new one.
    fn append(&self, batch: Arc<Batch>) {
        let window = self.window();
        let continues = batch.first() == window.end + 1
            && window
                .log_generation
                .is_none_or(|generation| generation == batch.log_generation);
        drop(window);
        if !continues {
            self.restart(batch.first() - 1, None);
        }
        let mut window = self.window();
        window.log_generation = Some(batch.log_generation);
        window.end = batch.last();
        window.events += batch.events.len();
        window.bytes += batch.bytes;
        window.batches.push_back(batch);
        drop(window);
        self.changed.send_modify(|changes| *changes += 1);
    }
}

impl Window {
    /// Holds nothing, and is not fed.
    fn clear(&mut self) {
        self.is_fed = false;
        self.batches.clear();
        self.events = 0;
        self.bytes = 0;
        self.start = self.end;
    }

    /// Drops the oldest batches until there is room for another one; `false` when a worker still needs them, nobody waits for
    /// the next one, and it is not yet too late.
    fn make_room(&mut self, is_late: bool) -> bool {
        let slowest = self.workers.values().min().copied();
        let goes_on = is_late || self.workers.values().any(|position| *position >= self.end);
        while let Some(oldest) = self.batches.front() {
            let is_full = self.events >= WINDOW_EVENTS_MAX || self.bytes >= self.bytes_max;
            let had_by_all = slowest.is_some_and(|slowest| slowest >= oldest.last());
            if !had_by_all && !is_full {
                break;
            }
            let is_needed = |position: &u64| (self.start..oldest.last()).contains(position);
            if !goes_on && self.workers.values().any(is_needed) {
                return false;
            }
            self.start = oldest.last();
            self.events -= oldest.events.len();
            self.bytes -= oldest.bytes;
            self.batches.pop_front();
        }
        true
    }

    fn after(&self, position: u64, events_max: usize, bytes_max: usize) -> Taken {
        if position > self.end && self.is_fed {
            // It read ahead, alone; the feed is about to come past.
            return Taken::CaughtUp;
        }
        if !(self.start..=self.end).contains(&position) || !self.is_fed {
            return Taken::Elsewhere;
        }
        let first = self.batches.partition_point(|batch| batch.last() <= position);
        let (mut events, mut bytes) = (0, 0);
        let batches: Vec<_> = self
            .batches
            .range(first..)
            .take_while(|batch| {
                let fits = events == 0 || (events < events_max && bytes + batch.bytes <= bytes_max);
                events += batch.events.len();
                bytes += batch.bytes;
                fits
            })
            .cloned()
            .collect();
        if batches.is_empty() {
            Taken::CaughtUp
        } else {
            Taken::Batches(batches)
        }
    }
}

/// A worker's place in a feed.
#[derive(Debug)]
pub struct Subscription {
    shared: Arc<Shared>,
    changes: watch::Receiver<u64>,
    worker: u64,
}

impl Subscription {
    /// Takes what there is after `position`, which the worker has reached: whole batches, up to about `events_max` events, and of
    /// `bytes_max` bytes, but one at least. The window may drop them while the worker has them in its hands.
    pub fn take(&mut self, position: u64, events_max: usize, bytes_max: usize) -> Taken {
        self.changes.mark_unchanged();
        let mut window = self.shared.window();
        window.workers.insert(self.worker, position);
        self.shared.want(&window);
        let taken = window.after(position, events_max, bytes_max);
        drop(window);
        self.shared.moved.notify_waiters();
        taken
    }

    /// Waits until the window is not what it was at the last [`Self::take`]. Nothing is lost when this is dropped.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The sender lives as long as `shared`, which this holds.
            std::future::pending::<()>().await;
        }
    }

    /// Throws the window away, and has the positions up to here read from the log: what the stream holds there is not the
    /// log's. Workers read the log alone until the feed has begun anew, after a pause.
    pub fn distrust(&mut self, position: u64) {
        let mut window = self.shared.window();
        // Others meet the same events.
        if position > *self.shared.distrusted.borrow() {
            window.clear();
            self.shared.distrusted.send_replace(position);
        }
        drop(window);
        self.shared.moved.notify_waiters();
    }

    /// Gives its place in the window up: a worker that does not go on must not hold it up. The last one ends the reading.
    pub fn step_aside(&mut self) {
        let mut window = self.shared.window();
        window.workers.remove(&self.worker);
        if window.workers.is_empty() {
            window.clear();
        }
        self.shared.want(&window);
        drop(window);
        self.shared.moved.notify_waiters();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.step_aside();
    }
}

#[cfg(test)]
mod tests;
