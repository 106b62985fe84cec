//! A contended aggregate has one home: of all replicas that get commands for it, one decides them.
//!
//! Two mailboxes for one aggregate, in two replicas, refuse each other's chains. So a replica that met a conflict forwards
//! what comes for the aggregate, for a while, to its home: the one of the live replicas that rendezvous hashing names.
//! Replicas announce themselves on core NATS. A forwarded command is handled where it arrives and never forwarded again.
//!
//! Nothing depends on any of it. Whoever has no answer from a home handles the command itself, under the same key; and
//! two replicas that name different homes are only slow.

mod message;
mod peers;
mod seal;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use daybook_event_bus::replica::{self, Incoming, RequestError};
use daybook_event_bus::{Bus, BusError};
use daybook_service::key::SecretKey;
use daybook_service::request::{Context, X_REQUEST_ID};
use daybook_service::telemetry::{self, TRACEPARENT};
use futures::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue};
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::Instrument as _;
use uuid::Uuid;

use self::message::{Announcement, ForwardedAnswer, ForwardedCommand};
use self::peers::{HASH_VERSION, Peers};
use self::seal::{Kind, Opened, Seal};
use crate::handler::{Answer, Caller};

/// How often a replica announces itself.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);

/// How long a home may take to answer before the command is handled here.
const PATIENCE: Duration = Duration::from_secs(1);

/// Commands that may wait for their homes at once. What comes above that is handled here.
const FORWARDED_MAX: usize = 1_024;

/// Commands of other replicas that are handled here at once. What comes above that goes back.
const HANDLED_MAX: usize = 4_096;

/// The pause before the bus is asked again to subscribe.
const SUBSCRIBE_PAUSE: Duration = Duration::from_secs(1);

/// What a replica does for others, and they for it.
#[derive(Debug, Default)]
pub(crate) struct HomeMetrics {
    /// Commands that a home has answered.
    pub(crate) forwarded: AtomicU64,
    /// Commands of other replicas that were handled here.
    pub(crate) handled: AtomicU64,
    /// Commands that were handled here because their home did not.
    pub(crate) failed: AtomicU64,
}

/// Handles what other replicas forward: what an aggregate's handler is to the commands of callers.
#[tonic::async_trait]
pub(crate) trait HandleForwarded: Send + Sync {
    /// Handles a command; `None` when it is none of its own, or cannot be handled here.
    async fn handle_forwarded(
        &self,
        name: &str,
        request: &[u8],
        caller: &Caller,
        from: Uuid,
    ) -> Option<Handled>;
}

/// The answer to a forwarded command.
#[derive(Debug)]
pub(crate) struct Handled {
    /// The receipt, or the refusal.
    pub(crate) answer: Result<Answer, Status>,
    /// Whether commands for the aggregate have come from elsewhere as well, of late.
    pub(crate) is_shared: bool,
}

/// The homes of aggregates, as this replica sees them.
pub(crate) struct Homes {
    own: Uuid,
    bus: Bus,
    seal: Seal,
    peers: Mutex<Peers>,
    forwarding: Semaphore,
    handling: Arc<Semaphore>,
    metrics: Arc<HomeMetrics>,
}

impl fmt::Debug for Homes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Homes")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl Homes {
    /// A replica with a new id. Without [`Self::run`] it stays alone.
    pub(crate) fn new(bus: Bus, keys: &[SecretKey], metrics: Arc<HomeMetrics>) -> Self {
        let own = Uuid::from_u128(rand::random());
        Self {
            own,
            bus,
            seal: Seal::new(own, keys),
            peers: Mutex::new(Peers::new(own)),
            forwarding: Semaphore::new(FORWARDED_MAX),
            handling: Arc::new(Semaphore::new(HANDLED_MAX)),
            metrics,
        }
    }

    /// This replica's id.
    pub(crate) fn own(&self) -> Uuid {
        self.own
    }

    /// Whether there is no other replica to forward to.
    pub(crate) fn is_alone(&self) -> bool {
        self.peers().is_alone(Instant::now())
    }

    /// The replica that is an aggregate's home, unless it is this one.
    pub(crate) fn elsewhere(&self, tenant_id: Uuid, stream_id: &str) -> Option<Uuid> {
        let home = self.peers().home_of(tenant_id, stream_id, Instant::now());
        (home != self.own).then_some(home)
    }

    /// Has a home handle a command; `None` when it does not, and the command is to be handled here.
    pub(crate) async fn forward(
        &self,
        home: Uuid,
        name: &'static str,
        request: Vec<u8>,
        caller: &Caller,
    ) -> Option<Handled> {
        let handled = self
            .ask(home, ForwardedCommand::new(name, request, caller, PATIENCE))
            .await;
        let counter = match handled {
            Some(_) => &self.metrics.forwarded,
            None => &self.metrics.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        handled
    }

    async fn ask(&self, home: Uuid, command: ForwardedCommand) -> Option<Handled> {
        let _permit = self.forwarding.try_acquire().ok()?;
        let exchange = Uuid::from_u128(rand::random());
        let message = self
            .seal
            .seal(Kind::Command, home, exchange, &command, OffsetDateTime::now_utc());
        let answer = match replica::request(&self.bus, home, message, PATIENCE).await {
            Ok(answer) => self
                .seal
                .open::<ForwardedAnswer>(Kind::Answer, &answer, OffsetDateTime::now_utc()),
            Err(RequestError::NotSent) => return None,
            Err(RequestError::NoAnswer) => None,
        };
        let Some(answer) = answer.filter(|answer| (answer.from, answer.exchange) == (home, exchange)) else {
            tracing::warn!(replica.id = %home, "the home of a contended aggregate does not answer");
            self.peers().did_not_answer(home, Instant::now());
            return None;
        };
        let is_shared = answer.content.is_shared;
        let answer = answer.content.into_answer()?;
        Some(Handled { answer, is_shared })
    }

    /// Announces this replica, listens to the others, and handles what they forward. It goes on after the stop signal,
    /// when it announces only that it stops: commands that were forwarded before are still handled.
    pub(crate) async fn run(
        self: Arc<Self>,
        handlers: Vec<Arc<dyn HandleForwarded>>,
        stop: CancellationToken,
    ) {
        let handlers = handlers.into();
        loop {
            if let Err(error) = self.listen(&handlers, &stop).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot listen to the other replicas");
            }
            sleep(SUBSCRIBE_PAUSE).await;
        }
    }

    async fn listen(
        self: &Arc<Self>,
        handlers: &Arc<[Arc<dyn HandleForwarded>]>,
        stop: &CancellationToken,
    ) -> Result<(), BusError> {
        let mut commands = replica::commands(&self.bus, self.own).await?;
        let mut announcements = replica::announcements(&self.bus).await?;
        let mut ticks = interval(ANNOUNCE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_stopping = false;
        loop {
            tokio::select! {
                _ = ticks.tick(), if !is_stopping => self.announce(false).await,
                () = stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    self.announce(true).await;
                }
                Some(announcement) = announcements.next() => self.announced(&announcement),
                Some(command) = commands.next() => self.accept(command, handlers),
                else => return Ok(()),
            }
        }
    }

    async fn announce(&self, is_stopping: bool) {
        let announcement = Announcement {
            hash_version: HASH_VERSION,
            is_stopping,
        };
        let message = self.seal.announcement(&announcement, OffsetDateTime::now_utc());
        replica::announce(&self.bus, message).await;
    }

    fn announced(&self, message: &[u8]) {
        let now = OffsetDateTime::now_utc();
        let Some(Opened { from, content, .. }) =
            self.seal.open::<Announcement>(Kind::Announcement, message, now)
        else {
            tracing::debug!("an announcement is not one of a replica, or too old");
            return;
        };
        if content.is_stopping {
            self.peers().left(from);
        } else if content.hash_version == HASH_VERSION {
            self.peers().announced(from, Instant::now());
        }
    }

    /// Handles a command in a task of its own. One that is not authentic is not answered.
    fn accept(self: &Arc<Self>, incoming: Incoming, handlers: &Arc<[Arc<dyn HandleForwarded>]>) {
        let now = OffsetDateTime::now_utc();
        let Some(opened) = self
            .seal
            .open::<ForwardedCommand>(Kind::Command, &incoming.payload, now)
        else {
            tracing::debug!("a forwarded command is not one of a replica, or too old");
            return;
        };
        let (homes, handlers) = (Arc::clone(self), Arc::clone(handlers));
        let permit = Arc::clone(&self.handling).try_acquire_owned();
        tokio::spawn(async move {
            let Opened {
                from,
                exchange,
                content,
            } = opened;
            let handled = match permit {
                Ok(_permit) => {
                    let patience = Duration::from_micros(content.patience_us);
                    match timeout(patience, handle(&handlers, content, from)).await {
                        Ok(handled) => handled,
                        // Nobody waits for an answer any more.
                        Err(_elapsed) => return,
                    }
                }
                Err(_) => None,
            };
            if handled.is_some() {
                homes.metrics.handled.fetch_add(1, Ordering::Relaxed);
            }
            let answer = handled.map(|Handled { answer, is_shared }| ForwardedAnswer::new(answer, is_shared));
            let now = OffsetDateTime::now_utc();
            let message = homes
                .seal
                .seal(Kind::Answer, from, exchange, &answer.unwrap_or_default(), now);
            incoming.answer(message).await;
        });
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Handles a forwarded command as a part of the request that it came with.
async fn handle(
    handlers: &[Arc<dyn HandleForwarded>],
    command: ForwardedCommand,
    from: Uuid,
) -> Option<Handled> {
    let caller = command.caller()?;
    let span = tracing::debug_span!("forwarded command", command.name = command.name);
    let mut headers = HeaderMap::new();
    if let Ok(request_id) = HeaderValue::from_str(&command.request_id) {
        headers.insert(X_REQUEST_ID, request_id);
    }
    if let Some(traceparent) = &command.traceparent {
        telemetry::set_parent(&span, traceparent);
        headers.extend(
            HeaderValue::from_str(traceparent)
                .map(|value| (HeaderName::from_static(TRACEPARENT), value))
                .ok(),
        );
    }
    let handled = async {
        for handler in handlers {
            let handled = handler.handle_forwarded(&command.name, &command.request, &caller, from);
            if let Some(handled) = handled.await {
                return Some(handled);
            }
        }
        None
    };
    Context::from_headers(&headers)
        .scope(handled.instrument(span))
        .await
}
