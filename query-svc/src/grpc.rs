//! gRPC: `OrderQueryService`, `StockQueryService` and `HistoryService`, with the semantics of REST.
//!
//! A method looks who calls, checks the request, reads, and translates. Whatever it refuses is a `google.rpc.Status`
//! of the catalogue.

mod fields;
mod history;
mod orders;
mod stock;
mod wire;

use std::sync::Arc;

use daybook_proto::FILE_DESCRIPTOR_SET;
use daybook_proto::history::v1::history_service_server::HistoryServiceServer;
use daybook_proto::orders::v1::order_query_service_server::OrderQueryServiceServer;
use daybook_proto::stock::v1::stock_query_service_server::StockQueryServiceServer;
use daybook_service::ApiError;
use daybook_service::deprecation::Deprecation;
use daybook_service::grpc::GrpcServices;
use daybook_service::identity::{Principal, Scope, principal_with};
use daybook_service::server::Needs;
use tonic::Request;

use crate::reads::Reads;
use crate::streams::Streams;

/// The largest request, in bytes: a filter and a cursor.
const REQUEST_BYTES_MAX: usize = 64 * 1_024;

/// What the services work with.
#[derive(Clone)]
struct Queries {
    reads: Reads,
    streams: Streams,
    order_history: Deprecation,
}

/// The services on top of these reads.
pub(crate) fn services(reads: Reads, streams: Streams, order_history: Deprecation) -> GrpcServices {
    let queries = Queries {
        reads,
        streams,
        order_history,
    };
    let orders = OrderQueryServiceServer::new(queries.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let stock = StockQueryServiceServer::new(queries.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let history = HistoryServiceServer::new(queries).max_decoding_message_size(REQUEST_BYTES_MAX);
    let needs = |scope| Needs::scope(scope).with_message(REQUEST_BYTES_MAX);
    GrpcServices::described_by(FILE_DESCRIPTOR_SET)
        .with(orders, needs(Scope::OrdersRead))
        .with(stock, needs(Scope::StockRead))
        .with(history, needs(Scope::EventsRead))
}

/// The caller of a request, if it may do this.
fn caller_with<T>(scope: Scope, request: &Request<T>) -> Result<Arc<Principal>, ApiError> {
    principal_with(request.extensions(), scope)
}
