//! The typed client of Daybook: commands that are safe to repeat, and reads that show what one has written.
//!
//! ```no_run
//! # async fn example() -> Result<(), daybook_client::Failure> {
//! use daybook_client::{Commands, Connection, Credential, Queries};
//! use daybook_proto::orders::v1::{NewOrderLine, PlaceOrderRequest};
//!
//! let key = Credential::new("dbk_dev_…", std::time::Duration::from_secs(10))?;
//! let commands = Commands::new(Connection::open("http://127.0.0.1:7101")?.with(key.clone()));
//! let queries = Queries::new(Connection::open("http://127.0.0.1:7102")?.with(key));
//! let receipt = commands
//!     .send(PlaceOrderRequest {
//!         customer_id: "ada".to_owned(),
//!         currency: "EUR".to_owned(),
//!         lines: vec![NewOrderLine { sku: "PEN-FINE".to_owned(), quantity: 2, unit_price_minor: 3450 }],
//!         ..PlaceOrderRequest::default()
//!     })
//!     .await?;
//! let order: serde_json::Value = queries.read_after(&receipt, &format!("/v1/orders/{}", receipt.stream_id)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! - A command without an idempotency key gets one, a UUIDv7, before it is sent for the first time. Each further attempt is the
//!   same request under the same key, so a command whose answer was lost is not done twice.
//! - What may succeed later is sent again, no sooner than the service asks for, for half a minute. A command of which it is not
//!   known then whether it is recorded is a [`Failure::Unknown`], with its key.
//! - No attempt takes all that time, and a connection whose other end is gone is given up within seconds.
//! - A read that is given a receipt waits for what the command wrote, or says that it is not there yet.

mod command;
mod commands;
mod connection;
mod queries;
mod refusal;
mod retry;

pub use self::command::{Command, new_key};
pub use self::commands::{Commands, Sent};
pub use self::connection::{Authorized, Connection, Credential, read_json};
pub use self::queries::Queries;
pub use self::refusal::Refusal;
pub use self::retry::Attempts;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The address is not one, or of a scheme that is not served.
    #[error("{url} is not an address of a service: {problem}")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The key has characters that no key has.
    #[error("the API key has characters that no key has")]
    Key,
    /// The path of a read is none.
    #[error("{path} is not a path: {problem}")]
    Path {
        /// What was given.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no connection.
    #[error("the service cannot be reached")]
    Unreachable(#[source] tonic::transport::Error),
    /// The service refused a read, or the connection broke.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// A command was refused, and changed nothing.
    #[error("{refusal}")]
    CommandRefused {
        /// The command's idempotency key.
        key: String,
        /// Why.
        refusal: Box<Refusal>,
    },
    /// A command may be recorded, or may be yet. The same command under its key finds out.
    #[error("the command with the key {key} may be recorded: {last}")]
    Unknown {
        /// The command's idempotency key.
        key: String,
        /// What its last attempt met.
        last: Box<Refusal>,
    },
    /// The answer is not what the contract says.
    #[error("the answer to {path} is not as expected")]
    Answer {
        /// What was read.
        path: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status.into()))
    }
}
