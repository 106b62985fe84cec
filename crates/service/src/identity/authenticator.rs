//! From the headers of a request to the identity behind them.
//!
//! - Every cause of a refusal gives the same answer, and secrets are compared in constant time.
//! - Keys that exist are kept in one cache, prefixes that do not exist in another, so guessing pushes no real key out.
//!   A key in use is read again every [`KEY_REFRESH_INTERVAL`](super::KEY_REFRESH_INTERVAL), in the background, and never
//!   believed for longer than [`KEY_TRUST_MAX`](super::KEY_TRUST_MAX): a revocation takes effect within a minute.
//! - A database that does not answer is `DEPENDENCY_UNAVAILABLE`, never 401: a client must not throw its key away.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use sqlx::PgPool;
use subtle::ConstantTimeEq as _;

use super::lookup::{self, KeyAges, Lookups};
use super::{Identity, api_key_prefix, hash_api_key};
use crate::config::Secret;
use crate::database::DatabaseError;
use crate::error::ApiError;
use crate::tickets::Tickets;

/// Finds the identity behind a credential. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator {
    lookups: Arc<Lookups>,
    tickets: Option<Tickets>,
}

impl Authenticator {
    /// Connects to the database of the keys, on connections that are for this alone. The future does the look-ups; run it
    /// for as long as requests are answered.
    ///
    /// # Errors
    /// When the URL is wrong or the database does not let this role in.
    pub async fn connect(
        database_url: &Secret,
    ) -> Result<(Self, impl Future<Output = anyhow::Result<()>> + Send + use<>), DatabaseError> {
        let pool = lookup::connect(database_url).await?;
        Ok(Self::new(pool, KeyAges::default()))
    }

    /// An authenticator that asks through this pool, and the future that does the look-ups.
    pub fn new(
        pool: PgPool,
        ages: KeyAges,
    ) -> (Self, impl Future<Output = anyhow::Result<()>> + Send + use<>) {
        let lookups = Arc::new(Lookups::new(ages));
        let authenticator = Self {
            lookups: Arc::clone(&lookups),
            tickets: None,
        };
        (authenticator, lookups.run(pool))
    }

    /// The same, which takes these tickets where a route does.
    #[must_use]
    pub fn with_tickets(self, tickets: Tickets) -> Self {
        Self {
            tickets: Some(tickets),
            ..self
        }
    }

    /// The identity behind the `Authorization` header.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` without a valid key; `DEPENDENCY_UNAVAILABLE` when the database does not answer; `OVERLOADED` when
    /// too many unknown keys are being looked up.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Identity, ApiError> {
        let header = headers.get(AUTHORIZATION).map(HeaderValue::to_str);
        let key = header
            .and_then(Result::ok)
            .and_then(bearer_token)
            .ok_or_else(ApiError::unauthenticated)?;
        let prefix = api_key_prefix(key).ok_or_else(ApiError::unauthenticated)?;
        match self.lookups.find(prefix).await? {
            Some(known) if hash_api_key(key).ct_eq(&known.hash).into() => Ok(known.identity.clone()),
            _ => Err(ApiError::unauthenticated()),
        }
    }

    /// The identity behind the `Authorization` header, or else behind the ticket in the address, which is put into the
    /// request's extensions then.
    ///
    /// # Errors
    /// As of [`Self::authenticate`].
    pub(crate) async fn authenticate_or_ticket(&self, request: &mut Request) -> Result<Identity, ApiError> {
        let ticket = match &self.tickets {
            Some(tickets) if !request.headers().contains_key(AUTHORIZATION) => tickets.open(request.uri()),
            _ => None,
        };
        let Some(ticket) = ticket else {
            return self.authenticate(request.headers()).await;
        };
        let identity = match self.lookups.find(&ticket.key_prefix).await? {
            Some(known) if known.identity.tenant_id() == Some(ticket.tenant_id) => known.identity.clone(),
            _ => return Err(ApiError::unauthenticated()),
        };
        request.extensions_mut().insert(ticket);
        Ok(identity)
    }

    /// The identity of a credential that was good before, as it was at most `age` ago.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` when it is not good any more, and otherwise as of [`Self::authenticate`].
    pub async fn again(&self, key_prefix: &str, age: Duration) -> Result<Identity, ApiError> {
        let known = self.lookups.find_as_of(key_prefix, age).await?;
        known
            .map(|known| known.identity.clone())
            .ok_or_else(ApiError::unauthenticated)
    }
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").finish_non_exhaustive()
    }
}

/// The token of `Bearer TOKEN`; the scheme's name is not case-sensitive (RFC 9110, 11.1).
fn bearer_token(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        assert_eq!(bearer_token("Bearer abc"), Some("abc"));
        assert_eq!(bearer_token("bearer  abc"), Some("abc"));
        assert_eq!(bearer_token("Basic abc"), None);
        assert_eq!(bearer_token("abc"), None);
    }
}
