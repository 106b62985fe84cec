//! The events of stock items, as they are stored.
//!
//! An event says what moved, and what holds after it: a read model keeps the levels without adding anything up.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::ids::{OrderId, Reason, Reference, Sku, StockItemId};

events! {
    /// An event of a stock item.
    pub enum Event upcast by upcast {
        /// An article was registered.
        Registered = "stock_item.registered", 1;
        /// Goods came in.
        Received = "stock_item.received", 1;
        /// Articles are kept back for an order.
        Reserved = "stock_item.reserved", 1;
        /// Articles are no longer kept back for an order.
        Released = "stock_item.released", 1;
        /// Articles that were kept back for an order went out.
        Dispatched = "stock_item.dispatched", 1;
        /// The quantity on hand was corrected.
        Adjusted = "stock_item.adjusted", 1;
    }
}

/// An article was registered; there is nothing of it yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The stock item.
    pub stock_item_id: StockItemId,
    /// The article.
    pub sku: Sku,
}

impl Registered {
    /// The registration of an article, whose id follows from it.
    pub(super) fn of(sku: Sku) -> Self {
        Self {
            stock_item_id: StockItemId::of(&sku),
            sku,
        }
    }
}

/// Goods came in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// How many.
    pub quantity: u32,
    /// The delivery note, say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
    /// How many there are now, reserved ones included.
    pub on_hand: u64,
}

/// Articles are kept back for an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// The order.
    pub order_id: OrderId,
    /// How many, which is all that is reserved for the order now.
    pub quantity: u32,
    /// How many are reserved now, over all orders.
    pub reserved: u64,
}

/// Articles are no longer kept back for an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// The order.
    pub order_id: OrderId,
    /// How many.
    pub quantity: u32,
    /// How many are still reserved for the order.
    pub order_reserved: u32,
    /// How many are reserved now, over all orders.
    pub reserved: u64,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// Articles that were kept back for an order went out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispatched {
    /// The order.
    pub order_id: OrderId,
    /// How many.
    pub quantity: u32,
    /// How many are still reserved for the order.
    pub order_reserved: u32,
    /// How many there are now, reserved ones included.
    pub on_hand: u64,
    /// How many are reserved now, over all orders.
    pub reserved: u64,
}

/// The quantity on hand was corrected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adjusted {
    /// How many more, or less, there are.
    pub change: i64,
    /// How many there are now, reserved ones included.
    pub on_hand: u64,
    /// Why.
    pub reason: Reason,
}

/// There is no old version yet.
fn upcast(_event_type: &str, _from: u32, _payload: Map<String, Value>) -> Option<Map<String, Value>> {
    None
}
