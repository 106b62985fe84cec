//! Two minutes of full batches on one connection, to more than ten million events: what does the size of the log cost?
//!
//! Figures for how fast it is as a whole have no goal here. They are held against those of another build, measured on the
//! same machine with the same command.

use std::time::{Duration, Instant};

use crate::batches::{Batches, Keys};
use crate::report::{Goal, Report};
use crate::{Options, servers};

/// The whole run in multiples of `--seconds`: two minutes with the default.
const LENGTH: u32 = 24;

/// Its first and its last part that are compared, in the same: ten seconds.
const WINDOW: u32 = 2;

pub(crate) async fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    for _ in 0..options.runs {
        run(options, Keys::TimeOrdered, "time-ordered keys", report).await?;
        run(options, Keys::Random, "random keys", report).await?;
    }
    Ok(())
}

async fn run(options: &Options, keys: Keys, name: &str, report: &mut Report) -> anyhow::Result<()> {
    let servers = servers().await?;
    let mut batches = Batches::connect(&servers).await?;
    let (length, window) = (options.duration() * LENGTH, options.duration() * WINDOW);
    let (started, mut events) = (Instant::now(), 0);
    // How many events there were at which moment.
    let mut moments = vec![(Duration::ZERO, 0)];
    while started.elapsed() < length {
        events += batches.append_full(keys).await?;
        moments.push((started.elapsed(), events));
    }
    let end = started.elapsed();
    let first = rate(&moments, Duration::ZERO, window);
    let last = rate(&moments, end - window, end);
    let line = |what: &str| format!("sustained, {name}{what}");
    report.note(
        &line(""),
        events as f64 / end.as_secs_f64(),
        "events/s",
        Goal::None,
    );
    report.note(&line(": events in the end"), events as f64, "events", Goal::None);
    report.note(
        &line(": last part of the first"),
        last / first * 100.0,
        "%",
        Goal::AtLeast(80.0),
    );
    Ok(())
}

/// Events per second between two moments.
fn rate(moments: &[(Duration, u64)], from: Duration, to: Duration) -> f64 {
    let at = |moment: Duration| {
        let index = moments.partition_point(|(at, _)| *at < moment);
        moments[index.min(moments.len() - 1)]
    };
    let ((from, before), (to, after)) = (at(from), at(to));
    (after - before) as f64 / (to - from).as_secs_f64()
}
