//! Stock items to send commands to.

use daybook_domain::ids::StockItemId;
use daybook_proto::stock::v1::{
    AdjustStockRequest, DispatchStockRequest, ReceiveStockRequest, RegisterStockItemRequest,
    ReleaseStockRequest, ReserveStockRequest,
};

use crate::orders::new_key;

/// The id of an article's stock item.
#[must_use]
pub fn stock_item_id(sku: &str) -> String {
    StockItemId::of(&sku.parse().expect("tests name valid articles")).to_string()
}

/// Registers an article.
#[must_use]
pub fn register(sku: &str) -> RegisterStockItemRequest {
    RegisterStockItemRequest {
        request_id: new_key(),
        sku: sku.to_owned(),
        ..Default::default()
    }
}

/// Goods came in.
#[must_use]
pub fn receive(stock_item_id: &str, quantity: u32) -> ReceiveStockRequest {
    ReceiveStockRequest {
        request_id: new_key(),
        stock_item_id: stock_item_id.to_owned(),
        quantity,
        ..Default::default()
    }
}

/// Keeps articles back for an order.
#[must_use]
pub fn reserve(stock_item_id: &str, order_id: &str, quantity: u32) -> ReserveStockRequest {
    ReserveStockRequest {
        request_id: new_key(),
        stock_item_id: stock_item_id.to_owned(),
        order_id: order_id.to_owned(),
        quantity,
        ..Default::default()
    }
}

/// Gives free what is kept back for an order; all of it without a quantity.
#[must_use]
pub fn release(stock_item_id: &str, order_id: &str, quantity: Option<u32>) -> ReleaseStockRequest {
    ReleaseStockRequest {
        request_id: new_key(),
        stock_item_id: stock_item_id.to_owned(),
        order_id: order_id.to_owned(),
        quantity,
        ..Default::default()
    }
}

/// Sends out what is kept back for an order; all of it without a quantity.
#[must_use]
pub fn dispatch(stock_item_id: &str, order_id: &str, quantity: Option<u32>) -> DispatchStockRequest {
    DispatchStockRequest {
        request_id: new_key(),
        stock_item_id: stock_item_id.to_owned(),
        order_id: order_id.to_owned(),
        quantity,
        ..Default::default()
    }
}

/// Corrects what is on hand.
#[must_use]
pub fn adjust(stock_item_id: &str, change: i64) -> AdjustStockRequest {
    AdjustStockRequest {
        request_id: new_key(),
        stock_item_id: stock_item_id.to_owned(),
        change,
        adjustment_reason: "counted".to_owned(),
        ..Default::default()
    }
}
