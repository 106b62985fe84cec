//! Of two projectors, one is killed or stopped: how long until every projection shows what is recorded after that.

use daybook_tests::load::Load;
use daybook_tests::replicas::{End, share_evenly, take_over};
use daybook_tests::stack::{Backend, Role, Servers};

use crate::report::{Goal, Report};

/// How often each is measured: the moment within the interval of the looks is a matter of luck.
const TAKEOVERS: usize = 15;

/// Callers that place orders meanwhile.
const CALLERS: usize = 2;

pub(crate) async fn measure(servers: Servers, report: &mut Report) -> anyhow::Result<()> {
    let backend = Backend::on(servers, 1).await?.with_projector().await?;
    let load = Load::start(&backend.callers()?, CALLERS);
    let mut other = backend.servers.run(Role::Projector, &[]).await?;
    let cases = [
        (End::Killed, "takeover after kill -9", 2_000.0),
        (End::Stopped, "takeover after SIGTERM", 200.0),
    ];
    for (end, name, most) in cases {
        let mut longest: f64 = 0.0;
        for _ in 0..TAKEOVERS {
            share_evenly(&backend.superuser, 2).await?;
            let taken_over = take_over(&backend.superuser, &load, &mut other, end).await?;
            let millis = taken_over.as_secs_f64() * 1_000.0;
            report.note(name, millis, "ms", Goal::AtMost(most));
            longest = longest.max(millis);
            other.service.restart().await?;
        }
        let name = format!("{name}, longest of {TAKEOVERS}");
        report.note(&name, longest, "ms", Goal::AtMost(most));
    }
    load.stop().await;
    Ok(())
}
