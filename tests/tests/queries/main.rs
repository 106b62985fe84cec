//! What frontends and auditors rely on: reads over REST and gRPC, on real servers.

mod histories;
mod lists;
mod orders;
