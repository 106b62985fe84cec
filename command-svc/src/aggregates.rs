//! The aggregates whose commands this process takes. A new one is one line in [`all`].

use std::sync::{Arc, Mutex, PoisonError};

use daybook_domain::aggregate::Aggregate;
use daybook_domain::aggregates::AGGREGATES;
use daybook_domain::{order, stock};
use daybook_proto::FILE_DESCRIPTOR_SET;
use daybook_service::grpc::GrpcServices;
use daybook_service::metrics::{EventMoments, Moment, Registry};
use daybook_service::problems::DomainRule;
use daybook_service::sealing::KeyRing;
use daybook_service::server::Needs;
use prometheus_client::metrics::histogram::Histogram;

use crate::COMMAND_BYTES_MAX;
use crate::fingerprint::Fingerprints;
use crate::handler::Served;
use crate::home::{HandleForwarded, Homes};
use crate::mailbox::{MailboxMetrics, Mailboxes};
use crate::partitions::Partitions;

/// Every aggregate's service.
pub(crate) fn all(core: &Core) -> GrpcServices {
    GrpcServices::described_by(FILE_DESCRIPTOR_SET)
        .with(crate::orders::service(core), commands::<order::State>())
        .with(crate::stock::service(core), commands::<stock::State>())
}

/// What the commands of an aggregate need of their callers.
fn commands<A: Served>() -> Needs {
    Needs::scope(A::SCOPE).with_message(COMMAND_BYTES_MAX)
}

/// The rules of every aggregate, for `GET /problems`.
pub(crate) fn rules() -> Vec<DomainRule> {
    let rules = AGGREGATES.iter().flat_map(|kind| kind.rules);
    rules
        .map(|&(code, explanation)| DomainRule { code, explanation })
        .collect()
}

/// What the service of every aggregate is made of.
pub(crate) struct Core {
    /// The time from a request to the commit of its events.
    pub(crate) received_to_committed: Histogram,
    /// Tell whether a key comes with the same content again.
    pub(crate) fingerprints: Fingerprints,
    /// Seals the tokens of receipts.
    pub(crate) sealing: KeyRing,
    /// The homes of contended aggregates.
    pub(crate) homes: Arc<Homes>,
    handlers: Mutex<Vec<Arc<dyn HandleForwarded>>>,
    partitions: Partitions,
    mailbox_metrics: Arc<MailboxMetrics>,
}

impl Core {
    /// Works on these partitions.
    pub(crate) fn new(
        partitions: Partitions,
        fingerprints: Fingerprints,
        sealing: KeyRing,
        homes: Arc<Homes>,
        registry: &Registry,
        moments: &EventMoments,
    ) -> Self {
        Self {
            received_to_committed: moments.latency(Moment::Received, Moment::Committed),
            fingerprints,
            sealing,
            homes,
            handlers: Mutex::default(),
            partitions,
            mailbox_metrics: Arc::new(MailboxMetrics::new(registry)),
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

    /// The mailboxes of an aggregate.
    pub(crate) fn mailboxes<A: Aggregate>(&self) -> Mailboxes<A> {
        Mailboxes::new(self.partitions.clone(), Arc::clone(&self.mailbox_metrics))
    }
}
