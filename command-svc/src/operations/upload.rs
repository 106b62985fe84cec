//! `POST /v1/imports`: an input of any length, which is in the database before it is answered.
//!
//! It arrives as fast as the database takes it, in bounded memory. One that stalls, or is slower than anybody's line is, is cut, and
//! nothing of it stays. It is received in a task of its own, so that this is so when its caller goes away as well.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use daybook_service::error::{ApiError, RETRY_AFTER_DEFAULT};
use daybook_service::identity::{Principal, principal_with};
use daybook_service::request::{self, Hold};
use daybook_service::shares::{Place, half_of_the_rest};
use futures::StreamExt as _;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, Uri};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::description::{ImportBody, ImportParams, RefusalsOfImports};
use super::document::OperationAnswer;
use super::http::{Params, accepted};
use super::input::{Chunk, Chunks, Whole};
use super::store::{Open, Store, Submitted};
use super::{OPEN_MAX, Operations};
use crate::http::read_key;

/// The largest input, in bytes: some ten million orders. More is for another import.
pub(super) const IMPORT_BYTES_MAX: usize = 4 << 30;

/// How long an input may be silent.
const STALL_MAX: Duration = Duration::from_secs(20);

/// How many bytes have to arrive in each second of waiting, after the first [`STALL_MAX`].
const BYTES_PER_SECOND_MIN: f64 = 1_024.0;

/// How long an input may take to arrive, however it does. Connections grow about as old.
const UPLOAD_MAX: Duration = Duration::from_secs(30 * 60);

/// After how many bytes it is asked again whether there is room for more.
const ROOM_EVERY_BYTES: u64 = 16 << 20;

/// What NDJSON is called.
const MEDIA_TYPES: [&str; 3] = ["application/x-ndjson", "application/ndjson", "application/jsonl"];

/// What is imported when the address does not say.
pub(super) const KIND_DEFAULT: &str = "orders";

/// Imports what an NDJSON stream holds, however long it is.
///
/// Each line is a command under a key that follows from what the line is about: the same line again changes nothing.
/// The input is kept before this is answered, and then the operation goes on by itself, for as long as the key is good for it
/// that asked for it.
#[utoipa::path(
    post,
    path = "/v1/imports",
    operation_id = "import",
    tag = "operations",
    params(ImportParams),
    request_body(content = inline(ImportBody), content_type = "application/x-ndjson"),
    responses(
        (status = 202, description = "It was taken; `Location` says where its operation is.", body = OperationAnswer),
        RefusalsOfImports,
    ),
)]
pub(super) async fn upload(
    State(operations): State<Operations>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let kind = kind(&parts.uri);
    let importer = operations.importer(&kind).ok_or_else(|| {
        ApiError::invalid_field("kind", "UNKNOWN_VALUE", "nothing of this kind can be imported")
    })?;
    let principal = principal_with(&parts.extensions, importer.scope())?;
    let key = read_key(&parts.headers)?;
    check_media_type(&parts.headers)?;
    let place = operations.uploads.place(principal.tenant_id).await?;
    let (open, known) = operations.store.open(principal.tenant_id, key.clone()).await?;
    // A known key adds nothing, so there is always room for it.
    if known.is_none() {
        if open.operations >= i64::from(OPEN_MAX) {
            return Err(too_many_operations());
        }
        check_bytes(open, operations.bytes_max)?;
    }
    let upload = Upload {
        store: operations.store.clone(),
        operation: Uuid::now_v7(),
        kind: importer.kind(),
        key,
        known,
        bytes_max: operations.bytes_max,
        principal: Arc::clone(&principal),
        _hold: request::hold(),
        _place: place,
    };
    let (operation, is_replay) = tokio::spawn(upload.receive(body))
        .await
        .map_err(ApiError::internal)??;
    operations.submitted.notify_one();
    accepted(&operations, &principal, operation, is_replay).await
}

pub(super) fn too_many_operations() -> ApiError {
    ApiError::rate_limited("operations that have not ended", RETRY_AFTER_DEFAULT)
}

/// A tenant's inputs may take half of the bytes that those of the others leave, as with everything that is shared.
fn check_bytes(open: Open, bytes_max: u64) -> Result<(), ApiError> {
    let bytes = |bytes: i64| usize::try_from(bytes).unwrap_or_default();
    let max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
    let quota = "bytes of imports that have not ended";
    if bytes(open.bytes_of_all) >= max {
        return Err(ApiError::overloaded(format!("too many {quota}")));
    }
    if bytes(open.bytes) >= half_of_the_rest(max, bytes(open.bytes_of_all - open.bytes)) {
        return Err(ApiError::rate_limited(quota, RETRY_AFTER_DEFAULT));
    }
    Ok(())
}

fn kind(uri: &Uri) -> String {
    let kind = Params::of(uri).text("kind");
    kind.unwrap_or_else(|| KIND_DEFAULT.to_owned())
}

fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(ApiError::unsupported_media_type("bodies are taken uncompressed"));
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type
        .and_then(|text| text.split(';').next())
        .map(str::trim);
    match essence {
        Some(essence)
            if MEDIA_TYPES
                .iter()
                .any(|known| known.eq_ignore_ascii_case(essence)) =>
        {
            Ok(())
        }
        _ => Err(ApiError::unsupported_media_type(
            "the body must be application/x-ndjson",
        )),
    }
}

/// An input that arrives.
struct Upload {
    store: Store,
    operation: Uuid,
    kind: &'static str,
    key: String,
    /// The operation that has the key already.
    known: Option<Submitted>,
    /// How many bytes the inputs of all tenants may take.
    bytes_max: u64,
    principal: Arc<Principal>,
    _hold: Hold,
    _place: Place,
}

impl Upload {
    /// The operation, and whether it was there before.
    async fn receive(self, body: Body) -> Result<(Uuid, bool), ApiError> {
        if let Some(known) = &self.known {
            return self.same_as(known, &read(body).await?);
        }
        let tenant_id = self.principal.tenant_id;
        self.store
            .begin(self.operation, &self.principal, self.kind, self.key.clone())
            .await?;
        let (whole, chunks) = match self.keep(body).await {
            Ok(kept) => kept,
            Err(error) => {
                self.discard().await;
                return Err(error);
            }
        };
        // Where this is not answered, whether it was submitted is not known: its key finds out.
        let submitted = self
            .store
            .submit(tenant_id, self.operation, whole, chunks)
            .await?;
        match submitted {
            Some(submitted) if submitted.operation_id == self.operation => Ok((self.operation, false)),
            Some(submitted) => {
                self.discard().await;
                self.same_as(&submitted, &whole)
            }
            None => {
                self.discard().await;
                Err(too_many_operations())
            }
        }
    }

    fn same_as(&self, submitted: &Submitted, whole: &Whole) -> Result<(Uuid, bool), ApiError> {
        if submitted.kind == self.kind && submitted.input_sha256 == whole.sha256 {
            Ok((submitted.operation_id, true))
        } else {
            Err(ApiError::idempotency_key_reused())
        }
    }

    /// Keeps what arrives; how many chunks that were.
    async fn keep(&self, body: Body) -> Result<(Whole, i32), ApiError> {
        let mut arriving = Arriving::new(body);
        let (mut chunks, mut kept) = (Chunks::new(), Kept::default());
        while let Some(bytes) = arriving.next().await? {
            for chunk in chunks.push(&bytes) {
                self.keep_chunk(chunk, &mut kept).await?;
            }
        }
        let (last, whole) = chunks.finish();
        if let Some(chunk) = last {
            self.keep_chunk(chunk, &mut kept).await?;
        }
        self.check_room().await?;
        Ok((whole, kept.chunks))
    }

    async fn keep_chunk(&self, chunk: Chunk, kept: &mut Kept) -> Result<(), ApiError> {
        let (number, bytes) = (kept.chunks, kept.bytes + chunk.lines.len() as u64);
        let (tenant_id, operation) = (self.principal.tenant_id, self.operation);
        self.store
            .add_input(tenant_id, operation, number, bytes, chunk)
            .await?;
        if bytes / ROOM_EVERY_BYTES > kept.bytes / ROOM_EVERY_BYTES {
            self.check_room().await?;
        }
        *kept = Kept {
            chunks: number + 1,
            bytes,
        };
        Ok(())
    }

    /// Whether there is room for what is kept, and for more.
    async fn check_room(&self) -> Result<(), ApiError> {
        let (open, _) = self
            .store
            .open(self.principal.tenant_id, self.key.clone())
            .await?;
        check_bytes(open, self.bytes_max)
    }

    /// Deletes what was kept. What cannot be deleted now is deleted later by whoever looks for what is too old.
    async fn discard(&self) {
        if let Err(error) = self
            .store
            .discard_input(self.principal.tenant_id, self.operation)
            .await
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                operation.id = %self.operation,
                "cannot delete an input that did not arrive"
            );
        }
    }
}

/// What is kept of an input so far.
#[derive(Debug, Default)]
struct Kept {
    chunks: i32,
    bytes: u64,
}

/// Reads an input of which nothing is kept.
async fn read(body: Body) -> Result<Whole, ApiError> {
    let (mut arriving, mut chunks) = (Arriving::new(body), Chunks::new());
    while let Some(bytes) = arriving.next().await? {
        drop(chunks.push(&bytes));
    }
    Ok(chunks.finish().1)
}

/// A body, as long as it goes on.
struct Arriving {
    body: axum::body::BodyDataStream,
    begun: Instant,
    waited: Duration,
    bytes: usize,
}

impl Arriving {
    fn new(body: Body) -> Self {
        Self {
            body: body.into_data_stream(),
            begun: Instant::now(),
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let waits_since = Instant::now();
        let next = timeout(STALL_MAX, self.body.next()).await;
        self.waited += waits_since.elapsed();
        let Some(arrived) = next.map_err(|_elapsed| ApiError::request_timeout())? else {
            return Ok(None);
        };
        // What is too large is answered by the server, which counts what arrives.
        let arrived = arrived.map_err(|_| ApiError::malformed("the body broke off"))?;
        self.bytes += arrived.len();
        match self.is_too_slow() || self.begun.elapsed() > UPLOAD_MAX {
            true => Err(ApiError::request_timeout()),
            false => Ok(Some(arrived)),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    fn is_too_slow(&self) -> bool {
        let waited = self.waited.saturating_sub(STALL_MAX).as_secs_f64();
        (self.bytes as f64) < waited * BYTES_PER_SECOND_MIN
    }
}
