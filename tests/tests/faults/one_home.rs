//! One hot order behind two services: they converge on one mailbox, however late they find each other, and do without its
//! home when that does not answer.

use std::time::Duration;

use daybook_tests::client::Caller;
use daybook_tests::command::{self, Command as _};
use daybook_tests::ledger::Ledger;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::stack::{Backend, Servers};
use daybook_tests::{check, metrics, refusal, wait};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Callers of the order, split over the services.
const CALLERS: usize = 64;

/// Forwarded commands after which the services must have converged.
const CONVERGED_AFTER: f64 = 500.0;

/// How long they must then stay so: longer than one conflict makes an order contended.
const STAYS_FOR: Duration = Duration::from_secs(8);

/// Commands that are forwarded in that time, at least.
const FORWARDED_MIN: f64 = 2_000.0;

/// Callers of a service whose home stops: few, so that each is answered at once.
const CALLERS_AT_STOP: usize = 4;

/// Commands that callers of the other service get through while the home is stopped.
const WITHOUT_HOME: usize = 200;

/// How long services that do not know each other write against each other.
const APART_FOR: Duration = Duration::from_secs(2);

/// Callers in a hurry, and what each of them has: no more than a home may take.
const HURRIED: u32 = 8;
const HURRY: Duration = Duration::from_secs(1);

/// Each caller changes a quantity to 1, 2, … up to this, and begins again.
const QUANTITY_MAX: u32 = 50;

/// What the services count: commands that their home answered, that were handled for others, that were handled here
/// because their home did not answer, and that were decided on something else than what is recorded.
const FORWARDED: &str = "daybook_commands_forwarded_total";
const HANDLED: &str = "daybook_commands_handled_for_others_total";
const FAILED: &str = "daybook_command_forwards_failed_total";
const CONFLICTS: &str = "daybook_append_conflicts_total";

#[tokio::test(flavor = "multi_thread")]
async fn two_services_under_one_hot_order_converge_on_one_mailbox_and_refuse_nobody() -> anyhow::Result<()> {
    let backend = Backend::start(2).await?.with_projector().await?;
    let order = HotOrder::place(&backend.caller()?).await?;
    let callers = order.callers(&backend.callers()?, CALLERS);
    reaches(&backend, FORWARDED, CONVERGED_AFTER).await?;

    let (converged_at, conflicts) = (Instant::now(), sum(&backend, CONFLICTS).await?);
    let forwarded = sum(&backend, FORWARDED).await?;
    reaches(&backend, FORWARDED, forwarded + FORWARDED_MIN).await?;
    wait::until(
        "an order that nobody shares would be contended no more",
        async || Ok(converged_at.elapsed() >= STAYS_FOR),
    )
    .await?;
    let conflicts_since = sum(&backend, CONFLICTS).await? - conflicts;
    callers.stop().await;
    let (tally, forwarded) = (order.ledger.tally(), sum(&backend, FORWARDED).await?);
    eprintln!("{forwarded} forwarded, {conflicts} conflicts and then {conflicts_since}, {tally:?}");
    assert_eq!(
        conflicts_since, 0.0,
        "the services still refuse each other's chains"
    );
    assert!(sum(&backend, HANDLED).await? >= forwarded);
    assert_eq!((tally.refused, tally.unknown), (0, 0), "{tally:?}");
    check::everything(&backend.superuser, &backend.servers.nats.url(), &order.ledger).await
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_find_each_other_late_refuse_nobody_meanwhile() -> anyhow::Result<()> {
    let mut servers = Servers::start().await?;
    servers.nats.stop().await?;
    let mut backend = Backend::on(servers, 2).await?;
    let order = HotOrder::place(&backend.caller()?).await?;
    let (callers, apart_since) = (order.callers(&backend.callers()?, CALLERS), Instant::now());
    wait::until("the services have written against each other", async || {
        Ok(apart_since.elapsed() >= APART_FOR)
    })
    .await?;
    backend.servers.nats.restart().await?;
    reaches(&backend, FORWARDED, CONVERGED_AFTER).await?;
    callers.stop().await;
    let tally = order.ledger.tally();
    assert_eq!((tally.refused, tally.unknown), (0, 0), "{tally:?}");
    let backend = backend.with_projector().await?;
    check::everything(&backend.superuser, &backend.servers.nats.url(), &order.ledger).await
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_of_the_other_service_are_answered_while_the_home_of_their_order_is_stopped()
-> anyhow::Result<()> {
    let mut backend = Backend::start(2).await?.with_projector().await?;
    let services = backend.callers()?;
    let order = HotOrder::place(&services[0]).await?;
    let callers = order.callers(&services, CALLERS);
    reaches(&backend, FORWARDED, CONVERGED_AFTER).await?;
    let home = home(&backend).await?;
    // The home's own callers would wait for it.
    callers.stop().await;
    let callers = order.callers(&services[1 - home..=1 - home], CALLERS);
    let forwarded = sum(&backend, FORWARDED).await?;
    reaches(&backend, FORWARDED, forwarded + 1.0).await?;

    backend.commands[home].service.pause();
    let in_time = order.hurry(&services[1 - home]).await;
    assert!(in_time > 0, "the home took all the time of who is in a hurry");
    let other = &backend.commands[1 - home];
    wait::until("a forwarded command is not answered", async || {
        Ok(metrics::sum(other.admin, FAILED).await? > 0.0)
    })
    .await?;
    let answered = order.ledger.tally().answered();
    wait::until("callers get on without the home", async || {
        Ok(order.ledger.tally().answered() >= answered + WITHOUT_HOME)
    })
    .await?;
    callers.stop().await;
    backend.commands[home].service.resume();
    let tally = order.ledger.tally();
    assert_eq!((tally.refused, tally.unknown), (0, 0), "{tally:?}");
    check::everything(&backend.superuser, &backend.servers.nats.url(), &order.ledger).await
}

/// A home that does not answer may have recorded what it was sent, or may record it yet; so may one that nobody listens
/// for any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_not_there_yet_is_no_answer_to_a_command_that_a_lost_home_may_have_recorded()
-> anyhow::Result<()> {
    for is_killed in [false, true] {
        let mut backend = Backend::start(2).await?;
        let services = backend.callers()?;
        let order = HotOrder::place(&services[0]).await?;
        let callers = order.callers(&services, CALLERS);
        reaches(&backend, FORWARDED, CONVERGED_AFTER).await?;
        callers.stop().await;
        let home = home(&backend).await?;
        let other = backend.commands[1 - home].admin;
        let failed = metrics::sum(other, FAILED).await?;

        match is_killed {
            true => backend.commands[home].service.kill().await?,
            false => backend.commands[home].service.pause(),
        }
        let stale = command::change_quantity(&order.id, 1).expecting(u64::from(u32::MAX));
        let told = services[1 - home].send(stale).await;
        let told = told.expect_err("the order has another version");
        assert_eq!(
            refusal::code(&told),
            "DEPENDENCY_UNAVAILABLE",
            "killed: {is_killed}"
        );
        assert_eq!(
            metrics::sum(other, FAILED).await?,
            failed + 1.0,
            "it was not sent to the home"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_stops_answers_all_that_was_forwarded_to_it() -> anyhow::Result<()> {
    let mut backend = Backend::start(2).await?.with_projector().await?;
    let services = backend.callers()?;
    let order = HotOrder::place(&services[0]).await?;
    let callers = order.callers(&services, CALLERS);
    reaches(&backend, FORWARDED, CONVERGED_AFTER).await?;
    callers.stop().await;
    let home = home(&backend).await?;
    let other = backend.commands[1 - home].admin;
    let callers = order.callers(&services[1 - home..=1 - home], CALLERS_AT_STOP);
    let forwarded = sum(&backend, FORWARDED).await?;
    reaches(&backend, FORWARDED, forwarded + CONVERGED_AFTER).await?;

    let failed = metrics::sum(other, FAILED).await?;
    backend.commands[home].service.stop().await?;
    let answered = order.ledger.tally().answered();
    wait::until("callers get on without the home", async || {
        Ok(order.ledger.tally().answered() >= answered + WITHOUT_HOME)
    })
    .await?;
    callers.stop().await;
    assert_eq!(
        metrics::sum(other, FAILED).await?,
        failed,
        "a forwarded command was not answered"
    );
    let tally = order.ledger.tally();
    assert_eq!((tally.refused, tally.unknown), (0, 0), "{tally:?}");
    check::everything(&backend.superuser, &backend.servers.nats.url(), &order.ledger).await
}

/// An order that all callers change at once.
struct HotOrder {
    id: String,
    ledger: Ledger,
}

/// Callers that go on until they are told to stop.
struct Callers {
    stop: CancellationToken,
    workers: JoinSet<()>,
}

impl HotOrder {
    async fn place(caller: &Caller) -> anyhow::Result<Self> {
        let (id, ledger) = (new_order_id(), Ledger::default());
        let request = place(&id, "customer-1");
        ledger.note(&request, &caller.send(request.clone()).await);
        Ok(Self { id, ledger })
    }

    /// Starts this many callers, split over the services. Each sends one command after another.
    fn callers(&self, services: &[Caller], callers: usize) -> Callers {
        let (stop, mut workers) = (CancellationToken::new(), JoinSet::new());
        for number in 0..callers {
            let service = services[number % services.len()].clone();
            let (id, ledger, stop) = (self.id.clone(), self.ledger.clone(), stop.clone());
            workers.spawn(async move {
                for quantity in (1..=QUANTITY_MAX).cycle() {
                    if stop.is_cancelled() {
                        return;
                    }
                    let command = command::change_quantity(&id, quantity);
                    ledger.note(&command, &service.send(command.clone()).await);
                }
            });
        }
        Callers { stop, workers }
    }

    /// Sends commands in a hurry, all at once. Returns how many were answered in time, and sends the others again.
    async fn hurry(&self, service: &Caller) -> usize {
        let mut sent = JoinSet::new();
        for quantity in 1..=HURRIED {
            let command = command::change_quantity(&self.id, quantity);
            let connection = service.commands();
            sent.spawn(async move { (command.clone().send(connection, HURRY).await, command) });
        }
        let mut in_time = 0;
        for (answer, command) in sent.join_all().await {
            in_time += usize::from(answer.is_ok());
            self.ledger.note(&command, &service.send(command.clone()).await);
        }
        in_time
    }
}

impl Callers {
    async fn stop(self) {
        self.stop.cancel();
        self.workers.join_all().await;
    }
}

/// Waits until a counter, summed over the command services, has come so far.
async fn reaches(backend: &Backend, name: &str, least: f64) -> anyhow::Result<()> {
    wait::until(&format!("{name} reaches {least}"), async || {
        Ok(sum(backend, name).await? >= least)
    })
    .await
}

/// Which of two services is the home: the one that handles commands for the other.
async fn home(backend: &Backend) -> anyhow::Result<usize> {
    let handled = metrics::sum(backend.commands[0].admin, HANDLED).await?;
    Ok(usize::from(handled < sum(backend, HANDLED).await? / 2.0))
}

async fn sum(backend: &Backend, name: &str) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for service in &backend.commands {
        sum += metrics::sum(service.admin, name).await?;
    }
    Ok(sum)
}
