//! What the system survives: processes that are killed or stopped and servers that go away, under load. Every test ends
//! with the whole check of [`daybook_tests::check`], and fails when what it is meant to provoke did not happen.

mod black_hole;
mod failover;
mod hot_orders;
mod nats;
mod one_home;
mod postgres;
mod projector;
mod publishers;
mod readiness;
