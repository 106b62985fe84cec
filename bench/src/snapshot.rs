//! An import while somebody holds an old snapshot, as a backup does: what is written must not get slower with it.

use std::time::{Duration, Instant};

use daybook_tests::stack::Stack;
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::commands::applied;
use crate::imports::{import, make_up};
use crate::report::{Goal, Report};
use crate::{Options, servers};

/// Orders in a chunk for each second of `--seconds`: 30,000 with the default.
const CHUNK_PER_SECOND: usize = 6_000;

/// Chunks that are imported while the snapshot is held, before the one that is measured: 330,000 orders.
const CHUNKS: usize = 11;

pub(crate) async fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    for _ in 0..options.runs {
        let stack = Stack::on(servers().await?).await?;
        let chunk = CHUNK_PER_SECOND * usize::try_from(options.seconds)?;
        // The first one warms caches and plans.
        import_chunk(&stack, 0, chunk).await?;
        let before = import_chunk(&stack, 1, chunk).await?;
        let mut holder = PgConnection::connect(&stack.servers.database.superuser_url()).await?;
        // The server ends transactions in which nothing happens; a backup is always at work.
        holder
            .execute(
                "SET idle_in_transaction_session_timeout = 0;
                 BEGIN ISOLATION LEVEL REPEATABLE READ;
                 SELECT pg_catalog.pg_current_snapshot()",
            )
            .await?;
        for number in 2..2 + CHUNKS {
            import_chunk(&stack, number, chunk).await?;
        }
        let after = import_chunk(&stack, 2 + CHUNKS, chunk).await?;
        holder.execute("ROLLBACK").await?;
        let times = |of: fn(&Took) -> Duration| of(&after).as_secs_f64() / of(&before).as_secs_f64();
        report.note(
            "import while a snapshot is held, after 330,000 orders, times before",
            times(|took| took.imported),
            "x",
            Goal::AtMost(1.2),
        );
        report.note(
            "the same until every read model has it",
            times(|took| took.applied),
            "x",
            Goal::None,
        );
    }
    Ok(())
}

/// How long a chunk took, each from the start.
struct Took {
    imported: Duration,
    applied: Duration,
}

async fn import_chunk(stack: &Stack, number: usize, chunk: usize) -> anyhow::Result<Took> {
    let orders = make_up(stack.servers.directory(), number * chunk..(number + 1) * chunk)?;
    let started = Instant::now();
    let imported = import(stack, &orders).await?;
    applied(stack).await?;
    Ok(Took {
        imported,
        applied: started.elapsed(),
    })
}
