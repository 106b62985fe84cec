//! `/v1/correlations/{correlation_id}`: all that one request caused.

use axum::extract::State;
use axum::response::Response;
use daybook_service::ApiError;
use daybook_service::path::Path;
use http::HeaderMap;

use super::openapi::{NotFound, NotModified, Refusals};
use super::params::Params;
use super::schema::{Correlation, Envelope};
use super::{Caller, ConditionalHeaders, FreshnessHeaders, FreshnessQuery, answer, examples};
use crate::reads::Reads;

/// All events that one request caused, as a tree: below each event those that name it as their cause, or that name the command
/// which recorded it. At most the 1,000 oldest, and fewer where they are large. `HEAD` gives the same headers without the tree.
#[utoipa::path(
    get,
    path = "/v1/correlations/{correlation_id}",
    operation_id = "getCorrelation",
    tag = "Histories",
    security(("api_key" = ["events:read"])),
    params(
        ("correlation_id" = String, Path, description = "What ties the events together.", example = json!(examples::CORRELATION_ID),
            min_length = 1, max_length = 256),
        FreshnessQuery,
        FreshnessHeaders,
        ConditionalHeaders,
    ),
    responses(
        (status = 200, description = "The events.", body = Envelope<Correlation<'static>>),
        NotModified,
        NotFound,
        Refusals,
    ),
)]
pub async fn get_correlation(
    Caller(caller): Caller,
    State(reads): State<Reads>,
    Path(correlation_id): Path<String>,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let correlation_id = params.correlation_id_in_path(&correlation_id);
    let demand = params.demand(&headers, reads.tokens(&caller));
    let correlation_id = params.finish(correlation_id)?;
    let found = reads
        .correlation(&caller, correlation_id, demand.as_ref())
        .await?;
    let correlation = Correlation::show(&found.data).map_err(ApiError::internal)?;
    // A correlation has no versions; of how many events it is tells a person the same.
    let version = correlation.nodes.len() as u64;
    answer::resource(correlation, version, &found.staleness, &headers)
}
