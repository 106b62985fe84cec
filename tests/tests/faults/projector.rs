//! Projectors are killed, stopped, paused and cut off, alone and beside others.

use std::time::Duration;

use anyhow::Context as _;
use daybook_devstack::proxy::Direction;
use daybook_read_model::checkpoint;
use daybook_tests::load::Load;
use daybook_tests::network::Network;
use daybook_tests::replicas::{End, WORKERS, share_evenly, take_over, visible_after};
use daybook_tests::stack::{Backend, Role};
use daybook_tests::{check, log, wait};
use sqlx::PgPool;
use tokio::time::Instant;

/// How often it is killed.
const KILLS: usize = 20;

/// How long a takeover may take on a machine that does other things as well: from a replica whose session ends with it.
const KILLED_MAX: Duration = Duration::from_secs(2);

/// The same from a replica that says goodbye.
const STOPPED_MAX: Duration = Duration::from_secs(1);

/// The same from a replica whose session the server has to end, after a silence of four seconds.
const VANISHED_MAX: Duration = Duration::from_secs(6);

/// How soon a replica is back at work after its network is.
const BACK_MAX: Duration = Duration::from_secs(5);

#[tokio::test]
async fn read_models_equal_the_fold_of_the_log_however_often_the_projector_is_killed() -> anyhow::Result<()> {
    let mut backend = Backend::start(1).await?.with_projector().await?;
    let load = Load::start(&backend.callers()?, 8);
    load.progress(100).await?;
    let mut killed_behind = 0;
    for _ in 0..KILLS {
        let before = slowest(&backend.superuser).await?;
        wait::until("the projector has applied something", async || {
            Ok(slowest(&backend.superuser).await? > before)
        })
        .await?;
        let projector = backend.projector.as_mut().context("there is a projector")?;
        projector.service.kill().await?;
        if slowest(&backend.superuser).await? < log::head(&backend.superuser).await? {
            killed_behind += 1;
        }
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

#[tokio::test]
async fn replicas_share_the_work_evenly_whoever_comes_and_goes() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let superuser = &backend.superuser;
    let load = Load::start(&backend.callers()?, 4);
    let mut first = backend.servers.run(Role::Projector, &[]).await?;
    share_evenly(superuser, 1).await?;
    let mut second = backend.servers.run(Role::Projector, &[]).await?;
    share_evenly(superuser, 2).await?;
    let third = backend.servers.run(Role::Projector, &[]).await?;
    share_evenly(superuser, 3).await?;

    let before = fences(superuser).await?;
    load.progress(500).await?;
    assert_eq!(fences(superuser).await?, before, "a lease moved without a reason");
    let lost: i64 = sqlx::query_scalar("SELECT count(pg_terminate_backend(pid)) FROM read_model.replica")
        .fetch_one(superuser)
        .await?;
    assert_eq!(lost, 3, "each has a session");
    wait::until("every lease was acquired anew", async || {
        let now = fences(superuser).await?;
        Ok(now.iter().zip(&before).all(|(now, before)| now > before))
    })
    .await?;
    share_evenly(superuser, 3).await?;

    first.service.kill().await?;
    share_evenly(superuser, 2).await?;
    first.service.restart().await?;
    share_evenly(superuser, 3).await?;
    second.service.stop().await?;
    share_evenly(superuser, 2).await?;
    first.service.stop().await?;
    share_evenly(superuser, 1).await?;
    let ledger = load.stop().await;
    check::everything(superuser, &backend.servers.nats.url(), &ledger).await?;
    drop(third);
    Ok(())
}

#[tokio::test]
async fn another_replica_takes_over_from_one_that_is_killed_or_stopped() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?.with_projector().await?;
    let load = Load::start(&backend.callers()?, 2);
    let mut other = backend.servers.run(Role::Projector, &[]).await?;
    for (end, limit) in [(End::Killed, KILLED_MAX), (End::Stopped, STOPPED_MAX)] {
        share_evenly(&backend.superuser, 2).await?;
        let taken_over = take_over(&backend.superuser, &load, &mut other, end).await?;
        eprintln!("{end:?}: taken over after {taken_over:?}");
        assert!(taken_over < limit, "{end:?}: {taken_over:?}");
        other.service.restart().await?;
    }
    let ledger = load.stop().await;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}

#[tokio::test]
async fn another_replica_takes_over_from_one_whose_machine_is_gone() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?.with_projector().await?;
    let load = Load::start(&backend.callers()?, 2);
    let network = Network::between(&backend.servers, Role::Projector).await?;
    let other = backend
        .servers
        .run(Role::Projector, &network.environment())
        .await?;
    share_evenly(&backend.superuser, 2).await?;

    // Nothing says goodbye: no FIN, no reset.
    network.postgres.black_hole(Direction::Both);
    network.nats.black_hole(Direction::Both);
    let taken_over = visible_after(&backend.superuser, &load, Instant::now()).await?;
    eprintln!("taken over after {taken_over:?}");
    assert!(taken_over < VANISHED_MAX, "{taken_over:?}");

    network.postgres.heal();
    network.nats.heal();
    let healed = Instant::now();
    share_evenly(&backend.superuser, 2).await?;
    let back = visible_after(&backend.superuser, &load, healed).await?;
    eprintln!("back at work after {back:?}");
    assert!(back < BACK_MAX, "{back:?}");
    let ledger = load.stop().await;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await?;
    drop(other);
    Ok(())
}

/// Notes which session takes which step.
const WATCH_STEPS: &str = "
    CREATE TABLE public.step (number bigint GENERATED ALWAYS AS IDENTITY, pid integer NOT NULL);
    CREATE FUNCTION public.note_step() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        INSERT INTO public.step (pid) VALUES (pg_backend_pid());
        RETURN NULL;
    END $$;
    CREATE TRIGGER note AFTER INSERT ON read_model.checkpoint_step FOR EACH ROW EXECUTE FUNCTION public.note_step();
";

#[tokio::test]
async fn a_projector_that_was_stopped_for_longer_than_its_leases_writes_nothing_when_it_wakes()
-> anyhow::Result<()> {
    let mut backend = Backend::start(1).await?.with_projector().await?;
    sqlx::raw_sql(WATCH_STEPS).execute(&backend.superuser).await?;
    let load = Load::start(&backend.callers()?, 8);
    load.progress(200).await?;
    let sessions = wait::value("every worker has taken a step", async || {
        let sessions: Vec<i32> = sqlx::query_scalar("SELECT DISTINCT pid FROM public.step")
            .fetch_all(&backend.superuser)
            .await?;
        Ok((sessions.len() >= WORKERS).then_some(sessions))
    })
    .await?;
    let zombie = backend.projector.as_mut().context("there is a projector")?;
    zombie.service.pause();
    // It may hold a checkpoint in the middle of a transaction; the server ends that session.
    let standby = backend.servers.run(Role::Projector, &[]).await?;
    load.progress(200).await?;
    check::caught_up(&backend.superuser).await?;

    let taken_over: i64 = sqlx::query_scalar("SELECT max(number) FROM public.step")
        .fetch_one(&backend.superuser)
        .await?;
    let zombie = backend.projector.as_mut().context("there is a projector")?;
    zombie.service.resume();
    // It takes part again, over new sessions.
    share_evenly(&backend.superuser, 2).await?;
    load.progress(200).await?;
    let ledger = load.stop().await;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await?;
    let written: i64 =
        sqlx::query_scalar("SELECT count(*) FROM public.step WHERE number > $1 AND pid = ANY ($2)")
            .bind(taken_over)
            .bind(sessions)
            .fetch_one(&backend.superuser)
            .await?;
    assert_eq!(written, 0, "the zombie went on where it was");
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
