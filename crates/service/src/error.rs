//! The one catalogue of errors, for both transports.
//!
//! A handler returns an [`ApiError`] and says nothing about gRPC or HTTP. [`grpc`] and [`problem`] hold the only maps:
//! a `google.rpc.Status` with its details, and an RFC 9457 problem. Both carry the same code, the request id and every
//! dynamic value of the message.
//!
//! An internal error shows the caller its request id and nothing else. Its whole chain goes to the log once, at the
//! moment it becomes an answer, so that it is logged where it stops and not where it passes through.

mod code;
pub mod grpc;
pub mod problem;

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use utoipa::ToSchema;

pub use code::{Code, Entry, Retry};

use crate::request::RequestId;

/// How long a caller is asked to wait after a refusal that passes by itself, unless it says otherwise.
pub const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// The header, and the metadata over gRPC, that marks the remembered answer to an earlier send.
pub const IDEMPOTENCY_REPLAYED: &str = "idempotency-replayed";

/// What answers call Postgres, as a server that is needed.
pub const DATABASE: &str = "database";

/// Anything that can be the cause of an [`ApiError`].
pub type Source = Box<dyn StdError + Send + Sync>;

/// Why a request was not done, ready for either transport. Cheap to pass around (one pointer).
#[derive(Clone)]
pub struct ApiError(Box<Fields>);

/// The fields of an [`ApiError`].
#[derive(Clone)]
struct Fields {
    code: Code,
    message: Cow<'static, str>,
    violations: Vec<FieldViolation>,
    details: Vec<(Cow<'static, str>, Value)>,
    retry_after: Option<Duration>,
    resource: Option<Resource>,
    allow: Option<Cow<'static, str>>,
    is_of_if_match: bool,
    is_replay: bool,
    request_id: Option<RequestId>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// A field that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[schema(as = Violation)]
pub struct FieldViolation {
    /// A parameter or header by its name, a part of the path or of the body as a JSON pointer.
    pub pointer: String,
    /// What is wrong, for programs.
    pub code: &'static str,
    /// What is wrong, for people.
    pub message: String,
}

/// What a request was about.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[schema(as = ProblemResource)]
pub struct Resource {
    /// What it is.
    #[schema(rename = "type")]
    pub kind: Cow<'static, str>,
    /// Which one.
    pub id: String,
}

impl FieldViolation {
    /// A violation at a JSON pointer.
    pub fn new(pointer: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            code,
            message: message.into(),
        }
    }
}

impl ApiError {
    /// An error with nothing but its code and a message for people.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Fields {
            code,
            message: message.into(),
            violations: Vec::new(),
            details: Vec::new(),
            retry_after: None,
            resource: None,
            allow: None,
            is_of_if_match: false,
            is_replay: false,
            request_id: RequestId::current(),
            source: None,
        }))
    }

    /// The request cannot be understood.
    pub fn malformed(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::MalformedRequest, message)
    }

    /// The request cannot be understood from this place on.
    #[must_use]
    pub fn malformed_at(violation: FieldViolation) -> Self {
        let mut error = Self::malformed(violation.message.clone());
        error.0.violations = vec![violation];
        error
    }

    /// Fields are wrong; there is at least one violation.
    #[must_use]
    pub fn validation(violations: Vec<FieldViolation>) -> Self {
        let message = match violations.as_slice() {
            [only] => format!("{}: {}", only.pointer, only.message),
            several => format!("{} fields are not valid", several.len()),
        };
        let mut error = Self::new(Code::ValidationFailed, message);
        error.0.violations = violations;
        error
    }

    /// One field is wrong.
    pub fn invalid_field(pointer: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self::validation(vec![FieldViolation::new(pointer, code, message)])
    }

    /// The cursor was not made here, or for another question.
    pub fn invalid_cursor() -> Self {
        Self::new(Code::InvalidCursor, "the cursor is not valid for this list")
    }

    /// There is no valid credential. One message for every cause, so that it gives nothing away.
    pub fn unauthenticated() -> Self {
        Self::new(Code::Unauthenticated, "a valid credential is needed")
    }

    /// The credential lacks a scope.
    pub fn permission_denied(missing_scope: &'static str) -> Self {
        Self::new(
            Code::PermissionDenied,
            format!("the credential lacks the scope {missing_scope}"),
        )
        .with_detail("missing_scope", missing_scope)
    }

    /// There is no such thing for this tenant.
    pub fn not_found(kind: impl Into<Cow<'static, str>>, id: impl Into<String>) -> Self {
        let (kind, id) = (kind.into(), id.into());
        Self::new(Code::ResourceNotFound, format!("there is no {kind} {id}")).with_resource(kind, id)
    }

    /// It ended at this moment; `successor` is the address of what takes its place.
    pub fn gone(sunset: impl Into<Value>, successor: &str) -> Self {
        Self::new(Code::Gone, format!("this has ended; {successor} takes its place"))
            .with_detail("sunset", sunset)
            .with_detail("successor", successor)
    }

    /// It exists already.
    pub fn already_exists(kind: impl Into<Cow<'static, str>>, id: impl Into<String>) -> Self {
        let (kind, id) = (kind.into(), id.into());
        Self::new(Code::AlreadyExists, format!("there is already a {kind} {id}")).with_resource(kind, id)
    }

    /// The aggregate has another version than `expected_version` said.
    #[must_use]
    pub fn version_conflict(expected: u64, actual: u64) -> Self {
        Self::new(
            Code::VersionConflict,
            format!("expected version {expected}, but the version is {actual}"),
        )
        .with_detail("expected_version", expected)
        .with_detail("actual_version", actual)
    }

    /// The idempotency key was used for other content.
    #[must_use]
    pub fn idempotency_key_reused() -> Self {
        Self::new(
            Code::IdempotencyKeyReused,
            "the idempotency key was used for another request",
        )
    }

    /// A rule of the domain refuses it; `rule` is the rule's own code (`ORDER_ALREADY_SHIPPED`).
    pub fn domain_rule(rule: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::DomainRule(rule.into()), message)
    }

    /// An operation of this kind and name (`rebuild`, `order_list`) is running already.
    pub fn operation_running(kind: &'static str, name: impl fmt::Display) -> Self {
        Self::new(
            Code::OperationRunning,
            format!("a {kind} of {name} is running already"),
        )
        .with_resource("operation", format!("{kind}/{name}"))
    }

    /// The caller has used up the quota of this name.
    pub fn rate_limited(quota: impl Into<Value>, retry_after: Duration) -> Self {
        Self::new(Code::RateLimited, "too many requests")
            .with_detail("quota", quota)
            .with_retry_after(retry_after)
    }

    /// The read model stands at `position` and did not reach `wanted` in time. Both are consistency tokens.
    #[must_use]
    pub fn read_model_behind(position: String, wanted: String) -> Self {
        Self::new(
            Code::ReadModelBehind,
            "the read model has not come to the position that was demanded",
        )
        .with_detail("position", position)
        .with_detail("wanted_position", wanted)
        .with_retry_after(RETRY_AFTER_DEFAULT)
    }

    /// The log has not the position that was demanded: it is beyond the head, or of a history that is gone.
    #[must_use]
    pub fn position_unknown() -> Self {
        let message =
            "the log does not have the position that was demanded; read without it, then decide again";
        Self::new(Code::PositionUnknown, message)
    }

    /// A bounded queue is full.
    pub fn overloaded(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Overloaded, message).with_retry_after(RETRY_AFTER_DEFAULT)
    }

    /// A server that is needed does not answer; `dependency` is its role ([`DATABASE`]), never its address.
    pub fn dependency_unavailable(dependency: &'static str, source: impl Into<Source>) -> Self {
        Self::new(
            Code::DependencyUnavailable,
            format!("the {dependency} does not answer"),
        )
        .with_detail("dependency", dependency)
        .with_retry_after(RETRY_AFTER_DEFAULT)
        .with_source(source)
    }

    /// The service is stopping.
    #[must_use]
    pub fn shutting_down() -> Self {
        Self::new(Code::ShuttingDown, "the service is stopping").with_retry_after(RETRY_AFTER_DEFAULT)
    }

    /// The time is up.
    #[must_use]
    pub fn deadline_exceeded() -> Self {
        Self::new(Code::DeadlineExceeded, "the deadline has passed")
    }

    /// The request is larger than the limit.
    #[must_use]
    pub fn payload_too_large(limit_bytes: usize) -> Self {
        Self::new(
            Code::PayloadTooLarge,
            format!("the request is larger than {limit_bytes} bytes"),
        )
        .with_detail("limit_bytes", limit_bytes)
    }

    /// Request line and headers are larger than the limit.
    #[must_use]
    pub fn headers_too_large(limit_bytes: usize) -> Self {
        Self::new(
            Code::HeadersTooLarge,
            format!("the headers are larger than {limit_bytes} bytes"),
        )
        .with_detail("limit_bytes", limit_bytes)
    }

    /// Path and query string are longer than the limit.
    #[must_use]
    pub fn uri_too_long(limit_bytes: usize) -> Self {
        Self::new(
            Code::UriTooLong,
            format!("path and query string are longer than {limit_bytes} bytes"),
        )
        .with_detail("limit_bytes", limit_bytes)
    }

    /// The time is up, and the body of the request is not there yet.
    #[must_use]
    pub fn request_timeout() -> Self {
        Self::new(Code::RequestTimeout, "the request did not arrive in time")
    }

    /// The answer is larger than the limit: a smaller page, or fewer fields, may fit.
    #[must_use]
    pub fn answer_too_large(limit_bytes: usize) -> Self {
        Self::new(
            Code::PayloadTooLarge,
            format!("the answer is larger than {limit_bytes} bytes; ask for less"),
        )
        .with_detail("limit_bytes", limit_bytes)
    }

    /// The content type or encoding is not supported.
    pub fn unsupported_media_type(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::UnsupportedMediaType, message)
    }

    /// A fault of the service. The caller sees the request id only, the log gets the whole chain, once.
    pub fn internal(source: impl Into<Source>) -> Self {
        Self::new(Code::Internal, "an internal error; see the request id").with_source(source)
    }

    /// Adds a dynamic value of the message: a member of the problem, and metadata of the `ErrorInfo`.
    #[must_use]
    pub fn with_detail(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Value>) -> Self {
        let name = name.into();
        debug_assert!(
            !problem::RESERVED_MEMBERS.contains(&&*name),
            "{name} is a member of every problem"
        );
        self.0.details.push((name, value.into()));
        self
    }

    /// Names the thing that the request was about.
    #[must_use]
    pub fn with_resource(mut self, kind: impl Into<Cow<'static, str>>, id: impl Into<String>) -> Self {
        self.0.resource = Some(Resource {
            kind: kind.into(),
            id: id.into(),
        });
        self
    }

    /// Says how long to wait before the next attempt.
    #[must_use]
    pub fn with_retry_after(mut self, pause: Duration) -> Self {
        self.0.retry_after = Some(pause);
        self
    }

    /// Keeps the cause for the log. It is never shown to the caller.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(Arc::from(source.into()));
        self
    }

    /// The methods that the resource takes, for `Allow`.
    #[must_use]
    pub fn with_allow(mut self, methods: impl Into<Cow<'static, str>>) -> Self {
        self.0.allow = Some(methods.into());
        self
    }

    /// Says that the version that does not hold was demanded by `If-Match`.
    #[must_use]
    pub fn of_if_match(mut self) -> Self {
        self.0.is_of_if_match = true;
        self
    }

    /// Says that it is the remembered answer to an earlier send, under the same idempotency key.
    #[must_use]
    pub fn replayed(mut self, is_replay: bool) -> Self {
        self.0.is_replay = is_replay;
        self
    }

    /// Whether it is the remembered answer to an earlier send.
    #[must_use]
    pub fn is_replay(&self) -> bool {
        self.0.is_replay
    }

    /// Why, for programs.
    #[must_use]
    pub fn code(&self) -> &Code {
        &self.0.code
    }

    /// Why, for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The fields that are wrong.
    #[must_use]
    pub fn violations(&self) -> &[FieldViolation] {
        &self.0.violations
    }

    /// The dynamic values of the message.
    #[must_use]
    pub fn details(&self) -> &[(Cow<'static, str>, Value)] {
        &self.0.details
    }

    /// The thing that the request was about.
    #[must_use]
    pub fn resource(&self) -> Option<&Resource> {
        self.0.resource.as_ref()
    }

    /// How long to wait before the next attempt.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The request that it answers: the one it was made in, else the one that is being answered now.
    fn request_id(&self) -> Option<RequestId> {
        self.0.request_id.clone().or_else(RequestId::current)
    }

    /// Writes the cause to the log, once, at the moment when it becomes an answer.
    ///
    /// Outages are logged where they are noticed (readiness), so what they do to single requests is for debugging.
    fn log(&self, request_id: Option<&RequestId>) {
        let Some(source) = &self.0.source else {
            return;
        };
        let request_id = request_id.map_or("-", RequestId::as_str);
        let chain = chain(source.as_ref());
        let code = self.code().name();
        if matches!(self.code(), Code::Internal) {
            tracing::error!(request.id = request_id, error.code = code, error.chain = %chain, "request failed");
        } else {
            tracing::debug!(request.id = request_id, error.code = code, error.chain = %chain, "request refused");
        }
    }
}

/// A text that is not longer than so many bytes, or its beginning and an ellipsis: what callers send is not sent back whole.
#[must_use]
pub fn cut(text: &str, bytes_max: usize) -> Cow<'_, str> {
    if text.len() <= bytes_max {
        return text.into();
    }
    let beginning = text.floor_char_boundary(bytes_max.saturating_sub('…'.len_utf8()));
    format!("{}…", &text[..beginning]).into()
}

/// An error and all its causes on one line.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&cause| cause.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code(), self.message())
    }
}

impl fmt::Debug for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiError")
            .field("code", self.code())
            .field("message", &self.0.message)
            .field("violations", &self.0.violations)
            .field("details", &self.0.details)
            .field("source", &self.0.source)
            .finish_non_exhaustive()
    }
}

impl StdError for ApiError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| source.as_ref() as _)
    }
}
