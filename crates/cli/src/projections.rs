//! `daybook get projections`: where every projection stands, and by how many events and how much time it is behind.

use std::time::Duration;

use clap::{Args, ValueEnum};
use daybook_proto::projections::v1::projection_service_client::ProjectionServiceClient;
use daybook_proto::projections::v1::{ListProjectionsRequest, Projection};
use indicatif::HumanDuration;
use serde::Serialize;

use crate::client::{self, Authorized, Service};
use crate::failure::Failure;
use crate::output::{count, csv, print, print_json, print_json_lines, print_raw, table};
use crate::settings::{Role, Settings};

/// Shows all projections with their progress and lag. Needs the scope projections:operate.
#[derive(Args)]
pub(crate) struct Arguments {
    /// What the output looks like.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// A line for each projection and partition.
    Table,
    /// The same with all columns.
    Wide,
    /// One JSON array.
    Json,
    /// A JSON object on each line.
    Ndjson,
    /// CSV with a header.
    Csv,
}

/// Runs the verb.
pub(crate) async fn run(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let connection = client::connect(settings, Service::Projector, Role::Operator).await?;
    let projections = list(&mut ProjectionServiceClient::new(connection)).await?;
    let views: Vec<View<'_>> = projections.iter().map(Into::into).collect();
    match arguments.output {
        Format::Table => print(&table(HEADER, views.iter().map(table_row))),
        Format::Wide => print(&table(WIDE_HEADER, views.iter().map(wide_row))),
        Format::Json => print_json(&views),
        Format::Ndjson => print_json_lines(&views),
        Format::Csv => print_raw(csv(CSV_HEADER, views.iter().map(csv_row)).as_bytes()),
    }
}

/// All projections, by name and partition.
pub(crate) async fn list(
    client: &mut ProjectionServiceClient<Authorized>,
) -> Result<Vec<Projection>, tonic::Status> {
    let response = client.list_projections(ListProjectionsRequest {}).await?;
    Ok(response.into_inner().projections)
}

/// `REBUILDING`.
pub(crate) fn status(projection: &Projection) -> &'static str {
    let name = projection.status().as_str_name();
    name.strip_prefix("PROJECTION_STATUS_").unwrap_or(name)
}

/// How many events a projection is behind.
pub(crate) fn lag_events(projection: &Projection) -> u64 {
    projection.head.saturating_sub(projection.position)
}

/// How long something is behind, for people: `0.3 s`, `4 minutes`.
pub(crate) fn lag_time(lag_ms: u64) -> String {
    let lag = Duration::from_millis(lag_ms);
    if lag < Duration::from_secs(60) {
        format!("{:.1} s", lag.as_secs_f64())
    } else {
        HumanDuration(lag).to_string()
    }
}

/// A projection as JSON.
#[derive(Serialize)]
struct View<'a> {
    name: &'a str,
    partition: u32,
    status: &'static str,
    live_generation: u32,
    position: u64,
    head: u64,
    lag_events: u64,
    lag_ms: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

impl<'a> From<&'a Projection> for View<'a> {
    fn from(projection: &'a Projection) -> Self {
        Self {
            name: &projection.name,
            partition: projection.partition,
            status: status(projection),
            live_generation: projection.live_generation,
            position: projection.position,
            head: projection.head,
            lag_events: lag_events(projection),
            lag_ms: projection.lag_ms,
            error: &projection.error,
        }
    }
}

const HEADER: [&str; 6] = ["NAME", "PARTITION", "STATUS", "GENERATION", "BEHIND", "FOR"];

fn table_row(view: &View<'_>) -> [String; 6] {
    [
        view.name.to_owned(),
        view.partition.to_string(),
        view.status.to_owned(),
        view.live_generation.to_string(),
        count(view.lag_events),
        lag_time(view.lag_ms),
    ]
}

const WIDE_HEADER: [&str; 9] = [
    "NAME",
    "PARTITION",
    "STATUS",
    "GENERATION",
    "POSITION",
    "HEAD",
    "BEHIND",
    "FOR",
    "ERROR",
];

fn wide_row(view: &View<'_>) -> [String; 9] {
    let [name, partition, status, generation, behind, lag] = table_row(view);
    let position = count(view.position);
    let head = count(view.head);
    let error = view.error.to_owned();
    [
        name, partition, status, generation, position, head, behind, lag, error,
    ]
}

const CSV_HEADER: [&str; 9] = [
    "name",
    "partition",
    "status",
    "live_generation",
    "position",
    "head",
    "lag_events",
    "lag_ms",
    "error",
];

fn csv_row(view: &View<'_>) -> [String; 9] {
    [
        view.name.to_owned(),
        view.partition.to_string(),
        view.status.to_owned(),
        view.live_generation.to_string(),
        view.position.to_string(),
        view.head.to_string(),
        view.lag_events.to_string(),
        view.lag_ms.to_string(),
        view.error.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use daybook_proto::projections::v1::ProjectionStatus;

    use super::*;

    fn order_list() -> Projection {
        Projection {
            name: "order_list".to_owned(),
            status: ProjectionStatus::Rebuilding.into(),
            live_generation: 7,
            position: 1_000,
            head: 3_500,
            lag_ms: 1_250,
            ..Projection::default()
        }
    }

    #[test]
    fn lag_is_shown_in_events_and_in_time() {
        let row = table_row(&View::from(&order_list()));
        assert_eq!(
            row,
            ["order_list", "0", "REBUILDING", "7", "2,500", "1.2 s"].map(str::to_owned)
        );
    }

    #[test]
    fn a_projection_ahead_of_what_the_head_was_is_not_behind() {
        let projection = Projection {
            position: 3_501,
            ..order_list()
        };
        assert_eq!(lag_events(&projection), 0);
    }

    #[test]
    fn long_lags_are_told_in_words() {
        assert_eq!(lag_time(0), "0.0 s");
        assert_eq!(lag_time(240_000), "4 minutes");
    }
}
