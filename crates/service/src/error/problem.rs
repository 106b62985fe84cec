//! The map from the catalogue to HTTP: an RFC 9457 problem, always.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Map, Value, json};

use super::{ApiError, Code};
use crate::request::RequestId;

/// The content type of every error.
pub const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

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
        self.code().entry().http
    }

    /// The problem as JSON: what the body of the answer holds, and an item's error in a batch.
    #[must_use]
    pub fn to_problem(&self) -> Value {
        self.problem(self.request_id().as_ref())
    }

    fn problem(&self, request_id: Option<&RequestId>) -> Value {
        let mut members = Map::new();
        for (name, value) in self.details() {
            members.insert((*name).to_owned(), value.clone());
        }
        members.insert("type".into(), format!("/problems/{}", self.code().slug()).into());
        members.insert("title".into(), self.code().entry().title.into());
        members.insert("status".into(), self.http_status().as_u16().into());
        members.insert("detail".into(), self.message().into());
        members.insert("code".into(), self.code().name().into());
        if let Some(id) = request_id {
            members.insert("request_id".into(), id.as_str().into());
        }
        if !self.violations().is_empty() {
            members.insert("errors".into(), self.violations_json());
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
        let violations = self.violations().iter();
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
        // Text that cannot be a header is left out.
        let methods = self.0.allow.as_deref().map(HeaderValue::from_str);
        if let Some(Ok(methods)) = methods {
            headers.insert(ALLOW, methods);
        }
        headers
    }
}

/// `Retry-After` counts whole seconds; a shorter pause becomes one, never none.
fn whole_seconds(pause: Duration) -> u64 {
    let rounded_up = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
    rounded_up.max(1)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let request_id = self.request_id();
        self.log(request_id.as_ref());
        let mut response = Response::new(Body::from(self.problem(request_id.as_ref()).to_string()));
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
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => ApiError::deadline_exceeded(),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            ApiError::overloaded("the service cannot take this now")
        }
        status if status.is_client_error() => ApiError::malformed("the request is not valid"),
        status => ApiError::internal(format!("a handler answered {status} without a problem")),
    }
}
