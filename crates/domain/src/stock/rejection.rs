//! Why a command on a stock item is refused: one variant for each rule.

use super::{ON_HAND_MAX, QUANTITY_MAX, RESERVATIONS_MAX};
use crate::ids::OrderId;

rejections! {
    /// The rule that refused a command, with every value that it looked at.
    pub enum Rejection absent as StockItemNotFound, existing as StockItemAlreadyExists {
        /// A command other than registering came for an item that was never registered.
        #[error("the stock item does not exist")]
        StockItemNotFound = "STOCK_ITEM_NOT_FOUND",
        /// An article is registered once.
        #[error("the article is registered already")]
        StockItemAlreadyExists = "STOCK_ITEM_ALREADY_EXISTS",
        /// A command moves at least one article and at most 1,000,000,000.
        #[error("a quantity must be 1 to {QUANTITY_MAX}, not {quantity}")]
        StockQuantityOutOfRange = "STOCK_QUANTITY_OUT_OF_RANGE" {
            /// The quantity.
            quantity: u32,
        },
        /// There are at most 1,000,000,000,000 articles on hand.
        #[error("there are {on_hand}; with {change} more there would be more than {ON_HAND_MAX}")]
        StockTooHigh = "STOCK_TOO_HIGH" {
            /// How many more there would be.
            change: i64,
            /// How many there are.
            on_hand: u64,
        },
        /// Only what is on hand and not reserved yet can be reserved.
        #[error("{quantity} were to be reserved, {available} are available")]
        InsufficientStock = "INSUFFICIENT_STOCK" {
            /// How many were to be reserved.
            quantity: u32,
            /// How many are on hand and not reserved.
            available: u64,
        },
        /// An order has one reservation, of the sum of its lines.
        #[error("{reserved} are reserved for order {order_id} already")]
        StockAlreadyReserved = "STOCK_ALREADY_RESERVED" {
            /// The order.
            order_id: OrderId,
            /// How many are reserved for it.
            reserved: u32,
        },
        /// An item is reserved for at most 100,000 orders at one time.
        #[error("the item is reserved for {RESERVATIONS_MAX} orders already")]
        TooManyReservations = "TOO_MANY_RESERVATIONS",
        /// Only what is reserved for an order can be released or dispatched for it.
        #[error("nothing is reserved for order {order_id}")]
        ReservationNotFound = "RESERVATION_NOT_FOUND" {
            /// The order.
            order_id: OrderId,
        },
        /// No more is released or dispatched for an order than is reserved for it.
        #[error("{reserved} are reserved for order {order_id}, not {quantity}")]
        QuantityExceedsReservation = "QUANTITY_EXCEEDS_RESERVATION" {
            /// The order.
            order_id: OrderId,
            /// How many were to be released or dispatched.
            quantity: u32,
            /// How many are reserved for it.
            reserved: u32,
        },
        /// An adjustment changes something, by at most 1,000,000,000.
        #[error("an adjustment must not be zero, and at most {QUANTITY_MAX} either way, not {change}")]
        AdjustmentOutOfRange = "ADJUSTMENT_OUT_OF_RANGE" {
            /// The adjustment.
            change: i64,
        },
        /// What is on hand is never adjusted below zero, nor below what is reserved: release that first.
        #[error("there are {on_hand}, of which {reserved} are reserved; that leaves no room for {change}")]
        AdjustmentBelowReserved = "ADJUSTMENT_BELOW_RESERVED" {
            /// The adjustment.
            change: i64,
            /// How many there are.
            on_hand: u64,
            /// How many of them are reserved.
            reserved: u64,
        },
    }
}
