//! The replicas of the projector: how they share the work, and how soon the others take over from one that is gone.

use std::time::Duration;

use anyhow::Context as _;
use daybook_devstack::process::Signal;
use daybook_read_model::{ReadModel as _, each_read_model};
use sqlx::PgPool;
use tokio::time::Instant;

use crate::load::Load;
use crate::stack::Running;
use crate::{check, wait};

/// How many live tables there are to work on, in one partition.
pub const WORKERS: usize = each_read_model!(M => M::NAME).len();

/// How a replica goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is killed with SIGKILL.
    Killed,
    /// It is told to stop, with SIGTERM.
    Stopped,
}

/// How many leases each replica that lives holds, the fewest first.
///
/// # Errors
/// When the database does not answer.
pub async fn shares(superuser: &PgPool) -> anyhow::Result<Vec<i64>> {
    let shares = "
        SELECT count(f.owner) AS held
        FROM read_model.replica_state AS s
        LEFT JOIN (read_model.fence AS f
                   JOIN read_model.projection AS p ON p.name = f.projection AND p.live_generation = f.generation)
             ON f.owner = s.id
        WHERE s.lives
        GROUP BY s.id
        ORDER BY held
    ";
    Ok(sqlx::query_scalar(shares).fetch_all(superuser).await?)
}

/// Waits until so many replicas live, and each holds its part of the leases.
///
/// # Errors
/// When that does not happen.
pub async fn share_evenly(superuser: &PgPool, replicas: usize) -> anyhow::Result<()> {
    let expected: Vec<i64> = (0..replicas)
        .map(|replica| i64::try_from((WORKERS + replica) / replicas))
        .collect::<Result<_, _>>()?;
    let what = format!("the replicas share the leases as {expected:?}");
    wait::until(&what, async || Ok(shares(superuser).await? == expected)).await
}

/// Ends a projector, and gives the time from then until every projection shows what was recorded after that.
///
/// # Errors
/// When that does not happen.
pub async fn take_over(
    superuser: &PgPool,
    load: &Load,
    projector: &mut Running,
    end: End,
) -> anyhow::Result<Duration> {
    let process = projector.service.process_id().context("it runs")?;
    let ended = Instant::now();
    process.signal(match end {
        End::Killed => Signal::KILL,
        End::Stopped => Signal::TERM,
    });
    let taken_over = visible_after(superuser, load, ended).await?;
    projector.service.stop().await?;
    Ok(taken_over)
}

/// Waits until something more is recorded, and gives the time from `since` until every projection shows it.
///
/// # Errors
/// When that does not happen.
pub async fn visible_after(superuser: &PgPool, load: &Load, since: Instant) -> anyhow::Result<Duration> {
    load.progress(1).await?;
    check::caught_up(superuser).await?;
    Ok(since.elapsed())
}
