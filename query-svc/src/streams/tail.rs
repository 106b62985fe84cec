//! The tail of one partition: reads what is new once, for all who follow it, and hands it to them.
//!
//! It lives as long as somebody reads from it. What is known of heads and checkpoints ([`crate::freshness`]) wakes it; that is
//! a hint, and the log says what is new. Readers join between two reads of the log, so each joins *at a place*: everything
//! behind it is handed to them, and everything up to it they read for themselves.
//!
//! Where the log goes on in another epoch, the tail begins anew, and so do all who read from it: each finds out by its own place
//! whether the log still has what it was shown.
//!
//! A tail of rows goes no further than the read model has come in the tail's own epoch, and reads the rows of what changed up to
//! there. While the tables are of a history that is gone, it shows nothing, and is at a place that no log has ([`Place`]): when they
//! have been built anew, whoever joined meanwhile is told that there is another history.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use daybook_event_store::{EventStore, Lineage, ReadError, RecordedEvent, TailRange};
use daybook_postgres::{LOOKUP_TIMEOUT, QUERY_TIMEOUT};
use daybook_read_model::checkpoint::{self, LiveCheckpoint};
use daybook_read_model::order_list::{self, Row};
use daybook_read_model::{OrderList, ReadModel as _};
use sqlx::PgPool;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::buffer::{Buffer, Delivery, End};
use super::feed::{Feed, Source};
use super::metrics::{StreamMetrics, TailLag};
use super::place::Place;
use super::readers::Readers;
use super::room::Room;
use super::rows::{self, Changed};
use crate::database::{self, ReadFailure};
use crate::freshness::{Follower, Freshness, HighWater};

/// The connections of all tails.
pub(crate) const CONNECTIONS: u32 = 2;

/// How many positions are read at once.
const PAGE_POSITIONS: u32 = 500;

/// No event is read behind as many bytes.
const PAGE_BYTES: u32 = 4 * 1_024 * 1_024;

/// The shortest time from one read to the next when there was not a whole page to read.
const READ_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// The same when there was nothing, though there was to be something: a standby may be behind, or the tables of this log not yet there
/// for these connections.
const BEHIND_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The pause after a read that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// How often readers who are gone are looked for, and it is told how far the tail is behind.
const PRUNE_INTERVAL: Duration = Duration::from_secs(1);

/// Why a tail could not go on for now.
#[derive(Debug, Error)]
enum TailError {
    #[error(transparent)]
    Log(#[from] ReadError),
    #[error("cannot read the rows that changed")]
    Rows(#[from] ReadFailure),
    #[error("the log's epochs are changing: not all connections have seen the same one yet")]
    OtherEpoch,
}

/// Somebody who wants to read.
#[derive(Debug)]
pub(super) struct Join {
    pub(super) tenant_id: Uuid,
    pub(super) feed: Arc<Feed>,
    pub(super) buffer: Arc<Buffer>,
    pub(super) joined: oneshot::Sender<Joined>,
}

/// Where somebody has joined.
#[derive(Debug)]
pub(super) struct Joined {
    /// Everything behind this is handed over.
    pub(super) at: Place,
    /// The epochs of the log then.
    pub(super) lineage: Arc<Lineage>,
    /// Where the tail is: everything up to there has been handed over.
    pub(super) tail: watch::Receiver<Place>,
}

/// What tails read with.
#[derive(Clone)]
pub(super) struct Reading {
    pub(super) room: Room,
    pub(super) store: EventStore,
    pub(super) pool: PgPool,
    pub(super) freshness: Freshness,
    pub(super) metrics: StreamMetrics,
}

/// The tail of one partition.
pub(super) struct Tail {
    source: Source,
    partition: i32,
    reading: Reading,
    known: Follower,
    at: watch::Sender<Place>,
    lineage: Arc<Lineage>,
    readers: Readers,
    lag: TailLag,
    is_failing: bool,
}

impl Tail {
    pub(super) fn new(source: Source, partition: i32, reading: Reading) -> Self {
        let model = match source {
            Source::Log => None,
            Source::OrderList => Some(OrderList::NAME),
        };
        Self {
            source,
            partition,
            known: reading.freshness.follow(model, partition),
            lag: reading.metrics.tail(source, partition),
            reading,
            at: watch::Sender::default(),
            lineage: Arc::default(),
            readers: Readers::default(),
            is_failing: false,
        }
    }

    /// Reads for all who join, until nobody is left.
    pub(super) async fn run(mut self, mut joins: mpsc::Receiver<Join>) {
        while let Err(error) = self.begin().await {
            self.failed(error).await;
        }
        let mut prune_at = Instant::now() + PRUNE_INTERVAL;
        let mut next = Next::WhenNews(Instant::now());
        loop {
            tokio::select! {
                join = joins.recv() => match join {
                    Some(join) => self.add(join),
                    None => return,
                },
                () = sleep_until(prune_at) => {
                    self.readers.prune();
                    if self.readers.is_empty() {
                        return;
                    }
                    let head = self.reading.freshness.of_log(self.partition).position;
                    self.lag.set(head.saturating_sub(self.at.borrow().position));
                    prune_at = Instant::now() + PRUNE_INTERVAL;
                }
                () = self.due(next) => match self.read().await {
                    Ok(then) => {
                        self.succeeded();
                        next = then;
                    }
                    Err(error) => self.failed(error).await,
                }
            }
        }
    }

    /// Begins in the newest epoch: at the head of the log, or where the read model is. Whoever reads is told to join there.
    async fn begin(&mut self) -> Result<(), TailError> {
        let at = *self.at.borrow();
        let head = self.reading.store.head(self.partition).await?;
        let epoch = head.epoch;
        let lineage = self.reading.store.lineage(self.partition).await?;
        if epoch <= at.epoch || lineage.newest() != Some(epoch) {
            return Err(TailError::OtherEpoch);
        }
        let position = match self.source {
            Source::Log => Some(head.position),
            Source::OrderList => {
                let checkpoint = self.checkpoint().await?;
                rows::position_in(&lineage, checkpoint.as_ref()).map(|position| position.min(head.position))
            }
        };
        let begins = position.map_or_else(Place::default, |position| Place { epoch, position });
        self.lineage = Arc::new(lineage);
        if begins != at {
            self.readers.end(End::Forked);
            self.at.send_replace(begins);
        }
        Ok(())
    }

    /// Begins in another epoch than that of a place. There may be something to read at once.
    async fn begin_anew(&mut self, at: Place) -> Result<Next, TailError> {
        self.begin().await?;
        Ok(match *self.at.borrow() == at {
            true => Next::WhenNews(Instant::now() + BEHIND_INTERVAL_MIN),
            false => Next::At(Instant::now()),
        })
    }

    /// How far the list of orders has come. It is read on these connections: what is known otherwise may be of another server.
    async fn checkpoint(&self) -> Result<Option<LiveCheckpoint>, ReadFailure> {
        let partition = self.partition;
        database::read(&self.reading.pool, LOOKUP_TIMEOUT, move |connection| {
            Box::pin(checkpoint::live_of(connection, OrderList::NAME, partition))
        })
        .await
    }

    fn add(&mut self, join: Join) {
        self.readers.add(join.tenant_id, join.feed, &join.buffer);
        // Whoever has gone away is forgotten soon.
        let _ = join.joined.send(Joined {
            at: *self.at.borrow(),
            lineage: Arc::clone(&self.lineage),
            tail: self.at.subscribe(),
        });
    }

    /// Waits until it is time to read.
    async fn due(&self, next: Next) {
        match next {
            Next::At(at) => sleep_until(at).await,
            Next::WhenNews(at) => {
                sleep_until(at).await;
                let at = *self.at.borrow();
                self.known.news(|known| is_news(at, known)).await;
            }
        }
    }

    /// Reads the next page and hands it on, or begins in another epoch. Gives when to read again.
    async fn read(&mut self) -> Result<Next, TailError> {
        let (at, read_at) = (*self.at.borrow(), Instant::now());
        let up_to = match (self.source, self.known.high_water()) {
            (Source::Log, _) => u64::MAX,
            (Source::OrderList, Some(known)) if known.epoch == at.epoch => {
                known.position.unwrap_or(at.position)
            }
            (Source::OrderList, _) => return self.begin_anew(at).await,
        };
        let range = TailRange {
            partition: self.partition,
            after: at.position,
            up_to,
            positions_max: PAGE_POSITIONS,
            bytes_max: PAGE_BYTES,
        };
        let page = self
            .reading
            .store
            .read_tail(range, self.readers.tenants())
            .await?;
        if page.epoch != at.epoch {
            return self.begin_anew(at).await;
        }
        let deliveries = match self.source {
            Source::Log => {
                let events = page.events.into_iter();
                events.map(|event| self.shown(at, event)).collect()
            }
            Source::OrderList => self.rows(at, &page.events).await?,
        };
        for (tenant_id, delivery) in deliveries {
            self.readers.hand(tenant_id, &delivery);
        }
        // A standby may be behind what was read from its primary.
        let position = page.up_to.max(at.position);
        if position > at.position {
            self.at.send_replace(Place { position, ..at });
        }
        Ok(Next::after(position - at.position, read_at))
    }

    fn shown(&self, at: Place, event: RecordedEvent) -> (Uuid, Arc<Delivery>) {
        let tenant_id = event.tenant_id;
        (tenant_id, Delivery::of_event(&self.reading.room, at.epoch, event))
    }

    /// The rows that events changed, as they are now. A tenant of which one cannot be read is told, and holds up nobody else.
    async fn rows(
        &mut self,
        at: Place,
        events: &[RecordedEvent],
    ) -> Result<Vec<(Uuid, Arc<Delivery>)>, TailError> {
        let mut by_tenant: HashMap<Uuid, (Changed, Vec<Row>)> = HashMap::new();
        for event in events {
            by_tenant.entry(event.tenant_id).or_default().0.note(event);
        }
        for (tenant_id, row) in self.find(&by_tenant).await? {
            match row {
                Ok(row) => by_tenant.entry(tenant_id).or_default().1.push(row),
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    tracing::error!(
                        tenant_id = %tenant_id,
                        error.chain = format!("{error:#}"),
                        "cannot read a row that open streams are to show"
                    );
                    self.readers.end_of(tenant_id, End::Failed);
                }
            }
        }
        let deliveries = by_tenant.into_iter().flat_map(|(tenant_id, (changed, rows))| {
            let deliveries = changed.deliveries(&self.reading.room, at.epoch, rows).into_iter();
            deliveries.map(move |delivery| (tenant_id, delivery))
        });
        Ok(deliveries.collect())
    }

    async fn find(
        &self,
        by_tenant: &HashMap<Uuid, (Changed, Vec<Row>)>,
    ) -> Result<Vec<(Uuid, Result<Row, sqlx::Error>)>, ReadFailure> {
        let wanted = by_tenant.iter().flat_map(|(tenant_id, (changed, _))| {
            let ids = changed.order_ids().cloned();
            ids.map(|id| (*tenant_id, id))
        });
        let wanted: Arc<(Vec<Uuid>, Vec<String>)> = Arc::new(wanted.unzip());
        if wanted.0.is_empty() {
            return Ok(Vec::new());
        }
        database::read(&self.reading.pool, QUERY_TIMEOUT, move |connection| {
            let wanted = Arc::clone(&wanted);
            Box::pin(async move { order_list::find_of(connection, &wanted.0, &wanted.1).await })
        })
        .await
    }

    /// One line when reading begins to fail and one when it works again.
    async fn failed(&mut self, error: TailError) {
        if !self.is_failing {
            let error = anyhow::Error::from(error);
            tracing::warn!(
                error.chain = format!("{error:#}"),
                "cannot read what is new for open streams"
            );
            self.is_failing = true;
        }
        sleep(RETRY_PAUSE).await;
    }

    fn succeeded(&mut self) {
        if self.is_failing {
            tracing::info!("what is new for open streams can be read again");
            self.is_failing = false;
        }
    }
}

/// When a tail reads next.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// At this time.
    At(Instant),
    /// When there is news, at this time or later.
    WhenNews(Instant),
}

impl Next {
    /// After a read of so many positions: behind a whole page there may be more than is known.
    fn after(positions: u64, read_at: Instant) -> Self {
        match positions {
            0 => Self::WhenNews(read_at + BEHIND_INTERVAL_MIN),
            few if few < u64::from(PAGE_POSITIONS) => Self::WhenNews(read_at + READ_INTERVAL_MIN),
            _whole_page => Self::At(read_at),
        }
    }
}

/// Whether there is something to read for a tail that is at a place, or an epoch to begin in.
fn is_news(at: Place, known: HighWater) -> bool {
    let epoch = known.epoch;
    match known.position {
        Some(position) => Place { epoch, position } > at,
        None => epoch > at.epoch && at != Place::default(),
    }
}

#[cfg(test)]
mod tests {
    use daybook_event_store::EpochId;

    use super::*;

    fn epoch(number: i32) -> EpochId {
        EpochId {
            number,
            generation: Uuid::from_u128(1),
        }
    }

    fn known(number: i32, position: Option<u64>) -> HighWater {
        let epoch = epoch(number);
        HighWater { epoch, position }
    }

    #[test]
    fn news_is_what_is_behind_the_tail_in_its_epoch_and_any_later_epoch() {
        let at = Place {
            epoch: epoch(2),
            position: 100,
        };
        for (number, position, expected) in [
            (2, Some(100), false),
            (2, Some(101), true),
            (2, None, false),
            (3, Some(7), true),
            (3, None, true),
            (1, Some(1_000), false),
            (1, None, false),
        ] {
            let known = known(number, position);
            assert_eq!(is_news(at, known), expected, "{known:?}");
        }
    }

    #[test]
    fn a_tail_without_tables_of_this_log_waits_for_some() {
        for (position, expected) in [(None, false), (Some(0), true)] {
            assert_eq!(is_news(Place::default(), known(2, position)), expected);
        }
    }
}
