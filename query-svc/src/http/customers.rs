//! `/v1/customers` and `/v1/customers/{customer_id}/totals`.

use axum::extract::State;
use axum::response::Response;
use daybook_read_model::customer_totals::ACCESS_PATHS;
use daybook_service::ApiError;
use daybook_service::path::Path;
use http::HeaderMap;
use serde_json::value::to_value;
use utoipa::IntoParams;

use super::openapi::{self, CustomerListAnswer, NotFound, NotModified, Refusals};
use super::params::Params;
use super::schema::{CUSTOMER_FIELDS, CustomerTotals, Envelope};
use super::{Caller, ConditionalHeaders, FreshnessHeaders, FreshnessQuery, answer};
use crate::reads::Reads;

/// Query parameters of the customer list.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListCustomersParams {
    /// Only who ordered in this currency (its ISO 4217 code), with the totals in it alone.
    #[param(nullable = false, example = "EUR")]
    pub currency: Option<String>,
    /// Only customers whose id begins like this, case and all. Nothing personal is searched.
    #[param(nullable = false, example = "c-47")]
    pub q: Option<String>,
    /// `customer_id` when absent; in a currency `-ordered_minor`, or `ordered_minor` for the least first. Who orders or
    /// cancels while a list by amounts is paged through moves in it.
    #[param(nullable = false, example = "customer_id")]
    pub sort: Option<String>,
    /// How many customers a page has.
    #[param(nullable = false, minimum = 1, maximum = 100, default = 20)]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before; filters and sort have to be as they were there.
    #[param(nullable = false)]
    pub cursor: Option<String>,
    /// Only these members of each customer, with commas between their names.
    #[param(nullable = false, example = "customer_id")]
    pub fields: Option<String>,
}

/// Customers with what they have bought, filtered, sorted and paged.
#[utoipa::path(
    get,
    description = openapi::served(&ACCESS_PATHS),
    path = "/v1/customers",
    operation_id = "listCustomers",
    tag = "Customers",
    security(("api_key" = ["orders:read"])),
    params(ListCustomersParams, FreshnessQuery, FreshnessHeaders),
    responses((status = 200, description = "A page of customers.", body = CustomerListAnswer), Refusals),
)]
pub async fn list_customers(
    Caller(caller): Caller,
    State(reads): State<Reads>,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let list = params.list_customers();
    let fields = params.fields(&CUSTOMER_FIELDS);
    let demand = params.demand(&headers, reads.tokens(&caller));
    let list = params.finish(list)?;
    let page = reads.customers(&caller, list, demand.as_ref()).await?;
    match fields {
        Some(fields) => answer::list(&page, |customer| {
            to_value(CustomerTotals::from(customer)).map(|customer| fields.select(customer))
        }),
        None => answer::list(&page, |customer| Ok(CustomerTotals::from(customer))),
    }
}

/// What a customer has bought: a total for each currency. `HEAD` gives the same headers without the totals.
#[utoipa::path(
    get,
    path = "/v1/customers/{customer_id}/totals",
    operation_id = "getCustomerTotals",
    tag = "Customers",
    security(("api_key" = ["orders:read"])),
    params(
        ("customer_id" = String, Path, description = "The customer's id.", example = "c-4711",
            pattern = "^[A-Za-z0-9._:-]{1,64}$"),
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
    let version = totals.data.totals.iter().map(|total| total.orders_placed).sum();
    answer::resource(
        CustomerTotals::from(&totals.data),
        version,
        &totals.staleness,
        &headers,
    )
}
