//! `/v1/events`: the tenant's event feed.

use axum::extract::State;
use axum::response::Response;
use daybook_read_model::event_index::ACCESS_PATHS;
use daybook_service::ApiError;
use http::HeaderMap;
use utoipa::IntoParams;

use super::openapi::{self, Refusals};
use super::params::Params;
use super::schema::{Event, ListEnvelope};
use super::{Caller, FreshnessHeaders, FreshnessQuery, answer, examples};
use crate::reads::Reads;

/// What the event feed takes.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListFeedParams {
    /// Only events of this type.
    #[param(nullable = false, min_length = 1, max_length = 256, example = "order.placed")]
    pub event_type: Option<String>,
    /// Only events of the aggregate with this id.
    #[param(nullable = false, min_length = 1, max_length = 256, example = json!(examples::ORDER_ID))]
    pub stream_id: Option<String>,
    /// Only what this actor asked for.
    #[param(nullable = false, min_length = 1, max_length = 256, example = "agent:jane")]
    pub actor: Option<String>,
    /// Only what the request with this correlation id caused.
    #[param(nullable = false, min_length = 1, max_length = 256, example = json!(examples::CORRELATION_ID))]
    pub correlation_id: Option<String>,
    /// Only events recorded at or after this time.
    #[param(nullable = false, example = "2024-05-01T00:00:00Z")]
    pub recorded_after: Option<time::OffsetDateTime>,
    /// Only events recorded before this time.
    #[param(nullable = false, example = "2024-06-01T00:00:00Z")]
    pub recorded_before: Option<time::OffsetDateTime>,
    /// `position` for the oldest event first, which is the default, and `-position` for the newest.
    #[param(nullable = false, example = "-position")]
    pub sort: Option<String>,
    /// How many events a page has. It may have fewer, and still have a next one, where events are large.
    #[param(nullable = false, minimum = 1, maximum = 100, default = 20)]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before; filters and sort have to be as they were there.
    #[param(nullable = false)]
    pub cursor: Option<String>,
}

/// The events of all the tenant's aggregates, in the order of the log.
#[utoipa::path(
    get,
    description = openapi::served(&ACCESS_PATHS),
    path = "/v1/events",
    operation_id = "listFeed",
    tag = "Histories",
    security(("api_key" = ["events:read"])),
    params(ListFeedParams, FreshnessQuery, FreshnessHeaders),
    responses(
        (status = 200, description = "A page of events.", body = ListEnvelope<Event<'static>>),
        Refusals,
    ),
)]
pub async fn list_feed(
    Caller(caller): Caller,
    State(reads): State<Reads>,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let list = params.list_feed();
    let demand = params.demand(&headers, reads.tokens(&caller));
    let list = params.finish(list)?;
    let page = reads.feed(&caller, list, demand.as_ref()).await?;
    answer::list(&page, Event::show)
}
