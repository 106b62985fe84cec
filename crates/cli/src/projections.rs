//! `daybook get projections`: where every projection stands, and by how many events and how much time it is behind.

use std::time::Duration;

use clap::{Args, ValueEnum};
use daybook_proto::projections::v1::projection_service_client::ProjectionServiceClient;
use daybook_proto::projections::v1::{ListProjectionsRequest, Projection};
use indicatif::HumanDuration;
use serde_json::{Value, json};

use crate::client::{self, Authorized, Service};
use crate::failure::Failure;
use crate::output::{cell, count, csv, print, print_json, print_json_lines, print_raw, table};
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
    let documents = || projections.iter().map(document);
    match arguments.output {
        Format::Table => print(&table(HEADER, projections.iter().map(table_row))),
        Format::Wide => print(&table(WIDE_HEADER, projections.iter().map(wide_row))),
        Format::Json => print_json(&documents().collect::<Vec<_>>()),
        Format::Ndjson => print_json_lines(&documents().collect::<Vec<_>>()),
        Format::Csv => {
            let rows = documents().map(|document| MEMBERS.map(|name| cell(&document[name])));
            print_raw(csv(MEMBERS, rows).as_bytes())
        }
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

/// The members of a projection's document: the columns of CSV.
const MEMBERS: [&str; 9] = [
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

/// A projection as JSON, without an error where there is none.
fn document(projection: &Projection) -> Value {
    let mut document = json!({
        "name": projection.name,
        "partition": projection.partition,
        "status": status(projection),
        "live_generation": projection.live_generation,
        "position": projection.position,
        "head": projection.head,
        "lag_events": lag_events(projection),
        "lag_ms": projection.lag_ms,
    });
    if !projection.error.is_empty() {
        document["error"] = projection.error.as_str().into();
    }
    document
}

const HEADER: [&str; 6] = ["NAME", "PARTITION", "STATUS", "GENERATION", "BEHIND", "FOR"];

fn table_row(projection: &Projection) -> [String; 6] {
    [
        projection.name.clone(),
        projection.partition.to_string(),
        status(projection).to_owned(),
        projection.live_generation.to_string(),
        count(lag_events(projection)),
        lag_time(projection.lag_ms),
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

fn wide_row(projection: &Projection) -> [String; 9] {
    let [name, partition, status, generation, behind, lag] = table_row(projection);
    let position = count(projection.position);
    let head = count(projection.head);
    let error = projection.error.clone();
    [
        name, partition, status, generation, position, head, behind, lag, error,
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
        let row = table_row(&order_list());
        assert_eq!(
            row,
            ["order_list", "0", "REBUILDING", "7", "2,500", "1.2 s"].map(str::to_owned)
        );
    }

    #[test]
    fn csv_has_a_column_for_each_member_of_the_document() {
        let failed = Projection {
            error: "it cannot be decoded".to_owned(),
            ..order_list()
        };
        let document = document(&failed);
        let members = document.as_object().expect("a document is an object");
        assert_eq!(members.len(), MEMBERS.len());
        assert!(
            MEMBERS.iter().all(|name| members.contains_key(*name)),
            "{document}"
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
