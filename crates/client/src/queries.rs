//! Reads over REST, as fresh as the caller needs them.

use daybook_proto::common::v1::Receipt;
use serde::de::DeserializeOwned;

use crate::{Authorized, Failure, connection};

/// How long a read waits for what a command wrote, as `Prefer` says it.
const READ_WAIT: &str = "wait=10";

/// A caller of the query service. Cheap to clone; clones share their connection.
#[derive(Debug, Clone)]
pub struct Queries {
    connection: Authorized,
}

impl Queries {
    /// A caller on a connection to the query service.
    #[must_use]
    pub fn new(connection: Authorized) -> Self {
        Self { connection }
    }

    /// Reads a resource as it is, perhaps without what was written a moment ago. The path may have a query string.
    ///
    /// # Errors
    /// When the path is none, the service refuses, or its answer is not such a `T`.
    pub async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        connection::get(self.connection.clone(), path, &[]).await
    }

    /// Reads a resource like [`Self::read`], with what a command wrote, which is waited for.
    ///
    /// # Errors
    /// As [`Self::read`]; `READ_MODEL_BEHIND` where it is not there in time.
    pub async fn read_after<T: DeserializeOwned>(&self, receipt: &Receipt, path: &str) -> Result<T, Failure> {
        let headers = [
            ("daybook-consistency", receipt.consistency_token.as_str()),
            ("prefer", READ_WAIT),
        ];
        connection::get(self.connection.clone(), path, &headers).await
    }
}
