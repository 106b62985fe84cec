//! One mailbox per aggregate: commands are decided one after another against the newest state in memory.
//!
//! A command does not wait for the append of the one before it: it is decided on what that one would lead to, and both
//! travel as a chain in one batch. So a hot aggregate takes as many commands as the log takes, and not one per commit.
//!
//! A state in memory may be wrong at any time. Each command names the event that it was decided on, and the append judges
//! that: where another process wrote in between, nothing is recorded, the state is forgotten, and the command is decided
//! again on what the log says. Refusals by the domain go the same way, without events, so that nobody is refused because
//! of an event that was never committed.
//!
//! A command belongs to the mailbox from its admission to its answer, and so does the load of the aggregate: a caller that
//! goes away stops nothing but its own wait.

mod cache;
mod cached;
mod contended;
mod load;
mod slot;
mod together;

use std::fmt;
use std::sync::Arc;

use daybook_domain::aggregate::Aggregate;
use daybook_event_store::{NotAdmitted, Receipt, Unanswered};
use daybook_service::metrics::Registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use thiserror::Error;
use tokio::sync::oneshot;
use uuid::Uuid;

use self::cache::Cache;
pub(crate) use self::cache::Stream;
pub use self::contended::Contended;
pub use self::load::{LoadError, ReadStream, load_shares};
use self::slot::{ATTEMPTS_MAX, Mailbox, Pending};
pub use self::together::{Identity, Item, NewBatch, OfBatch, Together};
use crate::partitions::{Partition, Partitions};

/// A command and what is recorded with it.
#[derive(Debug, Clone)]
pub struct Envelope<C> {
    /// The tenant's partition of the log.
    pub partition: i32,
    /// Whose aggregate it is.
    pub tenant_id: Uuid,
    /// The aggregate.
    pub stream_id: Arc<str>,
    /// The caller's idempotency key.
    pub key: Arc<str>,
    /// Keyed hashes of the command's content; the first is stored.
    pub fingerprints: Vec<i64>,
    /// The version that the caller expects the aggregate to have.
    pub expected_version: Option<u64>,
    /// [`daybook_event_store::Metadata`] as JSON.
    pub metadata: Arc<str>,
    /// The size of the request that it came in.
    pub request_bytes: usize,
    /// The command.
    pub command: C,
}

impl<C> Envelope<C> {
    /// The tenant and the aggregate.
    pub(crate) fn stream(&self) -> Stream {
        (self.tenant_id, Arc::clone(&self.stream_id))
    }
}

/// What became of a command.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was recorded; a refusal by the domain is in it.
    pub receipt: Receipt,
    /// Whether it was recorded before, under the same key.
    pub is_replay: bool,
}

/// Why a command has no outcome. Nothing was written, unless the outcome is unknown.
#[derive(Debug, Clone, Error)]
pub enum HandleError {
    /// The aggregate has another version than the caller expects.
    #[error("the aggregate is at version {actual}, not {expected}")]
    VersionConflict {
        /// What the caller expects.
        expected: u64,
        /// What it is.
        actual: u64,
    },
    /// The key was used before with other content.
    #[error("the idempotency key was used for another command")]
    KeyReused,
    /// There is no such aggregate.
    #[error("there is no such aggregate")]
    NotFound,
    /// This process does not serve the tenant's partition yet.
    #[error("this replica does not serve the tenant's partition")]
    NoPartition,
    /// Too much is under way already.
    #[error(transparent)]
    NotAdmitted(#[from] NotAdmitted),
    /// Other processes kept writing to the aggregate.
    #[error("other processes keep writing to the aggregate")]
    Contended,
    /// The aggregate could not be loaded.
    #[error("cannot load the aggregate")]
    Load(#[source] Arc<LoadError>),
    /// The domain panicked; its state in memory was given up.
    #[error("the domain panicked: {0}")]
    Panicked(Arc<str>),
    /// There is no verdict on the append.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
}

/// Counters of mailboxes.
#[derive(Debug, Default)]
pub struct MailboxMetrics {
    /// Commands that had to be decided again.
    retries: Counter,
    /// Aggregates that were loaded from the log.
    loads: Counter,
    /// Bytes of aggregates in memory.
    bytes: Gauge,
}

impl MailboxMetrics {
    /// Registers the metrics of the mailboxes of every kind of aggregate.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            retries: registry.register(
                "mailbox_retries",
                "Commands decided again because another process wrote",
                Counter::default(),
            ),
            loads: registry.register(
                "mailbox_loads",
                "Aggregates loaded from the log",
                Counter::default(),
            ),
            bytes: registry.register("mailbox_bytes", "Bytes of aggregates in memory", Gauge::default()),
        }
    }
}

/// The mailboxes of one kind of aggregate. Cheap to clone.
pub struct Mailboxes<A: Aggregate> {
    partitions: Partitions,
    cache: Arc<Cache<A>>,
    contended: Arc<Contended>,
    metrics: Arc<MailboxMetrics>,
}

impl<A: Aggregate> Clone for Mailboxes<A> {
    fn clone(&self) -> Self {
        Self {
            partitions: self.partitions.clone(),
            cache: Arc::clone(&self.cache),
            contended: Arc::clone(&self.contended),
            metrics: Arc::clone(&self.metrics),
        }
    }
}

impl<A: Aggregate> fmt::Debug for Mailboxes<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailboxes")
            .field("category", &A::CATEGORY)
            .finish_non_exhaustive()
    }
}

impl<A: Aggregate> Mailboxes<A> {
    /// Loads from and appends to `partitions`, keeps about `cache_bytes_max` of states in memory, and counts in `metrics`.
    #[must_use]
    pub fn new(partitions: Partitions, cache_bytes_max: usize, metrics: Arc<MailboxMetrics>) -> Self {
        Self {
            partitions,
            cache: Arc::new(Cache::new(cache_bytes_max, Arc::clone(&metrics))),
            contended: Arc::default(),
            metrics,
        }
    }

    /// The aggregates that other replicas write to as well.
    #[must_use]
    pub fn contended(&self) -> &Contended {
        &self.contended
    }

    fn partition(&self, number: i32) -> Result<&Partition, HandleError> {
        self.partitions.get(number).ok_or(HandleError::NoPartition)
    }

    /// Decides a command, appends what it leads to, and waits for the verdict.
    ///
    /// When the future is dropped the command may be recorded all the same; its key finds out.
    ///
    /// # Errors
    /// See [`HandleError`].
    pub async fn handle(
        &self,
        envelope: impl Into<Arc<Envelope<A::Command>>>,
    ) -> Result<Outcome, HandleError> {
        self.handle_within(envelope.into(), ATTEMPTS_MAX).await
    }

    /// As [`Self::handle`], but decides a command at most so many times before it is [`HandleError::Contended`].
    ///
    /// # Errors
    /// See [`HandleError`].
    pub async fn handle_within(
        &self,
        envelope: Arc<Envelope<A::Command>>,
        attempts_max: u32,
    ) -> Result<Outcome, HandleError> {
        let partition = self.partition(envelope.partition)?;
        let permit = partition
            .appender
            .admit(envelope.tenant_id, envelope.request_bytes)?;
        let stream = envelope.stream();
        let mailbox = self.cache.get_or_insert(&stream, || {
            let (contended, metrics) = (Arc::clone(&self.contended), Arc::clone(&self.metrics));
            Mailbox::new(stream.clone(), partition.clone(), contended, metrics, &self.cache)
        });
        let (reply, outcome) = oneshot::channel();
        mailbox.accept(Pending::new(envelope, permit, reply, attempts_max));
        drop(mailbox);
        outcome.await.unwrap_or(Err(Unanswered::Stopped.into()))
    }
}
