//! `POST /v1/event-exports`, and the file: `GET /v1/operations/{operation_id}/output`.

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use daybook_service::Code;
use daybook_service::error::{ApiError, RETRY_AFTER_DEFAULT};
use daybook_service::identity::principal;
use daybook_service::path::Path;
use futures::stream;
use http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use http::{Extensions, HeaderValue};
use uuid::Uuid;

use super::KIND;
use super::request::EventExportRequest;
use super::store::Store;
use crate::http::{read_body, read_key};
use crate::operations::Operations;
use crate::operations::http::{accepted, private, shown_id};

/// Has an operation export events, as the log has them now.
pub(in crate::operations) async fn begin(
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
    let submitted = submitted
        .await?
        .ok_or_else(|| ApiError::rate_limited("operations that have not ended", RETRY_AFTER_DEFAULT))?;
    if submitted.kind != KIND || submitted.input_sha256 != asked.encode().1 {
        return Err(ApiError::idempotency_key_reused());
    }
    operations.submitted.notify_one();
    let is_replay = submitted.operation_id != operation;
    accepted(&operations, &principal, submitted.operation_id, is_replay).await
}

/// The file of an export that has succeeded.
pub(in crate::operations) async fn output(
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
