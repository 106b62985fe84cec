//! What a refusal says over gRPC: the code of the catalogue and its values.

use tonic::Status;
use tonic_types::StatusExt as _;

/// The code of the catalogue (`VERSION_CONFLICT`); "" when the status has no details, which no status of ours may lack.
#[must_use]
pub fn code(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map(|info| info.reason).unwrap_or_default()
}

/// A dynamic value of the refusal; "" when it is absent.
#[must_use]
pub fn value(status: &Status, name: &str) -> String {
    let info = status.get_details_error_info();
    info.and_then(|mut info| info.metadata.remove(name))
        .unwrap_or_default()
}

/// The request id of the refusal; "" when it is absent.
#[must_use]
pub fn request_id(status: &Status) -> String {
    let info = status.get_details_request_info();
    info.map(|info| info.request_id).unwrap_or_default()
}

/// The fields that are wrong, each with the code of what is wrong: `/lines/0/sku REQUIRED`.
#[must_use]
pub fn violations(status: &Status) -> Vec<String> {
    let request = status.get_details_bad_request();
    let fields = request
        .map(|request| request.field_violations)
        .unwrap_or_default();
    fields
        .iter()
        .map(|violation| format!("{} {}", violation.field, violation.reason))
        .collect()
}

/// Whether the outcome of the call is unknown: the command may have been recorded all the same.
#[must_use]
pub fn is_unknown(status: &Status) -> bool {
    matches!(
        status.code(),
        tonic::Code::Unavailable
            | tonic::Code::DeadlineExceeded
            | tonic::Code::Cancelled
            | tonic::Code::Unknown
            | tonic::Code::Internal
    )
}

/// Whether the refusal is the answer to the command for good: a rule of the domain, which is remembered with the key, or
/// something that the same content always meets. A conflict, a missing aggregate and a full queue are of the moment.
#[must_use]
pub fn is_remembered(status: &Status) -> bool {
    !is_unknown(status)
        && !matches!(
            status.code(),
            tonic::Code::Aborted | tonic::Code::NotFound | tonic::Code::ResourceExhausted
        )
}
