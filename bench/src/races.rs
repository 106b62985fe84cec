//! A million commands on hot orders over several services, one of which is killed every few seconds.

use daybook_tests::load::hot::{self, Raced};
use daybook_tests::stack::Backend;
use daybook_tests::{check, log};

use crate::report::{Goal, Report};
use crate::{Options, servers};

/// Commands for each second of `--seconds`: 1,000,000 with the default.
const COMMANDS_PER_SECOND: u64 = 200_000;

/// Commands that are accepted between two kills.
const COMMANDS_PER_KILL: usize = 10_000;

pub(crate) async fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    for replicas in [2, 3] {
        let commands = usize::try_from(COMMANDS_PER_SECOND * options.seconds)?;
        let mut backend = Backend::on(servers().await?, replicas).await?;
        let raced = hot::race(&mut backend, commands, COMMANDS_PER_KILL).await?;
        let line = |what: &str| format!("hot orders, {replicas} services and kills: {what}");
        let tally = raced.ledger.tally();
        let rate = tally.answered() as f64 / raced.took.as_secs_f64();
        report.note(&line("commands"), tally.answered() as f64, "commands", Goal::None);
        report.note(&line("answered"), rate, "commands/s", Goal::None);
        report.note(&line("kills"), raced.kills as f64, "kills", Goal::None);
        let contradiction = contradiction(&backend, &raced).await?;
        if let Some(contradiction) = &contradiction {
            eprintln!("{contradiction}");
        }
        report.note(
            &line("contradictions, of which the first is shown"),
            f64::from(u8::from(contradiction.is_some())),
            "found",
            Goal::AtMost(0.0),
        );
    }
    Ok(())
}

/// What contradicts itself in the log, or what it holds against what callers were told.
async fn contradiction(backend: &Backend, raced: &Raced) -> anyhow::Result<Option<String>> {
    let events = log::events(&backend.superuser).await?;
    let checked = check::log(&events).and_then(|()| check::ledger(&raced.ledger, &events));
    Ok(checked.err().map(|error| format!("{error:#}")))
}
