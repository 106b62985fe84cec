//! Every command of the wire contract, and how it is sent.

use std::time::Duration;

use daybook_proto::common::v1::Receipt;
use daybook_proto::convert::CommandRequest;
use daybook_proto::orders::v1::order_service_client::OrderServiceClient;
use daybook_proto::orders::v1::{
    AddOrderLineRequest, CancelOrderRequest, ChangeLineQuantityRequest, ChangeShippingAddressRequest,
    ConfirmOrderRequest, PlaceOrderRequest, ReceiveReturnRequest, RecordDeliveryRequest,
    RecordPaymentRequest, RefundOrderRequest, RejectOrderRequest, RemoveOrderLineRequest,
    RequestReturnRequest, ShipOrderRequest,
};
use daybook_proto::stock::v1::stock_service_client::StockServiceClient;
use daybook_proto::stock::v1::{
    AdjustStockRequest, DispatchStockRequest, ReceiveStockRequest, RegisterStockItemRequest,
    ReleaseStockRequest, ReserveStockRequest,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::Authorized;

/// The metadata that marks the receipt of an earlier send, as the header of this name does over HTTP.
const REPLAYED: &str = "idempotency-replayed";

/// A new idempotency key. Keys that come in the order of time go to the end of the service's index.
#[must_use]
pub fn new_key() -> String {
    Uuid::now_v7().to_string()
}

/// A request that carries a command. What the requests have in common is in `CommandRequest`, which services use too.
pub trait Command: CommandRequest + Clone + Default + 'static {
    /// The same command under another idempotency key.
    #[must_use]
    fn with_key(mut self, key: &str) -> Self {
        self.set_request_id(key.to_owned());
        self
    }

    /// The same command, on condition that the aggregate has this version.
    #[must_use]
    fn expecting(mut self, version: u64) -> Self {
        self.set_expected_version(version);
        self
    }

    /// Sends it once, and waits for the receipt for as long as `patience`.
    ///
    /// # Errors
    /// The status of the refusal, or of a call whose outcome is not known.
    fn send(
        self,
        connection: Authorized,
        patience: Duration,
    ) -> impl Future<Output = Result<Receipt, Status>> + Send {
        async move { Ok(self.send_once(connection, patience).await?.into_inner()) }
    }

    /// Sends it once; the answer's metadata come with the receipt.
    ///
    /// # Errors
    /// As [`Self::send`].
    fn send_once(
        self,
        connection: Authorized,
        patience: Duration,
    ) -> impl Future<Output = Result<Response<Receipt>, Status>> + Send;
}

/// A command that names its aggregate.
pub trait Addressed: Command {
    /// The aggregate that it is for.
    fn stream_id(&self) -> &str;

    /// The same command for another aggregate.
    #[must_use]
    fn for_stream(self, stream_id: &str) -> Self;
}

/// Whether a receipt is of an earlier send of the same command.
pub(crate) fn is_replay<T>(response: &Response<T>) -> bool {
    response.metadata().contains_key(REPLAYED)
}

macro_rules! commands {
    ($client:ident, $id:ident: $($request:ident by $method:ident;)+) => {
        commands! { $client: $($request by $method;)+ }

        $(
            impl Addressed for $request {
                fn stream_id(&self) -> &str {
                    &self.$id
                }

                fn for_stream(mut self, stream_id: &str) -> Self {
                    stream_id.clone_into(&mut self.$id);
                    self
                }
            }
        )+
    };
    ($client:ident: $($request:ident by $method:ident;)+) => {
        $(
            impl Command for $request {
                async fn send_once(
                    self,
                    connection: Authorized,
                    patience: Duration,
                ) -> Result<Response<Receipt>, Status> {
                    let mut request = Request::new(self);
                    request.set_timeout(patience);
                    let response = $client::new(connection).$method(request).await?;
                    let (metadata, answer, extensions) = response.into_parts();
                    let receipt = answer.receipt.ok_or_else(|| {
                        Status::data_loss("the service has accepted the command without a receipt")
                    })?;
                    Ok(Response::from_parts(metadata, receipt, extensions))
                }
            }
        )+
    };
}

commands! {
    OrderServiceClient, order_id:
    PlaceOrderRequest by place_order;
    AddOrderLineRequest by add_order_line;
    RemoveOrderLineRequest by remove_order_line;
    ChangeLineQuantityRequest by change_line_quantity;
    ChangeShippingAddressRequest by change_shipping_address;
    ConfirmOrderRequest by confirm_order;
    RejectOrderRequest by reject_order;
    RecordPaymentRequest by record_payment;
    ShipOrderRequest by ship_order;
    RecordDeliveryRequest by record_delivery;
    CancelOrderRequest by cancel_order;
    RequestReturnRequest by request_return;
    ReceiveReturnRequest by receive_return;
    RefundOrderRequest by refund_order;
}

commands! {
    StockServiceClient:
    RegisterStockItemRequest by register_stock_item;
}

commands! {
    StockServiceClient, stock_item_id:
    ReceiveStockRequest by receive_stock;
    ReserveStockRequest by reserve_stock;
    ReleaseStockRequest by release_stock;
    DispatchStockRequest by dispatch_stock;
    AdjustStockRequest by adjust_stock;
}
