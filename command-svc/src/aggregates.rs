//! The aggregates whose commands this process takes. A new one is one line in [`all`].

use std::sync::Arc;

use daybook_domain::aggregate::Aggregate;
use daybook_domain::aggregates::AGGREGATES;
use daybook_service::grpc::GrpcServices;
use daybook_service::metrics::{EventMoments, Moment, Registry};
use daybook_service::problems::DomainRule;
use prometheus_client::metrics::histogram::Histogram;

use crate::fingerprint::Fingerprints;
use crate::mailbox::{MailboxMetrics, Mailboxes};
use crate::metrics;
use crate::orders;
use crate::partitions::Partitions;
use crate::stock;

/// Every aggregate's service.
pub(crate) fn all(core: &Core) -> GrpcServices {
    GrpcServices::default()
        .with(orders::service(core))
        .with(stock::service(core))
}

/// The rules of every aggregate, for `GET /problems`.
pub(crate) fn rules() -> Vec<DomainRule> {
    let rules = AGGREGATES.iter().flat_map(|kind| kind.rules);
    rules
        .map(|&(code, explanation)| DomainRule { code, explanation })
        .collect()
}

/// What the service of every aggregate is made of.
#[derive(Debug)]
pub(crate) struct Core {
    /// The time from a request to the commit of its events.
    pub(crate) received_to_committed: Histogram,
    /// Tell whether a key comes with the same content again.
    pub(crate) fingerprints: Fingerprints,
    partitions: Partitions,
    mailbox_metrics: Arc<MailboxMetrics>,
}

impl Core {
    /// Works on these partitions.
    pub(crate) fn new(
        partitions: Partitions,
        fingerprints: Fingerprints,
        registry: &Registry,
        moments: &EventMoments,
    ) -> Self {
        Self {
            received_to_committed: moments.latency(Moment::Received, Moment::Committed),
            fingerprints,
            partitions,
            mailbox_metrics: metrics::register_mailboxes(registry),
        }
    }

    /// The mailboxes of an aggregate.
    pub(crate) fn mailboxes<A: Aggregate>(&self) -> Mailboxes<A> {
        Mailboxes::new(self.partitions.clone(), Arc::clone(&self.mailbox_metrics))
    }
}
