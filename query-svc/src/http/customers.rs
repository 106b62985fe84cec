//! `/v1/customers/{customer_id}/totals`.

use axum::extract::State;
use axum::response::Response;
use daybook_service::ApiError;
use daybook_service::path::Path;
use http::HeaderMap;

use super::openapi::{NotFound, NotModified, Refusals};
use super::params::Params;
use super::schema::{CustomerTotal, CustomerTotals, Envelope};
use super::{Caller, ConditionalHeaders, FreshnessHeaders, FreshnessQuery, answer};
use crate::reads::Reads;

/// What a customer has bought: a total for each currency. `HEAD` gives the same headers without the totals.
#[utoipa::path(
    get,
    path = "/v1/customers/{customer_id}/totals",
    operation_id = "getCustomerTotals",
    tag = "Customers",
    security(("api_key" = ["orders:read"])),
    params(
        ("customer_id" = String, Path, description = "The customer's id.", example = "c-4711"),
        FreshnessQuery,
        FreshnessHeaders,
        ConditionalHeaders,
    ),
    responses(
        (status = 200, description = "The customer's totals.", body = Envelope<CustomerTotals>),
        NotModified,
        NotFound,
        Refusals,
    ),
)]
pub async fn get_customer_totals(
    Caller(caller): Caller,
    State(reads): State<Reads>,
    Path(customer_id): Path<String>,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let customer_id = params.customer_id_in_path(&customer_id);
    let demand = params.demand(&headers, reads.tokens(&caller));
    let customer_id = params.finish(customer_id)?;
    let totals = reads
        .customer_totals(&caller, &customer_id, demand.as_ref())
        .await?;
    // Totals have no versions; how many orders they are of tells a person the same.
    let version = totals.data.iter().map(|row| row.orders_placed).sum();
    let shown = CustomerTotals {
        customer_id: customer_id.to_string(),
        totals: totals.data.iter().map(CustomerTotal::from).collect(),
    };
    answer::resource(shown, version, &totals.staleness, &headers)
}
