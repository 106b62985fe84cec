//! The commands on stock items over gRPC.

use daybook_domain::stock::State;
use daybook_proto::stock::v1 as wire;
use daybook_proto::stock::v1::stock_service_server::{StockService, StockServiceServer};
use daybook_service::identity::Scope;

use crate::COMMAND_BYTES_MAX;
use crate::aggregates::Core;
use crate::handler::{Handler, Served, command_methods};

/// `daybook.stock.v1.StockService`, as it is served.
pub(crate) fn service(core: &Core) -> StockServiceServer<Handler<State>> {
    StockServiceServer::from_arc(Handler::new(core))
        .max_decoding_message_size(COMMAND_BYTES_MAX)
        .max_encoding_message_size(COMMAND_BYTES_MAX)
}

impl Served for State {
    const SCOPE: Scope = Scope::StockWrite;
}

command_methods! {
    StockService for State:
    register_stock_item(RegisterStockItemRequest) -> RegisterStockItemResponse;
    receive_stock(ReceiveStockRequest) -> ReceiveStockResponse;
    reserve_stock(ReserveStockRequest) -> ReserveStockResponse;
    release_stock(ReleaseStockRequest) -> ReleaseStockResponse;
    dispatch_stock(DispatchStockRequest) -> DispatchStockResponse;
    adjust_stock(AdjustStockRequest) -> AdjustStockResponse;
}
