//! How fresh the read models are, and waiting until they are fresh enough.
//!
//! A signal on NATS says that a projection may have come further, the checkpoint in Postgres says how far it has come.
//! So a signal only makes this look, and without signals it looks by itself: ten times a second while somebody waits,
//! four times otherwise. While nobody waits signals are drained and forgotten.
//!
//! - A position that is reported was committed, together with its rows, before it was read here. A query that starts
//!   later sees those rows, so an answer is never older than it says.
//! - Who waits for a position is woken when it is reached, and told where the read model stands when its time is up. A
//!   position that the log does not have is refused: as soon as that is seen in a look that is no older than the question. One
//!   of an epoch that was not seen yet is waited for, because the command service may have found it first.
//! - What is read here holds for every connection of this process: when the log goes on in another epoch, which may be on
//!   another server, those that were made before are made anew. Where signals name a later epoch than the log has, the log was
//!   superseded: the service is not ready, says how late its answers are, and connects anew until it finds that epoch.

mod demand;
mod marks;
mod tokens;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use daybook_event_bus::signal::Applied;
use daybook_event_store::{EventStore, Lineage, LogHead};
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
pub(crate) use self::marks::Progress;
use self::marks::{LiveMarks, Mark, Marks, Reached};
pub(crate) use self::tokens::{Staleness, Tokens};
use crate::database::{self, ReadFailure};

/// How often the checkpoints are looked at while somebody waits and no signal comes.
const POLL_WAITED_FOR: Duration = Duration::from_millis(100);

/// How often the checkpoints and the heads of the log are looked at in any case.
const POLL: Duration = Duration::from_millis(250);

/// The shortest time from one look to the next, however many signals come.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// How many signals are drained at once.
const SIGNALS_MAX: usize = 1_024;

/// How often connections are made anew while the log is superseded.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

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
    count: AtomicUsize,
    notify: Notify,
}

impl Waiting {
    fn anybody(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Counts one more until the guard is dropped, and wakes the task.
    fn begin(&self) -> Waits<'_> {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.notify.notify_one();
        Waits(self)
    }
}

struct Waits<'a>(&'a Waiting);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
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
        let superseded = self.marks.borrow().superseded(Instant::now());
        superseded.map_or(Ok(()), |partition| Err(Superseded(partition)))
    }

    /// What tells of everything that is found out from now on.
    pub(crate) fn changes(&self) -> Changes {
        Changes(self.clone())
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

/// Tells when read models or heads have been found to be further. Whoever waits here has signals looked after.
pub(crate) struct Changes(Freshness);

impl Changes {
    /// Waits for something new; for ever when nobody looks any more.
    pub(crate) async fn next(&mut self) {
        let _waits = self.0.waiting.begin();
        if self.0.marks.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// The task that looks.
pub(crate) struct Watcher {
    marks: watch::Sender<Marks>,
    waiting: Arc<Waiting>,
    pool: PgPool,
    store: EventStore,
    heads_due: Instant,
    reconnect_due: Instant,
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
        reconnect_due: Instant::now(),
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
            self.reconnect_if_superseded(looked_at);
            let looked = self.look().await;
            self.log_change(looked);
        }
        Ok(())
    }

    /// Waits for a signal while somebody waits for one, for a new waiter, for word of a later epoch, or for the time of the
    /// next poll.
    async fn reason_to_look(
        &self,
        looked_at: Instant,
        signals: &mut (impl Stream<Item = Vec<Applied>> + Unpin),
    ) {
        let pause = if self.waiting.anybody() {
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

    /// Has the connections made anew, while the log is superseded: perhaps the address leads to another server by now.
    fn reconnect_if_superseded(&mut self, now: Instant) {
        let superseded = self.marks.borrow().superseded(now);
        if let Some(partition) = superseded
            && self.reconnect_due <= now
        {
            tracing::warn!(
                partition,
                "the log was superseded; all connections to the database are made anew"
            );
            daybook_postgres::reconnect();
            self.reconnect_due = now + RECONNECT_INTERVAL;
            self.heads_due = now;
        }
    }

    async fn look(&mut self) -> Result<(), ReadFailure> {
        let now = Instant::now();
        let live = database::read(&self.pool, LOOKUP_TIMEOUT, |connection| {
            Box::pin(checkpoint::live(connection))
        })
        .await?;
        let marks = live_marks(live);
        let heads = if now < self.heads_due {
            Vec::new()
        } else {
            self.heads_due = now + POLL;
            self.heads(&marks).await?
        };
        let was_known = |partition: &i32| self.marks.borrow().epoch(*partition).is_some();
        if heads
            .iter()
            .any(|(partition, _, lineage)| lineage.is_some() && was_known(partition))
        {
            // Before anybody is promised what is in this epoch: another connection may lead to a server without it.
            daybook_postgres::reconnect();
        }
        self.marks.send_if_modified(|known| {
            // Whoever waits for what the log does not have is told by any look at it.
            let changed = known.note_checkpoints(now, marks) || !heads.is_empty();
            for (partition, head, lineage) in heads {
                known.note_head(now, partition, head, lineage);
            }
            changed
        });
        Ok(())
    }

    /// The heads of all partitions that have checkpoints, and the lineages of those that go on in another generation.
    async fn heads(&self, marks: &LiveMarks) -> Result<Vec<(i32, LogHead, Option<Lineage>)>, ReadFailure> {
        let mut heads = Vec::with_capacity(marks.len());
        for &partition in marks.keys() {
            let head = self.store.head(partition).await?;
            let known = self.marks.borrow().epoch(partition);
            let lineage = match known {
                Some(known) if known == head.id() => None,
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
