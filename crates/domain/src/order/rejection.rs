//! Why a command on an order is refused: one variant for each rule.

use super::{LINES_MAX, QUANTITY_MAX, Status};
use crate::ids::{PaymentId, RefundId, ReturnId, ShipmentId};
use crate::money::{Currency, MoneyError};

rejections! {
    /// The rule that refused a command, with every value that it looked at.
    pub enum Rejection absent as OrderNotFound, existing as OrderAlreadyExists {
        /// A command other than placing came for an order that was never placed.
        #[error("the order does not exist")]
        OrderNotFound = "ORDER_NOT_FOUND",
        /// An order can be placed once.
        #[error("the order was already placed; it is {status} now")]
        OrderAlreadyExists = "ORDER_ALREADY_EXISTS" {
            /// The order's status.
            status: Status,
        },
        /// Cancelled and rejected orders do not change any more, except that their payments are refunded.
        #[error("the order is {status}")]
        OrderClosed = "ORDER_CLOSED" {
            /// How it was closed.
            status: Status,
        },
        /// What a confirmation fixes can no longer change, and an order is confirmed once.
        #[error("the order was already confirmed")]
        OrderAlreadyConfirmed = "ORDER_ALREADY_CONFIRMED",
        /// Some of the order has been shipped, which cannot be taken back.
        #[error("the order is {status}: some of it was already shipped")]
        OrderAlreadyShipped = "ORDER_ALREADY_SHIPPED" {
            /// The order's status.
            status: Status,
        },
        /// Only a confirmed order is shipped.
        #[error("the order is not confirmed yet")]
        OrderNotConfirmed = "ORDER_NOT_CONFIRMED",
        /// Only an order that is paid in full is shipped.
        #[error("the order is not paid: {paid_minor} of {total_minor} minor units of {currency} came in")]
        OrderNotPaid = "ORDER_NOT_PAID" {
            /// The amount paid.
            paid_minor: i64,
            /// The order's total.
            total_minor: i64,
            /// The order's currency.
            currency: Currency,
        },
        /// An order has at least one line.
        #[error("an order needs at least one line")]
        NoLines = "NO_LINES",
        /// An order has at most 500 lines.
        #[error("an order has at most {LINES_MAX} lines, not {line_count}")]
        TooManyLines = "TOO_MANY_LINES" {
            /// How many it would have.
            line_count: usize,
        },
        /// Line numbers are never used again, and there is none left.
        #[error("the order has used up its line numbers")]
        LineNumbersExhausted = "LINE_NUMBERS_EXHAUSTED",
        /// A quantity is between 1 and 1,000,000.
        #[error("a quantity must be 1 to {QUANTITY_MAX}, not {quantity}")]
        QuantityOutOfRange = "QUANTITY_OUT_OF_RANGE" {
            /// The quantity asked for.
            quantity: u32,
        },
        /// A price may be nothing, but not less.
        #[error("a unit price must not be negative: {unit_price_minor}")]
        NegativePrice = "NEGATIVE_PRICE" {
            /// The value given.
            unit_price_minor: i64,
        },
        /// Amounts are held in 64 bits and never wrap.
        #[error("the amounts of the order would become too large")]
        AmountOverflow = "AMOUNT_OVERFLOW",
        /// The lines do not add up to what the caller shows to the customer.
        #[error("the lines add up to {actual_minor}, not to {expected_minor} minor units of {currency}")]
        OrderTotalMismatch = "ORDER_TOTAL_MISMATCH" {
            /// The total that the caller expects.
            expected_minor: i64,
            /// The sum of the lines.
            actual_minor: i64,
            /// The order's currency.
            currency: Currency,
        },
        /// The order has no such line, or no longer.
        #[error("the order has no line {line_number}")]
        LineNotFound = "LINE_NOT_FOUND" {
            /// The line that was named.
            line_number: u32,
        },
        /// The last line cannot be removed; cancel the order instead.
        #[error("line {line_number} is the order's last one")]
        LastLine = "LAST_LINE" {
            /// The line that was to go.
            line_number: u32,
        },
        /// A shipment or return names each line once.
        #[error("line {line_number} is named more than once")]
        DuplicateLine = "DUPLICATE_LINE" {
            /// The line that was named twice.
            line_number: u32,
        },
        /// The total cannot fall below what was already paid.
        #[error("the total would be {total_minor}, but {paid_minor} minor units of {currency} are paid")]
        TotalBelowPaid = "TOTAL_BELOW_PAID" {
            /// The total that the order would have.
            total_minor: i64,
            /// The amount paid.
            paid_minor: i64,
            /// The order's currency.
            currency: Currency,
        },
        /// All amounts of an order are in its currency.
        #[error("the order is in {expected}, the amount in {actual}")]
        CurrencyMismatch = "CURRENCY_MISMATCH" {
            /// The order's currency.
            expected: Currency,
            /// The amount's currency.
            actual: Currency,
        },
        /// A payment or refund is more than nothing.
        #[error("the amount must be more than nothing, not {amount_minor}")]
        AmountNotPositive = "AMOUNT_NOT_POSITIVE" {
            /// The value given.
            amount_minor: i64,
        },
        /// A payment is recorded once.
        #[error("payment {payment_id} was already recorded")]
        PaymentAlreadyRecorded = "PAYMENT_ALREADY_RECORDED" {
            /// The payment.
            payment_id: PaymentId,
        },
        /// No more is paid than the order costs.
        #[error(
            "{amount_minor} on top of {paid_minor} already paid exceed the total of {total_minor} minor \
             units of {currency}"
        )]
        PaymentExceedsTotal = "PAYMENT_EXCEEDS_TOTAL" {
            /// The payment.
            amount_minor: i64,
            /// The amount paid before.
            paid_minor: i64,
            /// The order's total.
            total_minor: i64,
            /// The order's currency.
            currency: Currency,
        },
        /// A shipment is recorded once.
        #[error("shipment {shipment_id} was already recorded")]
        ShipmentAlreadyRecorded = "SHIPMENT_ALREADY_RECORDED" {
            /// The shipment.
            shipment_id: ShipmentId,
        },
        /// No more of a line is shipped than is left of it.
        #[error("{quantity} of line {line_number} were to be shipped, {left} are left")]
        ShipmentExceedsOrder = "SHIPMENT_EXCEEDS_ORDER" {
            /// The line.
            line_number: u32,
            /// The quantity to be shipped.
            quantity: u32,
            /// The quantity not shipped yet.
            left: u32,
        },
        /// Everything has been shipped.
        #[error("nothing is left to ship")]
        NothingLeftToShip = "NOTHING_LEFT_TO_SHIP",
        /// The order has no such shipment.
        #[error("the order has no shipment {shipment_id}")]
        ShipmentNotFound = "SHIPMENT_NOT_FOUND" {
            /// The shipment that was named.
            shipment_id: ShipmentId,
        },
        /// A shipment arrives once.
        #[error("shipment {shipment_id} was already delivered")]
        ShipmentAlreadyDelivered = "SHIPMENT_ALREADY_DELIVERED" {
            /// The shipment.
            shipment_id: ShipmentId,
        },
        /// A return names what comes back.
        #[error("a return needs at least one line")]
        ReturnWithoutLines = "RETURN_WITHOUT_LINES",
        /// A return is recorded once.
        #[error("return {return_id} was already requested")]
        ReturnAlreadyRequested = "RETURN_ALREADY_REQUESTED" {
            /// The return.
            return_id: ReturnId,
        },
        /// Only what was delivered, and is not on its way back already, can be returned.
        #[error("{quantity} of line {line_number} were to be returned, {returnable} can be")]
        ReturnExceedsDelivered = "RETURN_EXCEEDS_DELIVERED" {
            /// The line.
            line_number: u32,
            /// The quantity to be returned.
            quantity: u32,
            /// The quantity delivered and in no return yet.
            returnable: u32,
        },
        /// Only what was requested can be received.
        #[error("the order has no return {return_id}")]
        ReturnNotFound = "RETURN_NOT_FOUND" {
            /// The return that was named.
            return_id: ReturnId,
        },
        /// A return is received once.
        #[error("return {return_id} was already received")]
        ReturnAlreadyReceived = "RETURN_ALREADY_RECEIVED" {
            /// The return.
            return_id: ReturnId,
        },
        /// A refund is recorded once.
        #[error("refund {refund_id} was already recorded")]
        RefundAlreadyRecorded = "REFUND_ALREADY_RECORDED" {
            /// The refund.
            refund_id: RefundId,
        },
        /// No more is refunded than the customer is owed: what was paid for a cancelled or rejected order, or
        /// the value of the goods that came back.
        #[error("{amount_minor} were to be refunded, {refundable_minor} minor units of {currency} can be")]
        RefundExceedsRefundable = "REFUND_EXCEEDS_REFUNDABLE" {
            /// The refund.
            amount_minor: i64,
            /// The amount that can still be refunded.
            refundable_minor: i64,
            /// The order's currency.
            currency: Currency,
        },
    }
}

impl From<MoneyError> for Rejection {
    fn from(error: MoneyError) -> Self {
        match error {
            MoneyError::Overflow => Self::AmountOverflow,
            MoneyError::CurrencyMismatch { expected, actual } => Self::CurrencyMismatch { expected, actual },
        }
    }
}
