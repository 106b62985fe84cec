//! gRPC: `OrderQueryService`, `StockQueryService` and `HistoryService`, with the semantics of REST.
//!
//! A method looks who calls, checks the request, reads, and translates. Whatever it refuses is a `google.rpc.Status`
//! of the catalogue.

mod fields;
pub mod history;
pub mod orders;
pub mod stock;
mod wire;

use std::sync::Arc;

use daybook_service::ApiError;
use daybook_service::identity::{Principal, Scope, principal_with};
use tonic::Request;

use crate::reads::Reads;

/// The largest request, in bytes: a filter and a cursor.
pub const REQUEST_BYTES_MAX: usize = 64 * 1_024;

/// What both services work with.
#[derive(Clone)]
pub struct Queries {
    reads: Reads,
}

impl Queries {
    /// The services on top of these reads.
    #[must_use]
    pub fn new(reads: Reads) -> Self {
        Self { reads }
    }
}

/// The caller of a request, if it may do this.
fn caller_with<T>(scope: Scope, request: &Request<T>) -> Result<Arc<Principal>, ApiError> {
    principal_with(request.extensions(), scope)
}
