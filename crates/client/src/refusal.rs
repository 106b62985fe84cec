//! What a service said when it refused or failed, for people and for retries: the details of `google.rpc` in a status, or
//! a problem (RFC 9457) over REST.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};
use tonic::{Code, ConnectError, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

/// A call that was refused or failed.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The catalogue's code (`VERSION_CONFLICT`), or the transport's own where no service answered.
    pub code: String,
    /// The code on gRPC.
    pub grpc: Code,
    /// What is wrong, in words.
    pub message: String,
    /// What is wrong with each field.
    pub violations: Vec<FieldViolation>,
    /// The dynamic values of the message, by name.
    pub values: BTreeMap<String, String>,
    /// What to quote to the operators.
    pub request_id: Option<String>,
    /// How long to wait before it is sent again.
    pub retry_after: Option<Duration>,
    /// Whether a Daybook service said it, and not the connection.
    pub is_answer: bool,
    /// Whether there was no connection, so that nothing was sent.
    pub is_unsent: bool,
}

/// The members of a problem that are none of its dynamic values, beside those of [`Problem`].
const SAID_OTHERWISE: [&str; 5] = ["type", "title", "status", "instance", "resource"];

/// A problem, as a service writes it.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Problem {
    code: Option<String>,
    detail: Option<String>,
    request_id: Option<String>,
    retry_after_ms: Option<u64>,
    errors: Vec<ProblemViolation>,
    #[serde(flatten)]
    values: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ProblemViolation {
    pointer: String,
    code: String,
    message: String,
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
            is_unsent: causes(&status).any(|cause| cause.is::<ConnectError>()),
        }
    }
}

impl Refusal {
    /// The problem that a service answered over REST, or what some server on the way to it answered.
    #[must_use]
    pub fn from_problem(status: StatusCode, body: &[u8]) -> Self {
        let problem: Problem = serde_json::from_slice(body).unwrap_or_default();
        let is_answer = problem.code.is_some();
        let violations = problem.errors.into_iter().map(|violation| {
            let mut field = FieldViolation::new(violation.pointer, violation.message);
            field.reason = violation.code;
            field
        });
        let mut values = problem.values;
        values.retain(|name, _| !SAID_OTHERWISE.contains(&name.as_str()));
        Self {
            code: problem.code.unwrap_or_else(|| status.to_string()),
            grpc: if is_answer {
                grpc_code(status)
            } else {
                Code::Unavailable
            },
            message: problem
                .detail
                .unwrap_or_else(|| "this is not the answer of a Daybook service".to_owned()),
            violations: violations.collect(),
            values: values
                .into_iter()
                .map(|(name, value)| (name, text(value)))
                .collect(),
            request_id: problem.request_id,
            retry_after: problem.retry_after_ms.map(Duration::from_millis),
            is_answer,
            is_unsent: false,
        }
    }

    /// Whether the same request with the same idempotency key may well succeed later: the service says so, or the connection
    /// broke. Then whether the request arrived is unknown, and the key makes it safe to send again.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        if self.is_answer {
            return self.retry_after.is_some()
                || matches!(self.grpc, Code::Unavailable | Code::DeadlineExceeded);
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

    /// Whether a command that was answered so may be recorded, or may be yet, given whether it might before.
    pub(crate) fn leaves_open(&self, before: bool) -> bool {
        // What its key stands for, whichever attempt it was.
        let is_final = self.is_answer
            && (matches!(self.grpc, Code::FailedPrecondition | Code::AlreadyExists)
                || self.code == "IDEMPOTENCY_KEY_REUSED");
        !is_final && (before || self.may_hide_a_record())
    }

    /// Whether the attempt that met it may have recorded the command.
    fn may_hide_a_record(&self) -> bool {
        if self.is_answer {
            return self.code != "OVERLOADED"
                && matches!(
                    self.grpc,
                    Code::Unavailable
                        | Code::DeadlineExceeded
                        | Code::Internal
                        | Code::Unknown
                        | Code::Cancelled
                        | Code::DataLoss
                );
        }
        // A server on the way that does not let the call pass says one of these.
        let was_stopped = matches!(
            self.grpc,
            Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented
        );
        !self.is_unsent && !was_stopped
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

/// The code on gRPC of a problem's status. Statuses that stand for several codes give the one that callers treat alike.
fn grpc_code(status: StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 | 410 => Code::NotFound,
        405 | 415 => Code::Unimplemented,
        408 | 504 => Code::DeadlineExceeded,
        409 | 412 => Code::Aborted,
        413 | 414 | 429 | 431 => Code::ResourceExhausted,
        422 => Code::FailedPrecondition,
        503 => Code::Unavailable,
        _ => Code::Internal,
    }
}

/// A gRPC code as protocols write it: `FAILED_PRECONDITION`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// A value as people read it: text without quotes.
fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
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

/// What led to a status, the innermost last.
fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |&cause| cause.source())
}

/// The service's message; of a connection that failed, the innermost cause says most.
fn message(status: &Status) -> String {
    match causes(status).last() {
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
    use super::*;

    #[test]
    fn a_refusal_shows_its_code_its_violations_its_values_and_its_request_id() {
        let values = [("missing_scope".to_owned(), "orders:write".to_owned())];
        let mut details = ErrorDetails::with_error_info("VALIDATION_FAILED", "daybook", values);
        let mut field = FieldViolation::new("/currency", "is not a code of ISO 4217");
        field.reason = "UNKNOWN_CODE".to_owned();
        details.set_bad_request(vec![field]);
        details.set_request_info("0190-abc", "");
        let status = Status::with_error_details(Code::InvalidArgument, "the request is not valid", details);
        assert_eq!(
            Refusal::from(status).to_string(),
            "VALIDATION_FAILED: the request is not valid\n  \
             /currency: is not a code of ISO 4217 (UNKNOWN_CODE)\n  \
             missing_scope: orders:write\n  \
             request id: 0190-abc"
        );
    }

    #[test]
    fn what_a_server_on_the_way_answered_is_told_from_a_refusal() {
        let refusal = Refusal::from_problem(StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(
            refusal.to_string(),
            "502 Bad Gateway: this is not the answer of a Daybook service"
        );
        assert_eq!(refusal.grpc, Code::Unavailable);
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
    fn a_broken_connection_is_transient() {
        assert!(Refusal::from(Status::unavailable("connection refused")).is_transient());
        assert!(Refusal::from(Status::unknown("transport error")).is_transient());
        assert!(!Refusal::from(Status::unimplemented("")).is_transient());
    }

    fn answered(code: Code, reason: &str) -> Refusal {
        let details = ErrorDetails::with_error_info(reason, "daybook", [] as [(String, String); 0]);
        Status::with_error_details(code, "", details).into()
    }

    #[test]
    fn a_command_may_be_recorded_once_an_answer_was_lost_until_its_key_says_otherwise() {
        let lost = Refusal::from(Status::unavailable("the connection broke"));
        let full = answered(Code::Unavailable, "OVERLOADED");
        assert!(lost.leaves_open(false));
        assert!(!full.leaves_open(false), "nothing was done");
        assert!(
            full.leaves_open(true),
            "the attempt before may have been recorded"
        );
        assert!(answered(Code::Unauthenticated, "UNAUTHENTICATED").leaves_open(true));
        for rule in [
            answered(Code::FailedPrecondition, "ORDER_CLOSED"),
            answered(Code::AlreadyExists, "ALREADY_EXISTS"),
            answered(Code::InvalidArgument, "IDEMPOTENCY_KEY_REUSED"),
        ] {
            assert!(!rule.leaves_open(true), "{rule}: the key stands for a refusal");
        }
    }

    #[test]
    fn a_service_may_have_recorded_a_command_without_being_able_to_say_so() {
        for (code, reason) in [
            (Code::Unavailable, "DEPENDENCY_UNAVAILABLE"),
            (Code::Unavailable, "SHUTTING_DOWN"),
            (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
            (Code::Internal, "INTERNAL"),
        ] {
            assert!(answered(code, reason).leaves_open(false), "{reason}");
        }
        for (code, reason) in [
            (Code::ResourceExhausted, "RATE_LIMITED"),
            (Code::InvalidArgument, "VALIDATION_FAILED"),
            (Code::Aborted, "VERSION_CONFLICT"),
        ] {
            assert!(!answered(code, reason).leaves_open(false), "{reason}");
        }
    }

    #[test]
    fn what_was_never_sent_is_not_recorded() {
        let refused = ConnectError("connection refused".into());
        let refused = Refusal::from(Status::from_error(Box::new(refused)));
        assert!(refused.is_transient() && !refused.leaves_open(false), "{refused}");
    }
}
