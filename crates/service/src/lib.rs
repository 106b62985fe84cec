//! The common parts of every Daybook binary: configuration, telemetry, identity, errors, health, serving and stopping.
//!
//! A service supplies its gRPC and HTTP routers and its background tasks; everything around them lives here, so that
//! the three services answer, measure, refuse and stop in one way. Nothing here knows the domain.
//!
//! | module | promise |
//! |---|---|
//! | [`consistency`] | the token that a command returns and a query waits for |
//! | [`config`] | one line on standard error and exit code 64 for a bad configuration; secrets never printed |
//! | [`telemetry`] | logs, traces from the caller's `traceparent`, flushed at the end |
//! | [`metrics`] | request counters and the latencies between the five moments of an event |
//! | [`error`] | the one catalogue of errors and its maps to gRPC and HTTP |
//! | [`problems`] | `GET /problems/{slug}`, which explains the catalogue |
//! | [`deprecation`] | what will end says so, and is `GONE` after that |
//! | [`openapi`], `docs` | what all OpenAPI descriptions have in common, and the page that shows one |
//! | [`document`], `page` | what does not change: prepared once, served to everybody |
//! | [`grpc`] | gRPC services with their health and, in development, reflection |
//! | [`identity`] | API keys, principals and scopes |
//! | [`path`] | the variables of a path; refusals are problems of the catalogue |
//! | [`request`] | what is known about the request that is being answered: its id, its trace, its deadline |
//! | [`sealing`] | texts that callers hold and cannot read: one ring of keys for all of them |
//! | [`server`] | gRPC, gRPC-Web and HTTP on one port, every limit set, a stop with a deadline |
//! | `admin` | `/livez`, `/readyz` and `/metrics` on the private listener |
//! | [`process`] | what `main` does in every binary |
//! | [`start`] | one start for every process: schemas, identity, readiness, then both listeners |
//! | `shutdown` | a task that ends ends the process; the process ends in time, after its drain delay and grace period |
//! | [`shares`] | connections that tenants share fairly |
//! | [`tickets`] | what stands for a credential in the address of a stream |
//! | [`database`] | a pool that cannot wait for ever, and the check of the schema's version |

mod admin;
pub mod config;
pub mod consistency;
pub mod database;
pub mod deprecation;
mod docs;
pub mod document;
pub mod error;
pub mod grpc;
pub mod identity;
pub mod key;
pub mod metrics;
pub mod openapi;
mod page;
pub mod path;
pub mod problems;
pub mod process;
pub mod request;
pub mod sealing;
pub mod server;
pub mod shares;
mod shutdown;
pub mod start;
pub mod telemetry;
pub mod tickets;

pub use error::{ApiError, Code};
