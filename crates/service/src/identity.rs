//! Who is calling: API keys, the identity behind one, and what it may do.
//!
//! There are two kinds. A **tenant's** principal works with the data of its tenant; the **deployment's** operator belongs
//! to no tenant, sees no tenant's data, and is the only one that may operate projections and administer tenants.
//!
//! The server settles the identity from the headers alone, before it reads a byte of the body, and puts an [`Identity`]
//! into the request's extensions. It refuses whoever has not the scope that the route declares ([`Identity::require`]); a
//! handler finds its caller with [`principal_with`] or [`operator_with`], which ask for the kind and the scope again.

mod api_key;
mod authenticator;
mod lookup;
mod scope;

use std::sync::Arc;

use http::Extensions;
use uuid::Uuid;

pub use api_key::{KeyHash, NewApiKey, api_key_prefix, generate_api_key, hash_api_key};
pub use authenticator::Authenticator;
pub use lookup::{KEY_REFRESH_INTERVAL, KEY_TRUST_MAX, KeyAges, LOOKUP_TIMEOUT, LOOKUPS_WAITING_MAX};
pub use scope::{Audience, Scope, ScopeSet};

use crate::error::ApiError;

/// Whose credential it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A tenant's.
    Tenant(Arc<Principal>),
    /// The deployment's, which belongs to no tenant.
    Deployment(Arc<Operator>),
}

/// A tenant's caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The tenant that the credential belongs to. It alone decides the tenant; a request never names one.
    pub tenant_id: Uuid,
    /// The partition of the log that holds all of this tenant.
    pub tenant_partition: i32,
    /// The public prefix of the API key.
    pub key_prefix: String,
    /// The name that the key was given when it was made.
    pub name: String,
    /// Its scopes.
    pub scopes: ScopeSet,
}

impl Principal {
    /// The credential as events record it: `key:ab12cd34`.
    #[must_use]
    pub fn credential(&self) -> String {
        credential(&self.key_prefix)
    }
}

/// The deployment's caller: it operates projections and administers tenants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// The public prefix of the API key.
    pub key_prefix: String,
    /// The name that the key was given when it was made.
    pub name: String,
    /// Its scopes.
    pub scopes: ScopeSet,
}

impl Operator {
    /// The credential as it is recorded: `key:ab12cd34`.
    #[must_use]
    pub fn credential(&self) -> String {
        credential(&self.key_prefix)
    }
}

fn credential(key_prefix: &str) -> String {
    format!("key:{key_prefix}")
}

impl Identity {
    /// The tenant that the credential belongs to, if it belongs to one.
    #[must_use]
    pub fn tenant_id(&self) -> Option<Uuid> {
        match self {
            Self::Tenant(principal) => Some(principal.tenant_id),
            Self::Deployment(_) => None,
        }
    }

    /// The credential as it is recorded: `key:ab12cd34`.
    #[must_use]
    pub fn credential(&self) -> String {
        match self {
            Self::Tenant(principal) => principal.credential(),
            Self::Deployment(operator) => operator.credential(),
        }
    }

    /// Asks for a scope, and so for the kind of credential that can have it.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`, which names the scope.
    pub fn require(&self, scope: Scope) -> Result<(), ApiError> {
        let (scopes, is_deployments) = match self {
            Self::Tenant(principal) => (principal.scopes, false),
            Self::Deployment(operator) => (operator.scopes, true),
        };
        if scopes.contains(scope) && is_deployments == scope.is_deployments() {
            Ok(())
        } else {
            Err(ApiError::permission_denied(scope.as_str()))
        }
    }
}

/// The tenant's caller of a request, by the extensions of the request. Whether it has the scope is settled by the server, from
/// what the route declares.
///
/// # Errors
/// `INTERNAL` for anybody else: the route does not declare a tenant's scope.
pub fn principal(extensions: &Extensions) -> Result<Arc<Principal>, ApiError> {
    match extensions.get() {
        Some(Identity::Tenant(principal)) => Ok(Arc::clone(principal)),
        Some(Identity::Deployment(_)) | None => {
            Err(ApiError::internal("the route declares no tenant's scope"))
        }
    }
}

/// The tenant's caller of a request, by the extensions of the request, if it has the scope.
///
/// # Errors
/// `PERMISSION_DENIED`, which names the scope, without it and for the deployment's operators; `UNAUTHENTICATED` where the
/// server did not ask for an identity.
pub fn principal_with(extensions: &Extensions, scope: Scope) -> Result<Arc<Principal>, ApiError> {
    match extensions.get() {
        Some(Identity::Tenant(principal)) if principal.scopes.contains(scope) => Ok(Arc::clone(principal)),
        Some(_) => Err(ApiError::permission_denied(scope.as_str())),
        None => Err(ApiError::unauthenticated()),
    }
}

/// The deployment's operator who sent a request, by the extensions of the request, if it has the scope.
///
/// # Errors
/// `PERMISSION_DENIED`, which names the scope, without it and for tenants' callers; `UNAUTHENTICATED` where the server did
/// not ask for an identity.
pub fn operator_with(extensions: &Extensions, scope: Scope) -> Result<Arc<Operator>, ApiError> {
    match extensions.get() {
        Some(Identity::Deployment(operator)) if operator.scopes.contains(scope) => Ok(Arc::clone(operator)),
        Some(_) => Err(ApiError::permission_denied(scope.as_str())),
        None => Err(ApiError::unauthenticated()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(scopes: ScopeSet) -> Identity {
        Identity::Tenant(Arc::new(Principal {
            tenant_id: Uuid::nil(),
            tenant_partition: 0,
            key_prefix: "ab345678".to_owned(),
            name: "test".to_owned(),
            scopes,
        }))
    }

    fn operator(scopes: ScopeSet) -> Identity {
        Identity::Deployment(Arc::new(Operator {
            key_prefix: "ab345678".to_owned(),
            name: "test".to_owned(),
            scopes,
        }))
    }

    fn extensions(identity: Identity) -> Extensions {
        let mut extensions = Extensions::new();
        extensions.insert(identity);
        extensions
    }

    fn missing_scope(refused: ApiError) -> String {
        let problem = refused.to_problem();
        assert_eq!(problem["code"], "PERMISSION_DENIED");
        problem["missing_scope"].as_str().expect("a scope").to_owned()
    }

    #[test]
    fn a_scope_that_is_missing_is_refused_and_an_unknown_one_grants_nothing() {
        let request = extensions(principal(ScopeSet::from_names([
            "orders:read",
            "orders:everything",
        ])));
        assert!(principal_with(&request, Scope::OrdersRead).is_ok());
        for &scope in Scope::ALL.iter().filter(|scope| **scope != Scope::OrdersRead) {
            let refused = principal_with(&request, scope).expect_err("the scope is missing");
            assert_eq!(missing_scope(refused), scope.as_str());
        }
    }

    #[test]
    fn the_right_scope_on_the_wrong_kind_of_credential_is_refused() {
        let everything: ScopeSet = Scope::ALL.iter().copied().collect();
        let (of_tenant, of_deployment) = (
            extensions(principal(everything)),
            extensions(operator(everything)),
        );
        for &scope in Scope::ALL {
            let refused = principal_with(&of_deployment, scope).expect_err("it belongs to no tenant");
            assert_eq!(missing_scope(refused), scope.as_str());
            let refused = operator_with(&of_tenant, scope).expect_err("it belongs to a tenant");
            assert_eq!(missing_scope(refused), scope.as_str());
        }
        for &scope in Scope::ALL {
            let right = if scope.is_deployments() {
                operator(everything)
            } else {
                principal(everything)
            };
            assert!(right.require(scope).is_ok());
            let wrong = if scope.is_deployments() {
                principal(everything)
            } else {
                operator(everything)
            };
            let refused = wrong.require(scope).expect_err("it is of the other kind");
            assert_eq!(missing_scope(refused), scope.as_str());
            let others = Scope::ALL.iter().copied().filter(|other| *other != scope);
            let without: ScopeSet = others.collect();
            assert!(principal(without).require(scope).is_err() && operator(without).require(scope).is_err());
        }
        assert!(principal_with(&of_tenant, Scope::OrdersWrite).is_ok());
        assert!(operator_with(&of_deployment, Scope::TenantsAdmin).is_ok());
    }

    #[test]
    fn a_handler_that_the_server_asked_no_identity_for_refuses_everybody() {
        for &scope in Scope::ALL {
            let refused = principal_with(&Extensions::new(), scope).expect_err("nobody is known");
            assert_eq!(refused.to_problem()["code"], "UNAUTHENTICATED");
            let refused = operator_with(&Extensions::new(), scope).expect_err("nobody is known");
            assert_eq!(refused.to_problem()["code"], "UNAUTHENTICATED");
        }
    }
}
