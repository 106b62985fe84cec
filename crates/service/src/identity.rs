//! Who is calling: API keys, the principal behind one, and what it may do.
//!
//! A key is `dbk_live_` + a public prefix of 8 characters + `_` + 256 random bits as 43 characters of base64url. The
//! prefix finds the key, the SHA-256 of the whole text proves it; the database never holds more than these two.
//!
//! - Every cause of a refusal gives the same answer, and secrets are compared in constant time.
//! - A look-up is cached for [`CACHE_TTL`], so a revocation takes effect within a minute. Concurrent requests with one
//!   key share one look-up.
//! - A database that does not answer is `DEPENDENCY_UNAVAILABLE`, never 401: a client must not throw its key away.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRef, FromRequestParts};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use daybook_postgres::{LOOKUP_TIMEOUT, bounded};
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use moka::sync::Cache;
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use sha2::{Digest as _, Sha256};
use sqlx::{PgConnection, PgPool};
use subtle::ConstantTimeEq as _;
use tokio::sync::OnceCell;
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use crate::error::ApiError;

/// How long a look-up is believed.
pub const CACHE_TTL: Duration = Duration::from_secs(30);

/// How many look-ups are kept, those of unknown prefixes included. Seldom-asked ones are never kept at the cost of
/// often-asked ones (TinyLFU), so guessing prefixes does not push real keys out.
pub const CACHED_KEYS_MAX: u64 = 50_000;

const KEY_MARK: &str = "dbk_live_";
const PREFIX_CHARS: usize = 8;
const SECRET_BYTES: usize = 32;
const SECRET_CHARS: usize = 43;
const KEY_CHARS: usize = KEY_MARK.len() + PREFIX_CHARS + 1 + SECRET_CHARS;

/// The alphabet of prefixes: no letter looks like a digit, and its 32 characters divide a byte evenly.
const PREFIX_ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// The SHA-256 of an API key's whole text.
pub type KeyHash = [u8; 32];

/// A right that a credential can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Scope {
    /// `orders:write`: commands on orders.
    OrdersWrite = 1,
    /// `orders:read`: orders, lists and totals.
    OrdersRead = 2,
    /// `events:read`: histories, for auditors.
    EventsRead = 4,
    /// `projections:operate`: the life of projections, for operators.
    ProjectionsOperate = 8,
    /// `tenants:admin`: tenants and their keys.
    TenantsAdmin = 16,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 5] = [
        Self::OrdersWrite,
        Self::OrdersRead,
        Self::EventsRead,
        Self::ProjectionsOperate,
        Self::TenantsAdmin,
    ];

    /// The scope as it is written: `orders:write`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OrdersWrite => "orders:write",
            Self::OrdersRead => "orders:read",
            Self::EventsRead => "events:read",
            Self::ProjectionsOperate => "projections:operate",
            Self::TenantsAdmin => "tenants:admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct ScopeSet(u8);

impl ScopeSet {
    /// Whether the set holds the scope.
    #[must_use]
    pub const fn contains(self, scope: Scope) -> bool {
        self.0 & scope as u8 != 0
    }

    /// Reads scopes as they are written. A name that this version does not know grants nothing.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let known = |name| Scope::ALL.into_iter().find(|scope| scope.as_str() == name);
        names.into_iter().filter_map(known).collect()
    }

    /// The scopes in the set.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.contains(*scope))
    }
}

impl FromIterator<Scope> for ScopeSet {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |set, scope| set | scope as u8))
    }
}

impl fmt::Debug for ScopeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Scope::as_str)).finish()
    }
}

/// Who is calling, as the credential proves.
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
    /// What it may do.
    pub scopes: ScopeSet,
}

impl Principal {
    /// Refuses with `PERMISSION_DENIED` unless the credential has the scope.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`, which names the scope.
    pub fn require(&self, scope: Scope) -> Result<(), ApiError> {
        if self.scopes.contains(scope) {
            Ok(())
        } else {
            Err(ApiError::permission_denied(scope.as_str()))
        }
    }

    /// The credential as events record it: `key:ab12cd34`.
    #[must_use]
    pub fn credential(&self) -> String {
        format!("key:{}", self.key_prefix)
    }
}

/// A new API key. The plain text exists here only; show it once and forget it.
pub struct NewApiKey {
    /// The whole text, for the caller's eyes.
    pub plain: String,
    /// The public prefix, unique among keys.
    pub prefix: String,
    /// What the database holds of it.
    pub sha256: KeyHash,
}

/// Makes a new API key from the operating system's random numbers.
///
/// # Panics
/// When the operating system has no random numbers: a guessable key would be worse.
#[must_use]
pub fn generate_api_key() -> NewApiKey {
    let mut random = [0_u8; PREFIX_CHARS + SECRET_BYTES];
    OsRng
        .try_fill_bytes(&mut random)
        .expect("the operating system gives random numbers");
    let (prefix, secret) = random.split_at(PREFIX_CHARS);
    let letter = |byte: &u8| char::from(PREFIX_ALPHABET[usize::from(byte % 32)]);
    let prefix: String = prefix.iter().map(letter).collect();
    let plain = format!("{KEY_MARK}{prefix}_{}", URL_SAFE_NO_PAD.encode(secret));
    let sha256 = hash_api_key(&plain);
    NewApiKey {
        plain,
        prefix,
        sha256,
    }
}

/// The SHA-256 of a key's whole text, as the database holds it.
#[must_use]
pub fn hash_api_key(plain: &str) -> KeyHash {
    Sha256::digest(plain.as_bytes()).into()
}

/// The public prefix of a key, when the text has the form of one.
#[must_use]
pub fn api_key_prefix(plain: &str) -> Option<&str> {
    if plain.len() != KEY_CHARS || !plain.is_ascii() {
        return None;
    }
    let (prefix, secret) = plain.strip_prefix(KEY_MARK)?.split_at(PREFIX_CHARS);
    let is_prefix = prefix.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_prefix && secret.starts_with('_')).then_some(prefix)
}

/// What the database knows about a prefix: `None` when there is no such key, or none that is good any more.
type Known = Option<(KeyHash, Arc<Principal>)>;

/// Finds the principal behind a credential. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator {
    pool: PgPool,
    known: Cache<String, Arc<OnceCell<Known>>>,
}

impl Authenticator {
    /// An authenticator that asks this database.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        let known = Cache::builder()
            .max_capacity(CACHED_KEYS_MAX)
            .time_to_live(CACHE_TTL)
            .build();
        Self { pool, known }
    }

    /// The principal behind the value of an `Authorization` header.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` without a valid key; `DEPENDENCY_UNAVAILABLE` when the database does not answer.
    pub async fn authenticate(&self, authorization_header: Option<&str>) -> Result<Arc<Principal>, ApiError> {
        let key = authorization_header
            .and_then(bearer_token)
            .ok_or_else(ApiError::unauthenticated)?;
        let prefix = api_key_prefix(key).ok_or_else(ApiError::unauthenticated)?;
        let lookup = match self.known.get(prefix) {
            Some(lookup) => lookup,
            None => self.known.get_with(prefix.to_owned(), Arc::default),
        };
        let known = lookup.get_or_try_init(|| self.look_up(prefix)).await?;
        match known {
            Some((hash, principal)) if hash_api_key(key).ct_eq(hash).into() => Ok(Arc::clone(principal)),
            _ => Err(ApiError::unauthenticated()),
        }
    }

    /// The principal behind the metadata of a gRPC call.
    ///
    /// # Errors
    /// As [`Self::authenticate`].
    pub async fn authenticate_metadata(&self, metadata: &MetadataMap) -> Result<Arc<Principal>, ApiError> {
        let header = metadata
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        self.authenticate(header).await
    }

    /// The principal behind the headers of an HTTP request.
    ///
    /// # Errors
    /// As [`Self::authenticate`].
    pub async fn authenticate_headers(&self, headers: &HeaderMap) -> Result<Arc<Principal>, ApiError> {
        let header = headers.get(AUTHORIZATION).map(HeaderValue::to_str);
        self.authenticate(header.and_then(Result::ok)).await
    }

    /// Asks the database, in a task of its own: the caller may go away, its query must not be cut in the middle.
    async fn look_up(&self, prefix: &str) -> Result<Known, ApiError> {
        let prefix = prefix.to_owned();
        let known: Result<Known, sqlx::Error> = bounded(&self.pool, LOOKUP_TIMEOUT, move |connection| {
            Box::pin(async move { find_key(connection, &prefix).await })
        })
        .await;
        Ok(known?)
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

#[derive(sqlx::FromRow)]
struct KeyRow {
    tenant_id: Uuid,
    partition: i32,
    name: String,
    secret_sha256: Vec<u8>,
    scopes: Vec<String>,
}

async fn find_key(connection: &mut PgConnection, prefix: &str) -> Result<Known, sqlx::Error> {
    let row: Option<KeyRow> = sqlx::query_as(
        "SELECT tenant_id, partition, name, secret_sha256, scopes
           FROM event_store.authenticate_api_key($1)",
    )
    .bind(prefix)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let Ok(hash) = KeyHash::try_from(row.secret_sha256) else {
        return Ok(None);
    };
    let principal = Principal {
        tenant_id: row.tenant_id,
        tenant_partition: row.partition,
        key_prefix: prefix.to_owned(),
        name: row.name,
        scopes: ScopeSet::from_names(row.scopes.iter().map(String::as_str)),
    };
    Ok(Some((hash, Arc::new(principal))))
}

/// The caller of an HTTP request, as an extractor: a handler that takes it cannot run without a credential.
#[derive(Clone, Debug)]
pub struct Caller(pub Arc<Principal>);

impl<S> FromRequestParts<S> for Caller
where
    S: Send + Sync,
    Authenticator: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let authenticator = Authenticator::from_ref(state);
        authenticator.authenticate_headers(&parts.headers).await.map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_has_the_form_that_is_documented() {
        let key = generate_api_key();
        assert_eq!(key.plain.len(), 61);
        assert_eq!(api_key_prefix(&key.plain), Some(&*key.prefix));
        let secret = key
            .plain
            .strip_prefix(&format!("dbk_live_{}_", key.prefix))
            .expect("mark and prefix");
        assert_eq!(URL_SAFE_NO_PAD.decode(secret).expect("base64url").len(), 32);
        assert_eq!(key.sha256, hash_api_key(&key.plain));
        assert_ne!(key.plain, generate_api_key().plain);
    }

    #[test]
    fn what_has_not_the_form_of_a_key_is_not_looked_up() {
        let key = generate_api_key().plain;
        let wrong = [
            String::new(),
            key[1..].to_owned(),
            format!("{key}x"),
            key.replace("live", "test"),
            key.replacen('_', "-", 3),
            format!("dbk_live_ab'--x{}", &key[15..]),
            format!("dbk_live_äb34567_{}", "x".repeat(43)),
        ];
        for text in wrong {
            assert_eq!(api_key_prefix(&text), None, "{text}");
        }
    }

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        assert_eq!(bearer_token("Bearer abc"), Some("abc"));
        assert_eq!(bearer_token("bearer  abc"), Some("abc"));
        assert_eq!(bearer_token("Basic abc"), None);
        assert_eq!(bearer_token("abc"), None);
    }

    #[test]
    fn a_scope_that_is_missing_is_refused_and_an_unknown_one_grants_nothing() {
        let principal = Principal {
            tenant_id: Uuid::nil(),
            tenant_partition: 0,
            key_prefix: "ab345678".to_owned(),
            name: "test".to_owned(),
            scopes: ScopeSet::from_names(["orders:read", "orders:everything"]),
        };
        assert!(principal.require(Scope::OrdersRead).is_ok());
        for scope in Scope::ALL.into_iter().filter(|scope| *scope != Scope::OrdersRead) {
            let refused = principal.require(scope).expect_err("the scope is missing");
            assert_eq!(refused.to_problem()["missing_scope"], scope.as_str());
        }
    }
}
