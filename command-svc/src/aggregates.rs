//! The aggregates whose commands this process takes. A new one is one line in [`all`].

use std::convert::Infallible;
use std::sync::Arc;

use axum::response::IntoResponse;
use daybook_service::grpc::GrpcServices;
use daybook_service::metrics::{EventMoments, Moment, Registry};
use daybook_service::problems::DomainRule;
use prometheus_client::metrics::histogram::Histogram;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::Request;
use tonic::server::NamedService;

use crate::aggregate::Aggregate;
use crate::mailbox::{MailboxMetrics, Mailboxes};
use crate::metrics;
use crate::orders;
use crate::partitions::Partitions;

/// Every aggregate's service, with the rules of its domain.
pub(crate) fn all(core: &Core) -> Aggregates {
    Aggregates::default().with(orders::service(core), orders::rules())
}

/// What the service of every aggregate is made of.
#[derive(Debug)]
pub(crate) struct Core {
    /// The time from a request to the commit of its events.
    pub(crate) received_to_committed: Histogram,
    partitions: Partitions,
    mailbox_metrics: Arc<MailboxMetrics>,
}

impl Core {
    /// Works on these partitions.
    pub(crate) fn new(partitions: Partitions, registry: &Registry, moments: &EventMoments) -> Self {
        Self {
            received_to_committed: moments.latency(Moment::Received, Moment::Committed),
            partitions,
            mailbox_metrics: metrics::register_mailboxes(registry),
        }
    }

    /// The mailboxes of an aggregate.
    pub(crate) fn mailboxes<A: Aggregate>(&self) -> Mailboxes<A> {
        Mailboxes::new(self.partitions.clone(), Arc::clone(&self.mailbox_metrics))
    }
}

/// Services, and the rules that their commands can be refused for.
#[derive(Debug, Default)]
pub(crate) struct Aggregates {
    pub(crate) services: GrpcServices,
    pub(crate) rules: Vec<DomainRule>,
}

impl Aggregates {
    fn with<S>(mut self, service: S, rules: impl IntoIterator<Item = DomainRule>) -> Self
    where
        S: Service<Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        self.services = self.services.with(service);
        self.rules.extend(rules);
        self
    }
}
