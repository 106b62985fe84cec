//! The projector is killed again and again.

use anyhow::Context as _;
use daybook_read_model::checkpoint;
use daybook_tests::load::Load;
use daybook_tests::stack::Backend;
use daybook_tests::{check, log, wait};
use sqlx::PgPool;

/// How often it is killed.
const KILLS: usize = 20;

#[tokio::test]
async fn read_models_equal_the_fold_of_the_log_however_often_the_projector_is_killed() -> anyhow::Result<()> {
    let mut backend = Backend::start(1).await?.with_projector().await?;
    let load = Load::start(&backend.callers()?, 8);
    load.progress(100).await?;
    let mut killed_behind = 0;
    for _ in 0..KILLS {
        let before = slowest(&backend.superuser).await?;
        wait::until("the projector has applied something", async || {
            Ok((slowest(&backend.superuser).await? > before).then_some(()))
        })
        .await?;
        let projector = backend.projector.as_mut().context("there is a projector")?;
        projector.service.kill().await?;
        if slowest(&backend.superuser).await? < log::head(&backend.superuser).await? {
            killed_behind += 1;
        }
        expire_leases(&backend.superuser).await?;
        projector.service.restart().await?;
    }
    let ledger = load.stop().await;
    assert!(
        killed_behind > 0,
        "no kill came while there was something to apply"
    );
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}

/// The position of the projection that is furthest behind.
async fn slowest(superuser: &PgPool) -> anyhow::Result<u64> {
    let live = checkpoint::live(superuser).await?;
    let positions = live.into_iter().map(|checkpoint| checkpoint.position);
    positions.min().context("there are projections")
}

/// Lets the ten seconds pass for which a killed process keeps its leases.
async fn expire_leases(superuser: &PgPool) -> anyhow::Result<()> {
    sqlx::query("UPDATE read_model.lease SET lease_until = '-infinity'")
        .execute(superuser)
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_projector_that_was_stopped_for_longer_than_its_leases_changes_nothing_when_it_wakes()
-> anyhow::Result<()> {
    let mut backend = Backend::start(1).await?.with_projector().await?;
    let load = Load::start(&backend.callers()?, 8);
    load.progress(200).await?;
    let zombie = backend.projector.as_mut().context("there is a projector")?;
    zombie.service.pause();
    // A stopped process may hold the row of a checkpoint in the middle of a transaction; the server ends that session.
    expire_leases(&backend.superuser).await?;
    let standby = backend
        .servers
        .run(daybook_tests::stack::Role::Projector, &[])
        .await?;
    load.progress(200).await?;
    check::caught_up(&backend.superuser).await?;
    let fences = fences(&backend.superuser).await?;
    let zombie = backend.projector.as_mut().context("there is a projector")?;
    zombie.service.resume();
    load.progress(200).await?;
    let ledger = load.stop().await;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await?;
    assert_eq!(
        self::fences(&backend.superuser).await?,
        fences,
        "the standby was replaced by the zombie"
    );
    drop(standby);
    Ok(())
}

async fn fences(superuser: &PgPool) -> anyhow::Result<Vec<i64>> {
    Ok(sqlx::query_scalar(
        "SELECT fence FROM read_model.checkpoint ORDER BY projection, generation, partition",
    )
    .fetch_all(superuser)
    .await?)
}
