//! What callers who mean harm can do to those who do not, and to the services: very little. Services are processes of their
//! own here, and the whole of their memory counts.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use daybook_tests::client::Caller;
use daybook_tests::hostile::{Attack, Target};
use daybook_tests::metrics;
use daybook_tests::orders::new_order_id;
use daybook_tests::stack::{Role, Running, Servers};
use daybook_tests::tenant::Tenant;

/// The most memory that a service may ever have had, in KiB.
const MEMORY_KIB_MAX: u64 = 512 * 1_024;

/// Requests of a client that means no harm, before each attack and beside it, at least.
const GOOD_REQUESTS: usize = 200;

/// The longest time that 99 of 100 of them may take. `cargo xtask bench --only hostile` compares it with what it is without the
/// attack, which cannot be asserted where other tests run.
const GOOD_P99_MAX: Duration = Duration::from_secs(2);

/// How long all that an attack does may take.
const ATTACK_DEADLINE: Duration = Duration::from_secs(60);

/// The pause of each hostile client between one go and the next.
const PAUSE: Duration = Duration::from_millis(2);

/// Limits that hostile clients come up against while the test waits.
const LIMITS: [(&str, &str); 3] = [
    ("DAYBOOK_HEADER_READ_TIMEOUT", "2s"),
    ("DAYBOOK_WRITE_STALL_TIMEOUT", "2s"),
    ("DAYBOOK_REQUEST_TIMEOUT", "5s"),
];

#[tokio::test(flavor = "multi_thread")]
async fn hostile_callers_take_neither_the_command_service_nor_its_memory_from_others() -> anyhow::Result<()> {
    withstands(Role::Command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_callers_take_neither_the_query_service_nor_its_memory_from_others() -> anyhow::Result<()> {
    withstands(Role::Query).await
}

/// Has a service of this role attacked in every way, one after another.
async fn withstands(role: Role) -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let superuser = servers.database.superuser().await?;
    let tenant = Tenant::create(&superuser).await?;
    let service = servers.run(role, &LIMITS).await?;
    let key = match role {
        Role::Command => &tenant.service_key,
        Role::Projector | Role::Query => &tenant.auditor_key,
    };
    let target = Target::new(&service, key);
    let good = Good {
        caller: Caller::new(&service.url(), &service.url(), &service.url(), tenant.clone())?,
        role,
        service: &service,
    };
    for attack in Attack::ALL {
        let quiet = good.p99_of_requests_until(|count| count >= GOOD_REQUESTS).await?;
        let (attackers, least) = (attack.start(&target, PAUSE), attack.least()?);
        let started = Instant::now();
        let beside = good.p99_of_requests_until(|count| {
            let is_done = count >= GOOD_REQUESTS && attackers.done() >= least;
            is_done || started.elapsed() >= ATTACK_DEADLINE
        });
        let beside = beside.await.with_context(|| format!("{attack:?}"))?;
        let (done, memory) = (attackers.done(), service.memory_kib_max()?);
        eprintln!(
            "{role:?} {attack:?} {done} times: p99 {beside:?}, {quiet:?} before; {} MiB",
            memory / 1_024
        );
        ensure!(done >= least, "{attack:?} was done {done} times and not {least}");
        ensure!(beside <= GOOD_P99_MAX, "{attack:?}: p99 {beside:?}");
        ensure!(memory <= MEMORY_KIB_MAX, "{attack:?}: {memory} KiB");
    }
    Ok(())
}

/// A client that means no harm, and an operator who looks whether the service is ready.
struct Good<'a> {
    caller: Caller,
    role: Role,
    service: &'a Running,
}

impl Good<'_> {
    /// Sends requests, all of which have to be answered.
    async fn p99_of_requests_until(&self, is_enough: impl Fn(usize) -> bool) -> anyhow::Result<Duration> {
        let mut times = Vec::new();
        while !is_enough(times.len()) {
            let sent = Instant::now();
            self.request().await?;
            times.push(sent.elapsed());
            if times.len().is_multiple_of(20) {
                metrics::ready(self.service.admin).await?;
            }
        }
        times.sort_unstable();
        times
            .get(times.len() * 99 / 100)
            .copied()
            .context("there were requests")
    }

    async fn request(&self) -> anyhow::Result<()> {
        if self.role == Role::Command {
            self.caller.place(&new_order_id(), "customer-1").await?;
            return Ok(());
        }
        let answer = self.caller.get("/v1/orders?limit=1").await?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    }
}
