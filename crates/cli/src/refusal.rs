//! What a service said when it refused or failed, for people and for retries: the details of `google.rpc` in a status, or
//! a problem over REST.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use daybook_service::error::grpc::code_name;
use daybook_service::error::problem::RESERVED_MEMBERS;
use daybook_service::error::{Code as Catalogued, Retry};
use http::StatusCode;
use serde_json::{Map, Value};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::exit::Exit;
use crate::output::cell;

/// A call that was refused or failed.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// The catalogue's code (`VERSION_CONFLICT`), or gRPC's own where no service answered.
    pub(crate) code: String,
    /// The code on gRPC.
    pub(crate) grpc: Code,
    /// What is wrong, in words.
    pub(crate) message: String,
    /// What is wrong with each field.
    violations: Vec<FieldViolation>,
    /// The dynamic values of the message, by name.
    values: BTreeMap<String, String>,
    /// What to quote to the operators.
    request_id: Option<String>,
    /// How long to wait before it is sent again.
    pub(crate) retry_after: Option<Duration>,
    /// Whether a Daybook service said it, and not the connection.
    is_answer: bool,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        Self {
            code: info.map_or_else(|| code_name(status.code()), |info| info.reason.clone()),
            grpc: status.code(),
            message: message(&status),
            violations: details
                .bad_request()
                .map_or_else(Vec::new, |bad| bad.field_violations.clone()),
            values: info
                .map(|info| info.metadata.clone())
                .into_iter()
                .flatten()
                .collect(),
            request_id: request_id(&status, &details),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
            is_answer: info.is_some(),
        }
    }
}

impl Refusal {
    /// The problem (RFC 9457) that a service answered over REST, or what some server on the way to it answered.
    pub(crate) fn from_problem(status: StatusCode, body: &[u8]) -> Self {
        let problem: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
        let retry_after = problem.get("retry_after_ms").and_then(Value::as_u64);
        let violations = problem.get("errors").and_then(Value::as_array);
        let violations = violations.map_or_else(Vec::new, |all| all.iter().map(field_violation).collect());
        let text = |name: &str| problem.get(name).map(cell);
        let code = text("code");
        let known = code.as_deref().map(Catalogued::by_name);
        Self {
            code: code.unwrap_or_else(|| status.to_string()),
            grpc: known.map_or(Code::Unavailable, |code| code.entry().grpc),
            message: text("detail")
                .unwrap_or_else(|| "this is not the answer of a Daybook service".to_owned()),
            violations,
            request_id: text("request_id"),
            retry_after: retry_after.map(Duration::from_millis),
            values: problem
                .iter()
                .filter(|(name, _)| !RESERVED_MEMBERS.contains(&name.as_str()))
                .map(|(name, value)| (name.clone(), cell(value)))
                .collect(),
            is_answer: problem.contains_key("code"),
        }
    }

    /// How the process ends when this ends it.
    pub(crate) fn exit(&self) -> Exit {
        match self.catalogued() {
            Some(Catalogued::IdempotencyKeyReused) => Exit::Conflict,
            Some(Catalogued::PayloadTooLarge) => Exit::Usage,
            _ => self.grpc.into(),
        }
    }

    /// The code in the catalogue, if it is of this version and not a rule of the domain.
    fn catalogued(&self) -> Option<Catalogued> {
        let mut all = Catalogued::ALL.into_iter();
        all.find(|code| self.is_answer && code.name() == self.code)
    }

    /// Whether the same request with the same idempotency key may well succeed later. A connection that broke counts:
    /// whether the request arrived is unknown, and the key makes it safe to send again.
    pub(crate) fn is_transient(&self) -> bool {
        if self.is_answer {
            let retry = self.catalogued().map(|code| code.entry().retry);
            return matches!(retry, Some(Retry::Later | Retry::SameKey));
        }
        matches!(
            self.grpc,
            Code::Unavailable
                | Code::ResourceExhausted
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Unknown
                | Code::Internal
        )
    }

    /// Whether every other request would be refused in the same way.
    pub(crate) fn concerns_every_request(&self) -> bool {
        matches!(
            self.grpc,
            Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented
        )
    }

    /// The violations in one line, or the message where there are none.
    pub(crate) fn summary(&self) -> String {
        if self.violations.is_empty() {
            return self.message.clone();
        }
        let each: Vec<_> = self.violations.iter().map(violation).collect();
        each.join("; ")
    }
}

/// `CODE: message`, then a line for each violation and value, and the request id.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        for each in &self.violations {
            write!(f, "\n  {}", violation(each))?;
        }
        for (name, value) in &self.values {
            write!(f, "\n  {name}: {value}")?;
        }
        match &self.request_id {
            Some(id) => write!(f, "\n  request id: {id}"),
            None => Ok(()),
        }
    }
}

fn field_violation(violation: &Value) -> FieldViolation {
    let mut field = FieldViolation::new(cell(&violation["pointer"]), cell(&violation["message"]));
    field.reason = cell(&violation["code"]);
    field
}

fn violation(violation: &FieldViolation) -> String {
    let FieldViolation {
        field,
        description,
        reason,
        ..
    } = violation;
    if reason.is_empty() {
        format!("{field}: {description}")
    } else {
        format!("{field}: {description} ({reason})")
    }
}

/// The service's message; of a connection that failed, the innermost cause says most.
fn message(status: &Status) -> String {
    let mut cause = status.source();
    while let Some(inner) = cause.and_then(Error::source) {
        cause = Some(inner);
    }
    match cause {
        Some(cause) if status.details().is_empty() => format!("{}: {cause}", status.message()),
        _ => status.message().to_owned(),
    }
}

fn request_id(status: &Status, details: &ErrorDetails) -> Option<String> {
    let in_details = details.request_info().map(|info| info.request_id.clone());
    let in_header = || {
        status
            .metadata()
            .get("x-request-id")?
            .to_str()
            .ok()
            .map(str::to_owned)
    };
    in_details.or_else(in_header)
}

#[cfg(test)]
mod tests {
    use daybook_service::ApiError;

    use super::*;

    fn refused_with(details: ErrorDetails, code: Code) -> Refusal {
        Status::with_error_details(code, "the request is not valid", details).into()
    }

    #[test]
    fn a_refusal_shows_its_code_its_violations_its_values_and_its_request_id() {
        let values = [("missing_scope".to_owned(), "orders:write".to_owned())];
        let mut details = ErrorDetails::with_error_info("VALIDATION_FAILED", "daybook", values);
        let mut field = FieldViolation::new("/currency", "is not a code of ISO 4217");
        field.reason = "UNKNOWN_CODE".to_owned();
        details.set_bad_request(vec![field]);
        details.set_request_info("0190-abc", "");
        assert_eq!(
            refused_with(details, Code::InvalidArgument).to_string(),
            "VALIDATION_FAILED: the request is not valid\n  \
             /currency: is not a code of ISO 4217 (UNKNOWN_CODE)\n  \
             missing_scope: orders:write\n  \
             request id: 0190-abc"
        );
    }

    #[test]
    fn a_problem_is_shown_as_the_same_refusal_over_grpc_is() {
        let errors = [
            ApiError::invalid_field("as_of", "INVALID", "must be a version"),
            ApiError::permission_denied("orders:read"),
            ApiError::not_found("order", "ord_1"),
            ApiError::overloaded("full"),
            ApiError::payload_too_large(1),
            ApiError::domain_rule("ORDER_CLOSED", "it is closed"),
            ApiError::operation_running("rebuild", "order_list"),
        ];
        for error in errors {
            let body = error.to_problem().to_string();
            let problem = Refusal::from_problem(error.http_status(), body.as_bytes());
            let status = Refusal::from(Status::from(error));
            assert_eq!(problem.to_string(), status.to_string());
            assert_eq!(problem.exit(), status.exit(), "{status}");
            assert_eq!(problem.retry_after, status.retry_after, "{status}");
            assert_eq!(problem.is_transient(), status.is_transient(), "{status}");
        }
    }

    #[test]
    fn what_a_server_on_the_way_answered_is_told_from_a_refusal() {
        let refusal = Refusal::from_problem(StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(
            refusal.to_string(),
            "502 Bad Gateway: this is not the answer of a Daybook service"
        );
        assert_eq!(refusal.exit(), Exit::Unavailable);
        assert!(refusal.is_transient());
    }

    #[test]
    fn the_request_id_of_the_header_serves_when_the_details_have_none() {
        let mut status = Status::unavailable("the connection broke");
        status.metadata_mut().insert(
            "x-request-id",
            "0190-def".parse().expect("an id is visible ASCII"),
        );
        let shown = Refusal::from(status).to_string();
        assert_eq!(shown, "UNAVAILABLE: the connection broke\n  request id: 0190-def");
    }

    #[test]
    fn what_the_services_call_transient_is_sent_again_and_nothing_else() {
        let is_transient = |error: ApiError| Refusal::from(Status::from(error)).is_transient();
        assert!(is_transient(ApiError::overloaded("full")));
        assert!(is_transient(ApiError::shutting_down()));
        assert!(is_transient(ApiError::deadline_exceeded()));
        assert!(!is_transient(ApiError::unauthenticated()));
        assert!(!is_transient(ApiError::payload_too_large(1)));
        assert!(!is_transient(ApiError::internal("a fault")));
    }

    #[test]
    fn a_broken_connection_is_transient() {
        assert!(Refusal::from(Status::unavailable("connection refused")).is_transient());
        assert!(Refusal::from(Status::unknown("transport error")).is_transient());
        assert!(!Refusal::from(Status::unimplemented("")).is_transient());
    }

    #[test]
    fn a_reused_key_is_a_conflict_although_grpc_calls_it_an_argument() {
        let details = ErrorDetails::with_error_info("IDEMPOTENCY_KEY_REUSED", "daybook", []);
        assert_eq!(
            refused_with(details, Code::InvalidArgument).exit(),
            Exit::Conflict
        );
    }
}
