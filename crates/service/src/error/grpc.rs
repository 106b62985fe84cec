//! The map from the catalogue to gRPC: a `google.rpc.Status` that always has an `ErrorInfo`.
//!
//! tonic refuses some requests before any handler sees them (an unknown RPC, a broken message, one that is too large)
//! with a bare status. [`from_bare_status`] gives those their place in the catalogue, too.

use std::borrow::Cow;
use std::collections::HashMap;

use prost::Message as _;
use serde_json::Value;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code as GrpcCode, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::problem::MORE_VIOLATIONS;
use super::{ApiError, Code, FieldViolation, IDEMPOTENCY_REPLAYED, cut};
use crate::request::RequestId;

/// The `domain` of every `ErrorInfo`.
const ERROR_DOMAIN: &str = "daybook";

/// How many violations an answer lists at most, and how many bytes they have: trailers are headers, and clients limit those to
/// 8 KiB or so. HTTP's bodies hold [more](super::problem::VIOLATIONS_MAX).
pub const VIOLATIONS_MAX: usize = 32;
const VIOLATIONS_BYTES_MAX: usize = 3 * 1_024;

/// How many bytes of its message an answer has. In the head of the answer each may take three.
const MESSAGE_BYTES_MAX: usize = 512;

/// How many bytes every other text of an answer has: a name, a value, what is wrong with one field.
const TEXT_BYTES_MAX: usize = 256;

/// The metadata that tells a gRPC client's retry policy how long to wait, in milliseconds.
const RETRY_PUSHBACK: &str = "grpc-retry-pushback-ms";

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let request_id = error.request_id();
        error.log(request_id.as_ref());
        Self::with_error_details_and_metadata(
            error.code().entry().grpc,
            cut(error.message(), MESSAGE_BYTES_MAX),
            details(&error, request_id.as_ref()),
            metadata(&error),
        )
    }
}

impl ApiError {
    /// The status of one item of an answer. It does not name the request, so that the same answer has the same bytes.
    #[must_use]
    pub fn to_item_status(&self) -> tonic_types::Status {
        let details = details(self, None);
        let status = Status::with_error_details(self.code().entry().grpc, self.message(), details);
        tonic_types::Status::decode(status.details()).expect("it was just encoded")
    }
}

/// The details of `google.rpc` that belong to the error.
fn details(error: &ApiError, request_id: Option<&RequestId>) -> ErrorDetails {
    let mut details = ErrorDetails::with_error_info(error.code().name(), ERROR_DOMAIN, error_metadata(error));
    for violation in shown(error.violations()) {
        details.add_bad_request_violation(text(&violation.pointer), text(&violation.message));
    }
    add_violation_codes(&mut details, error);
    add_failure(&mut details, error);
    if let Some(pause) = error.retry_after() {
        details.set_retry_info(Some(pause));
    }
    if let Some(resource) = error.resource() {
        let message = cut(error.message(), MESSAGE_BYTES_MAX);
        details.set_resource_info(&*resource.kind, text(&resource.id), "", message);
    }
    if let Some(id) = request_id {
        details.set_request_info(id.as_str(), "");
    }
    details
}

/// As many of the violations as there is room for; the first one always is.
fn shown(violations: &[FieldViolation]) -> &[FieldViolation] {
    let mut bytes = 0;
    let fit = violations.iter().take(VIOLATIONS_MAX).take_while(|violation| {
        let texts = [&violation.pointer, &violation.message].map(|text| text.len().min(TEXT_BYTES_MAX));
        bytes += texts.iter().sum::<usize>() + violation.code.len();
        bytes <= VIOLATIONS_BYTES_MAX
    });
    &violations[..fit.count()]
}

fn text(text: &str) -> Cow<'_, str> {
    cut(text, TEXT_BYTES_MAX)
}

/// The dynamic values as the strings that `ErrorInfo` takes.
fn error_metadata(error: &ApiError) -> HashMap<String, String> {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let values = error.details().iter();
    let values = values.map(|(name, value)| (name.to_string(), text(&plain(value)).into_owned()));
    let more = error.violations().len() - shown(error.violations()).len();
    let more = (more > 0).then(|| (MORE_VIOLATIONS.to_owned(), more.to_string()));
    values.chain(more).collect()
}

/// The code of each violation is the `reason` of its field violation; tonic's builder has no argument for it.
fn add_violation_codes(details: &mut ErrorDetails, error: &ApiError) {
    let Some(bad_request) = details.bad_request() else {
        return;
    };
    let mut fields = bad_request.field_violations.clone();
    for (field, violation) in fields.iter_mut().zip(error.violations()) {
        field.reason = violation.code.to_owned();
    }
    details.set_bad_request(fields);
}

/// Adds the failed precondition of the domain, or the quota.
fn add_failure(details: &mut ErrorDetails, error: &ApiError) {
    let subject = text(error.resource().map_or("", |resource| &resource.id));
    let message = cut(error.message(), MESSAGE_BYTES_MAX);
    match error.code() {
        Code::DomainRule(_) | Code::VersionConflict | Code::OperationRunning => {
            details.add_precondition_failure_violation(error.code().name(), subject, message);
        }
        Code::RateLimited => {
            details.add_quota_failure_violation(subject, message);
        }
        _ => {}
    }
}

/// The metadata that goes beside the status.
fn metadata(error: &ApiError) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    if let Some(pause) = error.retry_after() {
        let millis = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        metadata.insert(RETRY_PUSHBACK, MetadataValue::from(millis));
    }
    if error.is_replay() {
        metadata.insert(IDEMPOTENCY_REPLAYED, MetadataValue::from_static("true"));
    }
    metadata
}

/// The place in the catalogue of a status that tonic itself made, or `None` when the status has its details already.
#[must_use]
pub fn from_bare_status(status: &Status) -> Option<ApiError> {
    if !status.details().is_empty() || status.code() == GrpcCode::Ok {
        return None;
    }
    Some(match status.code() {
        GrpcCode::Unimplemented => unimplemented(status),
        GrpcCode::OutOfRange => ApiError::new(Code::PayloadTooLarge, "the message is too large"),
        GrpcCode::Internal => broken_message(status),
        GrpcCode::NotFound => ApiError::new(Code::ResourceNotFound, "there is no such resource"),
        GrpcCode::InvalidArgument | GrpcCode::FailedPrecondition => {
            ApiError::malformed(status.message().to_owned())
        }
        GrpcCode::AlreadyExists => ApiError::new(Code::AlreadyExists, "it exists already"),
        GrpcCode::Unauthenticated => ApiError::unauthenticated(),
        GrpcCode::PermissionDenied => ApiError::new(Code::PermissionDenied, "not permitted"),
        GrpcCode::Cancelled | GrpcCode::DeadlineExceeded => ApiError::deadline_exceeded(),
        GrpcCode::ResourceExhausted | GrpcCode::Unavailable | GrpcCode::Aborted => {
            ApiError::overloaded("the service cannot take this now")
        }
        GrpcCode::Ok | GrpcCode::Unknown | GrpcCode::DataLoss => ApiError::internal(status.to_string()),
    })
}

/// tonic says "unimplemented" for an unknown RPC (with no message) and for a compression that is not known.
fn unimplemented(status: &Status) -> ApiError {
    if status.message().is_empty() {
        ApiError::new(Code::MethodNotAllowed, "there is no such RPC")
    } else {
        ApiError::unsupported_media_type(status.message().to_owned())
    }
}

/// tonic says "internal" for a request that is not protobuf, and tonic-web for one that is not base64 or breaks off; a fault of
/// ours never comes here, it has its details.
fn broken_message(status: &Status) -> ApiError {
    let message = status.message();
    let is_callers_fault = [
        "decod",
        "EOF",
        "compress",
        "Missing request",
        "flag",
        "tonic-web: ",
    ]
    .iter()
    .any(|word| message.contains(word));
    if is_callers_fault {
        ApiError::malformed("the message cannot be decoded")
    } else {
        ApiError::internal(status.to_string())
    }
}

/// `InvalidArgument` as `INVALID_ARGUMENT`, which is how gRPC's documentation writes it.
#[must_use]
pub fn code_name(code: GrpcCode) -> String {
    let camel = format!("{code:?}");
    let mut name = String::with_capacity(camel.len() + 2);
    for letter in camel.chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_status_is_named_as_its_documentation_does() {
        assert_eq!(code_name(GrpcCode::InvalidArgument), "INVALID_ARGUMENT");
        assert_eq!(code_name(GrpcCode::NotFound), "NOT_FOUND");
        assert_eq!(code_name(GrpcCode::Aborted), "ABORTED");
    }
}
