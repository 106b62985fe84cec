//! The tail of one partition: reads what is new once, for all who follow it, and hands it to them.
//!
//! It lives as long as somebody reads from it. What is known of heads and checkpoints ([`crate::freshness`]) wakes it; that is
//! a hint, and the log says what is new. Readers join between two reads of the log, so each joins *at a place*: everything
//! behind it is handed to them, and everything up to it they read for themselves.
//!
//! A tail of rows goes no further than the read model has come, and reads the rows of what changed up to there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use daybook_event_store::{EpochId, EventStore, Lineage, ReadError, RecordedEvent, TailRange};
use daybook_postgres::QUERY_TIMEOUT;
use daybook_read_model::{OrderList, ReadModel as _, order_list};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use sqlx::PgPool;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::buffer::{Buffer, Delivery, End};
use super::feed::{Feed, Source};
use super::place::{Place, Standing};
use super::readers::Readers;
use super::rows::Changed;
use crate::database::{self, ReadFailure};
use crate::freshness::{Changes, Freshness};

/// The connections of all tails.
pub(crate) const CONNECTIONS: u32 = 2;

/// How many positions are read at once.
const PAGE_POSITIONS: u32 = 500;

/// No event is read behind as many bytes.
const PAGE_BYTES: u32 = 4 * 1_024 * 1_024;

/// The shortest time from one read to the next when there was not a whole page to read.
const READ_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// The pause after a read that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// How often readers who are gone are looked for.
const PRUNE_INTERVAL: Duration = Duration::from_secs(1);

/// Why a tail could not go on for now.
#[derive(Debug, Error)]
enum TailError {
    #[error(transparent)]
    Log(#[from] ReadError),
    #[error("cannot read the rows that changed")]
    Rows(#[from] ReadFailure),
    #[error("the log is of an older epoch than before, or its epochs changed while they were read")]
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
    pub(super) store: EventStore,
    pub(super) pool: PgPool,
    pub(super) freshness: Freshness,
}

/// The tail of one partition.
pub(super) struct Tail {
    source: Source,
    partition: i32,
    reading: Reading,
    changes: Changes,
    at: watch::Sender<Place>,
    lineage: Arc<Lineage>,
    readers: Readers,
    is_failing: bool,
}

impl Tail {
    pub(super) fn new(source: Source, partition: i32, reading: Reading) -> Self {
        Self {
            source,
            partition,
            changes: reading.freshness.changes(),
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
        let mut next = Next::AfterChange(Instant::now());
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
                    prune_at = Instant::now() + PRUNE_INTERVAL;
                }
                () = self.due(next) => {
                    let read_at = Instant::now();
                    match self.read().await {
                        Ok(positions) => {
                            self.succeeded();
                            next = Next::after(positions, read_at);
                        }
                        Err(error) => self.failed(error).await,
                    }
                }
            }
        }
    }

    /// Where readers join from now on: at the head of the log, or where the read model stands.
    async fn begin(&mut self) -> Result<(), TailError> {
        let head = self.reading.store.head(self.partition).await?;
        let lineage = self.lineage_with(head.epoch).await?;
        let position = head.position.min(self.readable());
        self.lineage = Arc::new(lineage);
        self.at.send_replace(Place {
            epoch: head.epoch,
            position,
        });
        Ok(())
    }

    async fn lineage_with(&self, epoch: EpochId) -> Result<Lineage, TailError> {
        let lineage = self.reading.store.lineage(self.partition).await?;
        match lineage.newest() == Some(epoch) {
            true => Ok(lineage),
            false => Err(TailError::OtherEpoch),
        }
    }

    /// Up to where there may be something to show.
    fn readable(&self) -> u64 {
        match self.source {
            Source::Log => u64::MAX,
            Source::OrderList => {
                let progress = self.reading.freshness.of(OrderList::NAME, self.partition);
                progress.position
            }
        }
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
    async fn due(&mut self, next: Next) {
        match next {
            Next::At(at) => sleep_until(at).await,
            Next::AfterChange(at) => {
                sleep_until(at).await;
                self.changes.next().await;
            }
        }
    }

    /// Reads the next page and hands it on. Gives how many positions it had.
    async fn read(&mut self) -> Result<u64, TailError> {
        let at = *self.at.borrow();
        let up_to = self.readable();
        if up_to <= at.position {
            return Ok(0);
        }
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
            self.enter(at, page.epoch).await?;
            return Ok(0);
        }
        let deliveries = match self.source {
            Source::Log => page.events.into_iter().map(|event| shown(at, event)).collect(),
            Source::OrderList => self.rows(at, page.events).await?,
        };
        for (tenant_id, delivery) in deliveries {
            self.readers.hand(tenant_id, &delivery);
        }
        // A standby may be behind what was read from its primary.
        let position = page.up_to.max(at.position);
        if position > at.position {
            self.at.send_replace(Place { position, ..at });
        }
        Ok(position - at.position)
    }

    /// Goes on in another epoch. Where that has not all that was handed out, the readers are told to look for themselves what
    /// has become of what they have.
    async fn enter(&mut self, at: Place, epoch: EpochId) -> Result<(), TailError> {
        if epoch < at.epoch {
            return Err(TailError::OtherEpoch);
        }
        let lineage = self.lineage_with(epoch).await?;
        if at.standing(&lineage) == Standing::Holds {
            self.lineage = Arc::new(lineage);
            self.at.send_replace(Place { epoch, ..at });
            return Ok(());
        }
        self.readers.end(End::Forked);
        self.begin().await
    }

    /// The rows that events changed, as they are now.
    async fn rows(
        &self,
        at: Place,
        events: Vec<RecordedEvent>,
    ) -> Result<Vec<(Uuid, Arc<Delivery>)>, TailError> {
        let mut by_tenant: HashMap<Uuid, Changed> = HashMap::new();
        for event in &events {
            by_tenant.entry(event.tenant_id).or_default().note(event);
        }
        let reads = by_tenant.into_iter().map(|(tenant_id, changed)| {
            let (pool, ids) = (&self.reading.pool, changed.order_ids());
            async move {
                let rows = database::read(pool, QUERY_TIMEOUT, move |connection| {
                    let ids = Arc::clone(&ids);
                    Box::pin(async move { order_list::find(connection, tenant_id, &ids).await })
                });
                let deliveries = changed.deliveries(at.epoch, rows.await?).into_iter();
                Ok::<_, TailError>(
                    deliveries
                        .map(|delivery| (tenant_id, delivery))
                        .collect::<Vec<_>>(),
                )
            }
        });
        let rows: Vec<_> = stream::iter(reads)
            .buffer_unordered(CONNECTIONS as usize)
            .try_collect()
            .await?;
        Ok(rows.into_iter().flatten().collect())
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
    /// When something has changed after this time.
    AfterChange(Instant),
}

impl Next {
    /// After a read of so many positions: where there were some there may be more.
    fn after(positions: u64, read_at: Instant) -> Self {
        match positions {
            0 => Self::AfterChange(read_at + READ_INTERVAL_MIN),
            few if few < u64::from(PAGE_POSITIONS) => Self::At(read_at + READ_INTERVAL_MIN),
            _whole_page => Self::At(read_at),
        }
    }
}

fn shown(at: Place, event: RecordedEvent) -> (Uuid, Arc<Delivery>) {
    (event.tenant_id, Delivery::of_event(at.epoch, event))
}
