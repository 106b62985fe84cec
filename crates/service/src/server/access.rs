//! Who is let in, and with how much: what every request goes through between its route and its handler.
//!
//! Both transports go through this one layer. It asks the headers alone, before a byte of the body is read: who calls, whether
//! the route's scope is among theirs, and whether the body is as small as the route says. A route that declares nothing is
//! for nobody.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use tonic::Status;

use super::budget::Budget;
use super::routes::{Declared, Needs};
use super::{Limits, Routes};
use crate::error::{ApiError, Code};
use crate::identity::Authenticator;
use crate::metrics::{ServerMetrics, Transport};

/// Who may call.
#[derive(Clone, Debug)]
pub enum Access {
    /// Anybody, everything: for the private listener, which callers never reach.
    Anybody,
    /// Callers with the scope that their route declares.
    Identified(Authenticator),
}

/// What the requests of one transport go through.
#[derive(Clone, Debug)]
struct Gate {
    access: Access,
    needs: Arc<HashMap<Arc<str>, Needs>>,
    budget: Arc<Budget>,
    /// Of requests without an identity where others need one.
    strangers: Arc<Budget>,
    transport: Transport,
}

/// Puts a gate before everything that the routers have, their fallbacks included: HTTP, then gRPC.
pub(super) fn guard(routes: Routes, limits: &Limits, metrics: &ServerMetrics) -> (Declared, Declared) {
    let gauge = &metrics.request_bytes_in_flight;
    let budget = Arc::new(Budget::new(limits, gauge.clone()));
    let strangers = Arc::new(Budget::of_strangers(gauge.clone()));
    let guarded = |declared: Declared, transport| {
        let gate = Gate {
            access: routes.access.clone(),
            needs: Arc::clone(&declared.needs),
            budget: Arc::clone(&budget),
            strangers: Arc::clone(&strangers),
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
    /// What the request's route needs, if it is declared.
    fn needs(&self, request: &Request) -> Option<Needs> {
        let route = match self.transport {
            Transport::Http => request.extensions().get::<MatchedPath>()?.as_str(),
            Transport::Grpc => request.uri().path(),
        };
        self.needs.get(route).copied()
    }

    fn no_such_route(&self) -> ApiError {
        match self.transport {
            Transport::Http => ApiError::new(Code::ResourceNotFound, "there is no such resource"),
            Transport::Grpc => ApiError::new(Code::MethodNotAllowed, "there is no such RPC"),
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
    let (budget, tenant_id, body_bytes_max) = match (&gate.access, gate.needs(&request)) {
        (Access::Anybody, needs) => {
            let needs = needs.unwrap_or(Needs::nothing());
            (&gate.budget, None, needs.body_bytes_max)
        }
        (
            Access::Identified(_),
            Some(Needs {
                scope: None,
                body_bytes_max,
            }),
        ) => (&gate.strangers, None, body_bytes_max),
        (Access::Identified(authenticator), needs) => {
            let identity = authenticator.authenticate(request.headers()).await?;
            let needs = needs.ok_or_else(|| gate.no_such_route())?;
            if let Some(scope) = needs.scope {
                identity.require(scope)?;
            }
            let tenant_id = identity.tenant_id();
            request.extensions_mut().insert(identity);
            (&gate.budget, tenant_id, needs.body_bytes_max)
        }
    };
    let (request, admission) = budget.admit(request, tenant_id, gate.transport, body_bytes_max)?;
    admission.run(next.run(request)).await
}
