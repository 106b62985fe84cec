//! `/v1/{aggregates}/{id}/events`, for every kind of aggregate.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use daybook_domain::aggregates::{AGGREGATES, Kind};
use daybook_domain::ids::OrderId;
use daybook_service::ApiError;
use daybook_service::deprecation::Deprecation;
use daybook_service::identity::Principal;
use daybook_service::path::Path;
use http::HeaderMap;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::openapi::{Ended, NotFound, NotModified, Refusals};
use super::params::Params;
use super::schema::{Event, ListEnvelope};
use super::{Caller, ConditionalHeaders, FreshnessHeaders, FreshnessQuery, answer, examples};
use crate::freshness::Demand;
use crate::reads::Reads;
use crate::reads::history::{ListEvents, Stream, successor_of_order_events};

/// Whose history it is.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct Aggregate {
    /// What aggregates of its kind are called in addresses.
    #[param(value_type = Plural, inline, example = "orders")]
    pub aggregates: String,
    /// The aggregate's TypeID.
    #[param(pattern = "^[a-z]+_[0-7][0-9a-hjkmnp-tv-z]{25}$", example = json!(examples::ORDER_ID))]
    pub id: String,
}

/// What aggregates of a kind are called.
struct Plural;

impl ToSchema for Plural {}

impl PartialSchema for Plural {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(AGGREGATES.iter().map(|kind| kind.plural)))
            .into()
    }
}

/// What a history takes.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListEventsParams {
    /// The first version to return.
    #[param(nullable = false, format = "uint64", minimum = 1, default = 1)]
    pub from_version: Option<u64>,
    /// The last version to return; the newest when absent.
    #[param(nullable = false, format = "uint64", minimum = 1)]
    pub to_version: Option<u64>,
    /// `asc` for the oldest event first, `desc` for the newest.
    #[param(nullable = false, default = "asc", pattern = "^(asc|desc)$")]
    pub order: Option<String>,
    /// How many events a page has.
    #[param(nullable = false, minimum = 1, maximum = 100, default = 20)]
    pub limit: Option<u32>,
    /// Whether to tell with each event what it changed: in the first 100,000 events of an aggregate, as long as that is not too
    /// much; else it is `PAYLOAD_TOO_LARGE`.
    #[param(nullable = false, default = false)]
    pub diff: Option<bool>,
    /// `next_cursor` of the page before; everything else has to be as it was there.
    #[param(nullable = false)]
    pub cursor: Option<String>,
}

/// The history of an aggregate: what happened, who did it and why, byte for byte as it was recorded. It is read from the
/// log, so it is never behind. With `diff=true` each event has `changes`: what it changed in the document of the aggregate.
#[utoipa::path(
    get,
    path = "/v1/{aggregates}/{id}/events",
    operation_id = "listEvents",
    tag = "Histories",
    security(("api_key" = ["events:read"])),
    params(Aggregate, ListEventsParams, FreshnessQuery, FreshnessHeaders, ConditionalHeaders),
    responses(
        (status = 200, description = "A page of events.", body = ListEnvelope<Event<'static>>),
        NotModified,
        NotFound,
        Refusals,
    ),
)]
pub async fn list_events(
    Caller(caller): Caller,
    State(reads): State<Reads>,
    Path((aggregates, id)): Path<(String, String)>,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let kind = Kind::by_plural(&aggregates).ok_or_else(|| ApiError::not_found("collection", aggregates))?;
    let list = params.stream(kind, &id).map(|stream| params.list_events(stream));
    let demand = params.demand(&headers, reads.tokens(&caller));
    let list = params.finish(list)?;
    page(&reads, &caller, &list, demand.as_ref(), &headers).await
}

async fn page(
    reads: &Reads,
    caller: &Principal,
    list: &ListEvents,
    demand: Option<&Demand>,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let page = reads.events(caller, list, demand).await?;
    let newest = page
        .data
        .items
        .iter()
        .map(|event| event.recorded.stream_version)
        .max();
    answer::history(&page, Event::show, newest.unwrap_or(0), headers)
}

/// The history of an order. Deprecated: `/v1/orders/{order_id}/events` takes its place and answers alike. The headers of each answer
/// say so, and when this one ends.
#[utoipa::path(
    get,
    path = "/v1/orders/{order_id}/history",
    operation_id = "listOrderEvents",
    tag = "Histories",
    security(("api_key" = ["events:read"])),
    params(
        ("order_id" = String, Path, description = "The order's TypeID.", example = json!(examples::ORDER_ID),
            pattern = "^ord_[0-7][0-9a-hjkmnp-tv-z]{25}$"),
        ListEventsParams,
        FreshnessQuery,
        FreshnessHeaders,
        ConditionalHeaders,
    ),
    responses(
        (status = 200, description = "A page of events.", body = ListEnvelope<Event<'static>>, headers(
            ("Deprecation" = String, description = "Since when this is deprecated: `@` and seconds since 1970 (RFC 9745)."),
            ("Sunset" = String, description = "When this ends (RFC 8594)."),
            ("Link" = String, description = "What takes its place, as `successor-version`."),
        )),
        NotModified,
        NotFound,
        Ended,
        Refusals,
    ),
)]
#[deprecated]
pub async fn list_order_events(
    Caller(caller): Caller,
    State(reads): State<Reads>,
    Extension(order_history): Extension<Deprecation>,
    Path(id): Path<String>,
    mut params: Params,
    headers: HeaderMap,
) -> Response {
    let successor = successor_of_order_events(&id);
    let answered = async {
        let order_id: Option<OrderId> = params.id("/order_id", &id);
        let stream = order_id.and_then(|_| Stream::of_any_kind(&id));
        let list = stream.map(|stream| params.list_events(stream));
        let demand = params.demand(&headers, reads.tokens(&caller));
        let list = params.finish(list)?;
        page(&reads, &caller, &list, demand.as_ref(), &headers).await
    };
    order_history.answer(&successor, answered).await
}
