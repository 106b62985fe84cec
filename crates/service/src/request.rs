//! The context of the request that is being answered, without passing it through every function.
//!
//! The server sets it around each handler ([`Context::scope`]). It follows the handler's own task only: what a handler
//! spawns, or a stream's body, takes what it needs with it.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::MatchedPath;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;
use uuid::Uuid;

use crate::identity::Identity;
use crate::server::Claim;
use crate::telemetry;

/// The header that carries the request id both ways.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How long a request id of the caller's may be.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

/// A longer `grpc-timeout` than this is taken as this, so that sums of times cannot overflow.
const TIMEOUT_MAX: Duration = Duration::from_hours(24);

tokio::task_local! {
    static CURRENT: Context;
}

/// The name of one request, the caller's or ours, in answers and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The caller's `X-Request-Id` when it is 1 to 128 letters, digits and `-_.:/+=`, else a new one.
    #[must_use]
    pub fn accept_or_make(headers: &HeaderMap) -> Self {
        match headers.get(X_REQUEST_ID) {
            Some(value) if is_valid(value.as_bytes()) => Self(value.clone()),
            _ => Self::make(),
        }
    }

    /// A new id: a UUID of version 7.
    #[must_use]
    pub fn make() -> Self {
        let mut text = Uuid::encode_buffer();
        let text = Uuid::now_v7().hyphenated().encode_lower(&mut text);
        Self(HeaderValue::from_str(text).expect("a UUID is visible ASCII"))
    }

    /// The id of the request that this task is answering.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|current| current.id.clone()).ok()
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("only visible ASCII is accepted or made")
    }

    /// The id as the value of a header.
    #[must_use]
    pub fn header_value(&self) -> HeaderValue {
        self.0.clone()
    }
}

/// Nothing that could break out of a log line, a header or a URL.
fn is_valid(id: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.iter().all(is_plain)
}

/// The context of one request.
#[derive(Debug)]
pub struct Context {
    id: RequestId,
    traceparent: Option<String>,
    deadline: Option<Instant>,
    latest: OnceCell<Instant>,
    route: OnceCell<MatchedPath>,
    identity: OnceCell<Identity>,
    claim: OnceCell<Arc<Claim>>,
    is_upload: OnceCell<()>,
}

impl Context {
    /// Reads the id, the trace and the deadline from a request's headers.
    #[must_use]
    pub fn from_headers(headers: &HeaderMap) -> Self {
        Self {
            id: RequestId::accept_or_make(headers),
            traceparent: telemetry::traceparent_from(headers),
            deadline: grpc_timeout(headers).map(|timeout| Instant::now() + timeout),
            latest: OnceCell::new(),
            route: OnceCell::new(),
            identity: OnceCell::new(),
            claim: OnceCell::new(),
            is_upload: OnceCell::new(),
        }
    }

    /// Runs a future with this as the current request.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(self, future).await
    }

    /// The request's id.
    #[must_use]
    pub fn id(&self) -> &RequestId {
        &self.id
    }

    /// When the caller stops waiting, where it said so (`grpc-timeout`).
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

/// When the caller of the current request stops waiting. Work that is done for it should not go on for longer.
#[must_use]
pub fn deadline() -> Option<Instant> {
    CURRENT.try_with(Context::deadline).ok().flatten()
}

/// When the current request is answered at the latest: its caller stops waiting, or the server's own limit is reached. What is asked
/// of a database for it should have ended by then.
#[must_use]
pub fn answer_by() -> Option<Instant> {
    let answer_by = CURRENT.try_with(|current| {
        current
            .latest
            .get()
            .copied()
            .into_iter()
            .chain(current.deadline)
            .min()
    });
    answer_by.ok().flatten()
}

/// Notes when the server's own limit for the current request is reached.
pub(crate) fn set_latest(latest: Instant) {
    // Outside of a request there is nothing to note it for.
    let _ = CURRENT.try_with(|current| current.latest.set(latest));
}

/// Keeps a request counted among those under way until it is dropped.
#[derive(Debug)]
pub struct Hold {
    _claim: Option<Arc<Claim>>,
}

/// Keeps the current request counted, for work that goes on when its caller goes away. Take it along there.
#[must_use]
pub fn hold() -> Hold {
    Hold { _claim: claim() }
}

/// The bytes that the current request holds, once it has been let in.
pub(crate) fn claim() -> Option<Arc<Claim>> {
    let claim = CURRENT.try_with(|current| current.claim.get().cloned());
    claim.ok().flatten()
}

/// Notes what the current request holds.
pub(crate) fn count_work(claim: &Arc<Claim>) {
    // Outside of a request there is nothing to note it for.
    let _ = CURRENT.try_with(|current| current.claim.set(Arc::clone(claim)));
}

/// Notes that the current request's body is taken in parts, however long that takes.
pub(crate) fn set_upload() {
    // Outside of a request there is nothing to note it for.
    let _ = CURRENT.try_with(|current| current.is_upload.set(()));
}

/// Whether the current request's body is taken in parts, however long that takes.
pub(crate) fn is_upload() -> bool {
    let is_upload = CURRENT.try_with(|current| current.is_upload.get().is_some());
    is_upload.unwrap_or(false)
}

/// The validated `traceparent` that the current request came with.
pub(crate) fn incoming_traceparent() -> Option<String> {
    CURRENT
        .try_with(|current| current.traceparent.clone())
        .ok()
        .flatten()
}

/// Notes the route that was matched (`/v1/orders/{id}`), for the metrics and the log.
pub(crate) fn set_route(route: MatchedPath) {
    // Outside of a request there is nothing to note it for; the first note is the outermost route.
    let _ = CURRENT.try_with(|current| current.route.set(route));
}

/// The route that was matched, if one was.
pub(crate) fn route() -> Option<MatchedPath> {
    CURRENT
        .try_with(|current| current.route.get().cloned())
        .ok()
        .flatten()
}

/// Notes who sent the current request, for the log.
pub(crate) fn set_identity(identity: &Identity) {
    // Outside of a request there is nothing to note it for.
    let _ = CURRENT.try_with(|current| current.identity.set(identity.clone()));
}

/// The identity of the current request's caller, if it is known.
pub(crate) fn identity() -> Option<Identity> {
    CURRENT
        .try_with(|current| current.identity.get().cloned())
        .ok()
        .flatten()
}

/// `grpc-timeout`: at most eight digits and a unit.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(amount * 3_600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    };
    Some(timeout.min(TIMEOUT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let value = HeaderValue::from_str(value).expect("a valid header");
        HeaderMap::from_iter([(HeaderName::from_static(name), value)])
    }

    #[test]
    fn a_grpc_timeout_has_at_most_eight_digits_and_a_unit() {
        let timeout = |text| grpc_timeout(&headers("grpc-timeout", text));
        assert_eq!(timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(timeout("2S"), Some(Duration::from_secs(2)));
        assert_eq!(timeout("99999999H"), Some(TIMEOUT_MAX));
        for wrong in ["", "S", "1", "1x", "-1S", "+1S", "123456789S", "1.5S", "1é"] {
            assert_eq!(grpc_timeout(&headers("grpc-timeout", wrong)), None, "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn a_task_knows_the_request_that_it_answers() {
        assert_eq!(RequestId::current(), None);
        let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = Context::from_headers(&headers(telemetry::TRACEPARENT, traceparent));
        let id = context.id().clone();
        let inside = async || (RequestId::current(), telemetry::current_traceparent());
        let (current, handed_on) = context.scope(inside()).await;
        assert_eq!(current, Some(id));
        assert_eq!(handed_on.as_deref(), Some(traceparent));
    }
}
