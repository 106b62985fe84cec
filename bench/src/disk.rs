//! How much disk an event takes, with its receipt and every index.

use daybook_tests::log;
use sqlx::PgPool;

use crate::batches::{Batches, Keys};
use crate::report::{Goal, Report};
use crate::{Options, raw, servers};

/// Events per second of `--seconds`: 200,000 with the default.
const EVENTS_PER_SECOND: u64 = 40_000;

/// 70 % of what the first version of the log took for the same rows, 1,194 bytes.
const BYTES_MAX: f64 = 836.0;

pub(crate) async fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    for _ in 0..options.runs {
        let servers = servers().await?;
        let superuser = servers.database.superuser().await?;
        let empty = bytes(&superuser).await?;
        let mut batches = Batches::connect(&servers).await?;
        let mut events = 0;
        while events < EVENTS_PER_SECOND * options.seconds {
            events += batches.append_full(Keys::TimeOrdered).await?;
        }
        let full = bytes(&superuser).await?;
        anyhow::ensure!(
            log::head(&superuser).await? == events,
            "the log holds something else"
        );
        report.note(
            "disk: one event with its receipt and all indexes",
            (full - empty) as f64 / events as f64,
            "bytes",
            Goal::AtMost(BYTES_MAX),
        );
    }
    Ok(())
}

/// What the tables of the log take with all that belongs to them, after what is dead has been set free.
async fn bytes(superuser: &PgPool) -> anyhow::Result<i64> {
    sqlx::raw_sql("VACUUM").execute(superuser).await?;
    raw::settle(superuser).await?;
    let bytes = sqlx::query_scalar(
        "SELECT sum(pg_total_relation_size(table_.oid))::bigint
         FROM pg_class AS table_ JOIN pg_namespace AS schema_ ON schema_.oid = table_.relnamespace
         WHERE schema_.nspname = 'event_store' AND table_.relkind = 'r'",
    );
    Ok(bytes.fetch_one(superuser).await?)
}
