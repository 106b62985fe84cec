//! One open stream, as its reader sees it: first what was recorded before it joined the tail, then what the tail hands over.
//!
//! It works while it is polled, and only then: a reader who takes nothing costs what waits in its buffer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use daybook_service::error::DATABASE;
use daybook_service::identity::{Identity, KEY_TRUST_MAX, Principal};
use daybook_service::{ApiError, Code};
use futures::{Stream, stream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::buffer::{Buffer, Delivery, End, Taken};
use super::catch_up::{CatchUp, PAGE_BYTES};
use super::feed::Feed;
use super::metrics::OpenStream;
use super::openings::Open;
use super::place::{Place, Validity};
use super::room::Held;
use super::{Parts, Start, Streams};
use crate::cursor::Question;

/// How long a stream says nothing at the most.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// How long a place of an epoch that was not seen yet is waited for.
const EPOCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause between two looks for such an epoch, or for a database that does not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// The pause after which a credential is looked at again that could not be looked at.
const RECHECK_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How much is taken out of the buffer at once, in bytes.
const TAKE_BYTES: usize = 4 * 1_024;

/// How often in a row a reader catches up once more, because its buffer has not taken what was recorded meanwhile. Each time that is
/// less, or the reader is too slow.
const CATCH_UPS_MAX: u32 = 8;

/// What a stream says.
#[derive(Debug)]
pub(crate) enum Item {
    /// The next item to show.
    Delivery(Arc<Delivery>),
    /// Nothing new: everything up to its place has been shown.
    Nothing,
    /// The log has not any more what the reader had: whatever was made of it has to be read anew. The stream goes on with what
    /// comes behind its new place.
    Reset(ApiError),
    /// Nothing more comes, and why.
    End(ApiError),
}

/// How far the reader is towards its tail.
#[derive(Debug)]
enum State {
    /// It reads for itself what comes before the tail's.
    CatchingUp(CatchUp),
    /// It takes what the tail hands over.
    Following,
    /// It has said why it ended.
    Ended,
}

/// An open stream.
pub(crate) struct Reader {
    streams: Streams,
    caller: Arc<Principal>,
    feed: Arc<Feed>,
    question: Question,
    /// Everything up to here was shown.
    shown: Place,
    /// What is shown next, and the place behind all of it.
    ready: VecDeque<Arc<Delivery>>,
    ready_up_to: Place,
    state: State,
    /// How often in a row it has had to catch up once more.
    catch_ups: u32,
    buffer: Arc<Buffer>,
    /// Where the tail is: everything up to there is in the buffer, or was.
    tail: watch::Receiver<Place>,
    until: Option<Instant>,
    keepalive_at: Instant,
    recheck_at: Instant,
    /// When the credential was last known to be good.
    good_at: Instant,
    /// Said before anything else.
    first: Option<Item>,
    metrics: OpenStream,
    _open: Open,
}

impl Reader {
    /// A stream that has not joined yet. A caller's own deadline ends it.
    pub(super) fn new(
        streams: Streams,
        caller: Arc<Principal>,
        feed: Feed,
        question: Question,
        open: Open,
        until: Option<Instant>,
    ) -> Self {
        let now = Instant::now();
        Self {
            buffer: Arc::new(Buffer::new(streams.0.config.stream_buffer_bytes as usize)),
            tail: watch::Sender::default().subscribe(),
            metrics: streams.0.metrics.open(&feed),
            feed: Arc::new(feed),
            caller,
            question,
            shown: Place::default(),
            ready: VecDeque::new(),
            ready_up_to: Place::default(),
            state: State::Following,
            catch_ups: 0,
            until,
            keepalive_at: now + KEEPALIVE_INTERVAL,
            recheck_at: now + streams.0.config.recheck_interval(),
            good_at: now,
            first: Some(Item::Nothing),
            streams,
            _open: open,
        }
    }

    /// Joins the tail, behind the place that its reader holds, or else where it wants to begin.
    ///
    /// # Errors
    /// `POSITION_UNKNOWN` when the log has not reached the position to begin with, and what joining fails with.
    pub(super) async fn begin(mut self, held: Option<Place>, start: &Start) -> Result<Self, ApiError> {
        if let Some(held) = held {
            self.shown = held;
            if let Some(reset) = self.join().await? {
                self.first = Some(reset);
            }
            return Ok(self);
        }
        let at = self.join_tail().await?.0;
        self.shown = match start {
            Start::Behind(position) if *position > at.position => {
                // The tail may be behind the log by a moment, and that of rows behind its read model.
                let progress = self.streams.0.freshness.of_log(self.caller.tenant_partition);
                if *position > progress.position.max(at.position) {
                    return Err(ApiError::position_unknown());
                }
                Place {
                    position: *position,
                    ..at
                }
            }
            Start::Behind(position) => Place {
                position: *position,
                ..at
            },
            Start::Now | Start::Resume(_) => at,
        };
        self.catch_up_to(at);
        Ok(self)
    }

    /// What the reader resumes with.
    pub(crate) fn place(&self) -> String {
        self.seal(self.shown)
    }

    /// What the reader resumes behind an item with.
    pub(crate) fn seal(&self, place: Place) -> String {
        place.seal(&self.streams.0.ring, &self.question)
    }

    /// Counts bytes that are made of an item, until they have been taken.
    pub(crate) fn hold(&self, bytes: usize) -> Held {
        self.streams.0.room.hold(self.caller.tenant_id, bytes)
    }

    /// The stream of what is made of its items; `make` sees the reader as it is behind each.
    pub(crate) fn into_stream<T>(
        self,
        make: impl Fn(&Self, Item) -> T + Send + 'static,
    ) -> impl Stream<Item = T> + Send {
        stream::unfold((self, make), |(mut reader, make)| async move {
            let item = reader.next().await?;
            let made = make(&reader, item);
            Some((made, (reader, make)))
        })
    }

    /// The next item; `None` behind the end.
    async fn next(&mut self) -> Option<Item> {
        if matches!(self.state, State::Ended) {
            return None;
        }
        let item = match self.first.take() {
            Some(first) => first,
            None => self.wait().await.unwrap_or_else(Item::End),
        };
        self.keepalive_at = Instant::now() + KEEPALIVE_INTERVAL;
        match &item {
            Item::Delivery(_) => self.metrics.delivered(),
            Item::Nothing => {}
            Item::Reset(_) => self.metrics.reset(),
            Item::End(error) => {
                self.metrics.ended(error.code());
                self.state = State::Ended;
            }
        }
        Some(item)
    }

    /// Waits for an item, or for what ends the stream.
    async fn wait(&mut self) -> Result<Item, ApiError> {
        let shutdown = self.streams.0.shutdown.clone();
        let until = self.until;
        let working = async {
            loop {
                if Instant::now() >= self.recheck_at {
                    self.recheck().await?;
                }
                if let Some(item) = self.step().await? {
                    return Ok(item);
                }
            }
        };
        let deadline = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Err(ApiError::shutting_down()),
            () = deadline => Err(ApiError::deadline_exceeded()),
            item = working => item,
        }
    }

    async fn step(&mut self) -> Result<Option<Item>, ApiError> {
        let end_ahead = self.buffer.end_ahead();
        if end_ahead == Some(End::Forked) {
            self.ready.clear();
            return self.join().await;
        }
        if let Some(delivery) = self.ready.pop_front() {
            self.shown = match self.ready.is_empty() {
                true => self.ready_up_to,
                false => delivery.place,
            };
            return Ok(Some(Item::Delivery(delivery)));
        }
        match &mut self.state {
            State::CatchingUp(catch_up) if catch_up.up_to().position > self.shown.position => {
                self.read_page().await
            }
            State::CatchingUp(_) if end_ahead == Some(End::Overflow) && self.catch_ups < CATCH_UPS_MAX => {
                self.catch_ups += 1;
                self.join().await
            }
            State::CatchingUp(_) => {
                self.state = State::Following;
                self.catch_ups = 0;
                Ok(None)
            }
            State::Following => self.follow().await,
            State::Ended => Ok(None),
        }
    }

    /// Makes ready what is shown next, up to a place.
    fn show(&mut self, deliveries: Vec<Arc<Delivery>>, up_to: Place) {
        if deliveries.is_empty() {
            self.shown = up_to;
        }
        self.ready = deliveries.into();
        self.ready_up_to = up_to;
    }

    /// Reads more of what was recorded before it joined, when there is room for that.
    async fn read_page(&mut self) -> Result<Option<Item>, ApiError> {
        let State::CatchingUp(catch_up) = &mut self.state else {
            return Ok(None);
        };
        let Parts { reads, room, .. } = &*self.streams.0;
        let page = match room.has_room(self.caller.tenant_id, PAGE_BYTES as usize) {
            true => {
                let after = self.shown.position;
                catch_up.page(reads, &self.caller, &self.feed, after).await
            }
            false => Err(ApiError::overloaded("too much waits for readers of streams")),
        };
        match page {
            Ok(page) => {
                let epoch = catch_up.up_to().epoch;
                let position = page.position;
                self.show(page.deliveries, Place { epoch, position });
            }
            Err(error) if matches!(error.code(), Code::Internal) => return Err(error),
            // The database does not answer, or others have its connections, or the room: it has time.
            Err(_passes) => sleep(RETRY_PAUSE).await,
        }
        Ok((Instant::now() >= self.keepalive_at).then_some(Item::Nothing))
    }

    /// Takes what waits, or waits for it.
    async fn follow(&mut self) -> Result<Option<Item>, ApiError> {
        // First: all up to there was handed over before.
        let tail = *self.tail.borrow();
        match self.buffer.take(TAKE_BYTES) {
            Taken::Some(mut deliveries) => {
                // Another replica may have shown some of it before.
                deliveries.retain(|delivery| delivery.place.position > self.shown.position);
                let up_to = deliveries.last().map_or(self.shown, |last| last.place);
                self.show(deliveries, up_to);
                return Ok(None);
            }
            Taken::End(End::Overflow) => {
                let quota = "events that wait for this reader";
                return Err(ApiError::rate_limited(quota, RETRY_PAUSE));
            }
            Taken::End(End::Forked) => return Ok(None),
            Taken::End(End::Failed) => return Err(ApiError::internal("a row cannot be read")),
            Taken::End(End::Stopped) => {
                return Err(ApiError::internal("a tail has ended before its readers"));
            }
            Taken::Nothing if tail.position >= self.shown.position => self.shown = tail,
            Taken::Nothing => {}
        }
        tokio::select! {
            () = self.buffer.changed() => Ok(None),
            () = sleep_until(self.recheck_at) => Ok(None),
            () = sleep_until(self.keepalive_at) => Ok(Some(Item::Nothing)),
        }
    }

    /// Joins the tail behind what was shown. Where the log has not that any more, the stream goes on where it joins; while the tail
    /// has nothing to show of this log, its end is told later.
    async fn join(&mut self) -> Result<Option<Item>, ApiError> {
        let give_up_at = Instant::now() + EPOCH_TIMEOUT;
        loop {
            let (at, validity) = self.join_tail().await?;
            match validity {
                Validity::Gone if at != Place::default() => {
                    self.shown = at;
                    self.catch_up_to(at);
                    return Ok(Some(Item::Reset(ApiError::position_unknown())));
                }
                Validity::Valid | Validity::Gone => {
                    self.catch_up_to(at);
                    return Ok(None);
                }
                Validity::Unknown if Instant::now() >= give_up_at => {
                    let error = "the log has not the epoch of the position yet";
                    return Err(ApiError::dependency_unavailable(DATABASE, error));
                }
                Validity::Unknown => sleep(RETRY_PAUSE).await,
            }
        }
    }

    /// Joins the tail with an empty buffer. Gives where, and whether what was shown is of the log there.
    async fn join_tail(&mut self) -> Result<(Place, Validity), ApiError> {
        self.buffer = Arc::new(Buffer::new(self.streams.0.config.stream_buffer_bytes as usize));
        let joined = self
            .streams
            .0
            .hub
            .join(&self.caller, &self.feed, &self.buffer)
            .await?;
        self.tail = joined.tail;
        Ok((joined.at, self.shown.validity(&joined.lineage)))
    }

    fn catch_up_to(&mut self, at: Place) {
        self.state = State::CatchingUp(CatchUp::new(at, self.streams.0.room.clone()));
    }

    /// Looks at the credential again. An outage says nothing about it, for as long as it may be believed.
    async fn recheck(&mut self) -> Result<(), ApiError> {
        let interval = self.streams.0.config.recheck_interval();
        let known = self
            .streams
            .0
            .authenticator
            .again(&self.caller.key_prefix, interval / 2)
            .await;
        let now = Instant::now();
        match known {
            Ok(identity) => {
                if !self.is_callers(&identity) {
                    return Err(ApiError::unauthenticated());
                }
                identity.require(self.feed.scope())?;
                self.good_at = now;
                self.recheck_at = now + interval;
            }
            Err(error) if matches!(error.code(), Code::Unauthenticated) => return Err(error),
            Err(error) if self.good_at.elapsed() > KEY_TRUST_MAX => return Err(error),
            Err(_outage) => self.recheck_at = now + RECHECK_RETRY_PAUSE,
        }
        Ok(())
    }

    fn is_callers(&self, identity: &Identity) -> bool {
        identity.tenant_id() == Some(self.caller.tenant_id)
    }
}
