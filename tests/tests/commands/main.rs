//! What internal services rely on: commands over gRPC and HTTP, on real servers.

mod client;
mod http;
mod idempotency;
mod lifecycle;
mod operation;
mod races;
mod repeats;
