//! The stock commands.

use daybook_domain::ids::{OrderId, Reason, Reference, Sku, StockItemId};
use daybook_domain::stock::{Command, QUANTITY_MAX, State};
use uuid::Uuid;

use super::{Addressed, CommandRequest, Violations};
use crate::stock::v1 as wire;
use crate::stock::v1::stock_service_server::SERVICE_NAME;

/// A command request with the aggregate, its service and the field of its id filled in.
macro_rules! stock_request {
    ($request:ident, $($rest:tt)+) => {
        command_request!(State, SERVICE_NAME, stock_item_id, wire::$request, $($rest)+);
    };
}

impl CommandRequest for wire::RegisterStockItemRequest {
    command_request!(@begins State, SERVICE_NAME, "RegisterStockItem");

    /// The id follows from the article.
    fn into_command(self, _: impl FnOnce() -> Uuid) -> Result<Addressed<State>, Violations> {
        let mut found = Violations::default();
        let sku = found.text("/sku", Sku::parse(&self.sku));
        found.finish(sku.map(|sku| (StockItemId::of(&sku), Command::Register { sku })))
    }
}

stock_request!(ReceiveStockRequest, "ReceiveStock" at "receive", |request, violations| {
    let quantity = violations.quantity("/quantity", request.quantity, QUANTITY_MAX);
    let reference = violations.optional_text("/reference", &request.reference, Reference::parse);
    quantity.map(|quantity| Command::Receive { quantity, reference })
});

stock_request!(ReserveStockRequest, "ReserveStock" at "reserve", |request, violations| {
    let order_id: Option<OrderId> = violations.id("/order_id", &request.order_id);
    let quantity = violations.quantity("/quantity", request.quantity, QUANTITY_MAX);
    order_id
        .zip(quantity)
        .map(|(order_id, quantity)| Command::Reserve { order_id, quantity })
});

stock_request!(ReleaseStockRequest, "ReleaseStock" at "release", |request, violations| {
    let order_id: Option<OrderId> = violations.id("/order_id", &request.order_id);
    let quantity = optional_quantity(request.quantity, violations);
    let reason = violations.optional_text("/release_reason", &request.release_reason, Reason::parse);
    order_id.map(|order_id| Command::Release {
        order_id,
        quantity,
        reason,
    })
});

stock_request!(DispatchStockRequest, "DispatchStock" at "dispatch", |request, violations| {
    let order_id: Option<OrderId> = violations.id("/order_id", &request.order_id);
    let quantity = optional_quantity(request.quantity, violations);
    order_id.map(|order_id| Command::Dispatch { order_id, quantity })
});

stock_request!(AdjustStockRequest, "AdjustStock" at "adjust", |request, violations| {
    let change = request.change;
    if change == 0 || change.unsigned_abs() > u64::from(QUANTITY_MAX) {
        let message =
            format_args!("a change must not be 0, and at most {QUANTITY_MAX} either way, not {change}");
        violations.add("/change", "OUT_OF_RANGE", message);
    }
    violations
        .text("/adjustment_reason", Reason::parse(&request.adjustment_reason))
        .map(|reason| Command::Adjust { change, reason })
});

fn optional_quantity(quantity: Option<u32>, violations: &mut Violations) -> Option<u32> {
    violations.quantity("/quantity", quantity?, QUANTITY_MAX)
}
