//! `POST /v1/event-exports`, and the file: `GET /v1/operations/{operation_id}/output`.

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use daybook_service::Code;
use daybook_service::error::ApiError;
use daybook_service::identity::principal;
use daybook_service::path::Path;
use futures::stream;
use http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use http::{Extensions, HeaderValue};
use uuid::Uuid;

use super::KIND;
use super::description::{KeyParameter, RefusalsOfExports, RefusalsOfOutputs, exported};
use super::request::EventExportRequest;
use super::store::Store;
use crate::http::{read_body, read_key};
use crate::operations::Operations;
use crate::operations::document::{OperationAnswer, shown_id};
use crate::operations::http::{accepted, private};
use crate::operations::upload::too_many_operations;

/// Exports the tenant's events into a file.
#[utoipa::path(
    post,
    path = "/v1/event-exports",
    operation_id = "exportEvents",
    tag = "operations",
    description = exported(),
    params(KeyParameter),
    request_body = EventExportRequest,
    responses(
        (status = 202, description = "It was taken; `Location` says where its operation is.", body = OperationAnswer),
        RefusalsOfExports,
    ),
)]
pub(super) async fn begin(
    State(operations): State<Operations>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let principal = principal(&parts.extensions)?;
    let key = read_key(&parts.headers)?;
    let asked: EventExportRequest = read_body(&parts.headers, body).await?;
    let asked = asked.check()?;
    let operation = Uuid::now_v7();
    let submitted = operations.exports.submit(operation, &principal, key, &asked);
    let submitted = submitted.await?.ok_or_else(too_many_operations)?;
    if submitted.kind != KIND || submitted.input_sha256 != asked.encode().1 {
        return Err(ApiError::idempotency_key_reused());
    }
    operations.submitted.notify_one();
    let is_replay = submitted.operation_id != operation;
    accepted(&operations, &principal, submitted.operation_id, is_replay).await
}

/// The file of an export that has succeeded.
///
/// NDJSON has on each line an event as the event feed shows it, CSV a row for each event below a row of names, and no cell that
/// begins like a formula.
#[utoipa::path(
    get,
    path = "/v1/operations/{operation_id}/output",
    operation_id = "getOperationOutput",
    tag = "operations",
    params(("operation_id" = String, Path, description = "The TypeID of the operation.")),
    responses(
        (
            status = 200,
            description = "The file.",
            content((String = "application/x-ndjson"), (String = "text/csv")),
            headers(
                ("ETag" = String, description = "The SHA-256 of the file, as the manifest has it."),
                ("Content-Disposition" = String, description = "What the file may be called."),
            ),
        ),
        RefusalsOfOutputs,
    ),
)]
pub(super) async fn output(
    State(operations): State<Operations>,
    Path(id): Path<String>,
    extensions: Extensions,
) -> Result<Response, ApiError> {
    let (principal, row) = operations.named(&extensions, &id).await?;
    let (tenant_id, operation_id) = (principal.tenant_id, row.operation_id);
    let export = operations
        .exports
        .exports(tenant_id, vec![operation_id])
        .await?
        .pop();
    let export = export.ok_or_else(|| ApiError::not_found("output", &id))?;
    if row.ended_at.is_none() {
        let message = "the file is not whole yet; ask again when the operation has ended";
        return Err(ApiError::new(Code::OperationRunning, message).with_resource("operation", id));
    }
    let sha256 = export.sha256.as_ref().map(hex::encode);
    let sha256 = sha256.ok_or_else(|| ApiError::not_found("output", &id))?;
    let format = export.asked().map_err(ApiError::internal)?.format;
    let name = format!("events-{}.{}", shown_id(operation_id), format.extension());
    let first = operations.exports.output(tenant_id, operation_id, 0).await?;
    let first = first.ok_or_else(|| ApiError::not_found("output", &id))?;
    let mut response = Response::new(chunks(
        operations.exports,
        (tenant_id, operation_id),
        first,
        export.chunks,
    ));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(export.written.bytes));
    for (header, value) in [
        (CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
        (ETAG, format!("\"{sha256}\"")),
    ] {
        headers.insert(header, HeaderValue::from_str(&value).map_err(ApiError::internal)?);
    }
    private(headers);
    Ok(response)
}

/// A file, read chunk by chunk as it is taken. One that is deleted meanwhile breaks off.
fn chunks(store: Store, (tenant_id, operation_id): (Uuid, Uuid), first: Vec<u8>, count: i32) -> Body {
    let chunks = stream::try_unfold((0, Some(first)), move |(number, read)| {
        let store = store.clone();
        async move {
            if number >= count {
                return Ok::<_, sqlx::Error>(None);
            }
            let read = match read {
                Some(first) => Some(first),
                None => store.output(tenant_id, operation_id, number).await?,
            };
            let chunk = Bytes::from(read.ok_or(sqlx::Error::RowNotFound)?);
            Ok(Some((chunk, (number + 1, None))))
        }
    });
    Body::from_stream(chunks)
}
