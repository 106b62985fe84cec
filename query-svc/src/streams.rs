//! Streams that stay open: events as they are recorded, rows of the order list as they change. One implementation for SSE and
//! gRPC, which only translate.
//!
//! - Each item comes once and in order, also over several streams, each of which resumes where the one before ended: at a
//!   *place* of the log, which the reader holds sealed. What was recorded while nobody read is read from the log.
//! - A reader first joins the *tail* of its partition, which hands it everything behind the place where it joined; then it
//!   reads for itself what lies between its own place and that one; then it takes what waits in its buffer. So there is
//!   neither a gap nor a repetition, and the log is read once for all who follow it.
//! - What waits for a reader is bounded, and what waits for all of them. One that is too slow gets what waits, and is told to resume.
//! - A place of a history of the log that is gone is never continued in silence: its reader is told to read anew what it has
//!   made of it ([`Item::Reset`]).
//! - The credential of each stream is looked at again, and streams end at once when the process stops.
//!
//! | module | promise |
//! |---|---|
//! | `feed` | what a stream shows |
//! | `place` | how far it has come, sealed for its reader |
//! | `reader` | one open stream: join, catch up, go on |
//! | `catch_up` | what was recorded before a reader joined |
//! | `hub`, `tail`, `readers` | what is new, read once and handed to all who show it |
//! | `buffer` | what waits for one reader |
//! | `rows` | rows that events changed |
//! | `openings`, `room` | how many streams may be open, and how many bytes they hold |

mod buffer;
mod catch_up;
mod config;
mod feed;
mod hub;
mod metrics;
mod openings;
mod place;
mod reader;
mod readers;
mod room;
mod rows;
mod tail;

use std::sync::Arc;

use daybook_event_store::EventStore;
use daybook_service::identity::{Authenticator, Principal};
use daybook_service::metrics::Registry;
use daybook_service::sealing::KeyRing;
use daybook_service::tickets::{Ticket, Tickets};
use daybook_service::{ApiError, request};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

pub(crate) use self::buffer::Shown;
pub(crate) use self::config::StreamsConfig;
pub(crate) use self::feed::{Feed, TYPES_MAX, check_type};
use self::hub::Hub;
use self::metrics::StreamMetrics;
use self::openings::Openings;
use self::place::Place;
pub(crate) use self::reader::{Item, Reader};
pub(crate) use self::room::Held;
use self::room::Room;
pub(crate) use self::tail::CONNECTIONS;
use self::tail::Reading;
use crate::freshness::Freshness;
use crate::reads::Reads;

/// Everything that streams need. Cheap to clone.
#[derive(Clone)]
pub struct Streams(Arc<Parts>);

struct Parts {
    reads: Reads,
    freshness: Freshness,
    hub: Hub,
    openings: Openings,
    room: Room,
    authenticator: Authenticator,
    ring: KeyRing,
    tickets: Tickets,
    metrics: StreamMetrics,
    config: StreamsConfig,
    shutdown: CancellationToken,
}

/// What streams are made with, beside the reads.
pub(crate) struct Foundations {
    /// For the tails alone: [`CONNECTIONS`] of them.
    pub(crate) pool: PgPool,
    pub(crate) freshness: Freshness,
    pub(crate) authenticator: Authenticator,
    pub(crate) ring: KeyRing,
    pub(crate) tickets: Tickets,
    /// The stop signal.
    pub(crate) shutdown: CancellationToken,
}

/// Where a stream begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// With what is new from now on.
    Now,
    /// Behind this position.
    Behind(u64),
    /// Where another stream of the same feed ended, as that said.
    Resume(String),
}

/// What is to be opened.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) caller: Arc<Principal>,
    pub(crate) feed: Feed,
    pub(crate) start: Start,
    /// The ticket that stands for the caller's credential.
    pub(crate) ticket: Option<Ticket>,
}

impl Streams {
    pub(crate) fn new(
        reads: Reads,
        foundations: Foundations,
        config: &StreamsConfig,
        registry: &Registry,
    ) -> Self {
        let Foundations {
            pool,
            freshness,
            authenticator,
            ring,
            tickets,
            shutdown,
        } = foundations;
        let room = Room::new(
            config.streams_bytes_max as usize,
            config.tenant_streams_bytes_max as usize,
        );
        let metrics = StreamMetrics::new(registry);
        let reading = Reading {
            room: room.clone(),
            store: EventStore::new(pool.clone()),
            pool,
            freshness: freshness.clone(),
            metrics: metrics.clone(),
        };
        Self(Arc::new(Parts {
            reads,
            freshness,
            hub: Hub::new(reading),
            openings: Openings::new(config.streams_max as usize, config.tenant_streams_max as usize),
            room,
            authenticator,
            ring,
            tickets,
            metrics,
            config: config.clone(),
            shutdown,
        }))
    }

    /// What tickets for streams are given out with.
    pub(crate) fn tickets(&self) -> &Tickets {
        &self.0.tickets
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// `INVALID_CURSOR` for a place that was not given out for this very stream, `POSITION_UNKNOWN` for a position that the log
    /// has not reached; `UNAUTHENTICATED` for a ticket that is too old to open a stream anew; `RESOURCE_NOT_FOUND` for an
    /// aggregate that the tenant does not have; `RATE_LIMITED` and `OVERLOADED` when too many are open already.
    pub(crate) async fn open(&self, opening: Opening) -> Result<Reader, ApiError> {
        let Opening {
            caller,
            feed,
            start,
            ticket,
        } = opening;
        if self.0.shutdown.is_cancelled() {
            return Err(ApiError::shutting_down());
        }
        let question = feed.question(&caller, ticket.as_ref().map(|ticket| ticket.id));
        let held = match &start {
            Start::Resume(text) => Some(Place::open(&self.0.ring, &question, text)),
            Start::Now | Start::Behind(_) => None,
        };
        // Only who holds a place in a stream that the ticket has opened has opened one.
        if ticket.is_some_and(|ticket| !ticket.is_fresh()) && !matches!(held, Some(Ok(_))) {
            return Err(ApiError::unauthenticated());
        }
        let held = held.transpose()?;
        let open = self.0.openings.open(caller.tenant_id)?;
        if let Some(stream) = &feed.stream {
            self.0.reads.check_exists(&caller, stream).await?;
        }
        let reader = Reader::new(self.clone(), caller, feed, question, open, request::deadline());
        reader.begin(held, &start).await
    }
}
