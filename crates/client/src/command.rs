//! How a command is sent, whichever it is: its request says where to.

use std::time::Duration;

use daybook_proto::common::v1::Receipt;
use daybook_proto::convert::CommandRequest;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
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
    ) -> impl Future<Output = Result<Response<Receipt>, Status>> + Send {
        async move {
            let path = format!("/{}/{}", Self::SERVICE, Self::NAME);
            let path = PathAndQuery::try_from(path).expect("names of services and methods are visible ASCII");
            let mut request = Request::new(self);
            request.set_timeout(patience);
            let mut client = Grpc::new(connection);
            client
                .ready()
                .await
                .map_err(|error| Status::from_error(error.into()))?;
            let response = client
                .unary(request, path, ProstCodec::<Self, Accepted>::default())
                .await?;
            let (metadata, accepted, extensions) = response.into_parts();
            let receipt = accepted
                .receipt
                .ok_or_else(|| Status::data_loss("the service has accepted the command without a receipt"))?;
            Ok(Response::from_parts(metadata, receipt, extensions))
        }
    }
}

impl<C: CommandRequest + Clone + Default + 'static> Command for C {}

/// The answer to each command: their messages have other names and the same field.
#[derive(Clone, PartialEq, prost::Message)]
struct Accepted {
    #[prost(message, optional, tag = "1")]
    receipt: Option<Receipt>,
}

/// Whether a receipt is of an earlier send of the same command.
pub(crate) fn is_replay<T>(response: &Response<T>) -> bool {
    response.metadata().contains_key(REPLAYED)
}
