//! How fresh the read models are, and waiting until they are fresh enough.
//!
//! A signal on NATS says that a projection may have come further, the checkpoint in Postgres says how far it has come.
//! So a signal only makes this look, and without signals it looks by itself: ten times a second while a read waits, four times
//! otherwise. While no read waits and no stream is open, signals are drained and forgotten.
//!
//! - A position that is reported was committed, together with its rows, before it was read here. A query that starts
//!   later sees those rows, so an answer is never older than it says.
//! - Who waits for a position is woken when it is reached, and told where the read model stands when its time is up. A
//!   position that the log does not have is refused: as soon as that is seen in a look that is no older than the question. One
//!   of an epoch that was not seen yet is waited for, because the command service may have found it first.
//! - A checkpoint is believed until a look fails, and in another epoch only where it was read after that was found: before, it may
//!   have been read from a server without that epoch.
//! - What is read here holds for every connection of this process: when the log goes on in another epoch, which may be on
//!   another server, those that were made before are made anew. Where signals name a later epoch than the log has, the log was
//!   superseded: the service is not ready, says how late its answers are, and tries new connections until they lead to another
//!   log; then all are made anew. Signals can be forged: after a while without such a log it is ready again, and says no less.

mod demand;
mod marks;
mod tokens;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use daybook_event_bus::signal::Applied;
use daybook_event_store::{EventStore, SeenEpoch};
use daybook_postgres::LOOKUP_TIMEOUT;
use daybook_read_model::checkpoint::{self, LiveCheckpoint};
use daybook_service::ApiError;
use futures::{Stream, StreamExt as _};
use sqlx::PgPool;
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

pub(crate) use self::demand::Demand;
pub(crate) use self::marks::{HighWater, Progress};
use self::marks::{LiveMarks, Mark, Marks, Reached, SeenHead};
pub(crate) use self::tokens::{Staleness, Tokens};
use crate::database::{self, ReadFailure};

/// How often the checkpoints are looked at while a read waits and no signal comes.
const POLL_WAITED_FOR: Duration = Duration::from_millis(100);

/// How often the checkpoints and the heads of the log are looked at in any case.
const POLL: Duration = Duration::from_millis(250);

/// The shortest time from one look to the next, however many signals come.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// How many signals are drained at once.
const SIGNALS_MAX: usize = 1_024;

/// The log that is read is not the newest.
#[derive(Clone, Copy, Debug, Error)]
#[error("the log of partition {0} was superseded: projectors work in a later epoch")]
pub(crate) struct Superseded(i32);

/// What is known about the freshness of the read models. Cheap to clone.
#[derive(Clone)]
pub struct Freshness {
    marks: watch::Receiver<Marks>,
    waiting: Arc<Waiting>,
}

/// Who waits, and what wakes the task to look. How many may wait is bounded, tenant by tenant, by the server's budget of
/// bytes: a bound of all together would let a few tenants keep the others from waiting.
#[derive(Default)]
struct Waiting {
    reads: AtomicUsize,
    followers: AtomicUsize,
    notify: Notify,
}

impl Waiting {
    fn any_read(&self) -> bool {
        self.reads.load(Ordering::Relaxed) > 0
    }

    fn anybody(&self) -> bool {
        self.any_read() || self.followers.load(Ordering::Relaxed) > 0
    }

    /// Counts one more read until the guard is dropped, and wakes the task.
    fn begin(&self) -> Waits<'_> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.notify.notify_one();
        Waits(self)
    }
}

struct Waits<'a>(&'a Waiting);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.reads.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Freshness {
    /// How far the read model of this name has come: an answer that is read after this call has that.
    pub(crate) fn of(&self, model: &str, partition: i32) -> Progress {
        self.marks.borrow().progress(model, partition, Instant::now())
    }

    /// How far the log has come: an answer that is read from it after this call has that.
    pub(crate) fn of_log(&self, partition: i32) -> Progress {
        self.marks.borrow().log_progress(partition, Instant::now())
    }

    /// Whether the log that is read is the newest, as far as anybody tells.
    ///
    /// # Errors
    /// When it was superseded.
    pub(crate) fn check_epoch(&self) -> Result<(), Superseded> {
        let unready = self.marks.borrow().unready(Instant::now());
        unready.map_or(Ok(()), |partition| Err(Superseded(partition)))
    }

    /// Follows the read model of this name in a partition, or without one the log itself.
    pub(crate) fn follow(&self, model: Option<&'static str>, partition: i32) -> Follower {
        self.waiting.followers.fetch_add(1, Ordering::Relaxed);
        Follower {
            freshness: self.clone(),
            model,
            partition,
        }
    }

    /// Waits until the read model of this name, or without one the log itself, is as fresh as it is demanded.
    ///
    /// # Errors
    /// `READ_MODEL_BEHIND` when that took too long, `POSITION_UNKNOWN` when the log does not have what is demanded.
    pub async fn reach(&self, model: Option<&str>, demand: &Demand) -> Result<(), ApiError> {
        let (token, shown_at) = (demand.token(), demand.made_at());
        let reached = |marks: &Marks| marks.reached(model, token, shown_at);
        let is_settled = |marks: &Marks| reached(marks) != Reached::NotYet;
        let mut settled = reached(&self.marks.borrow());
        if settled == Reached::NotYet {
            let _waits = self.waiting.begin();
            let mut marks = self.marks.clone();
            settled = match timeout_at(demand.until(), marks.wait_for(is_settled)).await {
                Ok(Ok(marks)) => reached(&marks),
                Ok(Err(_closed)) => return Err(ApiError::shutting_down()),
                Err(_elapsed) => Reached::NotYet,
            };
        }
        match settled {
            Reached::Yes => Ok(()),
            Reached::Never => Err(ApiError::position_unknown()),
            Reached::NotYet => {
                let Progress { position, epoch, .. } = match model {
                    Some(model) => self.of(model, token.partition),
                    None => self.of_log(token.partition),
                };
                Err(demand.is_behind(position, epoch.unwrap_or_default()))
            }
        }
    }
}

/// Somebody who follows a read model, or the log itself, in one partition. While it lives, signals make the task look.
pub(crate) struct Follower {
    freshness: Freshness,
    model: Option<&'static str>,
    partition: i32,
}

impl Follower {
    /// How far that has come; `None` before the first look at the log.
    pub(crate) fn high_water(&self) -> Option<HighWater> {
        self.freshness
            .marks
            .borrow()
            .high_water(self.model, self.partition)
    }

    /// Waits until it has come so far as to be news; for ever when nobody looks any more. It wakes nobody to look.
    pub(crate) async fn news(&self, is_news: impl Fn(HighWater) -> bool) {
        let is_news = |marks: &Marks| {
            let high_water = marks.high_water(self.model, self.partition);
            high_water.is_some_and(&is_news)
        };
        if self.freshness.marks.clone().wait_for(is_news).await.is_err() {
            std::future::pending().await
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.freshness.waiting.followers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The task that looks.
pub(crate) struct Watcher {
    marks: watch::Sender<Marks>,
    waiting: Arc<Waiting>,
    pool: PgPool,
    store: EventStore,
    heads_due: Instant,
    /// Where new connections lead, for the log of each partition that was superseded.
    elsewhere: HashMap<i32, SeenEpoch>,
    is_failing: bool,
}

/// What is known, and the task that keeps it up to date through `pool`, which nobody else uses: one connection is enough.
/// The first look has been made.
///
/// # Errors
/// When the first look fails.
pub(crate) async fn watch(pool: PgPool) -> Result<(Freshness, Watcher), ReadFailure> {
    let (sender, receiver) = watch::channel(Marks::default());
    let waiting = Arc::<Waiting>::default();
    let mut watcher = Watcher {
        marks: sender,
        waiting: Arc::clone(&waiting),
        store: EventStore::new(pool.clone()),
        pool,
        heads_due: Instant::now(),
        elsewhere: HashMap::new(),
        is_failing: false,
    };
    watcher.look().await?;
    Ok((
        Freshness {
            marks: receiver,
            waiting,
        },
        watcher,
    ))
}

impl Watcher {
    /// Looks whenever there is a reason to, until the token is cancelled.
    pub(crate) async fn run(
        mut self,
        signals: impl Stream<Item = Applied> + Send + Unpin,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut signals = signals.ready_chunks(SIGNALS_MAX);
        let mut looked_at = Instant::now();
        while shutdown
            .run_until_cancelled(self.reason_to_look(looked_at, &mut signals))
            .await
            .is_some()
        {
            looked_at = Instant::now();
            self.leave_if_superseded(looked_at).await;
            let looked = self.look().await;
            if looked.is_err() {
                self.marks.send_modify(Marks::forget_checkpoints);
            }
            self.log_change(looked);
        }
        Ok(())
    }

    /// Waits for a signal while somebody waits for one, for a read that begins to wait, for word of a later epoch, or for the
    /// time of the next poll.
    async fn reason_to_look(
        &self,
        looked_at: Instant,
        signals: &mut (impl Stream<Item = Vec<Applied>> + Unpin),
    ) {
        let pause = if self.waiting.any_read() {
            POLL_WAITED_FOR
        } else {
            POLL
        };
        loop {
            tokio::select! {
                () = sleep_until(looked_at + pause) => return,
                () = self.waiting.notify.notified() => break,
                Some(signals) = signals.next() => {
                    if self.note_epochs(&signals) || self.waiting.anybody() {
                        break;
                    }
                }
            }
        }
        sleep_until(looked_at + LOOK_INTERVAL_MIN).await;
    }

    /// Notes which epochs projectors work in. Whether the log turns out to be superseded.
    fn note_epochs(&self, signals: &[Applied]) -> bool {
        let now = Instant::now();
        self.marks.send_if_modified(|known| {
            let told = signals.iter().map(|signal| (signal.partition, signal.epoch()));
            told.fold(false, |is_news, (partition, epoch)| {
                known.note_told(now, partition, epoch) || is_news
            })
        })
    }

    /// Has the connections made anew once the log was superseded and new ones lead to another: the address may lead to another
    /// server by now. What is told of epochs does not make it try more often, for it can be invented.
    async fn leave_if_superseded(&mut self, now: Instant) {
        let superseded = self.marks.borrow().superseded(now);
        for (partition, log) in superseded {
            let seen = self.elsewhere.entry(partition).or_default().clone();
            let Some(head) = seen.head_elsewhere(&self.store, partition, log).await else {
                continue;
            };
            if head.epoch != log {
                tracing::warn!(
                    partition,
                    "the log was superseded; all connections to the database are made anew"
                );
                daybook_postgres::reconnect();
                self.heads_due = now;
            } else if self
                .marks
                .send_if_modified(|known| known.note_unconfirmed(now, partition, log))
            {
                tracing::warn!(
                    partition,
                    epoch = log.number,
                    "signals tell of a later epoch, and new connections lead to none: the service is ready all the same"
                );
            }
        }
    }

    /// Looks, and again at once where the log was found to go on in another epoch.
    async fn look(&mut self) -> Result<(), ReadFailure> {
        while self.look_once().await? {}
        Ok(())
    }

    /// Whether a log goes on in another epoch than before.
    async fn look_once(&mut self) -> Result<bool, ReadFailure> {
        let now = Instant::now();
        let marks = self.checkpoints().await?;
        let heads = if now < self.heads_due {
            Vec::new()
        } else {
            self.heads_due = now + POLL;
            self.heads(&marks).await?
        };
        let is_news = self.marks.borrow().are_news(&heads);
        if is_news {
            // Before anybody is promised what is in this epoch: another connection may lead to a server without it.
            daybook_postgres::reconnect();
            self.heads_due = now;
        }
        self.marks.send_if_modified(|known| known.note(now, marks, heads));
        Ok(is_news)
    }

    async fn checkpoints(&self) -> Result<LiveMarks, ReadFailure> {
        let live = database::read(&self.pool, LOOKUP_TIMEOUT, |connection| {
            Box::pin(checkpoint::live(connection))
        });
        Ok(live_marks(live.await?))
    }

    /// The heads of all partitions that have checkpoints, and the lineages of those that go on in another generation.
    async fn heads(&self, marks: &LiveMarks) -> Result<Vec<SeenHead>, ReadFailure> {
        let mut heads = Vec::with_capacity(marks.len());
        for &partition in marks.keys() {
            let head = self.store.head(partition).await?;
            let known = self.marks.borrow().epoch(partition);
            let lineage = match known {
                Some(known) if known == head.epoch => None,
                _ => Some(self.store.lineage(partition).await?),
            };
            heads.push((partition, head, lineage));
        }
        Ok(heads)
    }

    /// One line when looking begins to fail and one when it works again. Readiness tells the rest.
    fn log_change(&mut self, looked: Result<(), ReadFailure>) {
        match looked {
            Err(failure) if !self.is_failing => {
                let error = anyhow::Error::from(failure);
                tracing::warn!(error.chain = format!("{error:#}"), "cannot read the checkpoints");
                self.is_failing = true;
            }
            Ok(()) if self.is_failing => {
                tracing::info!("the checkpoints can be read again");
                self.is_failing = false;
            }
            Ok(()) | Err(_) => {}
        }
    }
}

fn live_marks(checkpoints: Vec<LiveCheckpoint>) -> LiveMarks {
    let mut marks = LiveMarks::new();
    for checkpoint in checkpoints {
        let mark = Mark {
            position: checkpoint.position,
            log_generation: checkpoint.log_generation,
        };
        let of_partition = marks.entry(checkpoint.partition).or_default();
        of_partition.insert(checkpoint.projection, mark);
    }
    marks
}
