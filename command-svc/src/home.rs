//! A contended aggregate has one home: of all replicas that get commands for it, one decides them.
//!
//! Two mailboxes for one aggregate, in two replicas, refuse each other's chains. So a replica that met a conflict forwards
//! what comes for the aggregate, for a while, to its home: the one of the live replicas that rendezvous hashing names.
//! Replicas announce themselves on core NATS. A forwarded command is handled where it arrives and never forwarded again.
//!
//! Nothing depends on any of it. Whoever has no answer from a home handles the command itself, under the same key; and
//! two replicas that name different homes are only slow.

mod exchanges;
mod message;
mod peers;
mod seal;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use daybook_event_bus::replica::{self, Incoming, RequestError};
use daybook_event_bus::{Bus, BusError};
use daybook_service::error::ApiError;
use daybook_service::key::SecretKey;
use daybook_service::metrics::Registry;
use daybook_service::request::{Context, X_REQUEST_ID, deadline};
use daybook_service::shares::{Shares, SharesOptions};
use daybook_service::telemetry::{self, TRACEPARENT};
use futures::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue};
use prometheus_client::metrics::counter::Counter;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use self::exchanges::{Exchanges, Noted};
use self::message::{Announcement, ForwardedAnswer, ForwardedCommand};
use self::peers::{PATIENCE, Peers, Waiter};
use self::seal::{Kind, Opened, Seal};
use crate::handler::{Answer, Caller};
use crate::mailbox::Stream;

/// How often a replica announces itself.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);

/// Commands that may wait for their homes at once; a tenant may have half of what all others leave free. What comes above
/// that is handled here.
const FORWARDED_MAX: usize = 1_024;

/// Commands of other replicas that are handled here at once. What comes above that goes back.
const HANDLED_MAX: usize = 4_096;

/// How long commands are accepted after it was announced that this replica stops: until the others know.
const STILL_ACCEPTED_FOR: Duration = Duration::from_millis(250);

/// The pause before the bus is asked again to subscribe.
const SUBSCRIBE_PAUSE: Duration = Duration::from_secs(1);

/// Counters of commands that this replica handles for others, and they for it.
#[derive(Debug, Default)]
pub(crate) struct HomeMetrics {
    /// Commands that a home has answered.
    forwarded: Counter,
    /// Commands of other replicas that were handled here.
    handled: Counter,
    /// Commands that were handled here because their home did not.
    failed: Counter,
}

impl HomeMetrics {
    /// Registers the metrics.
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            forwarded: registry.register(
                "commands_forwarded",
                "Commands for contended aggregates that the home, another replica, has answered",
                Counter::default(),
            ),
            handled: registry.register(
                "commands_handled_for_others",
                "Commands that other replicas forwarded and that were handled here",
                Counter::default(),
            ),
            failed: registry.register(
                "command_forwards_failed",
                "Commands handled here because the home of their aggregate did not",
                Counter::default(),
            ),
        }
    }
}

/// Handles what other replicas forward: what an aggregate's handler is to the commands of callers.
#[tonic::async_trait]
pub(crate) trait HandleForwarded: Send + Sync {
    /// Handles a command; `None` when it is none of its own.
    async fn handle_forwarded(&self, request: Request<'_>, caller: &Caller, from: Uuid) -> Option<Forwarded>;
}

/// A command's request, as it is forwarded.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    /// The command's name, as auditors see it.
    pub(crate) name: &'a str,
    /// The caller's idempotency key.
    pub(crate) key: &'a str,
    /// All else of the request, context included, as Protocol Buffers.
    pub(crate) content: &'a [u8],
}

/// What became of a forwarded command.
#[derive(Debug)]
pub(crate) enum Forwarded {
    /// Its home has answered it.
    Answered {
        /// The receipt, or the refusal.
        answer: Result<Answer, ApiError>,
        /// Whether commands for the aggregate have come from elsewhere as well, of late.
        is_shared: bool,
    },
    /// It certainly was not recorded there: it was not sent, or its home cannot handle it.
    NotHandled,
    /// It was sent, and there is no answer: it may have been recorded there, or may be yet.
    Unknown,
}

/// The homes of aggregates, as this replica sees them.
pub(crate) struct Homes {
    own: Uuid,
    bus: Bus,
    seal: Seal,
    peers: Mutex<Peers>,
    forwarding: Shares,
    handling: Arc<Semaphore>,
    exchanges: Mutex<Exchanges>,
    metrics: HomeMetrics,
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
    pub(crate) fn new(bus: Bus, keys: &[SecretKey], metrics: HomeMetrics) -> Self {
        let own = Uuid::from_u128(rand::random());
        Self {
            own,
            bus,
            seal: Seal::new(own, keys, &message::contract()),
            peers: Mutex::new(Peers::new(own)),
            forwarding: Shares::new(SharesOptions {
                quota: "commands forwarded",
                places: FORWARDED_MAX,
                waiting_max: 0,
                wait_max: Duration::ZERO,
            }),
            handling: Arc::new(Semaphore::new(HANDLED_MAX)),
            exchanges: Mutex::default(),
            metrics,
        }
    }

    /// This replica's id.
    pub(crate) fn own(&self) -> Uuid {
        self.own
    }

    /// The replica that is an aggregate's home, unless it is this one.
    pub(crate) fn elsewhere(&self, (tenant_id, stream_id): &Stream) -> Option<Uuid> {
        let home = self.peers().home_of(*tenant_id, stream_id, Instant::now());
        (home != self.own).then_some(home)
    }

    /// Has a home handle a command. It may take half of the time that the caller still waits: the other half is for
    /// handling the command here.
    pub(crate) async fn forward(&self, home: Uuid, request: Request<'_>, caller: &Caller) -> Forwarded {
        let forwarded = self.ask(home, request, caller).await;
        let counter = match forwarded {
            Forwarded::Answered { .. } => &self.metrics.forwarded,
            Forwarded::NotHandled | Forwarded::Unknown => &self.metrics.failed,
        };
        counter.inc();
        forwarded
    }

    async fn ask(&self, home: Uuid, request: Request<'_>, caller: &Caller) -> Forwarded {
        let Ok(_place) = self.forwarding.place(caller.principal.tenant_id).await else {
            return Forwarded::NotHandled;
        };
        let Some(waiter) = Waiter::new(&self.peers, home, Instant::now()) else {
            return Forwarded::NotHandled;
        };
        let patience = deadline().map_or(PATIENCE, |deadline| PATIENCE.min((deadline - Instant::now()) / 2));
        let command = ForwardedCommand::new(request, caller, patience);
        let exchange = Uuid::from_u128(rand::random());
        let message = self
            .seal
            .seal(Kind::Command, home, exchange, &command, OffsetDateTime::now_utc());
        let answer = tokio::select! {
            answer = replica::request(&self.bus, home, message, patience) => answer,
            () = waiter.silent.cancelled() => Err(RequestError::NoAnswer),
        };
        let answer = match answer {
            Ok(answer) => self
                .seal
                .open::<ForwardedAnswer>(Kind::Answer, &answer, OffsetDateTime::now_utc()),
            Err(RequestError::NoAnswer) => None,
            Err(RequestError::NotSent) => return Forwarded::NotHandled,
            // Nobody has signed that, so it proves nothing.
            Err(RequestError::NobodyListens) => {
                self.peers().gone(home);
                return Forwarded::Unknown;
            }
        };
        match answer.filter(|answer| (answer.from, answer.exchange) == (home, exchange)) {
            Some(answer) => {
                self.peers().answered(home);
                answer.content.into()
            }
            None => {
                if self.peers().did_not_answer(home, Instant::now()) {
                    tracing::warn!(replica.id = %home, "the home of contended aggregates does not answer");
                }
                Forwarded::Unknown
            }
        }
    }

    /// Announces this replica, listens to the others, and handles what they forward. At the stop signal it announces that
    /// it stops, and ends when what was forwarded before is handled.
    pub(crate) async fn run(
        self: Arc<Self>,
        handlers: Vec<Arc<dyn HandleForwarded>>,
        stop: CancellationToken,
    ) {
        let handlers = handlers.into();
        while !stop.is_cancelled() {
            if let Err(error) = self.listen(&handlers, &stop).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot listen to the other replicas");
            }
            let _ = timeout(SUBSCRIBE_PAUSE, stop.cancelled()).await;
        }
        let all = u32::try_from(HANDLED_MAX).expect("it is small");
        let _ = timeout(PATIENCE, self.handling.acquire_many(all)).await;
    }

    /// Until the stop signal, or until a subscription ends.
    async fn listen(
        self: &Arc<Self>,
        handlers: &Arc<[Arc<dyn HandleForwarded>]>,
        stop: &CancellationToken,
    ) -> Result<(), BusError> {
        let mut commands = replica::commands(&self.bus, self.own).await?;
        let mut announcements = replica::announcements(&self.bus).await?;
        let mut ticks = interval(ANNOUNCE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.announce(false).await,
                () = stop.cancelled() => break,
                Some(announcement) = announcements.next() => self.announced(&announcement),
                Some(command) = commands.next() => self.accept(command, handlers),
                else => return Ok(()),
            }
        }
        self.announce(true).await;
        let until = Instant::now() + STILL_ACCEPTED_FOR;
        while let Ok(Some(command)) = timeout_at(until, commands.next()).await {
            self.accept(command, handlers);
        }
        Ok(())
    }

    async fn announce(&self, is_stopping: bool) {
        let announcement = Announcement { is_stopping };
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
        } else {
            self.peers().announced(from, Instant::now());
        }
    }

    /// Handles a command in a task of its own. One that is not authentic, or was here before, is not answered.
    fn accept(self: &Arc<Self>, incoming: Incoming, handlers: &Arc<[Arc<dyn HandleForwarded>]>) {
        let now = OffsetDateTime::now_utc();
        let Some(Opened {
            from,
            exchange,
            content,
        }) = self
            .seal
            .open::<ForwardedCommand>(Kind::Command, &incoming.payload, now)
        else {
            tracing::debug!("a forwarded command is not one of a replica, or too old");
            return;
        };
        let permit = match self.exchanges().note(exchange, Instant::now()) {
            Noted::New => Arc::clone(&self.handling).try_acquire_owned().ok(),
            Noted::Full => None,
            Noted::Again => {
                tracing::debug!(replica.id = %from, "a forwarded command arrived twice");
                return;
            }
        };
        let (homes, handlers) = (Arc::clone(self), Arc::clone(handlers));
        tokio::spawn(async move {
            let forwarded = match &permit {
                Some(_) => handle_within(&handlers, content, from).await,
                None => Some(Forwarded::NotHandled),
            };
            let Some(forwarded) = forwarded else { return };
            if let Forwarded::Answered { .. } = forwarded {
                homes.metrics.handled.inc();
            }
            let (answer, now) = (ForwardedAnswer::from(forwarded), OffsetDateTime::now_utc());
            let message = homes.seal.seal(Kind::Answer, from, exchange, &answer, now);
            incoming.answer(message).await;
            drop(permit);
        });
    }

    fn exchanges(&self) -> MutexGuard<'_, Exchanges> {
        self.exchanges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        peers::lock(&self.peers)
    }
}

/// Handles a forwarded command while somebody waits for it; `None` when nobody does any more.
async fn handle_within(
    handlers: &[Arc<dyn HandleForwarded>],
    command: ForwardedCommand,
    from: Uuid,
) -> Option<Forwarded> {
    let patience = Duration::from_micros(command.patience_us);
    timeout(patience, handle(handlers, command, from)).await.ok()
}

/// Handles a forwarded command as a part of the request that it came with.
async fn handle(handlers: &[Arc<dyn HandleForwarded>], command: ForwardedCommand, from: Uuid) -> Forwarded {
    let Some(caller) = command.caller() else {
        return Forwarded::NotHandled;
    };
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
            let handled = handler.handle_forwarded(command.request(), &caller, from);
            if let Some(forwarded) = handled.await {
                return forwarded;
            }
        }
        Forwarded::NotHandled
    };
    Context::from_headers(&headers)
        .scope(handled.instrument(span))
        .await
}

#[cfg(test)]
mod tests {
    use daybook_event_bus::Deployment;

    use super::*;

    const KEY: SecretKey = SecretKey::new(*b"0123456789abcdef0123456789abcdef");

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_stops_ends_once_it_has_handled_what_was_forwarded_to_it() {
        let bus = Bus::connect("nats://127.0.0.1:1", &Deployment::default(), "test").await;
        let bus = bus.expect("an address");
        let homes = Arc::new(Homes::new(bus, &[KEY], HomeMetrics::default()));
        let stop = CancellationToken::new();
        stop.cancel();
        let handled = Arc::clone(&homes.handling).try_acquire_owned();
        let mut stopping = tokio::spawn(Arc::clone(&homes).run(Vec::new(), stop.clone()));
        let half = timeout(PATIENCE / 2, &mut stopping).await;
        assert!(half.is_err(), "a command is being handled");
        drop(handled);
        let ended = timeout(Duration::from_millis(1), stopping).await;
        assert!(ended.is_ok_and(|ended| ended.is_ok()));

        let _handled = Arc::clone(&homes.handling).try_acquire_owned();
        let ended = timeout(2 * PATIENCE, homes.run(Vec::new(), stop)).await;
        assert!(ended.is_ok(), "nobody waits for it any longer");
    }
}
