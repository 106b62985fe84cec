//! From the wire to the domain: command requests into commands, and what cannot be understood into violations.
//!
//! All that is wrong with a request is reported at once, each violation with the JSON pointer of its field.

#[macro_use]
mod request;

pub(crate) mod json;
mod orders;
mod stock;
mod time;
mod violation;

pub use self::json::{JsonBatch, Unreadable, from_json};
pub use self::request::{Action, Addressed, CommandRequest};
pub use self::time::{from_timestamp, to_timestamp};
pub use self::violation::{Violation, Violations};
