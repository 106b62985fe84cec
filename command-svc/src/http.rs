//! Commands over HTTP: `POST /v1/orders`, `POST /v1/orders/{order_id}/cancel` and so on.
//!
//! A body becomes the very message that comes over gRPC, and goes the same way, so that a key is one key, whichever transport
//! it came over. The answer is made of the receipt alone, which is remembered with the key: so a second answer is the first
//! one, byte for byte.
//!
//! `openapi.json` in this crate is the description, committed. A test holds it and what is served equal; `UPDATE_OPENAPI=1` in
//! its environment writes the file anew.

mod batch;
mod description;
mod head;

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use daybook_domain::aggregate::Aggregate;
use daybook_proto::common::v1 as common;
use daybook_proto::convert::{CommandRequest, Unreadable, from_json, from_timestamp};
use daybook_service::error::{ApiError, IDEMPOTENCY_REPLAYED};
use daybook_service::path::Path;
use daybook_service::server::{Declared, Needs};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::ToSchema;

pub use self::batch::{BatchAnswer, BatchBody, BatchData, BatchResult, BatchSummary};
pub use self::description::description;
pub(crate) use self::description::{Operations, key_parameter};
use self::head::Head;
use crate::COMMAND_BYTES_MAX;
use crate::handler::{Answer, Handler, Served};
use crate::request::field_violation;

/// The header with the token of what was recorded.
const DAYBOOK_CONSISTENCY: HeaderName = HeaderName::from_static("daybook-consistency");

/// The routes of an aggregate's commands, and what is said about them.
pub(crate) struct Routes<A: Served> {
    router: Router<Endpoint<A>>,
    paths: Vec<String>,
    operations: Operations,
}

/// The handler of an aggregate's commands.
struct Endpoint<A: Aggregate> {
    handler: Arc<Handler<A>>,
    public_url: Arc<str>,
}

impl<A: Aggregate> Clone for Endpoint<A> {
    fn clone(&self) -> Self {
        Self {
            handler: Arc::clone(&self.handler),
            public_url: Arc::clone(&self.public_url),
        }
    }
}

impl<A: Served> Default for Routes<A> {
    fn default() -> Self {
        Self {
            router: Router::new(),
            paths: Vec::new(),
            operations: Operations::of::<A>(),
        }
    }
}

impl<A: Served + 'static> Routes<A> {
    /// Adds a command.
    pub(crate) fn with<R>(mut self) -> Self
    where
        R: CommandRequest<Aggregate = A> + DeserializeOwned + ToSchema + 'static,
    {
        let path = path_of::<R>();
        let method = match R::ACTION {
            None => post(begin::<R>),
            Some(_) => post(act::<R>),
        };
        self.router = self.router.route(&path, method);
        self.operations.add::<R>(&path);
        self.paths.push(path);
        self
    }

    /// Adds a batch of commands that begin an aggregate; `name` is what it is called in the description.
    pub(crate) fn with_batch<R>(mut self, name: &'static str) -> Self
    where
        R: CommandRequest<Aggregate = A> + DeserializeOwned + ToSchema + 'static,
    {
        let path = format!("{}/batch", collection::<A>());
        self.router = self.router.route(&path, post(batch::handle::<R>));
        self.operations.add_batch::<R>(&path, name);
        self.paths.push(path);
        self
    }

    /// The routes, answered by this handler.
    pub(crate) fn served_by(self, handler: Arc<Handler<A>>, public_url: Arc<str>) -> Declared {
        let needs = Needs::scope(A::SCOPE).with_body(COMMAND_BYTES_MAX);
        let router = self.router.with_state(Endpoint { handler, public_url });
        Declared::new(router, self.paths.into_iter().map(|path| (path, needs)))
    }

    /// Their descriptions.
    pub(crate) fn into_operations(self) -> Operations {
        self.operations
    }
}

/// The idempotency key of a request that is no command to an aggregate.
pub(crate) fn read_key(headers: &HeaderMap) -> Result<String, ApiError> {
    Head::read_key(headers)
}

/// Where all aggregates of this kind are.
fn collection<A: Aggregate>() -> String {
    format!("/v1/{}", A::PLURAL)
}

/// Where a command goes to.
fn path_of<R: CommandRequest>() -> String {
    let collection = collection::<R::Aggregate>();
    match R::ACTION {
        None => collection,
        Some(action) => format!("{collection}/{{{}}}/{}", action.id_field, action.name),
    }
}

/// A command that begins an aggregate: 201, and where it is.
async fn begin<R>(
    State(endpoint): State<Endpoint<R::Aggregate>>,
    request: Request,
) -> Result<Response, ApiError>
where
    R: CommandRequest<Aggregate: Served> + DeserializeOwned,
{
    let answer = handle::<R>(&endpoint, None, request).await?;
    let location = location::<R::Aggregate>(&endpoint.public_url, &answer.receipt.stream_id)?;
    let mut response = response(StatusCode::CREATED, answer)?;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// A command to an aggregate that is there: 200.
async fn act<R>(
    State(endpoint): State<Endpoint<R::Aggregate>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError>
where
    R: CommandRequest<Aggregate: Served> + DeserializeOwned,
{
    response(StatusCode::OK, handle::<R>(&endpoint, Some(id), request).await?)
}

async fn handle<R>(
    endpoint: &Endpoint<R::Aggregate>,
    id: Option<String>,
    request: Request,
) -> Result<Answer, ApiError>
where
    R: CommandRequest<Aggregate: Served> + DeserializeOwned,
{
    let (parts, body) = request.into_parts();
    let head = Head::read(&parts.headers)?;
    let mut command: R = read_body(&parts.headers, body).await?;
    head.complete(&mut command, id)?;
    let answered = endpoint.handler.handle(command, &parts.extensions).await;
    answered.map_err(|error| head.refused(error))
}

/// Reads the message of a command. No body at all is an empty object.
pub(crate) async fn read_body<R: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<R, ApiError> {
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(ApiError::unsupported_media_type("bodies are taken uncompressed"));
    }
    // What is too large is answered by the server, which counts what arrives.
    let body = to_bytes(body, COMMAND_BYTES_MAX)
        .await
        .map_err(|_| ApiError::malformed("the body broke off"))?;
    if body.is_empty() {
        return read_json(b"{}");
    }
    if !is_json(headers) {
        return Err(ApiError::unsupported_media_type(
            "the body must be application/json",
        ));
    }
    read_json(&body)
}

/// Whether the body says that it is JSON, in whichever words.
fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type
        .and_then(|text| text.split(';').next())
        .map(str::trim);
    essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"))
}

/// Reads a message, or says where it cannot be read.
pub(crate) fn read_json<R: DeserializeOwned>(json: &[u8]) -> Result<R, ApiError> {
    from_json(json).map_err(|unreadable| match unreadable {
        Unreadable::Malformed(violation) => ApiError::malformed_at(field_violation(violation)),
        Unreadable::Mistyped(violation) => ApiError::validation(vec![field_violation(violation)]),
    })
}

/// What a command did. The same `Idempotency-Key` and content gives the same receipt, byte for byte, for at least the
/// retention time of idempotency keys: 30 days, unless the deployment keeps them for longer.
#[derive(Debug, Serialize, ToSchema)]
pub struct Receipt {
    /// The TypeID of the aggregate that the command was for.
    pub stream_id: String,
    /// The aggregate's version after the command: the number of its events.
    pub stream_version: u64,
    /// Hand this to a query to read a state that includes this command. Opaque.
    pub consistency_token: String,
    /// When the events were committed, by the database's clock.
    #[serde(with = "rfc3339")]
    pub recorded_at: OffsetDateTime,
}

/// What a command did, as it is answered.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReceiptAnswer {
    /// The receipt.
    pub data: Receipt,
}

impl TryFrom<common::Receipt> for Receipt {
    type Error = ApiError;

    fn try_from(receipt: common::Receipt) -> Result<Self, ApiError> {
        let recorded_at = receipt.recorded_at.as_ref().and_then(from_timestamp);
        Ok(Self {
            stream_id: receipt.stream_id,
            stream_version: receipt.stream_version,
            consistency_token: receipt.consistency_token,
            recorded_at: recorded_at.ok_or_else(|| ApiError::internal("a receipt has no moment"))?,
        })
    }
}

/// The answer to a command, from its receipt and nothing else.
fn response(status: StatusCode, Answer { receipt, is_replay }: Answer) -> Result<Response, ApiError> {
    let token = receipt.consistency_token.clone();
    let data = Receipt::try_from(receipt)?;
    let mut response = json(&ReceiptAnswer { data }, &token, is_replay)?;
    *response.status_mut() = status;
    Ok(response)
}

/// An answer of commands; `token` stands for what was recorded, if anything was.
fn json(body: &impl Serialize, token: &str, is_replay: bool) -> Result<Response, ApiError> {
    let body = serde_json::to_vec(body).map_err(ApiError::internal)?;
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if !token.is_empty() {
        let token = HeaderValue::from_str(token).map_err(ApiError::internal)?;
        headers.insert(DAYBOOK_CONSISTENCY, token);
    }
    if is_replay {
        let replayed = HeaderName::from_static(IDEMPOTENCY_REPLAYED);
        headers.insert(replayed, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Where an aggregate can be read.
fn location<A: Aggregate>(public_url: &str, id: &str) -> Result<HeaderValue, ApiError> {
    let url = format!("{public_url}{}/{id}", collection::<A>());
    HeaderValue::from_str(&url).map_err(ApiError::internal)
}
