//! The aggregates whose commands this process takes: all that the domain lists.

use std::sync::{Arc, Mutex, PoisonError};

use daybook_domain::aggregate::Aggregate;
use daybook_domain::each_aggregate;
use daybook_proto::FILE_DESCRIPTOR_SET;
use daybook_service::grpc::GrpcServices;
use daybook_service::metrics::{EventMoments, Moment, Registry};
use daybook_service::problems::DomainRule;
use daybook_service::sealing::KeyRing;
use daybook_service::server::Declared;
use prometheus_client::metrics::histogram::Histogram;

use crate::batch::{BATCH_REFUSED, BATCH_REFUSED_EXPLANATION};
use crate::config::{Config, PublicUrl};
use crate::fingerprint::Fingerprints;
use crate::handler::{Commands, Handler};
use crate::home::{HandleForwarded, Homes};
use crate::http::Operations;
use crate::mailbox::{MailboxMetrics, Mailboxes};
use crate::operations::{Import, Importable, Imported, Importers};
use crate::partitions::Partitions;

/// The routes: over HTTP, and over gRPC.
type Transports = (Declared, GrpcServices);

/// The commands of every aggregate.
pub(crate) fn all(core: &Core) -> Transports {
    let each: &[fn(Transports, &Core) -> Transports] = &each_aggregate!(A => add::<A>);
    let none = (
        Declared::default(),
        GrpcServices::described_by(FILE_DESCRIPTOR_SET),
    );
    each.iter().fold(none, |transports, add| add(transports, core))
}

fn add<A: Commands + Imported>((http, grpc): Transports, core: &Core) -> Transports
where
    Handler<A>: HandleForwarded,
{
    let handler = Handler::<A>::new(core);
    core.add_importer(Arc::clone(&handler) as _);
    let routes = A::routes().served_by(Arc::clone(&handler), Arc::clone(&core.public_url));
    (http.merge(routes), A::add_service(grpc, handler))
}

/// The operations of every aggregate over HTTP.
pub(crate) fn operations() -> Vec<Operations> {
    each_aggregate!(A => <A as Commands>::routes().into_operations()).into()
}

/// What can be imported: every aggregate.
pub(crate) fn importable() -> Vec<Importable> {
    each_aggregate!(A => Importable::of::<A>()).into()
}

/// The rules of every aggregate, for `GET /problems`, and that of batches.
pub(crate) fn rules() -> Vec<DomainRule> {
    daybook_domain::aggregates::rules()
        .chain([(BATCH_REFUSED, BATCH_REFUSED_EXPLANATION)])
        .map(DomainRule::from)
        .collect()
}

/// Shared by the handlers of all aggregates.
pub(crate) struct Core {
    /// The time from a request to the commit of its events.
    pub(crate) received_to_committed: Histogram,
    /// Tell whether a key comes with the same content again.
    pub(crate) fingerprints: Fingerprints,
    /// Seals the tokens of receipts.
    pub(crate) sealing: KeyRing,
    /// The homes of contended aggregates.
    pub(crate) homes: Arc<Homes>,
    /// Base URL of `Location`.
    public_url: Arc<str>,
    handlers: Mutex<Vec<Arc<dyn HandleForwarded>>>,
    importers: Mutex<Vec<Arc<dyn Import>>>,
    partitions: Partitions,
    mailbox_metrics: Arc<MailboxMetrics>,
    state_cache_bytes: usize,
}

impl Core {
    /// Works on these partitions.
    pub(crate) fn new(
        partitions: Partitions,
        fingerprints: Fingerprints,
        sealing: KeyRing,
        homes: Arc<Homes>,
        config: &Config,
        registry: &Registry,
        moments: &EventMoments,
    ) -> Self {
        Self {
            received_to_committed: moments.latency(Moment::Received, Moment::Committed),
            fingerprints,
            sealing,
            homes,
            public_url: config.public_url.as_ref().map_or("", PublicUrl::as_str).into(),
            handlers: Mutex::default(),
            importers: Mutex::default(),
            partitions,
            mailbox_metrics: Arc::new(MailboxMetrics::new(registry)),
            state_cache_bytes: config.state_cache_bytes(),
        }
    }

    /// Has a handler take its part of what other replicas forward.
    pub(crate) fn add_handler(&self, handler: Arc<dyn HandleForwarded>) {
        self.handlers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(handler);
    }

    /// The handlers of every aggregate.
    pub(crate) fn handlers(&self) -> Vec<Arc<dyn HandleForwarded>> {
        self.handlers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Has a handler take the lines of imports of its kind.
    fn add_importer(&self, importer: Arc<dyn Import>) {
        self.importers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(importer);
    }

    /// The importers of all aggregates.
    pub(crate) fn importers(&self) -> Importers {
        let importers = self.importers.lock().unwrap_or_else(PoisonError::into_inner);
        importers.iter().map(Arc::clone).collect()
    }

    /// The mailboxes of an aggregate.
    pub(crate) fn mailboxes<A: Aggregate>(&self) -> Mailboxes<A> {
        let (partitions, metrics) = (self.partitions.clone(), Arc::clone(&self.mailbox_metrics));
        Mailboxes::new(partitions, self.state_cache_bytes, metrics)
    }
}
