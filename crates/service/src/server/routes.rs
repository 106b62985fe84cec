//! What each route needs of its callers. It is said where the route is made, and judged before a byte of the body is read.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::ensure;
use axum::Router;

use super::body::MESSAGE_PREFIX_BYTES;
use crate::error::ApiError;
use crate::identity::{Identity, Scope};

/// The largest body of a request where its route says nothing else, and of every request without an identity, in bytes: a
/// filter and a cursor, the name of a service, or questions of reflection.
const BODY_BYTES_MAX: usize = 64 * 1_024;

/// The largest body of a probe, in bytes: the name of a service.
pub(super) const PROBE_BODY_BYTES_MAX: usize = 4 * 1_024;

/// All that is answered without a key, of any service: how the process is, what is said about it, and, in development, what it
/// offers. None of it asks a database or makes a document anew. A service with another route for everybody does not start.
pub const ANONYMOUS: [&str; 9] = [
    "/healthz",
    "/problems",
    "/problems/{slug}",
    "/openapi.json",
    "/docs",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Callers {
    /// Everybody, with or without a key.
    Everybody,
    /// Whoever has a key. What the key has to be good for depends on the request, and the handler asks for it.
    Known,
    /// Whoever has a key with this scope.
    With(Scope),
    /// Whoever has a key with one of these scopes. The handler asks which of them the request needs.
    WithAny(&'static [Scope]),
}

impl Callers {
    /// Checks that somebody is one of them.
    pub(super) fn require_of(self, identity: &Identity) -> Result<(), ApiError> {
        match self {
            Self::Everybody | Self::Known => Ok(()),
            Self::With(scope) => identity.require(scope),
            Self::WithAny(scopes) => {
                let mut asked = scopes.iter().map(|scope| identity.require(*scope));
                let first = asked.next().unwrap_or_else(|| Err(ApiError::unauthenticated()));
                first.or_else(|missing| match asked.any(|asked| asked.is_ok()) {
                    true => Ok(()),
                    false => Err(missing),
                })
            }
        }
    }
}

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    pub(super) callers: Callers,
    /// Whether a ticket in the address may stand for the key.
    pub(super) takes_tickets: bool,
    pub(super) body_bytes_max: usize,
    /// Whether its requests or its answers may go on for ever.
    pub(super) is_stream: bool,
    /// Whether its handler takes a body in parts, in its own time.
    pub(super) is_upload: bool,
    /// Whether it only says how the process is.
    pub(super) is_probe: bool,
}

impl Needs {
    /// Nothing: the route is for everybody, with or without a key.
    #[must_use]
    pub const fn nothing() -> Self {
        Self {
            callers: Callers::Everybody,
            takes_tickets: false,
            body_bytes_max: BODY_BYTES_MAX,
            is_stream: false,
            is_upload: false,
            is_probe: false,
        }
    }

    /// Nothing, and little at all: it says how the process is, and is answered whatever else strangers do.
    #[must_use]
    pub const fn probe() -> Self {
        Self {
            body_bytes_max: PROBE_BODY_BYTES_MAX,
            is_probe: true,
            ..Self::nothing()
        }
    }

    /// A key with this scope. The scope says of which kind: a tenant's, or the deployment's.
    #[must_use]
    pub const fn scope(scope: Scope) -> Self {
        Self {
            callers: Callers::With(scope),
            ..Self::nothing()
        }
    }

    /// A key, of whatever kind. The handler asks for the scope that the request needs.
    #[must_use]
    pub const fn key() -> Self {
        Self {
            callers: Callers::Known,
            ..Self::nothing()
        }
    }

    /// A key with one of these scopes: its handler asks which of them it takes.
    #[must_use]
    pub const fn any(scopes: &'static [Scope]) -> Self {
        Self {
            callers: Callers::WithAny(scopes),
            ..Self::nothing()
        }
    }

    /// The same, and a body of at most this size that its handler takes in parts: however long it is, it holds no more memory
    /// than [`super::UPLOAD_BYTES`], and [`super::Limits::request_timeout`] does not end it. Its handler sees to it that it goes on.
    #[must_use]
    pub const fn uploading(self, bytes_max: usize) -> Self {
        Self {
            is_upload: true,
            ..self.with_body(bytes_max)
        }
    }

    /// The same, and a gRPC message of at most this size.
    #[must_use]
    pub const fn with_message(self, bytes_max: usize) -> Self {
        self.with_body(bytes_max + MESSAGE_PREFIX_BYTES)
    }

    /// The same, and a body of at most this size.
    #[must_use]
    pub const fn with_body(self, bytes_max: usize) -> Self {
        Self {
            body_bytes_max: bytes_max,
            ..self
        }
    }

    /// The same, of a call that may go on for as long as its connection.
    #[must_use]
    pub const fn streaming(self) -> Self {
        Self {
            is_stream: true,
            ..self
        }
    }

    /// The same, where a ticket in the address may stand for the key (see [`crate::tickets`]).
    #[must_use]
    pub const fn or_ticket(self) -> Self {
        Self {
            takes_tickets: true,
            ..self
        }
    }
}

/// A router, and what its routes need. A route that is not declared answers nobody: whoever has a key is told that there is
/// no such thing.
#[derive(Clone, Debug, Default)]
pub struct Declared {
    pub(super) router: Router,
    pub(super) needs: Arc<HashMap<Arc<str>, Needs>>,
}

/// Routes that declare nothing, for [`super::Access::Anybody`].
impl From<Router> for Declared {
    fn from(router: Router) -> Self {
        Self {
            router,
            needs: Arc::default(),
        }
    }
}

impl Declared {
    /// Declares routes: gRPC methods as they are called (`/daybook.orders.v1.OrderService/PlaceOrder`), everything else as
    /// axum matches it (`/v1/orders/{id}`).
    pub fn new<R: Into<Arc<str>>>(router: Router, needs: impl IntoIterator<Item = (R, Needs)>) -> Self {
        let needs = needs.into_iter().map(|(route, needs)| (route.into(), needs));
        Self {
            router,
            needs: Arc::new(needs.collect()),
        }
    }

    /// These routes and those of another.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let needs = self.needs.iter().chain(other.needs.iter());
        Self {
            needs: Arc::new(needs.map(|(route, needs)| (Arc::clone(route), *needs)).collect()),
            router: self.router.merge(other.router),
        }
    }

    /// The same routes in another router: layers.
    #[must_use]
    pub fn map_router(self, change: impl FnOnce(Router) -> Router) -> Self {
        Self {
            router: change(self.router),
            needs: self.needs,
        }
    }

    /// Checks that nothing else is for everybody than what is meant to be.
    pub(crate) fn check_anonymous(&self) -> anyhow::Result<()> {
        for (route, needs) in &*self.needs {
            let is_listed = ANONYMOUS.contains(&&**route);
            ensure!(
                needs.callers != Callers::Everybody || is_listed,
                "{route} must not be for everybody"
            );
        }
        Ok(())
    }

    /// The name of the gRPC method at this path, if there is one.
    pub(super) fn method(&self, path: &str) -> Option<Arc<str>> {
        self.needs
            .get_key_value(path)
            .map(|(method, _)| Arc::clone(method))
    }
}
