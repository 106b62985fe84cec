//! Streams as Server-Sent Events: `/v1/{aggregates}/{id}/events/stream`, `/v1/events/stream`, `/v1/orders/stream`.
//!
//! Each event has an `id`: the place behind it, sealed, with which a browser's `EventSource` resumes by itself. An id also
//! comes alone, at the beginning and with every comment, so that it moves along while nothing is shown.
//!
//! | event | meaning | then |
//! |---|---|---|
//! | none | an event of the log, or a row of the list of orders | |
//! | `reset` | the log has not any more what the reader had: read it anew | the stream goes on behind the event's id |
//! | `overflow` | the reader is too slow | the end: resume |
//! | `shutdown` | the service stops | the end: resume, on another replica |
//! | `revoked` | the credential is not good any more | the end |
//! | `failed` | anything else | the end: resume |
//!
//! All but the first have a problem of the catalogue as their data.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, State};
use axum::response::Response;
use daybook_domain::aggregates::Kind;
use daybook_service::identity::{Principal, principal};
use daybook_service::tickets::Ticket;
use daybook_service::{ApiError, Code};
use futures::StreamExt as _;
use futures::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use utoipa::IntoParams;

use super::events::Aggregate;
use super::openapi::{NotFound, Refusals};
use super::params::Params;
use super::schema::{Event, OrderSummary};
use crate::reads::orders::ListedOrder;
use crate::streams::{Feed, Held, Item, Opening, Reader, Shown, Streams};

/// How long a browser waits before it connects again.
const RETRY_MS: u32 = 2_000;

/// The largest piece that is sent at once, in bytes.
const PIECE_BYTES: usize = 4 * 1_024;

const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");

/// Nobody keeps it, and nothing on the way gathers it up or compresses it.
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store, no-transform");

/// What nginx, and those who do like it, understand: hand on what comes, as it comes.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What every stream takes to resume, and to be opened.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ResumeQuery {
    /// The `id` of the last event that was received, for those who cannot set `Last-Event-ID`, which goes first.
    #[param(nullable = false)]
    pub last_event_id: Option<String>,
    /// A ticket for this very stream, in place of a key.
    #[param(nullable = false)]
    pub ticket: Option<String>,
}

/// What a browser sends by itself.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
pub struct ResumeHeaders {
    /// The `id` of the last event that was received: the stream goes on behind it.
    #[param(rename = "Last-Event-ID", nullable = false)]
    pub last_event_id: Option<String>,
}

/// Which events are streamed.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct StreamEventsParams {
    /// Only events of these types; given more than once, or as a list with commas.
    #[param(required = false, explode = false, min_items = 1, max_items = 50, example = json!(["order.placed"]))]
    pub r#type: Vec<String>,
    /// Where to begin where nothing is resumed: behind this position of the log; 0 for the very first event. With what is new
    /// when absent.
    #[param(nullable = false, format = "uint64", minimum = 0)]
    pub after_position: Option<u64>,
}

/// A request for a stream. The server has let nobody else through who lacks the scope that the route's description names.
#[derive(Debug)]
pub struct StreamRequest {
    caller: Arc<Principal>,
    ticket: Option<Ticket>,
    uri: Uri,
    params: Params,
    headers: HeaderMap,
}

impl<S: Send + Sync> FromRequestParts<S> for StreamRequest {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Ok(params) = Params::from_request_parts(parts, state).await;
        Ok(Self {
            caller: principal(&parts.extensions)?,
            ticket: parts.extensions.get().cloned(),
            uri: parts.uri.clone(),
            params,
            headers: parts.headers.clone(),
        })
    }
}

/// The events of one aggregate as they are recorded, as Server-Sent Events. Resumed with `Last-Event-ID` it has each event once,
/// in order. `reset` says that the log has not any more what the reader had, and goes on; `overflow` (the reader is too slow),
/// `shutdown`, `revoked` and `failed` end the stream. The data of these is a problem.
#[utoipa::path(
    get,
    path = "/v1/{aggregates}/{id}/events/stream",
    operation_id = "streamEventsOfAggregate",
    tag = "Streams",
    security(("api_key" = ["events:read"])),
    params(Aggregate, StreamEventsParams, ResumeQuery, ResumeHeaders),
    responses(
        (status = 200, description = "Events, until the stream ends.", body = String, content_type = "text/event-stream"),
        NotFound,
        Refusals,
    ),
)]
pub async fn stream_events_of_aggregate(
    State(streams): State<Streams>,
    request: StreamRequest,
) -> Result<Response, ApiError> {
    open(&streams, request).await
}

/// All events of the tenant as they are recorded, as Server-Sent Events; resumed and ended like the stream of one aggregate.
#[utoipa::path(
    get,
    path = "/v1/events/stream",
    operation_id = "streamEvents",
    tag = "Streams",
    security(("api_key" = ["events:read"])),
    params(StreamEventsParams, ResumeQuery, ResumeHeaders),
    responses(
        (status = 200, description = "Events, until the stream ends.", body = String, content_type = "text/event-stream"),
        Refusals,
    ),
)]
pub async fn stream_events(
    State(streams): State<Streams>,
    request: StreamRequest,
) -> Result<Response, ApiError> {
    open(&streams, request).await
}

/// Orders as the list shows them, each when it has changed, as Server-Sent Events; resumed and ended like the stream of events.
/// Of an order that changes often the last state comes, and perhaps not each before it. After a resume an order may come again as
/// it was known.
#[utoipa::path(
    get,
    path = "/v1/orders/stream",
    operation_id = "streamOrders",
    tag = "Streams",
    security(("api_key" = ["orders:read"])),
    params(ResumeQuery, ResumeHeaders),
    responses(
        (status = 200, description = "Orders, until the stream ends.", body = String, content_type = "text/event-stream"),
        Refusals,
    ),
)]
pub async fn stream_orders(
    State(streams): State<Streams>,
    request: StreamRequest,
) -> Result<Response, ApiError> {
    open(&streams, request).await
}

/// The stream at an address; `None` where there is none, or something is wrong with it.
///
/// # Errors
/// `RESOURCE_NOT_FOUND` for aggregates that there are not.
pub(super) fn feed_at(address: &Uri, params: &mut Params) -> Result<Option<Feed>, ApiError> {
    let mut parts = [""; 6];
    let mut count = 0;
    for part in address.path().strip_prefix('/').unwrap_or_default().split('/') {
        match parts.get_mut(count) {
            Some(place) => *place = part,
            None => return Ok(None),
        }
        count += 1;
    }
    Ok(match parts[..count] {
        ["v1", "orders", "stream"] => Some(Feed::orders()),
        ["v1", "events", "stream"] => Some(Feed::events(None, params.types())),
        ["v1", aggregates, id, "events", "stream"] => {
            let kind = Kind::by_plural(aggregates);
            let kind = kind.ok_or_else(|| ApiError::not_found("collection", aggregates))?;
            let types = params.types();
            params
                .stream(kind, id)
                .map(|stream| Feed::events(Some(stream), types))
        }
        _ => None,
    })
}

async fn open(streams: &Streams, request: StreamRequest) -> Result<Response, ApiError> {
    let StreamRequest {
        caller,
        ticket,
        uri,
        mut params,
        headers,
    } = request;
    let feed = feed_at(&uri, &mut params)?;
    let start = params.start(&headers);
    let feed = params.finish(feed)?;
    let opening = Opening {
        caller,
        feed,
        start,
        ticket,
    };
    let reader = streams.open(opening).await?;
    let retry = stream::iter([Bytes::from(format!("retry: {RETRY_MS}\n"))]);
    let items = retry.chain(reader.into_stream(written));
    let pieces = items.flat_map(|bytes| stream::iter(pieces(bytes)));
    let mut response = Response::new(Body::from_stream(pieces.map(Ok::<_, Infallible>)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, EVENT_STREAM);
    headers.insert(CACHE_CONTROL, NO_STORE);
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

/// An item as it is sent, counted until all of its pieces have been taken.
struct Written {
    text: String,
    _held: Held,
}

impl AsRef<[u8]> for Written {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

/// What is sent in pieces: a stream counts among the requests in flight with the largest that it has sent.
fn pieces(mut rest: Bytes) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        pieces.push(rest.split_to(rest.len().min(PIECE_BYTES)));
    }
    pieces
}

/// An item as it is sent.
fn written(reader: &Reader, item: Item) -> Bytes {
    let mut text = String::new();
    match item {
        Item::Delivery(delivery) => {
            let id = reader.seal(delivery.place);
            match delivery.json(json) {
                Ok(data) => write_event(&mut text, None, &id, data),
                Err(error) => write_problem(&mut text, "failed", &id, &ApiError::internal(error)),
            }
        }
        Item::Nothing => {
            let _ = write!(text, ":\nid: {}\n\n", reader.place());
        }
        Item::Reset(error) => write_problem(&mut text, "reset", &reader.place(), &error),
        Item::End(error) => write_problem(&mut text, ending(error.code()), &reader.place(), &error),
    }
    let held = reader.hold(text.len());
    Bytes::from_owner(Written { text, _held: held })
}

/// The name of the event that ends a stream.
fn ending(code: &Code) -> &'static str {
    match code {
        Code::RateLimited => "overflow",
        Code::ShuttingDown => "shutdown",
        Code::Unauthenticated | Code::PermissionDenied => "revoked",
        _ => "failed",
    }
}

fn write_problem(text: &mut String, name: &'static str, id: &str, error: &ApiError) {
    write_event(text, Some(name), id, &error.to_problem().to_string());
}

/// Data may have several lines. Within JSON a break between two is a space: texts have theirs escaped.
fn write_event(text: &mut String, name: Option<&'static str>, id: &str, data: &str) {
    let _ = writeln!(text, "id: {id}");
    if let Some(name) = name {
        let _ = writeln!(text, "event: {name}");
    }
    for line in data.split(['\n', '\r']) {
        let _ = writeln!(text, "data: {line}");
    }
    text.push('\n');
}

/// What is shown, as the other routes show it.
fn json(shown: &Shown) -> Result<String, serde_json::Error> {
    match shown {
        Shown::Event(event) => serde_json::to_string(&Event::show(event)?),
        Shown::Order(row) => serde_json::to_string(&OrderSummary::from(&ListedOrder::from(row.clone()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_its_place_and_its_data_line_by_line() {
        let mut text = String::new();
        write_event(&mut text, None, "abc", "{\"a\":\n1}");
        assert_eq!(text, "id: abc\ndata: {\"a\":\ndata: 1}\n\n");
        text.clear();
        write_event(&mut text, Some("reset"), "abc", "{}");
        assert_eq!(text, "id: abc\nevent: reset\ndata: {}\n\n");
    }

    #[test]
    fn an_address_is_that_of_a_stream_or_of_none() {
        let feed = |path: &'static str| feed_at(&Uri::from_static(path), &mut Params::default());
        for path in [
            "/v1/orders/stream",
            "/v1/events/stream?type=order.placed",
            "/v1/orders/ord_01h455vb4pex5vsknk084sn02q/events/stream",
            "/v1/stock-items/stk_01h455vb4pex5vsknk084sn02q/events/stream",
        ] {
            assert!(matches!(feed(path), Ok(Some(_))), "{path}");
        }
        for path in [
            "/",
            "/v1/orders",
            "/v1/orders/stream/",
            "/v1/orders/42/events/stream",
            "/v1/a/b/c/d/e/f/g",
        ] {
            assert!(matches!(feed(path), Ok(None)), "{path}");
        }
        assert!(feed("/v1/customers/x/events/stream").is_err());
    }
}
