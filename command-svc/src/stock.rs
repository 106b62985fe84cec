//! The commands on stock items.

use daybook_domain::stock::State;
use daybook_proto::stock::v1 as wire;
use daybook_proto::stock::v1::stock_service_server::{StockService, StockServiceServer};
use daybook_service::identity::Scope;

use crate::handler::{Served, command_methods};

impl Served for State {
    const SCOPE: Scope = Scope::StockWrite;
}

command_methods! {
    StockService by StockServiceServer for State:
    batch of RegisterStockItemRequest
        by batch_register_stock_items(BatchRegisterStockItemsRequest) -> BatchRegisterStockItemsResponse;
    register_stock_item(RegisterStockItemRequest) -> RegisterStockItemResponse;
    receive_stock(ReceiveStockRequest) -> ReceiveStockResponse;
    reserve_stock(ReserveStockRequest) -> ReserveStockResponse;
    release_stock(ReleaseStockRequest) -> ReleaseStockResponse;
    dispatch_stock(DispatchStockRequest) -> DispatchStockResponse;
    adjust_stock(AdjustStockRequest) -> AdjustStockResponse;
}
