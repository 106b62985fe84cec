//! `/v1/stream-tickets`: what opens a stream where a key cannot be sent.

use std::collections::BTreeMap;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use daybook_proto::convert::{Unreadable, Violation, from_json};
use daybook_service::error::FieldViolation;
use daybook_service::identity::principal_with;
use daybook_service::openapi::{COMMON, refusals};
use daybook_service::tickets::TICKET_LIFETIME;
use daybook_service::{ApiError, Code};
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Uri};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::openapi::{RefOr, Response as DescribedResponse};
use utoipa::{IntoResponses, ToSchema};

use super::params::Params;
use super::schema::Envelope;
use super::streams::feed_at;
use crate::streams::Streams;

/// The largest body of a request, in bytes: an address.
pub(super) const BODY_BYTES_MAX: usize = 16 * 1_024;

/// For which stream.
#[derive(Debug, Deserialize, ToSchema)]
pub struct StreamTicketRequest {
    /// The path of the stream, with the parameters that say what it shows and where it begins.
    #[schema(example = "/v1/orders/stream")]
    pub stream: String,
}

/// A ticket.
#[derive(Debug, Serialize, ToSchema)]
pub struct StreamTicket {
    /// To be added to the address of the stream as the parameter `ticket`. Opaque.
    pub ticket: String,
    /// Until when it opens the stream. Afterwards it is only good for going on with a stream that it has opened, with
    /// `Last-Event-ID`, for as long as the key is that asked for it.
    #[serde(with = "rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// What a request for a ticket may be refused with.
#[derive(Debug)]
pub struct TicketRefusals;

impl IntoResponses for TicketRefusals {
    fn responses() -> BTreeMap<String, RefOr<DescribedResponse>> {
        refusals(COMMON.iter().chain(&[Code::UnsupportedMediaType]))
    }
}

/// A ticket for one stream, for those who cannot send a key: a browser's `EventSource`. It needs the scope that the stream needs,
/// and stands for the key that asks for it, as that is when the ticket is used.
///
/// An `EventSource` whose `readyState` has become `CLOSED` was refused, and does not connect again: open another one with the same
/// ticket and `last_event_id`, or with a new ticket where the stream may begin anew.
#[utoipa::path(
    post,
    path = "/v1/stream-tickets",
    operation_id = "createStreamTicket",
    tag = "Streams",
    security(("api_key" = [])),
    request_body = StreamTicketRequest,
    responses(
        (status = 200, description = "The ticket.", body = Envelope<StreamTicket>),
        TicketRefusals,
    ),
)]
pub async fn create_stream_ticket(
    State(streams): State<Streams>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let StreamTicketRequest { stream } = read(&parts.headers, body).await?;
    let invalid = || {
        let message = "must be the path of a stream, with its parameters";
        ApiError::invalid_field("/stream", "INVALID", message)
    };
    let address: Uri = stream.parse().map_err(|_| invalid())?;
    if address.authority().is_some() {
        return Err(invalid());
    }
    let mut params = Params::of(&address);
    let feed = feed_at(&address, &mut params).map_err(|_| invalid())?;
    let feed = params.finish(Some(feed))?.ok_or_else(invalid)?;
    let caller = principal_with(&parts.extensions, feed.scope())?;
    let now = OffsetDateTime::now_utc();
    let data = StreamTicket {
        ticket: streams.tickets().issue(&caller, &address, now),
        expires_at: now + TICKET_LIFETIME,
    };
    let body = serde_json::to_vec(&Envelope { data }).map_err(ApiError::internal)?;
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn read(headers: &HeaderMap, body: Body) -> Result<StreamTicketRequest, ApiError> {
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(ApiError::unsupported_media_type("bodies are taken uncompressed"));
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|text| text.split(';').next());
    if !essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json")) {
        return Err(ApiError::unsupported_media_type(
            "the body must be application/json",
        ));
    }
    // What is too large is answered by the server, which counts what arrives.
    let body = to_bytes(body, BODY_BYTES_MAX).await;
    let body = body.map_err(|_| ApiError::malformed("the body broke off"))?;
    from_json(&body).map_err(|unreadable| match unreadable {
        Unreadable::Malformed(violation) => ApiError::malformed_at(field(violation)),
        Unreadable::Mistyped(violation) => ApiError::validation(vec![field(violation)]),
    })
}

fn field(violation: Violation) -> FieldViolation {
    FieldViolation::new(violation.pointer, violation.code, violation.message)
}
