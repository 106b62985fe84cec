//! The network between the command service and Postgres goes silent for half a minute.

use std::time::Duration;

use anyhow::ensure;
use daybook_tests::client::Caller;
use daybook_tests::network::Network;
use daybook_tests::probe::Probe;
use daybook_tests::stack::{Role, Servers};
use daybook_tests::tenant::Tenant;
use daybook_tests::wait;
use tokio::time::{Instant, sleep};

use crate::report::{Goal, Report};

/// How long nothing arrives.
const SILENCE: Duration = Duration::from_secs(30);

/// The deadline of each command.
const DEADLINE: Duration = Duration::from_secs(1);

/// Callers at once.
const CALLERS: usize = 64;

pub(crate) async fn measure(servers: &Servers, report: &mut Report) -> anyhow::Result<()> {
    let network = Network::between(servers, Role::Command).await?;
    let command = servers.run(Role::Command, &network.environment()).await?;
    let tenant = Tenant::create(&servers.database.superuser().await?).await?;
    let url = command.url();
    let caller = Caller::new(&url, &url, &url, tenant)?;
    let probe = Probe::start(&caller, CALLERS, DEADLINE);
    accepts_more(&probe).await?;

    network
        .postgres
        .black_hole(daybook_devstack::proxy::Direction::Both);
    sleep(SILENCE).await;
    network.postgres.heal();
    let healed = Instant::now();
    accepts_more(&probe).await?;
    let back_after = healed.elapsed();
    ensure!(network.postgres.swallowed() > 0, "the network did not fail");

    let overrun = probe.slowest().saturating_sub(DEADLINE);
    report.note(
        "black hole to Postgres for 30 s: the most that a call outlasts its deadline by",
        overrun.as_secs_f64() * 1_000.0,
        "ms",
        Goal::AtMost(100.0),
    );
    report.note(
        "black hole to Postgres for 30 s: commands go on after",
        back_after.as_secs_f64(),
        "s",
        Goal::AtMost(5.0),
    );
    probe.stop().await;
    Ok(())
}

/// Waits until one more command is accepted than now.
async fn accepts_more(probe: &Probe) -> anyhow::Result<()> {
    let before = probe.tally().accepted;
    wait::until("a command is accepted", async || {
        Ok(probe.tally().accepted > before)
    })
    .await
}
