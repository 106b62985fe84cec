//! `daybook rebuild`: fills new tables for a projection beside the live ones, which then take their place.
//!
//! The rebuild belongs to the projector: closing the terminal does not end it, and watching it does not hold it up.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use clap::Args;
use daybook_client::Refusal;
use daybook_proto::projections::v1::projection_service_client::ProjectionServiceClient;
use daybook_proto::projections::v1::{GetRebuildRequest, Rebuild, RebuildProjectionRequest, RebuildStatus};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::client::{self, Authorized, Service};
use crate::failure::Failure;
use crate::output::{Format, count, percent, print, print_json, rfc3339};
use crate::settings::{Role, Settings};

/// How often a rebuild is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How long the projector may be away while a rebuild is watched: the rebuild survives its restart.
const ABSENCE_MAX: Duration = Duration::from_secs(60);

/// Builds a projection anew from the log, beside the live one. Needs the scope projections:operate.
///
/// Reads go on from the live tables until the new ones have caught up and take their place.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The projection, such as order_list.
    name: String,

    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    reason: String,

    /// Waits until the new tables are live; exits with 1 when the rebuild fails.
    #[arg(long)]
    wait: bool,

    /// How long to wait; then exits with 6, and the rebuild goes on.
    #[arg(long, value_name = "DURATION", requires = "wait", value_parser = humantime::parse_duration)]
    wait_timeout: Option<Duration>,

    /// What the output looks like.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Runs the verb.
pub(crate) async fn run(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let connection = client::connect(settings, Service::Projector, Role::Operator).await?;
    let mut client = ProjectionServiceClient::new(connection);
    let request = RebuildProjectionRequest {
        name: arguments.name.clone(),
        reason: arguments.reason.clone(),
    };
    let started = answered(client.rebuild_projection(request).await?.into_inner().rebuild)?;
    let rebuild = if arguments.wait {
        wait(&mut client, started, arguments.wait_timeout).await?
    } else {
        started
    };
    show(&rebuild, arguments.output)?;
    match rebuild.status() {
        RebuildStatus::Failed => Err(Failure::Failed(format!("the rebuild failed: {}", rebuild.error))),
        _ => Ok(()),
    }
}

fn answered(rebuild: Option<Rebuild>) -> Result<Rebuild, Failure> {
    rebuild.ok_or_else(|| Failure::Failed("the projector answered without a rebuild".to_owned()))
}

/// Watches a rebuild to its end.
async fn wait(
    client: &mut ProjectionServiceClient<Authorized>,
    started: Rebuild,
    timeout: Option<Duration>,
) -> Result<Rebuild, Failure> {
    let request = GetRebuildRequest {
        name: started.projection.clone(),
        generation: started.generation,
    };
    let bar = progress_bar();
    let began = Instant::now();
    let mut last_seen = Instant::now();
    let mut rebuild = started;
    while is_running(&rebuild) {
        draw(&bar, &rebuild);
        if timeout.is_some_and(|timeout| began.elapsed() >= timeout) {
            bar.finish_and_clear();
            return Err(Failure::TimedOut(format!("{} (it goes on)", progress(&rebuild))));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        match client.get_rebuild(request.clone()).await {
            Ok(response) => {
                rebuild = answered(response.into_inner().rebuild)?;
                last_seen = Instant::now();
            }
            Err(status) => tolerate(status.into(), last_seen)?,
        }
    }
    bar.finish_and_clear();
    Ok(rebuild)
}

/// A status that this version does not know is watched on: the rebuild has not ended.
fn is_running(rebuild: &Rebuild) -> bool {
    !matches!(rebuild.status(), RebuildStatus::Done | RebuildStatus::Failed)
}

/// The projector may be restarting.
fn tolerate(refusal: Refusal, last_seen: Instant) -> Result<(), Failure> {
    if refusal.is_transient() && last_seen.elapsed() < ABSENCE_MAX {
        Ok(())
    } else {
        Err(Failure::Refused(Box::new(refusal)))
    }
}

fn progress_bar() -> ProgressBar {
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template("{prefix} ▕{bar:20}▏ {msg}")
        .expect("the template is well formed")
        .progress_chars("█▉▊▋▌▍▎▏ ");
    ProgressBar::with_draw_target(Some(0), target).with_style(style)
}

fn draw(bar: &ProgressBar, rebuild: &Rebuild) {
    bar.set_prefix(format!("{} g{}", rebuild.projection, rebuild.generation));
    bar.set_length(rebuild.head);
    bar.set_position(rebuild.position);
    bar.set_message(progress(rebuild));
}

/// `62.4 %  1,248,112 of 2,000,000 events  41,300/s  18 seconds left`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "for people, rounded"
)]
fn progress(rebuild: &Rebuild) -> String {
    let share = percent(rebuild.position, rebuild.head);
    let done = count(rebuild.position);
    let all = count(rebuild.head);
    let rate = count(rebuild.events_per_second.max(0.0).round() as u64);
    let left = remaining(rebuild).map_or_else(String::new, |left| format!("  {} left", HumanDuration(left)));
    format!("{share:.1} %  {done} of {all} events  {rate}/s{left}")
}

/// How long it will take at the rate so far.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn remaining(rebuild: &Rebuild) -> Option<Duration> {
    let events = rebuild.head.saturating_sub(rebuild.position);
    if events == 0 || rebuild.events_per_second < 1.0 {
        return None;
    }
    Duration::try_from_secs_f64(events as f64 / rebuild.events_per_second).ok()
}

fn show(rebuild: &Rebuild, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => print_json(&document(rebuild)),
        Format::Text => print(&format!(
            "{} g{} {}  {}",
            rebuild.projection,
            rebuild.generation,
            status(rebuild).to_lowercase(),
            progress(rebuild)
        )),
    }
}

/// `RUNNING`.
fn status(rebuild: &Rebuild) -> &'static str {
    let name = rebuild.status().as_str_name();
    name.strip_prefix("REBUILD_STATUS_").unwrap_or(name)
}

/// A rebuild as JSON, without an error where there is none.
fn document(rebuild: &Rebuild) -> Value {
    let mut document = json!({
        "projection": rebuild.projection,
        "generation": rebuild.generation,
        "status": status(rebuild),
        "position": rebuild.position,
        "head": rebuild.head,
        "events_per_second": rebuild.events_per_second,
        "started_at": rfc3339(rebuild.started_at.as_ref()),
        "ended_at": rfc3339(rebuild.ended_at.as_ref()),
    });
    if !rebuild.error.is_empty() {
        document["error"] = rebuild.error.as_str().into();
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Rebuild {
        Rebuild {
            projection: "order_list".to_owned(),
            generation: 8,
            status: RebuildStatus::Running.into(),
            position: 1_248_112,
            head: 2_000_000,
            events_per_second: 41_300.4,
            ..Rebuild::default()
        }
    }

    #[test]
    fn progress_says_how_much_how_fast_and_how_long() {
        assert_eq!(
            progress(&running()),
            "62.4 %  1,248,112 of 2,000,000 events  41,300/s  18 seconds left"
        );
    }

    #[test]
    fn progress_that_has_no_rate_yet_promises_nothing() {
        let starting = Rebuild {
            position: 0,
            events_per_second: 0.0,
            ..running()
        };
        assert_eq!(progress(&starting), "0.0 %  0 of 2,000,000 events  0/s");
    }

    #[test]
    fn the_rebuild_of_an_empty_log_is_complete() {
        let empty = Rebuild {
            position: 0,
            head: 0,
            ..running()
        };
        assert_eq!(progress(&empty), "100.0 %  0 of 0 events  41,300/s");
    }

    #[test]
    fn a_status_that_is_not_known_has_not_ended() {
        let from_the_future = Rebuild {
            status: 99,
            ..running()
        };
        assert!(is_running(&from_the_future));
    }
}
