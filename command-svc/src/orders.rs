//! The commands on orders.

mod line;

use daybook_domain::order::State;
use daybook_proto::orders::v1 as wire;
use daybook_proto::orders::v1::order_service_server::{OrderService, OrderServiceServer};
use daybook_service::identity::Scope;

use crate::handler::{Served, command_methods};

impl Served for State {
    const SCOPE: Scope = Scope::OrdersWrite;

    fn detail(name: &'static str, value: String) -> (&'static str, String) {
        match name {
            // Every problem has a member of that name, which is the answer's; and callers know statuses in capitals.
            "status" => ("order_status", value.to_ascii_uppercase()),
            name => (name, value),
        }
    }
}

command_methods! {
    OrderService by OrderServiceServer for State:
    batch of PlaceOrderRequest by batch_place_orders(BatchPlaceOrdersRequest) -> BatchPlaceOrdersResponse;
    place_order(PlaceOrderRequest) -> PlaceOrderResponse;
    add_order_line(AddOrderLineRequest) -> AddOrderLineResponse;
    remove_order_line(RemoveOrderLineRequest) -> RemoveOrderLineResponse;
    change_line_quantity(ChangeLineQuantityRequest) -> ChangeLineQuantityResponse;
    change_shipping_address(ChangeShippingAddressRequest) -> ChangeShippingAddressResponse;
    confirm_order(ConfirmOrderRequest) -> ConfirmOrderResponse;
    reject_order(RejectOrderRequest) -> RejectOrderResponse;
    record_payment(RecordPaymentRequest) -> RecordPaymentResponse;
    ship_order(ShipOrderRequest) -> ShipOrderResponse;
    record_delivery(RecordDeliveryRequest) -> RecordDeliveryResponse;
    cancel_order(CancelOrderRequest) -> CancelOrderResponse;
    request_return(RequestReturnRequest) -> RequestReturnResponse;
    receive_return(ReceiveReturnRequest) -> ReceiveReturnResponse;
    refund_order(RefundOrderRequest) -> RefundOrderResponse;
}
