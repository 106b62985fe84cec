//! The projections that this program runs: all read models that there are.

use std::fmt;

use daybook_read_model::{ReadModel, each_read_model};
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::feed::Feed;
use crate::rebuild::Rebuilder;
use crate::worker::{Context, Worker};

/// Every projection.
pub(crate) const ALL: &[Projection] = &each_read_model!(M => Projection::of::<M>());

/// A long-running task.
type Task = BoxFuture<'static, anyhow::Result<()>>;

/// A read model as a projection: how its tables are kept up to date, and how they are rebuilt.
#[derive(Clone, Copy)]
pub(crate) struct Projection {
    /// Its name.
    pub(crate) name: &'static str,
    work: fn(Context, i32, &Feed, CancellationToken) -> Task,
    rebuild: fn(Context, CancellationToken) -> Task,
}

impl Projection {
    /// The projection of a read model.
    pub(crate) const fn of<M: ReadModel>() -> Self {
        Self {
            name: M::NAME,
            work: |context, partition, feed, shutdown| {
                Box::pin(Worker::<M>::new(context, partition, feed).run(shutdown))
            },
            rebuild: |context, shutdown| Box::pin(Rebuilder::<M>::new(context, shutdown).run()),
        }
    }

    /// The task that keeps the live tables up to date in one partition.
    pub(crate) fn work(
        &self,
        context: Context,
        partition: i32,
        feed: &Feed,
        shutdown: CancellationToken,
    ) -> Task {
        (self.work)(context, partition, feed, shutdown)
    }

    /// The task that runs its rebuilds.
    pub(crate) fn rebuild(&self, context: Context, shutdown: CancellationToken) -> Task {
        (self.rebuild)(context, shutdown)
    }
}

impl fmt::Debug for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Projection")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
