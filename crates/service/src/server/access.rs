//! The checks of every request between its route and its handler: who is let in, and with how much.
//!
//! Both transports go through this one layer. It asks the headers alone, before a byte of the body is read: who calls, whether
//! the route's scope is among theirs, and whether the body is as small as the route says. A route that declares nothing is
//! for nobody. On the routes of streams, and nowhere else, a ticket in the address may stand for the header.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use http::{Method, Version};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::body::pass_over;
use super::budget::{Admission, Budget, Claim, Terms, head_bytes, target_bytes};
use super::routes::{Callers, Declared, Needs};
use super::seats::{Caller, Holder};
use super::{Limits, Routes};
use crate::error::{ApiError, Code, RETRY_AFTER_DEFAULT};
use crate::identity::Authenticator;
use crate::metrics::{ServerMetrics, Transport};
use crate::request;

/// The name of a connection's share, as its refusal says it.
const QUOTA: &str = "requests without a key on one connection";

/// How many requests without an identity one connection may have open.
const ANONYMOUS_PER_CONNECTION: usize = 16;

/// How many probes one connection may have open besides: a watch of its health, and a question.
pub(super) const PROBES_PER_CONNECTION: usize = 2;

/// How many refusals that it does not take one connection may keep whatever others do; for more it needs room where all do.
pub(super) const REFUSALS_PER_CONNECTION: usize = 2;

/// Shared by the requests of one connection, in the extensions of each.
#[derive(Debug)]
pub(super) struct Connection {
    holder: Arc<Holder>,
    anonymous: Arc<Semaphore>,
    probes: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
}

impl Connection {
    pub(super) fn new(holder: Arc<Holder>) -> Arc<Self> {
        Arc::new(Self {
            holder,
            anonymous: Arc::new(Semaphore::new(ANONYMOUS_PER_CONNECTION)),
            probes: Arc::new(Semaphore::new(PROBES_PER_CONNECTION)),
            refusals: Arc::new(Semaphore::new(REFUSALS_PER_CONNECTION)),
        })
    }

    /// A place for a request without an identity, until its answer has been taken.
    fn place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.anonymous)
            .try_acquire_owned()
            .map_err(|_| ApiError::rate_limited(QUOTA, RETRY_AFTER_DEFAULT))
    }

    /// A place for a probe, until its answer has been taken.
    fn probe_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.probes).try_acquire_owned().ok()
    }

    /// Counts a refusal until it has been taken; `None` when there are too many that nobody takes.
    pub(super) fn claim_refusal(&self, refusals: &Arc<Budget>) -> Option<Arc<Claim>> {
        refusals.claim_refusal(Arc::clone(&self.refusals).try_acquire_owned().ok())
    }
}

/// The callers that are let in.
#[derive(Clone, Debug)]
pub enum Access {
    /// Anybody, everything: for the private listener, which callers never reach.
    Anybody,
    /// Callers with the scope that their route declares.
    Identified(Authenticator),
}

/// The checks before the requests of one transport.
#[derive(Clone, Debug)]
struct Gate {
    header_bytes_max: usize,
    uri_bytes_max: usize,
    access: Access,
    needs: Arc<HashMap<Arc<str>, Needs>>,
    budget: Arc<Budget>,
    /// Budget of requests without an identity where others need one.
    anonymous: Arc<Budget>,
    /// Budget of those that may go on for ever, so that they leave room for the others.
    anonymous_streams: Arc<Budget>,
    /// Budget of probes, on either listener.
    probes: Arc<Budget>,
    transport: Transport,
}

/// Puts a gate before everything that the routers have, their fallbacks included: HTTP, then gRPC.
pub(super) fn guard(routes: Routes, limits: &Limits, metrics: &ServerMetrics) -> (Declared, Declared) {
    let gauge = &metrics.request_bytes_in_flight;
    let budget = Arc::new(Budget::new(limits, gauge.clone()));
    let [anonymous, anonymous_streams] = [(); 2].map(|()| Arc::new(Budget::anonymous(gauge.clone())));
    let probes = Arc::new(Budget::of_probes(gauge.clone()));
    let guarded = |declared: Declared, transport| {
        let gate = Gate {
            header_bytes_max: limits.header_bytes_max as usize,
            uri_bytes_max: limits.uri_bytes_max as usize,
            access: routes.access.clone(),
            needs: Arc::clone(&declared.needs),
            budget: Arc::clone(&budget),
            anonymous: Arc::clone(&anonymous),
            anonymous_streams: Arc::clone(&anonymous_streams),
            probes: Arc::clone(&probes),
            transport,
        };
        declared.map_router(|router| router.layer(from_fn_with_state(gate, pass)))
    };
    (
        guarded(routes.http, Transport::Http),
        guarded(routes.grpc, Transport::Grpc),
    )
}

impl Gate {
    /// The needs of the request's route, if it declares any.
    fn needs(&self, request: &Request) -> Option<Needs> {
        let route = match self.transport {
            Transport::Http => request.extensions().get::<MatchedPath>()?.as_str(),
            Transport::Grpc => request.uri().path(),
        };
        let needs = self.needs.get(route).copied();
        let is_options = self.transport == Transport::Http && request.method() == Method::OPTIONS;
        // Which methods a route has is no secret.
        needs.map(|needs| if is_options { Needs::nothing() } else { needs })
    }

    /// Whether the head is as small as it has to be. The libraries read larger ones, so that they are refused here.
    fn check_head(&self, request: &Request) -> Result<(), ApiError> {
        if target_bytes(request) > self.uri_bytes_max {
            return Err(ApiError::uri_too_long(self.uri_bytes_max));
        }
        if head_bytes(request) > self.header_bytes_max {
            return Err(ApiError::headers_too_large(self.header_bytes_max));
        }
        Ok(())
    }

    fn no_such_route(&self) -> ApiError {
        match self.transport {
            Transport::Http => ApiError::new(Code::ResourceNotFound, "there is no such resource"),
            Transport::Grpc => ApiError::new(Code::MethodNotAllowed, "there is no such RPC"),
        }
    }
}

async fn pass(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let error = match admitted(&gate, &mut request).await {
        Ok(admission) => match admission.run(next.run(request)).await {
            Ok(answer) => return answer,
            Err(error) => error,
        },
        Err(error) => {
            if request.version() == Version::HTTP_2 {
                pass_over(request.into_body()).await;
            }
            error
        }
    };
    match gate.transport {
        Transport::Http => error.into_response(),
        Transport::Grpc => Status::from(error).into_http(),
    }
}

async fn admitted(gate: &Gate, request: &mut Request) -> Result<Admission, ApiError> {
    gate.check_head(request)?;
    let needs = gate.needs(request);
    let connection: Option<&Arc<Connection>> = request.extensions().get();
    let connection = Arc::clone(connection.expect("every request has come over a connection"));
    if let Some(needs) = needs.filter(|needs| needs.is_probe)
        && let Some(place) = connection.probe_place()
    {
        let terms = Terms {
            place: Some(place),
            ..Terms::new(needs)
        };
        return gate.probes.admit(request, gate.transport, terms);
    }
    let (budget, terms) = match (&gate.access, needs) {
        (Access::Anybody, _) => {
            connection.holder.is(Caller::Anybody);
            (&gate.budget, Terms::new(needs.unwrap_or(Needs::nothing())))
        }
        (Access::Identified(_), Some(needs)) if needs.callers == Callers::Everybody => {
            let terms = Terms {
                place: Some(connection.place()?),
                ..Terms::new(needs)
            };
            match needs.is_stream {
                true => (&gate.anonymous_streams, terms),
                false => (&gate.anonymous, terms),
            }
        }
        (Access::Identified(authenticator), _) => {
            let identity = match needs.filter(|needs| needs.takes_tickets) {
                Some(_) => authenticator.authenticate_or_ticket(request).await,
                None => authenticator.authenticate(request.headers()).await,
            };
            let identity = identity.inspect_err(|error| {
                if matches!(error.code(), Code::Unauthenticated) {
                    connection.holder.is(Caller::Anonymous);
                }
            })?;
            request::set_identity(&identity);
            connection.holder.is(Caller::Tenant(identity.tenant_id()));
            let needs = needs.ok_or_else(|| gate.no_such_route())?;
            needs.callers.require_of(&identity)?;
            let terms = Terms {
                tenant_id: identity.tenant_id(),
                ..Terms::new(needs)
            };
            request.extensions_mut().insert(identity);
            (&gate.budget, terms)
        }
    };
    budget.admit(request, gate.transport, terms)
}
