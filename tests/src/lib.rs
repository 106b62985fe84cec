//! The one end-to-end harness: real Postgres, real NATS, the three real services, and a verb per operation.
//!
//! | module | what it gives |
//! |---|---|
//! | [`database`] | a database of its own for each test, migrated, with every login role |
//! | [`tenant`] | tenants with a key for each kind of user |
//! | [`stack`] | servers and services, in this process or as processes that can be killed |
//! | [`client`], [`rest`] | callers: gRPC with a key, HTTP with a key |
//! | [`cli`] | the command line |
//! | [`orders`], [`command`] | orders to send, and every command on one |
//! | [`sse`] | streams of events, read as a browser does |
//! | [`raw`] | calls that no client library would make |
//! | [`refusal`] | what a refusal says |
//! | [`network`] | proxies between a service and its servers, which can be made to fail |
//! | [`hostile`] | clients that mean harm |
//! | [`load`] | callers that go on until they are stopped |
//! | [`probe`] | callers with a deadline, and how long their answers took |
//! | [`ledger`] | what every caller was told |
//! | [`replicas`] | how the projectors share the work, and how soon one takes over from another |
//! | [`standby`] | a primary with a standby, and services that can be led from one to the other |
//! | [`log`] | what is in the log, and what is appended to it without a service |
//! | [`metrics`] | what a service says of itself |
//! | [`nats`] | NATS as its administrator sees it |
//! | [`sealing`] | what the services' tokens hold |
//! | [`skewed`] | a long list of orders as the planner likes it least |
//! | [`check`] | the check that every fault test ends with |
//! | [`wait`] | waiting for a level with a deadline, never for a time |

pub mod check;
pub mod cli;
pub mod client;
pub mod command;
pub mod database;
pub mod described;
pub mod hostile;
pub mod ledger;
pub mod load;
pub mod log;
pub mod metrics;
pub mod nats;
pub mod network;
pub mod orders;
pub mod probe;
pub mod raw;
pub mod refusal;
pub mod replicas;
pub mod rest;
pub mod sealing;
pub mod skewed;
pub mod sse;
pub mod stack;
pub mod standby;
pub mod stock;
pub mod tenant;
pub mod wait;
