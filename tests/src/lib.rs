//! The one end-to-end harness: real Postgres, real NATS, the three real services, and a verb per operation.
//!
//! | module | what it gives |
//! |---|---|
//! | [`database`] | a database of its own for each test, migrated, with every login role |
//! | [`tenant`] | tenants with a key for each kind of user |
//! | [`stack`] | servers and services, in this process or as processes that can be killed |
//! | [`client`] | callers: gRPC with a key, HTTP with a key |
//! | [`orders`] | orders to send |
//! | [`wait`] | waiting for a level with a deadline, never for a time |

pub mod client;
pub mod database;
pub mod orders;
pub mod stack;
pub mod tenant;
pub mod wait;
