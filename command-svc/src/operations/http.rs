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
use type_safe_id::TypeSafeId;
use uuid::Uuid;

use super::description::{NotFound, Page, Refusals, RefusalsOfLists, errors_kept};
use super::document::{ErrorList, OperationAnswer, OperationList, OperationTag, Pagination, shown_id};
use super::store::{Question, Row};
use super::{Operations, csv};

/// Items on a page of a list, unless the caller says otherwise, and at most.
const LIMIT_DEFAULT: i32 = 20;
const LIMIT_MAX: i32 = 100;

/// Errors that are read at a time for a CSV file.
const CSV_PAGE: i32 = 100;

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

/// Cursor scope: tenant and list.
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
#[utoipa::path(
    get,
    path = "/v1/operations/{operation_id}",
    operation_id = "getOperation",
    tag = "operations",
    params(("operation_id" = String, Path, description = "The TypeID of the operation.")),
    responses((status = 200, description = "It is there.", body = OperationAnswer), NotFound, Refusals),
)]
pub(super) async fn show(
    State(operations): State<Operations>,
    Path(id): Path<String>,
    extensions: Extensions,
) -> Result<Response, ApiError> {
    let (principal, row) = operations.named(&extensions, &id).await?;
    let data = operations.document(&principal, row).await?;
    json(&OperationAnswer { data })
}

/// Has an operation end before it is done: what was done stays.
///
/// An operation that has ended stays as it is, so this may be sent as often as one likes.
#[utoipa::path(
    post,
    path = "/v1/operations/{operation_id}/cancel",
    operation_id = "cancelOperation",
    tag = "operations",
    params(("operation_id" = String, Path, description = "The TypeID of the operation.")),
    responses((status = 200, description = "It is there.", body = OperationAnswer), NotFound, Refusals),
)]
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
#[utoipa::path(
    get,
    path = "/v1/operations",
    operation_id = "listOperations",
    tag = "operations",
    params(Page),
    responses((status = 200, description = "It is there.", body = OperationList), RefusalsOfLists),
)]
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

/// Why lines of an operation failed, by their numbers.
#[utoipa::path(
    get,
    path = "/v1/operations/{operation_id}/errors",
    operation_id = "listOperationErrors",
    tag = "operations",
    description = errors_kept(),
    params(("operation_id" = String, Path, description = "The TypeID of the operation."), Page),
    responses(
        (status = 200, description = "It is there.", content((ErrorList = "application/json"), (String = "text/csv"))),
        NotFound,
        RefusalsOfLists,
    ),
)]
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
