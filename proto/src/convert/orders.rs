//! The order commands.

use daybook_domain::address::{
    ADDRESS_LINES_MAX, Address, AddressText, Country, InvalidLineCount, PostalCode,
};
use daybook_domain::ids::{
    Carrier, CustomerId, OrderId, PaymentId, Reason, Reference, RefundId, ReturnId, ShipmentId, Sku,
    TrackingNumber,
};
use daybook_domain::money::{Currency, Money};
use daybook_domain::order::{self, Command, LINES_MAX, QUANTITY_MAX, State};
use uuid::Uuid;

use super::{Addressed, CommandRequest, Violations};
use crate::common::v1 as common;
use crate::orders::v1 as wire;
use crate::orders::v1::order_service_server::SERVICE_NAME;

/// A command request with the aggregate, its service and the field of its id filled in.
macro_rules! order_request {
    ($request:ident, $($rest:tt)+) => {
        command_request!(State, SERVICE_NAME, order_id, wire::$request, $($rest)+);
    };
}

impl CommandRequest for wire::PlaceOrderRequest {
    command_request!(@begins State, SERVICE_NAME, "PlaceOrder");

    fn into_command(self, new_id: impl FnOnce() -> Uuid) -> Result<Addressed<State>, Violations> {
        let mut found = Violations::default();
        let order_id = match self.order_id.as_str() {
            "" => Some(OrderId::from_uuid(new_id())),
            given => found.id("/order_id", given),
        };
        let command = place(self, order_id, &mut found);
        found.finish(order_id.zip(command))
    }
}

order_request!(AddOrderLineRequest, "AddOrderLine" at "add-line", |request, violations| {
    let line = required(request.line, "/line", violations);
    line.and_then(|line| new_line("/line", &line, violations))
        .map(|line| Command::AddLine { line })
});

order_request!(
    RemoveOrderLineRequest,
    "RemoveOrderLine" at "remove-line",
    |request, _violations| {
        Some(Command::RemoveLine {
            line_number: request.line_number,
        })
    }
);

order_request!(
    ChangeLineQuantityRequest,
    "ChangeLineQuantity" at "change-line-quantity",
    |request, violations| {
        violations
            .quantity("/quantity", request.quantity, QUANTITY_MAX)
            .map(|quantity| Command::ChangeQuantity {
                line_number: request.line_number,
                quantity,
            })
    }
);

order_request!(
    ChangeShippingAddressRequest,
    "ChangeShippingAddress" at "change-shipping-address",
    |request, violations| {
        let given = required(request.shipping_address, "/shipping_address", violations);
        given
            .and_then(|given| address("/shipping_address", &given, violations))
            .map(|shipping_address| Command::ChangeShippingAddress { shipping_address })
    }
);

order_request!(ConfirmOrderRequest, "ConfirmOrder" at "confirm", |_request, _violations| {
    Some(Command::Confirm)
});

order_request!(RejectOrderRequest, "RejectOrder" at "reject", |request, violations| {
    violations
        .text("/rejection_reason", Reason::parse(&request.rejection_reason))
        .map(|reason| Command::Reject { reason })
});

order_request!(RecordPaymentRequest, "RecordPayment" at "record-payment", |request, violations| {
    let payment_id = violations.text("/payment_id", PaymentId::parse(&request.payment_id));
    let amount = amount(request.amount, violations);
    payment_id
        .zip(amount)
        .map(|(payment_id, amount)| Command::RecordPayment { payment_id, amount })
});

order_request!(ShipOrderRequest, "ShipOrder" at "ship", |request, violations| {
    let shipment_id = violations.text("/shipment_id", ShipmentId::parse(&request.shipment_id));
    let lines = parts_of_lines(&request.lines, violations);
    let carrier = violations.optional_text("/carrier", &request.carrier, Carrier::parse);
    let tracking_number = violations.optional_text(
        "/tracking_number",
        &request.tracking_number,
        TrackingNumber::parse,
    );
    shipment_id.map(|shipment_id| Command::Ship {
        shipment_id,
        lines,
        carrier,
        tracking_number,
    })
});

order_request!(RecordDeliveryRequest, "RecordDelivery" at "record-delivery", |request, violations| {
    violations
        .text("/shipment_id", ShipmentId::parse(&request.shipment_id))
        .map(|shipment_id| Command::RecordDelivery { shipment_id })
});

order_request!(CancelOrderRequest, "CancelOrder" at "cancel", |request, violations| {
    violations
        .text(
            "/cancellation_reason",
            Reason::parse(&request.cancellation_reason),
        )
        .map(|reason| Command::Cancel { reason })
});

order_request!(RequestReturnRequest, "RequestReturn" at "request-return", |request, violations| {
    if request.lines.is_empty() {
        violations.add("/lines", "EMPTY", "lines must not be empty");
    }
    let return_id = violations.text("/return_id", ReturnId::parse(&request.return_id));
    let lines = parts_of_lines(&request.lines, violations);
    let reason = violations.optional_text("/return_reason", &request.return_reason, Reason::parse);
    return_id.map(|return_id| Command::RequestReturn {
        return_id,
        lines,
        reason,
    })
});

order_request!(ReceiveReturnRequest, "ReceiveReturn" at "receive-return", |request, violations| {
    violations
        .text("/return_id", ReturnId::parse(&request.return_id))
        .map(|return_id| Command::ReceiveReturn { return_id })
});

order_request!(RefundOrderRequest, "RefundOrder" at "refund", |request, violations| {
    let refund_id = violations.text("/refund_id", RefundId::parse(&request.refund_id));
    let amount = amount(request.amount, violations);
    refund_id
        .zip(amount)
        .map(|(refund_id, amount)| Command::Refund { refund_id, amount })
});

fn place(
    request: wire::PlaceOrderRequest,
    order_id: Option<OrderId>,
    violations: &mut Violations,
) -> Option<Command> {
    let reference = violations.optional_text("/reference", &request.reference, Reference::parse);
    let customer_id = violations.text("/customer_id", CustomerId::parse(&request.customer_id));
    let currency = violations.text("/currency", Currency::parse(&request.currency));
    let lines = new_lines(&request.lines, violations);
    let shipping_address = request
        .shipping_address
        .and_then(|given| address("/shipping_address", &given, violations));
    Some(Command::Place {
        order_id: order_id?,
        reference,
        customer_id: customer_id?,
        currency: currency?,
        lines,
        shipping_address,
        expected_total_minor: request.expected_total_minor,
    })
}

fn required<T>(field: Option<T>, pointer: &str, violations: &mut Violations) -> Option<T> {
    if field.is_none() {
        violations.add(pointer, "REQUIRED", format_args!("{} is required", &pointer[1..]));
    }
    field
}

fn new_lines(lines: &[wire::NewOrderLine], violations: &mut Violations) -> Vec<order::NewLine> {
    if lines.is_empty() {
        violations.add("/lines", "EMPTY", "lines must not be empty");
    }
    if lines.len() > LINES_MAX {
        violations.add(
            "/lines",
            "TOO_MANY",
            format_args!("there must be at most {LINES_MAX} lines"),
        );
        return Vec::new();
    }
    let checked = lines.iter().enumerate();
    checked
        .filter_map(|(index, line)| new_line(&format!("/lines/{index}"), line, violations))
        .collect()
}

fn new_line(pointer: &str, line: &wire::NewOrderLine, violations: &mut Violations) -> Option<order::NewLine> {
    let sku = violations.text(format!("{pointer}/sku"), Sku::parse(&line.sku));
    let quantity = violations.quantity(&format!("{pointer}/quantity"), line.quantity, QUANTITY_MAX);
    if line.unit_price_minor < 0 {
        violations.add(
            format!("{pointer}/unit_price_minor"),
            "OUT_OF_RANGE",
            "a price must not be negative",
        );
    }
    Some(order::NewLine {
        sku: sku?,
        quantity: quantity?,
        unit_price_minor: line.unit_price_minor,
    })
}

fn parts_of_lines(lines: &[wire::LineQuantity], violations: &mut Violations) -> Vec<order::LineQuantity> {
    let mut parts: Vec<order::LineQuantity> = Vec::with_capacity(lines.len().min(LINES_MAX));
    if lines.len() > LINES_MAX {
        violations.add(
            "/lines",
            "TOO_MANY",
            format_args!("there must be at most {LINES_MAX} lines"),
        );
        return parts;
    }
    for (index, line) in lines.iter().enumerate() {
        violations.quantity(&format!("/lines/{index}/quantity"), line.quantity, QUANTITY_MAX);
        if parts.iter().any(|part| part.line_number == line.line_number) {
            let pointer = format!("/lines/{index}/line_number");
            violations.add(
                pointer,
                "DUPLICATE",
                format_args!("line {} is named twice", line.line_number),
            );
        }
        parts.push(order::LineQuantity {
            line_number: line.line_number,
            quantity: line.quantity,
        });
    }
    parts
}

fn amount(amount: Option<common::Money>, violations: &mut Violations) -> Option<Money> {
    let amount = required(amount, "/amount", violations)?;
    if amount.minor <= 0 {
        violations.add(
            "/amount/minor",
            "OUT_OF_RANGE",
            "an amount must be more than nothing",
        );
    }
    let currency = violations.text("/amount/currency", Currency::parse(&amount.currency))?;
    Some(Money::new(amount.minor, currency))
}

fn address(pointer: &str, given: &wire::Address, violations: &mut Violations) -> Option<Address> {
    let name = violations.text(format!("{pointer}/name"), AddressText::parse(&given.name));
    let mut lines = Vec::new();
    for (index, line) in given.lines.iter().enumerate().take(ADDRESS_LINES_MAX) {
        lines.extend(violations.text(format!("{pointer}/lines/{index}"), AddressText::parse(line)));
    }
    if given.lines.is_empty() || given.lines.len() > ADDRESS_LINES_MAX {
        let count = given.lines.len();
        violations.add(
            format!("{pointer}/lines"),
            "OUT_OF_RANGE",
            InvalidLineCount { count },
        );
    }
    let city = violations.text(format!("{pointer}/city"), AddressText::parse(&given.city));
    let postal_code = violations.optional_text(
        format!("{pointer}/postal_code"),
        &given.postal_code,
        PostalCode::parse,
    );
    let country = violations.text(format!("{pointer}/country"), Country::parse(&given.country));
    Address::new(name?, lines, city?, postal_code, country?).ok()
}
