//! What the services under test seal with: tests look into what callers only hold.

use anyhow::Context as _;
use daybook_service::consistency::ConsistencyToken;
use daybook_service::key::SecretKey;
use daybook_service::sealing::KeyRing;
use uuid::Uuid;

/// The key of every service that the tests start, as it is set.
#[must_use]
pub fn key() -> String {
    "5e".repeat(32)
}

/// The ring of every service that the tests start.
///
/// # Panics
/// Never: the key is one.
#[must_use]
pub fn ring() -> KeyRing {
    let key: SecretKey = key().parse().expect("64 digits");
    KeyRing::new(&[key])
}

/// Opens a token of a tenant.
///
/// # Errors
/// When it is none.
pub fn token(tenant_id: Uuid, text: &str) -> anyhow::Result<ConsistencyToken> {
    ConsistencyToken::open(&ring(), tenant_id, text)
        .with_context(|| format!("{text:?} is no token of the tenant"))
}
