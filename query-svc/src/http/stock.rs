//! `/v1/stock-items` and `/v1/stock-items/{stock_item_id}`.

use axum::extract::State;
use axum::response::Response;
use daybook_domain::ids::StockItemId;
use daybook_read_model::stock_levels::StockItem;
use daybook_service::ApiError;
use daybook_service::path::Path;
use http::HeaderMap;
use serde_json::{Value, json};
use utoipa::IntoParams;

use super::openapi::{NotFound, NotModified, Refusals};
use super::params::Params;
use super::schema::{Envelope, ListEnvelope};
use super::{Caller, ConditionalHeaders, FreshnessHeaders, FreshnessQuery, answer};
use crate::reads::Reads;

/// The stock item of the examples.
const STOCK_ITEM_ID: &str = "stk_01h455vb4pex5vsknk084sn02q";

/// A stock item with every member that there can be.
pub fn example() -> Value {
    json!({
        "stock_item_id": STOCK_ITEM_ID,
        "sku": "teapot-blue",
        "version": 6,
        "on_hand": 38,
        "reserved": 5,
        "available": 33,
        "updated_at": "2024-05-01T12:00:00Z",
    })
}

/// Query parameters of the list of stock items.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListStockItemsParams {
    /// How many stock items a page has.
    #[param(nullable = false, minimum = 1, maximum = 100, default = 20)]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[param(nullable = false)]
    pub cursor: Option<String>,
}

/// Stock items by article, paged.
#[utoipa::path(
    get,
    path = "/v1/stock-items",
    operation_id = "listStockItems",
    tag = "Stock",
    security(("api_key" = ["stock:read"])),
    params(ListStockItemsParams, FreshnessQuery, FreshnessHeaders),
    responses((status = 200, description = "A page of stock items.", body = ListEnvelope<StockItem<'static>>), Refusals),
)]
pub async fn list_stock_items(
    Caller(caller): Caller,
    State(reads): State<Reads>,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let list = params.list_stock_items();
    let demand = params.demand(&headers, reads.tokens(&caller));
    let list = params.finish(Some(list))?;
    let page = reads.stock_items(&caller, list, demand.as_ref()).await?;
    answer::list(&page, |row| Ok(StockItem::from(row)))
}

/// How much there is of one article. `HEAD` gives the same headers without the stock item.
#[utoipa::path(
    get,
    path = "/v1/stock-items/{stock_item_id}",
    operation_id = "getStockItem",
    tag = "Stock",
    security(("api_key" = ["stock:read"])),
    params(
        ("stock_item_id" = String, Path, description = "The stock item's TypeID.", example = json!(STOCK_ITEM_ID),
            pattern = "^stk_[0-7][0-9a-hjkmnp-tv-z]{25}$"),
        FreshnessQuery,
        FreshnessHeaders,
        ConditionalHeaders,
    ),
    responses(
        (status = 200, description = "The stock item.", body = Envelope<StockItem<'static>>),
        NotModified,
        NotFound,
        Refusals,
    ),
)]
pub async fn get_stock_item(
    Caller(caller): Caller,
    State(reads): State<Reads>,
    Path(id): Path<String>,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let id = params.id::<StockItemId>("/stock_item_id", &id);
    let demand = params.demand(&headers, reads.tokens(&caller));
    let id = params.finish(id)?;
    let item = reads.stock_item(&caller, &id, demand.as_ref()).await?;
    let (version, shown) = (item.data.version, StockItem::from(&item.data));
    answer::resource(shown, version, &item.staleness, &headers)
}
