//! One line in the log for each request: what was asked for, by whom, and how it was answered.
//!
//! It says the template of the route and never the address, so that neither a query string nor an id gets into a log. A line
//! is written when the head of an answer goes out, as metrics count it; or when the caller goes away before that, and then
//! it has no status. Requests of the private listener have none.

use std::sync::Arc;

use tokio::time::Instant;

use crate::identity::Identity;
use crate::metrics::{Transport, standard_method};
use crate::request::{self, RequestId};

/// The target of the lines in `DAYBOOK_LOG`: `info,daybook::requests=off` leaves them out.
const TARGET: &str = "daybook::requests";

/// The line of one request, written when it is dropped.
pub(super) struct Line {
    transport: Transport,
    /// The method, where HTTP has such a one.
    method: Option<http::Method>,
    /// For gRPC, what is called.
    rpc: Option<Arc<str>>,
    started: Instant,
    status: Option<u16>,
}

impl Line {
    /// A request to this RPC, if there is such a one.
    pub(super) fn of_rpc(rpc: Option<Arc<str>>, started: Instant) -> Self {
        Self {
            transport: Transport::Grpc,
            method: None,
            rpc,
            started,
            status: None,
        }
    }

    /// A request over HTTP, whose route is not known yet.
    pub(super) fn of_http(method: &http::Method, started: Instant) -> Self {
        Self {
            transport: Transport::Http,
            method: standard_method(method),
            rpc: None,
            started,
            status: None,
        }
    }

    /// Notes how it was answered: the status of HTTP, or the number of that of gRPC.
    pub(super) fn answered(mut self, status: u16) {
        self.status = Some(status);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !tracing::enabled!(target: TARGET, tracing::Level::INFO) {
            return;
        }
        let id = RequestId::current();
        let principal = request::identity().as_ref().map(Identity::credential);
        let matched = request::route();
        let route = self
            .rpc
            .as_deref()
            .or_else(|| matched.as_ref().map(|route| route.as_str()));
        let outcome = match self.status {
            Some(_) => "answered",
            None => "the caller went away",
        };
        let duration_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::info!(
            target: TARGET,
            {
                request.id = id.as_ref().map(RequestId::as_str),
                request.transport = self.transport.as_str(),
                request.method = self.method.as_ref().map(http::Method::as_str),
                request.route = route,
                request.status = self.status,
                request.duration_us = duration_us,
                request.principal = principal,
            },
            "{outcome}"
        );
    }
}
