//! `/v1/orders/{order_id}/events`.

use axum::extract::State;
use axum::response::Response;
use daybook_service::ApiError;
use daybook_service::extract::Path;
use utoipa::IntoParams;

use super::openapi::{NotFound, Refusals};
use super::params::Params;
use super::schema::{Event, ListEnvelope};
use super::{EventsReader, answer, examples};
use crate::reads::Reads;

/// What a history takes.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListEventsParams {
    /// The first version to return.
    #[param(nullable = false, minimum = 1, default = 1)]
    pub from_version: Option<u64>,
    /// The last version to return; the newest when absent.
    #[param(nullable = false, minimum = 1)]
    pub to_version: Option<u64>,
    /// `asc` for the oldest event first, `desc` for the newest.
    #[param(nullable = false, default = "asc", pattern = "^(asc|desc)$")]
    pub order: Option<String>,
    /// How many events a page has.
    #[param(nullable = false, minimum = 1, maximum = 100, default = 20)]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before; everything else has to be as it was there.
    #[param(nullable = false)]
    pub cursor: Option<String>,
}

/// The history of an order: what happened, who did it and why, byte for byte as it was recorded. It is read from the log,
/// so it is never behind.
#[utoipa::path(
    get,
    path = "/v1/orders/{order_id}/events",
    operation_id = "listOrderEvents",
    tag = "Histories",
    params(
        ("order_id" = String, Path, description = "The order's TypeID.", example = json!(examples::ORDER_ID)),
        ListEventsParams,
    ),
    responses((status = 200, description = "A page of events.", body = ListEnvelope<Event<'static>>), NotFound, Refusals),
)]
pub async fn list_order_events(
    EventsReader(caller): EventsReader,
    State(reads): State<Reads>,
    Path(order_id): Path<String>,
    mut params: Params,
) -> Result<Response, ApiError> {
    let list = params
        .order_id(&order_id)
        .map(|order_id| params.list_events(order_id));
    let list = params.finish(list)?;
    let page = reads.events(&caller, &list).await?;
    answer::list(&page, Event::show)
}
