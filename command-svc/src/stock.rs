//! The commands on stock items.

use daybook_domain::stock::State;
use daybook_proto::common::v1::CommandContext;
use daybook_proto::stock::v1 as wire;
use daybook_proto::stock::v1::stock_service_server::{StockService, StockServiceServer};
use daybook_service::error::ApiError;
use daybook_service::identity::Scope;
use serde::Deserialize;

use crate::handler::{Served, command_methods};
use crate::http::read_json;
use crate::operations::{Imported, Line};

impl Served for State {
    const SCOPE: Scope = Scope::StockWrite;
}

/// The fields of a line. Others are passed over.
#[derive(Deserialize)]
struct ArticleFields {
    #[serde(default)]
    sku: String,
}

impl Imported for State {
    const LINE: &'static str = "{\"sku\"}";

    type Request = wire::RegisterStockItemRequest;

    /// The stock item's id follows from the article.
    fn read_line(line: &[u8]) -> Result<Line<wire::RegisterStockItemRequest>, ApiError> {
        let ArticleFields { sku } = read_json(line)?;
        Ok(Line {
            reference: sku.clone(),
            request: wire::RegisterStockItemRequest {
                request_id: format!("import:{sku}"),
                context: Some(CommandContext {
                    reason: "import".to_owned(),
                    ..CommandContext::default()
                }),
                sku,
                expected_version: Some(0),
            },
        })
    }
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
