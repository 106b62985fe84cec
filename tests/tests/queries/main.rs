//! What frontends and auditors rely on: reads over REST and gRPC, on real servers.

mod conditional;
mod cors;
mod event_types;
mod fairness;
mod feed;
mod histories;
mod lists;
mod long_histories;
mod orders;
mod plans;
mod sealed;
mod walks;
