//! Validation and metadata of every command request, before it is decided.

use daybook_event_store::Metadata;
use daybook_proto::common::v1::CommandContext;
use daybook_proto::convert::{Violation, Violations, from_timestamp};
use daybook_service::error::{ApiError, FieldViolation};
use daybook_service::identity::Principal;
use daybook_service::telemetry;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// The most bytes in an idempotency key, a correlation id, a causation id and an actor.
const ID_BYTES_MAX: usize = 128;

/// The most bytes in a reason.
const REASON_BYTES_MAX: usize = 512;

/// How far ahead of our clock a caller's may be.
const CLOCK_SKEW_MAX: Duration = Duration::minutes(1);

/// Checks an idempotency key, which came as the field or header of this name: 1 to 128 visible ASCII characters.
pub(crate) fn check_key(field: &str, key: &str, violations: &mut Violations) {
    let name = field.trim_start_matches('/');
    if key.is_empty() {
        violations.add(field, "REQUIRED", format_args!("{name} is required"));
    } else if key.len() > ID_BYTES_MAX {
        let message = format_args!("{name} must have at most {ID_BYTES_MAX} bytes");
        violations.add(field, "TOO_LONG", message);
    } else if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = format_args!("{name} must be visible ASCII");
        violations.add(field, "FORBIDDEN_CHARACTER", message);
    }
}

/// Checks who, why and what caused a command, and makes the metadata of it.
pub(crate) fn metadata(
    context: CommandContext,
    principal: &Principal,
    command: &'static str,
    key: &str,
    received_at: OffsetDateTime,
    violations: &mut Violations,
) -> Metadata {
    let mut text = |field: &'static str, text: String, max: usize| {
        let pointer = format!("/context/{field}");
        if text.len() > max {
            violations.add(
                pointer,
                "TOO_LONG",
                format_args!("{field} must have at most {max} bytes"),
            );
        } else if text.chars().any(char::is_control) {
            violations.add(
                pointer,
                "FORBIDDEN_CHARACTER",
                format_args!("{field} must not have control characters"),
            );
        }
        (!text.is_empty()).then_some(text)
    };
    let actor = text("actor", context.actor, ID_BYTES_MAX);
    let reason = text("reason", context.reason, REASON_BYTES_MAX);
    let correlation_id = text("correlation_id", context.correlation_id, ID_BYTES_MAX);
    let causation_id = text("causation_id", context.causation_id, ID_BYTES_MAX);
    let occurred_at = context.occurred_at.and_then(|timestamp| {
        let moment = from_timestamp(&timestamp);
        if moment.is_none_or(|moment| moment > received_at + CLOCK_SKEW_MAX) {
            violations.add(
                "/context/occurred_at",
                "OUT_OF_RANGE",
                "occurred_at must be a moment, and not in the future",
            );
        }
        moment
    });
    Metadata {
        correlation_id: correlation_id.unwrap_or_else(|| Uuid::now_v7().to_string()),
        causation_id,
        principal: principal.credential(),
        actor,
        reason,
        command: command.to_owned(),
        idempotency_key: key.to_owned(),
        traceparent: telemetry::current_traceparent(),
        occurred_at,
        received_at_us: i64::try_from(received_at.unix_timestamp_nanos() / 1_000).ok(),
    }
}

/// The violations as the one error that reports them all.
pub(crate) fn validation_error(violations: Violations) -> ApiError {
    let fields = violations.into_vec().into_iter();
    ApiError::validation(fields.map(field_violation).collect())
}

/// A violation as errors have it.
pub(crate) fn field_violation(violation: Violation) -> FieldViolation {
    FieldViolation::new(violation.pointer, violation.code, violation.message)
}
