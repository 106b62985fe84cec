//! Who is let in, and with how much: what every request goes through between its route and its handler.
//!
//! The identity comes from the headers alone and is settled before a byte of the body is read, for both transports. Every
//! route needs one, and so does a path that leads nowhere; [`PUBLIC_ROUTES`] are the exceptions.

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use tonic::Status;

use super::Limits;
use super::budget::Budget;
use crate::error::ApiError;
use crate::identity::Authenticator;
use crate::metrics::{ServerMetrics, Transport};

/// The routes that need no identity, as they are matched.
const PUBLIC_ROUTES: [&str; 7] = [
    "/healthz",
    "/openapi.json",
    "/problems",
    "/problems/{slug}",
    "/grpc.health.v1.Health/{*rest}",
    "/grpc.reflection.v1.ServerReflection/{*rest}",
    "/grpc.reflection.v1alpha.ServerReflection/{*rest}",
];

/// The largest body of a request without an identity, in bytes: the name of a service, or questions of reflection.
pub const PUBLIC_BODY_BYTES_MAX: usize = 64 * 1_024;

/// Who may call.
#[derive(Clone, Debug)]
pub enum Access {
    /// Anybody, everything: for the private listener, which callers never reach.
    Anybody,
    /// Callers whose credential the authenticator knows. Only health, reflection and descriptions are for anybody.
    Identified(Authenticator),
}

/// What the requests of one transport go through.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    pub(super) access: Access,
    pub(super) budget: Arc<Budget>,
    /// Of requests without an identity where others need one.
    pub(super) strangers: Arc<Budget>,
    pub(super) transport: Transport,
}

impl Gate {
    /// The gates of both transports, HTTP first.
    pub(super) fn both(access: &Access, limits: &Limits, metrics: &ServerMetrics) -> [Self; 2] {
        let bytes_in_flight = metrics.request_bytes_in_flight.clone();
        let strangers = match access {
            Access::Anybody => Budget::new(limits, bytes_in_flight.clone()),
            Access::Identified(_) => Budget::of_strangers(bytes_in_flight.clone()),
        };
        let (budget, strangers) = (
            Arc::new(Budget::new(limits, bytes_in_flight)),
            Arc::new(strangers),
        );
        [Transport::Http, Transport::Grpc].map(|transport| Self {
            access: access.clone(),
            budget: Arc::clone(&budget),
            strangers: Arc::clone(&strangers),
            transport,
        })
    }

    /// Puts the gate before everything that the router has, its fallback included.
    pub(super) fn before(self, router: Router) -> Router {
        router.layer(from_fn_with_state(self, pass))
    }

    /// The authenticator, where the request needs an identity.
    fn authenticator(&self, request: &Request) -> Option<&Authenticator> {
        let route = request.extensions().get::<MatchedPath>();
        match &self.access {
            Access::Identified(_) if route.is_some_and(|route| PUBLIC_ROUTES.contains(&route.as_str())) => {
                None
            }
            Access::Identified(authenticator) => Some(authenticator),
            Access::Anybody => None,
        }
    }
}

async fn pass(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    match admitted(&gate, request, next).await {
        Ok(response) => response,
        Err(error) => match gate.transport {
            Transport::Http => error.into_response(),
            Transport::Grpc => Status::from(error).into_http(),
        },
    }
}

async fn admitted(gate: &Gate, mut request: Request, next: Next) -> Result<Response, ApiError> {
    let (mut tenant_id, mut body_bytes_max, mut budget) = (None, PUBLIC_BODY_BYTES_MAX, &gate.strangers);
    if let Some(authenticator) = gate.authenticator(&request) {
        let identity = authenticator.authenticate(request.headers()).await?;
        (tenant_id, body_bytes_max, budget) = (identity.tenant_id(), usize::MAX, &gate.budget);
        request.extensions_mut().insert(identity);
    }
    let (request, admission) = budget.admit(request, tenant_id, gate.transport, body_bytes_max)?;
    admission.run(next.run(request)).await
}
