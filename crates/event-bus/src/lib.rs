//! JetStream as the log's carrier: publish at a position, consume from a position.
//!
//! Postgres is the truth, JetStream a cache that can be refilled. Every partition of the log has one stream, and an
//! event's position is the sequence of its message there. So a hole, a duplicate or a foreign message is arithmetic, and
//! both sides mend what they find from Postgres:
//!
//! - [`publish`] holds the stream equal to the log. Each message says which sequence it expects before it, so JetStream
//!   itself refuses duplicates and holes, and any number of replicas may publish the same log at once.
//! - [`consume`] gives events in order without gap or duplicate, from the stream while that is right and from Postgres
//!   while it is not: gone, behind, damaged or foreign.
//! - [`signal`] tells on core NATS how far a projection has come, and that there is work for projectors. Signals are hints;
//!   checkpoints and leases are facts.
//! - [`replica`] carries what the replicas of a service have to say to each other. It is a hint as well.
//!
//! Every stream and subject begins with the name of the [`Deployment`], so that several can share one NATS account.
//!
//! What goes over the wire is described in `proto/asyncapi.yaml`. The crate carries bytes, a type name and metadata; it
//! knows nothing of the domain.

pub mod bus;
pub mod consume;
mod deployment;
pub mod message;
pub mod publish;
pub mod replica;
pub mod signal;
mod stream;

use tokio::task::JoinHandle;

pub use bus::{Bus, BusError};
pub use deployment::{Deployment, InvalidDeployment};

/// Waits for a task, which may be dropped and called again; never ends without a task.
async fn finished<T>(task: &mut Option<JoinHandle<T>>) -> T {
    let Some(running) = task else {
        return std::future::pending().await;
    };
    let result = running.await.expect("the task neither panics nor is aborted");
    *task = None;
    result
}
