//! `/v1/orders` and `/v1/orders/{order_id}`.

use std::borrow::Cow;

use axum::extract::State;
use axum::response::Response;
use daybook_domain::ids::OrderId;
use daybook_read_model::order_list::ACCESS_PATHS;
use daybook_read_model::schema::OrderStatus;
use daybook_service::ApiError;
use daybook_service::path::Path;
use http::HeaderMap;
use serde_json::Value;
use serde_json::value::to_value;
use utoipa::IntoParams;

use super::openapi::{self, NotFound, NotModified, OrderAnswer, OrderListAnswer, Refusals};
use super::params::Params;
use super::schema::{ORDER_FIELDS, ORDER_SUMMARY_FIELDS, OrderSummary};
use super::{Caller, ConditionalHeaders, FreshnessHeaders, FreshnessQuery, answer, examples};
use crate::reads::Reads;

/// Query parameters of the order list.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListOrdersParams {
    /// Only orders in one of these states; given more than once, or as a list with commas.
    #[param(explode = false, required = false, min_items = 1)]
    pub status: Vec<OrderStatus>,
    /// Only this customer's orders.
    #[param(nullable = false, pattern = "^[A-Za-z0-9._:-]{1,64}$", example = "c-4711")]
    pub customer_id: Option<String>,
    /// Only orders in this currency, by its ISO 4217 code.
    #[param(nullable = false, example = "EUR")]
    pub currency: Option<String>,
    /// Only orders placed at or after this time.
    #[param(nullable = false, example = "2024-05-01T00:00:00Z")]
    pub placed_after: Option<time::OffsetDateTime>,
    /// Only orders placed before this time.
    #[param(nullable = false, example = "2024-06-01T00:00:00Z")]
    pub placed_before: Option<time::OffsetDateTime>,
    /// Only orders whose id (`ord_…`) or else whose reference begins like this, case and all. Nothing personal is searched.
    #[param(nullable = false, example = "web-2024-08")]
    pub q: Option<String>,
    /// Columns with commas between them, with a `-` before it for descending; `-placed_at` when absent, and with `q` what is
    /// searched. What is equal there comes by `order_id`. An order whose total changes while a list by totals is paged
    /// through moves in it; in every other list each order that was there before comes once.
    #[param(nullable = false, example = "-placed_at,total_minor")]
    pub sort: Option<String>,
    /// How many orders a page has.
    #[param(nullable = false, minimum = 1, maximum = 100, default = 20)]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before; filters and sort have to be as they were there.
    #[param(nullable = false)]
    pub cursor: Option<String>,
    /// Only these members of each order, with commas between their names, and those that `expand` names.
    #[param(nullable = false, example = "order_id,status")]
    pub fields: Option<String>,
    /// What each order shows beside its own members, with commas between: `customer`, with what that has bought in all, and
    /// `lines`, with which a page has at most 20 orders.
    #[param(nullable = false, example = "customer")]
    pub expand: Option<String>,
}

/// What a read of an order takes.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GetOrderParams {
    /// The order as it was: after this many events, or with all that had been recorded at this time. Read from the log,
    /// so it is never behind. At most 100,000 events are folded; more is `PAYLOAD_TOO_LARGE`.
    #[param(nullable = false, example = "1")]
    pub as_of: Option<String>,
    /// Only these members of the order, with commas between their names.
    #[param(nullable = false, example = "order_id,status,total")]
    pub fields: Option<String>,
}

/// Orders, filtered, sorted and paged.
#[utoipa::path(
    get,
    description = openapi::served(&ACCESS_PATHS),
    path = "/v1/orders",
    operation_id = "listOrders",
    tag = "Orders",
    security(("api_key" = ["orders:read"])),
    params(ListOrdersParams, FreshnessQuery, FreshnessHeaders),
    responses((status = 200, description = "A page of orders.", body = OrderListAnswer), Refusals),
)]
pub async fn list_orders(
    Caller(caller): Caller,
    State(reads): State<Reads>,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let list = params.list_orders();
    let fields = params.fields(&ORDER_SUMMARY_FIELDS);
    let demand = params.demand(&headers, reads.tokens(&caller));
    let list = params.finish(list)?;
    let expanded = list.expand.names();
    let page = reads.orders(&caller, list, demand.as_ref()).await?;
    match fields.map(|fields| fields.with(expanded)) {
        Some(fields) => answer::list(&page, |order| {
            to_value(OrderSummary::from(order)).map(|order| fields.select(order))
        }),
        None => answer::list(&page, |order| Ok(OrderSummary::from(order))),
    }
}

/// One order, as it is or as it was. `HEAD` gives the same headers without the order.
#[utoipa::path(
    get,
    path = "/v1/orders/{order_id}",
    operation_id = "getOrder",
    tag = "Orders",
    security(("api_key" = ["orders:read"])),
    params(
        ("order_id" = String, Path, description = "The order's TypeID.", example = json!(examples::ORDER_ID),
            pattern = "^ord_[0-7][0-9a-hjkmnp-tv-z]{25}$"),
        GetOrderParams,
        FreshnessQuery,
        FreshnessHeaders,
        ConditionalHeaders,
    ),
    responses(
        (status = 200, description = "The order.", body = OrderAnswer),
        NotModified,
        NotFound,
        Refusals,
    ),
)]
pub async fn get_order(
    Caller(caller): Caller,
    State(reads): State<Reads>,
    Path(order_id): Path<String>,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let order_id = params.id::<OrderId>("/order_id", &order_id);
    let as_of = params.as_of();
    let fields = params.fields(&ORDER_FIELDS);
    let demand = params.demand(&headers, reads.tokens(&caller));
    let order_id = params.finish(order_id)?;
    let order = match as_of {
        Some(as_of) => {
            reads
                .order_as_of(&caller, &order_id, as_of, demand.as_ref())
                .await?
        }
        None => reads.order(&caller, &order_id, demand.as_ref()).await?,
    };
    let json = match fields {
        Some(fields) => {
            let whole: Value = serde_json::from_str(&order.data.json).map_err(ApiError::internal)?;
            Cow::Owned(fields.select(whole).to_string())
        }
        None => Cow::Borrowed(&order.data.json),
    };
    Ok(answer::document(
        &json,
        order.data.version,
        &order.staleness,
        &headers,
    ))
}
