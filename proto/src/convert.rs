//! From the wire to the domain: command requests into commands, and what cannot be understood into violations.
//!
//! All that is wrong with a request is reported at once, each violation with the JSON pointer of its field.

mod orders;
mod time;
mod violation;

use daybook_domain::ids::OrderId;
use daybook_domain::order;

pub use self::time::{from_timestamp, to_timestamp};
pub use self::violation::{Violation, Violations};
use crate::common::v1::CommandContext;

/// A request that carries a command for an order: what all of them have in common.
pub trait OrderRequest: prost::Message + Sized {
    /// The command's name, as auditors see it ("PlaceOrder").
    const NAME: &'static str;

    /// The caller's idempotency key.
    fn request_id(&self) -> &str;

    /// Takes the idempotency key out, which leaves the content that a key is bound to.
    fn take_request_id(&mut self) -> String;

    /// Who, why and what caused it.
    fn take_context(&mut self) -> CommandContext;

    /// The version that the caller expects the order to have.
    fn expected_version(&self) -> Option<u64>;

    /// The order and the command. Only a request that places an order may leave its id to the service, which then
    /// calls `new_id`.
    fn into_command(self, new_id: impl FnOnce() -> OrderId) -> Result<(OrderId, order::Command), Violations>;
}
