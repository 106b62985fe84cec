//! Operations as callers see them.

use serde::Serialize;
use serde_json::Value;
use time::serde::rfc3339;
use time::{Duration, OffsetDateTime};
use type_safe_id::{StaticType, TypeSafeId};
use utoipa::ToSchema;
use uuid::Uuid;

use super::exports::{ExportDocument, Manifest};
use super::store::{LineError, Row};

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OperationTag;

impl StaticType for OperationTag {
    const TYPE: &'static str = "op";
}

/// The id of an operation as callers see it ("op_…").
pub(super) fn shown_id(operation: Uuid) -> String {
    TypeSafeId::<OperationTag>::from_uuid(operation).to_string()
}

/// What an operation is doing. May grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum OperationState {
    /// Nobody works on it yet.
    Pending,
    /// It is being worked on.
    Running,
    /// Somebody wants it to end before it is done.
    Cancelling,
    /// It is done; lines may have failed.
    Succeeded,
    /// It ended before it was done: what was done stays.
    Cancelled,
    /// It cannot be done: `error` says why.
    Failed,
}

/// An operation: an import or an export, and how far it is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OperationDocument {
    /// The TypeID of the operation.
    #[schema(example = "op_01h455vb4pex5vsknk084sn02q")]
    pub(super) operation_id: String,
    /// What is imported, as it is called in addresses; `event-exports` for an export.
    #[schema(example = "orders")]
    kind: String,
    /// What it is doing.
    pub(super) state: OperationState,
    /// When its input began to arrive, or it was asked for.
    #[serde(with = "rfc3339")]
    created_at: OffsetDateTime,
    /// When somebody began to work on it.
    #[serde(with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) started_at: Option<OffsetDateTime>,
    /// When it ended.
    #[serde(with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    ended_at: Option<OffsetDateTime>,
    /// Where it was cancelled because its caller may not ask for it any more: the code that the caller is refused with,
    /// `UNAUTHENTICATED` or `PERMISSION_DENIED`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    cancelled_with: Option<String>,
    /// When it will be done, at the rate so far.
    #[serde(with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) estimated_completion: Option<OffsetDateTime>,
    /// How far it is.
    pub(super) progress: OperationProgress,
    /// What is exported; of exports alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) export: Option<ExportDocument>,
    /// What the file is, of an export that has succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) manifest: Option<Manifest>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<daybook_service::openapi::Problem>)]
    pub(super) error: Option<Value>,
}

/// How far an operation is. It is recorded about twice a second. Of an export, lines are events that were written, and bytes are
/// those of its file; how many there will be is not known before.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OperationProgress {
    /// Lines that were read and are done, without blank ones.
    pub(super) lines_read: i64,
    /// Lines that the input has, with blank ones.
    pub(super) lines_total: i64,
    /// Lines that were done, now or by an earlier import.
    pub(super) succeeded: i64,
    /// Lines that were refused.
    pub(super) failed: i64,
    /// Bytes of the input that are done.
    pub(super) bytes_done: i64,
    /// Bytes that the input has.
    pub(super) bytes_total: i64,
}

impl From<Row> for OperationDocument {
    fn from(row: Row) -> Self {
        let bytes_done = row.bytes.unwrap_or_default();
        Self {
            operation_id: shown_id(row.operation_id),
            state: state(&row),
            estimated_completion: estimated_completion(&row),
            kind: row.kind,
            created_at: row.created_at,
            started_at: row.started_at,
            ended_at: row.ended_at,
            cancelled_with: row.cancelled_with,
            progress: OperationProgress {
                lines_read: row.lines.unwrap_or_default(),
                lines_total: row.input_lines,
                succeeded: row.succeeded.unwrap_or_default(),
                failed: row.failed.unwrap_or_default(),
                bytes_done,
                bytes_total: row.input_bytes,
            },
            export: None,
            manifest: None,
            error: None,
        }
    }
}

fn state(row: &Row) -> OperationState {
    match (row.outcome.as_deref(), row.cancel_requested_at, row.started_at) {
        (Some("SUCCEEDED"), _, _) => OperationState::Succeeded,
        (Some("FAILED"), _, _) => OperationState::Failed,
        (Some(_), _, _) => OperationState::Cancelled,
        (None, Some(_), _) => OperationState::Cancelling,
        (None, None, Some(_)) => OperationState::Running,
        (None, None, None) => OperationState::Pending,
    }
}

fn estimated_completion(row: &Row) -> Option<OffsetDateTime> {
    if state(row) != OperationState::Running {
        return None;
    }
    let moments = row.started_at.zip(row.recorded_at)?;
    estimate(moments, (row.bytes?, row.input_bytes))
}

/// At the rate from the beginning to the last record, where there is any.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
pub(super) fn estimate(
    (started_at, recorded_at): (OffsetDateTime, OffsetDateTime),
    (done, total): (i64, i64),
) -> Option<OffsetDateTime> {
    if done <= 0 {
        return None;
    }
    let took = (recorded_at - started_at).as_seconds_f64();
    let left = took * (total - done) as f64 / done as f64;
    recorded_at.checked_add(Duration::seconds_f64(left))
}

/// An operation.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OperationAnswer {
    /// The operation.
    pub(super) data: OperationDocument,
}

/// A page of operations, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OperationList {
    /// The operations.
    pub(super) data: Vec<OperationDocument>,
    /// Where the list goes on.
    pub(super) pagination: Pagination,
}

/// Why a line failed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorLine {
    /// The line's number, from 1.
    pub(super) line: i64,
    /// What the line is about in the caller's words, where that could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) reference: Option<String>,
    /// The problem that the command alone would have been answered with; of its violations the first ten.
    #[schema(value_type = daybook_service::openapi::Problem)]
    pub(super) error: Value,
}

/// A page of errors, by their lines.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorList {
    /// The errors.
    pub(super) data: Vec<ErrorLine>,
    /// Where the list goes on.
    pub(super) pagination: Pagination,
}

/// Where a list goes on.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Pagination {
    /// The cursor of the next page; null on the last one. Opaque, and good for this list alone.
    pub(super) next_cursor: Option<String>,
    /// Whether there is a next page.
    pub(super) has_more: bool,
}

impl From<LineError> for ErrorLine {
    fn from(error: LineError) -> Self {
        Self {
            line: error.line,
            reference: error.reference,
            error: serde_json::from_str(&error.problem).unwrap_or_default(),
        }
    }
}
