//! What internal services rely on: commands over gRPC, on real servers.

mod idempotency;
mod lifecycle;
mod operation;
mod races;
mod repeats;
