//! How an operation stands, over HTTP: `GET /v1/operations/{operation_id}`, its errors, and its end before it is done.

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::response::Response;
use daybook_service::error::{ApiError, FieldViolation};
use daybook_service::identity::{Principal, principal};
use daybook_service::path::Path;
use daybook_service::sealing::Purpose;
use futures::stream;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE, LOCATION, VARY};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use serde::Serialize;
use serde_json::Value;
use time::serde::rfc3339;
use time::{Duration, OffsetDateTime};
use type_safe_id::{StaticType, TypeSafeId};
use utoipa::ToSchema;
use uuid::Uuid;

use super::exports::{ExportDocument, Manifest};
use super::store::{LineError, Question, Row};
use super::{Operations, csv};

/// Items on a page of a list, unless the caller says otherwise, and at most.
const LIMIT_DEFAULT: i32 = 20;
const LIMIT_MAX: i32 = 100;

/// Errors that are read at a time for a CSV file.
const CSV_PAGE: i32 = 1_000;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct OperationTag;

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
    operation_id: String,
    /// What is imported: `orders`, `stock-items`; `event-exports` for an export.
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

/// How far an operation is. It is recorded about twice a second. Of an export, lines are events that were written, and bytes are those of
/// its file; how many there will be is not known before.
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
    estimate(
        row.started_at.zip(row.recorded_at)?,
        (row.bytes?, row.input_bytes),
    )
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
    data: OperationDocument,
}

/// A page of operations, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OperationList {
    /// The operations.
    data: Vec<OperationDocument>,
    /// Where the list goes on.
    pagination: Pagination,
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
    /// The problem that the command alone would have been answered with.
    #[schema(value_type = daybook_service::openapi::Problem)]
    pub(super) error: Value,
}

/// A page of errors, by their lines.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorList {
    /// The errors.
    data: Vec<ErrorLine>,
    /// Where the list goes on.
    pagination: Pagination,
}

/// Where a list goes on.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Pagination {
    /// The cursor of the next page; null on the last one. Opaque, and good for this list alone.
    next_cursor: Option<String>,
    /// Whether there is a next page.
    has_more: bool,
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

/// The parameters of a query string. Those that are not known are ignored.
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    pub(super) fn of(uri: &Uri) -> Self {
        Self(Query::try_from_uri(uri).map_or_else(|_| Vec::new(), |Query(pairs)| pairs))
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        let pair = self.0.iter().find(|(known, _)| known == name);
        pair.map(|(_, value)| value.clone())
    }

    fn limit(&self) -> Result<i32, ApiError> {
        let Some(text) = self.text("limit") else {
            return Ok(LIMIT_DEFAULT);
        };
        let limit = text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
        limit.ok_or_else(|| {
            let message = format!("must be a number from 1 to {LIMIT_MAX}");
            ApiError::validation(vec![FieldViolation::new("limit", "OUT_OF_RANGE", message)])
        })
    }
}

/// What cursors of a list are bound to.
fn bound_to(principal: &Principal, list: &str) -> Vec<u8> {
    [principal.tenant_id.as_bytes(), list.as_bytes()].concat()
}

impl Operations {
    /// The place where a page begins; `None` for the first page.
    fn place<const N: usize>(&self, params: &Params, bound_to: &[u8]) -> Result<Option<[u8; N]>, ApiError> {
        let Some(cursor) = params.text("cursor") else {
            return Ok(None);
        };
        let place = self.sealing.open(Purpose::Cursor, bound_to, &cursor);
        let place = place.and_then(|place| place.try_into().ok());
        place.map(Some).ok_or_else(ApiError::invalid_cursor)
    }

    fn pagination(&self, next: Option<&[u8]>, bound_to: &[u8]) -> Pagination {
        Pagination {
            next_cursor: next.map(|place| self.sealing.seal(Purpose::Cursor, bound_to, place)),
            has_more: next.is_some(),
        }
    }

    /// An operation that the caller may see.
    async fn find(&self, principal: &Principal, operation: Uuid) -> Result<Row, ApiError> {
        let question = Question {
            tenant_id: principal.tenant_id,
            kinds: self.kinds(principal),
            operation: Some(operation),
            before: None,
            limit: 1,
        };
        let found = self.store.operations(question).await?.pop();
        found.ok_or_else(|| ApiError::not_found("operation", shown_id(operation)))
    }

    /// The operation that an address names.
    pub(super) async fn named(
        &self,
        extensions: &Extensions,
        id: &str,
    ) -> Result<(std::sync::Arc<Principal>, Row), ApiError> {
        let principal = principal(extensions)?;
        let parsed = id.parse::<TypeSafeId<OperationTag>>();
        let operation = parsed.map_err(|_| ApiError::not_found("operation", id))?.uuid();
        let row = self.find(&principal, operation).await?;
        Ok((principal, row))
    }
}

/// The answer to an import or export that was taken: 202, and where its operation is.
pub(super) async fn accepted(
    operations: &Operations,
    principal: &Principal,
    operation: Uuid,
    is_replay: bool,
) -> Result<Response, ApiError> {
    let row = operations.find(principal, operation).await?;
    let data = operations.document(principal, row).await?;
    let location = format!("/v1/operations/{}", data.operation_id);
    let mut response = json(&OperationAnswer { data })?;
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    headers.insert(
        LOCATION,
        HeaderValue::from_str(&location).map_err(ApiError::internal)?,
    );
    if is_replay {
        let replayed = HeaderName::from_static(daybook_service::error::IDEMPOTENCY_REPLAYED);
        headers.insert(replayed, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// How an operation stands.
pub(super) async fn show(
    State(operations): State<Operations>,
    Path(id): Path<String>,
    extensions: Extensions,
) -> Result<Response, ApiError> {
    let (principal, row) = operations.named(&extensions, &id).await?;
    let data = operations.document(&principal, row).await?;
    json(&OperationAnswer { data })
}

/// Has an operation end before it is done. Once it has ended this changes nothing.
pub(super) async fn cancel(
    State(operations): State<Operations>,
    Path(id): Path<String>,
    extensions: Extensions,
) -> Result<Response, ApiError> {
    let (principal, row) = operations.named(&extensions, &id).await?;
    operations
        .store
        .cancel(principal.tenant_id, row.operation_id)
        .await?;
    operations.submitted.notify_one();
    let row = operations.find(&principal, row.operation_id).await?;
    let data = operations.document(&principal, row).await?;
    json(&OperationAnswer { data })
}

/// Operations, the newest first.
pub(super) async fn list(
    State(operations): State<Operations>,
    uri: Uri,
    extensions: Extensions,
) -> Result<Response, ApiError> {
    let principal = principal(&extensions)?;
    let (params, bound_to) = (Params::of(&uri), bound_to(&principal, "operations"));
    let limit = params.limit()?;
    let question = Question {
        tenant_id: principal.tenant_id,
        kinds: operations.kinds(&principal),
        operation: None,
        before: operations.place(&params, &bound_to)?.map(Uuid::from_bytes),
        limit: limit + 1,
    };
    let mut rows = operations.store.operations(question).await?;
    let next = next_place(&mut rows, limit, |row| row.operation_id.as_bytes().to_vec());
    json(&OperationList {
        data: operations.documents(&principal, rows).await?,
        pagination: operations.pagination(next.as_deref(), &bound_to),
    })
}

/// Cuts off what is beyond the page, and gives the place of its last item where there is more.
fn next_place<T>(rows: &mut Vec<T>, limit: i32, place: impl Fn(&T) -> Vec<u8>) -> Option<Vec<u8>> {
    let limit = usize::try_from(limit).expect("a limit is positive");
    let has_more = rows.len() > limit;
    rows.truncate(limit);
    rows.last().filter(|_| has_more).map(place)
}

/// Why lines of an operation failed: a page as JSON, or all as CSV.
pub(super) async fn errors(
    State(operations): State<Operations>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    extensions: Extensions,
) -> Result<Response, ApiError> {
    let (principal, row) = operations.named(&extensions, &id).await?;
    let operation = row.operation_id;
    if wants_csv(&headers) {
        return errors_csv(operations, principal.tenant_id, operation).await;
    }
    let (params, bound_to) = (
        Params::of(&uri),
        bound_to(&principal, &format!("errors of {operation}")),
    );
    let limit = params.limit()?;
    let after = operations
        .place(&params, &bound_to)?
        .map_or(0, i64::from_be_bytes);
    let errors = operations
        .store
        .errors(principal.tenant_id, operation, after, limit + 1);
    let mut errors = errors.await?;
    let next = next_place(&mut errors, limit, |error| error.line.to_be_bytes().to_vec());
    json(&ErrorList {
        data: errors.into_iter().map(Into::into).collect(),
        pagination: operations.pagination(next.as_deref(), &bound_to),
    })
}

/// Whether the caller asks for CSV, in whichever words; JSON is what there is otherwise.
fn wants_csv(headers: &HeaderMap) -> bool {
    let accepted = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut accepted = accepted.flat_map(|list| list.split(',')).map(|one| {
        let essence = one.split(';').next().unwrap_or_default();
        essence.trim().to_ascii_lowercase()
    });
    accepted
        .find(|one| one == "text/csv" || one == "application/json")
        .as_deref()
        == Some("text/csv")
}

/// All errors as CSV, read page by page as they are taken.
async fn errors_csv(operations: Operations, tenant_id: Uuid, operation: Uuid) -> Result<Response, ApiError> {
    let first = operations.store.errors(tenant_id, operation, 0, CSV_PAGE).await?;
    let pages = stream::try_unfold(Some(first), move |page| {
        let store = operations.store.clone();
        async move {
            let Some(page) = page else {
                return Ok::<_, sqlx::Error>(None);
            };
            let last = page.last().map(|error| error.line);
            let lines: String = page.into_iter().map(|error| csv::line(&error.into())).collect();
            let next = match last {
                Some(last) => Some(store.errors(tenant_id, operation, last, CSV_PAGE).await?),
                None => None,
            };
            Ok(Some((Bytes::from(lines), next)))
        }
    });
    let head = stream::once(async { Ok(Bytes::from_static(csv::HEAD.as_bytes())) });
    let mut response = Response::new(Body::from_stream(futures::StreamExt::chain(head, pages)));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/csv; charset=utf-8; header=present"),
    );
    headers.insert(
        CONTENT_DISPOSITION,
        HeaderValue::from_static("attachment; filename=\"errors.csv\""),
    );
    private(headers);
    Ok(response)
}

fn json(body: &impl Serialize) -> Result<Response, ApiError> {
    let body = serde_json::to_vec(body).map_err(ApiError::internal)?;
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    private(headers);
    Ok(response)
}

/// Somebody's own data: nobody else's cache may keep it.
pub(super) fn private(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(VARY, HeaderValue::from_static("authorization, accept"));
}
