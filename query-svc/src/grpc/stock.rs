//! `daybook.stock.v1.StockQueryService`.

use daybook_domain::ids::StockItemId;
use daybook_proto::convert::to_timestamp;
use daybook_proto::stock::v1::stock_query_service_server::StockQueryService;
use daybook_proto::stock::v1::{
    GetStockItemRequest, GetStockItemResponse, ListStockItemsRequest, ListStockItemsResponse, StockItem,
};
use daybook_read_model::stock_levels::Row;
use daybook_service::ApiError;
use daybook_service::identity::{Principal, Scope};
use tonic::{Request, Response, Status};

use super::fields::page_token;
use super::{Queries, wire};
use crate::reads::stock::ListStockItems;
use crate::violations::Violations;

#[tonic::async_trait]
impl StockQueryService for Queries {
    async fn get_stock_item(
        &self,
        request: Request<GetStockItemRequest>,
    ) -> Result<Response<GetStockItemResponse>, Status> {
        let caller = super::caller_with(Scope::StockRead, &request)?;
        Ok(Response::new(self.stock_item(&caller, request.get_ref()).await?))
    }

    async fn list_stock_items(
        &self,
        request: Request<ListStockItemsRequest>,
    ) -> Result<Response<ListStockItemsResponse>, Status> {
        let caller = super::caller_with(Scope::StockRead, &request)?;
        Ok(Response::new(
            self.stock_items(&caller, request.into_inner()).await?,
        ))
    }
}

impl Queries {
    async fn stock_item(
        &self,
        caller: &Principal,
        request: &GetStockItemRequest,
    ) -> Result<GetStockItemResponse, ApiError> {
        let mut violations = Violations::default();
        let id = violations.id::<StockItemId>("/stock_item_id", &request.stock_item_id);
        let demand = violations.freshness(request.freshness.as_ref(), self.reads.tokens(caller));
        let id = violations.finish(id)?;
        let item = self.reads.stock_item(caller, &id, demand.as_ref()).await?;
        Ok(GetStockItemResponse {
            stock_item: Some(stock_item(&item.data)),
            staleness: Some(wire::staleness(&item.staleness)),
        })
    }

    async fn stock_items(
        &self,
        caller: &Principal,
        request: ListStockItemsRequest,
    ) -> Result<ListStockItemsResponse, ApiError> {
        let mut violations = Violations::default();
        let list = ListStockItems {
            limit: violations.page_size(request.page_size),
            cursor: page_token(request.page_token),
        };
        let demand = violations.freshness(request.freshness.as_ref(), self.reads.tokens(caller));
        let list = violations.finish(Some(list))?;
        let page = self.reads.stock_items(caller, list, demand.as_ref()).await?;
        Ok(ListStockItemsResponse {
            stock_items: page.data.items.iter().map(stock_item).collect(),
            next_page_token: page.data.next_cursor.unwrap_or_default(),
            staleness: Some(wire::staleness(&page.staleness)),
        })
    }
}

fn stock_item(row: &Row) -> StockItem {
    StockItem {
        stock_item_id: row.stock_item_id.clone(),
        sku: row.sku.to_string(),
        version: row.version,
        on_hand: row.on_hand,
        reserved: row.reserved,
        available: row.available(),
        updated_at: Some(to_timestamp(row.updated_at)),
    }
}
