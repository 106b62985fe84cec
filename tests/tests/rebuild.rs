//! Read models built anew beside the live ones.

use anyhow::Context as _;
use daybook_proto::projections::v1::{GetRebuildRequest, RebuildProjectionRequest, RebuildStatus};
use daybook_read_model::{ReadModel as _, each_read_model};
use daybook_tests::client::Caller;
use daybook_tests::load::Load;
use daybook_tests::stack::Backend;
use daybook_tests::{check, refusal, wait};

const PROJECTIONS: &[&str] = &each_read_model!(M => M::NAME);

async fn start_rebuild(caller: &Caller, name: &str) -> anyhow::Result<u32> {
    let request = RebuildProjectionRequest {
        name: name.to_owned(),
        reason: "to see whether it comes to the same".to_owned(),
    };
    let response = caller.projections().rebuild_projection(request).await?;
    let rebuild = response.into_inner().rebuild.context("there is a rebuild")?;
    assert_eq!(rebuild.projection, name);
    Ok(rebuild.generation)
}

async fn wait_until_done(caller: &Caller, name: &str, generation: u32) -> anyhow::Result<()> {
    wait::until("the rebuild is live", async || {
        let request = GetRebuildRequest {
            name: name.to_owned(),
            generation,
        };
        // The projector may be on its way up.
        let Ok(response) = caller.projections().get_rebuild(request).await else {
            return Ok(false);
        };
        let rebuild = response.into_inner().rebuild.context("there is a rebuild")?;
        anyhow::ensure!(
            rebuild.status() != RebuildStatus::Failed,
            "it failed: {}",
            rebuild.error
        );
        Ok(rebuild.status() == RebuildStatus::Done)
    })
    .await
}

#[tokio::test]
async fn a_rebuild_under_load_comes_to_what_the_log_folds_to() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?.with_projector().await?;
    let caller = backend.caller()?;
    let load = Load::start(std::slice::from_ref(&caller), 8);
    load.progress(2_000).await?;
    for &name in PROJECTIONS {
        let rebuilt = start_rebuild(&caller, name).await?;
        assert_eq!(rebuilt, 2);
        let request = RebuildProjectionRequest {
            name: name.to_owned(),
            reason: "a second one at the same time".to_owned(),
        };
        // Either the first one is running still, or it is live already.
        if let Err(status) = caller.projections().rebuild_projection(request).await {
            assert_eq!(refusal::code(&status), "OPERATION_RUNNING");
        }
        wait_until_done(&caller, name, rebuilt).await?;
        let live = check::live_generation(&backend.superuser, name).await?;
        assert!(live.get() >= rebuilt.cast_signed());
    }
    let ledger = load.stop().await;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}

#[tokio::test]
async fn a_rebuild_of_what_stands_still_has_the_digest_of_the_tables_before() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?.with_projector().await?;
    let caller = backend.caller()?;
    let load = Load::start(std::slice::from_ref(&caller), 8);
    load.progress(500).await?;
    drop(load.stop().await);
    check::caught_up(&backend.superuser).await?;
    for &name in PROJECTIONS {
        let before = check::digest(&backend.superuser, &format!("{name}_g1")).await?;
        let rebuilt = start_rebuild(&caller, name).await?;
        wait_until_done(&caller, name, rebuilt).await?;
        let after = check::digest(&backend.superuser, &format!("{name}_g{rebuilt}")).await?;
        assert_eq!(before, after, "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn a_rebuild_goes_on_when_the_projector_was_killed_half_way() -> anyhow::Result<()> {
    let mut backend = Backend::start(1).await?.with_projector().await?;
    let caller = backend.caller()?;
    let load = Load::start(std::slice::from_ref(&caller), 16);
    load.progress(4_000).await?;

    let mut killed_half_way = 0;
    for &name in PROJECTIONS {
        let rebuilt = start_rebuild(&caller, name).await?;
        let projector = backend.projector.as_mut().context("there is a projector")?;
        projector.service.kill().await?;
        let is_running: bool = sqlx::query_scalar(
            "SELECT status = 'running' FROM read_model.rebuild WHERE projection = $1 AND generation = $2",
        )
        .bind(name)
        .bind(rebuilt.cast_signed())
        .fetch_one(&backend.superuser)
        .await?;
        killed_half_way += usize::from(is_running);
        projector.service.restart().await?;
        wait_until_done(&caller, name, rebuilt).await?;
    }
    assert!(killed_half_way > 0, "every rebuild was over before the kill");
    let ledger = load.stop().await;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &ledger).await
}
