//! The map from the catalogue to HTTP: an RFC 9457 problem, always.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::{Map, Value, json};

use super::{ApiError, Code, IDEMPOTENCY_REPLAYED};
use crate::request::RequestId;

/// The content type of every error.
pub const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// How many violations an answer lists at most.
pub const VIOLATIONS_MAX: usize = 100;

/// The member, or the metadata of the `ErrorInfo`, that says how many violations are not listed.
pub(super) const MORE_VIOLATIONS: &str = "more_violations";

/// Members of every problem, which no dynamic value may be named like.
pub const RESERVED_MEMBERS: [&str; 10] = [
    "type",
    "title",
    "status",
    "detail",
    "instance",
    "code",
    "request_id",
    "errors",
    "resource",
    "retry_after_ms",
];

impl ApiError {
    /// The status on HTTP.
    #[must_use]
    pub fn http_status(&self) -> StatusCode {
        match self.code() {
            Code::VersionConflict if self.0.is_of_if_match => StatusCode::PRECONDITION_FAILED,
            code => code.entry().http,
        }
    }

    /// The problem that is the answer to a request: its cause goes to the log.
    #[must_use]
    pub fn answer(&self) -> Value {
        let request_id = self.request_id();
        self.log(request_id.as_ref());
        self.problem(request_id.as_ref())
    }

    /// The problem of one item of an answer. It does not name the request, so that the same answer has the same bytes.
    #[must_use]
    pub fn to_item_problem(&self) -> Value {
        self.problem(None)
    }

    /// The problem as JSON: what the body of the answer holds.
    #[must_use]
    pub fn to_problem(&self) -> Value {
        self.problem(self.request_id().as_ref())
    }

    fn problem(&self, request_id: Option<&RequestId>) -> Value {
        let mut members = Map::new();
        for (name, value) in self.details() {
            members.insert(name.to_string(), value.clone());
        }
        members.insert("type".into(), format!("/problems/{}", self.code().slug()).into());
        members.insert("title".into(), self.code().entry().title.into());
        members.insert("status".into(), self.http_status().as_u16().into());
        members.insert("detail".into(), self.message().into());
        members.insert("code".into(), self.code().name().into());
        if let Some(id) = request_id {
            members.insert("request_id".into(), id.as_str().into());
            members.insert("instance".into(), instance(id).into());
        }
        if !self.violations().is_empty() {
            members.insert("errors".into(), self.violations_json());
        }
        if let Some(more) = self.violations().len().checked_sub(VIOLATIONS_MAX + 1) {
            members.insert(MORE_VIOLATIONS.into(), (more + 1).into());
        }
        if let Some(resource) = self.resource() {
            members.insert(
                "resource".into(),
                json!({"type": resource.kind, "id": resource.id}),
            );
        }
        if let Some(pause) = self.retry_after() {
            let millis = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            members.insert("retry_after_ms".into(), millis.into());
        }
        Value::Object(members)
    }

    fn violations_json(&self) -> Value {
        let violations = self.violations().iter().take(VIOLATIONS_MAX);
        violations
            .map(|v| json!({"pointer": v.pointer, "code": v.code, "message": v.message}))
            .collect()
    }

    /// The headers that belong to the error.
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(3);
        headers.insert(CONTENT_TYPE, PROBLEM_JSON);
        if let Some(pause) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(pause)));
        }
        if matches!(self.code(), Code::Unauthenticated) {
            let challenge = HeaderValue::from_static("Bearer realm=\"daybook\"");
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        if self.is_replay() {
            let replayed = HeaderName::from_static(IDEMPOTENCY_REPLAYED);
            headers.insert(replayed, HeaderValue::from_static("true"));
        }
        // Text that cannot be a header is left out.
        let methods = self.0.allow.as_deref().map(HeaderValue::from_str);
        if let Some(Ok(methods)) = methods {
            headers.insert(ALLOW, methods);
        }
        headers
    }
}

/// The name of this occurrence of a problem (RFC 9457, section 3.1.5): a URI that leads nowhere, with the request's id as its
/// last part. Callers' own ids may have slashes.
fn instance(id: &RequestId) -> String {
    format!("/requests/{}", id.as_str().replace('/', "%2F"))
}

/// The error behind a problem that another process of ours wrote; `None` for what is none. Violations are found where a request
/// comes in, so a problem that has some is none of those.
#[must_use]
pub fn parse(problem: &[u8]) -> Option<ApiError> {
    let Value::Object(members) = serde_json::from_slice(problem).ok()? else {
        return None;
    };
    if members.contains_key("errors") {
        return None;
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let code = Code::by_name(members.get("code")?.as_str()?);
    let mut error = ApiError::new(code, text(members.get("detail")?)?);
    if let Some(resource) = members.get("resource") {
        error = error.with_resource(text(&resource["type"])?, text(&resource["id"])?);
    }
    if let Some(pause) = members.get("retry_after_ms").and_then(Value::as_u64) {
        error = error.with_retry_after(Duration::from_millis(pause));
    }
    let details = members.into_iter();
    let details = details.filter(|(name, _)| !RESERVED_MEMBERS.contains(&name.as_str()));
    Some(details.fold(error, |error, (name, value)| error.with_detail(name, value)))
}

/// `Retry-After` counts whole seconds; a shorter pause becomes one, never none.
fn whole_seconds(pause: Duration) -> u64 {
    let rounded_up = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
    rounded_up.max(1)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.answer().to_string()));
        *response.status_mut() = self.http_status();
        *response.headers_mut() = self.headers();
        response
    }
}

/// The problem for a refusal that a library wrote by itself (an extractor, a body limit), from its status alone.
///
/// `None` for everything that is not an error, or is a problem already.
#[must_use]
pub fn from_bare_response(response: &Response) -> Option<ApiError> {
    let status = response.status();
    if status.is_informational() || status.is_success() || status.is_redirection() {
        return None;
    }
    if response.headers().get(CONTENT_TYPE) == Some(&PROBLEM_JSON) {
        return None;
    }
    Some(from_status(status, response.headers().get(ALLOW)))
}

fn from_status(status: StatusCode, allow: Option<&HeaderValue>) -> ApiError {
    match status {
        StatusCode::NOT_FOUND => ApiError::new(Code::ResourceNotFound, "there is no such resource"),
        StatusCode::METHOD_NOT_ALLOWED => {
            let error = ApiError::new(Code::MethodNotAllowed, "the resource has no such method");
            match allow.and_then(|methods| methods.to_str().ok()) {
                Some(methods) => error.with_allow(methods.to_owned()),
                None => error,
            }
        }
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(Code::PayloadTooLarge, "the request is too large"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            ApiError::unsupported_media_type("the content type is not supported")
        }
        StatusCode::UNAUTHORIZED => ApiError::unauthenticated(),
        StatusCode::FORBIDDEN => ApiError::new(Code::PermissionDenied, "not permitted"),
        StatusCode::REQUEST_TIMEOUT => ApiError::request_timeout(),
        StatusCode::GATEWAY_TIMEOUT => ApiError::deadline_exceeded(),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            ApiError::overloaded("the service cannot take this now")
        }
        status if status.is_client_error() => ApiError::malformed("the request is not valid"),
        status => ApiError::internal(format!("a handler answered {status} without a problem")),
    }
}
