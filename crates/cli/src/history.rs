//! `daybook history`: what happened to an aggregate, in order, by whom and why.

mod follow;

use clap::Args;
use daybook_domain::aggregates::Kind;
use serde_json::Value;

use self::follow::Follower;
use crate::client::{self, Service};
use crate::events::{self, Format, by};
use crate::failure::Failure;
use crate::output::{cell, table};
use crate::settings::{Role, Settings};

/// Shows the events of an aggregate, oldest first. Needs the scope events:read.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The aggregate's TypeID ("ord_…").
    id: String,

    /// The first version to show.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    from_version: u64,

    /// The last version to show; the newest when absent.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    to_version: Option<u64>,

    /// Also shows what each event changed in the aggregate's document.
    #[arg(long)]
    diff: bool,

    /// Goes on with each event as it is recorded, until Ctrl-C. When the connection breaks, it is made anew.
    #[arg(short, long, conflicts_with_all = ["to_version", "diff"])]
    follow: bool,

    /// What the output looks like.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Runs the verb.
pub(crate) async fn run(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let path = path(arguments)?;
    let follower = match arguments.follow {
        true => Some(Follower::new(
            &arguments.id,
            arguments.from_version,
            arguments.output,
        )?),
        false => None,
    };
    let connection = client::connect(settings, Service::Query, Role::Auditor).await?;
    if let Some(follower) = follower {
        return follower.run(connection).await;
    }
    let as_table = |events: &[_]| as_table(events, arguments.diff);
    events::show(connection, path, u64::MAX, arguments.output, as_table).await
}

fn path(arguments: &Arguments) -> Result<String, Failure> {
    let id = &arguments.id;
    let wrong = || Failure::Usage(format!("{id} is not the TypeID of an aggregate"));
    let aggregates = Kind::by_id(id).ok_or_else(wrong)?.plural;
    let (from, diff) = (arguments.from_version, arguments.diff);
    let path = format!("/v1/{aggregates}/{id}/events?from_version={from}&diff={diff}");
    Ok(match arguments.to_version {
        Some(to) => format!("{path}&to_version={to}"),
        None => path,
    })
}

const HEADER: [&str; 7] = [
    "VERSION", "POSITION", "RECORDED", "OCCURRED", "EVENT", "BY", "REASON",
];

fn as_table(events: &[Value], diff: bool) -> String {
    if !diff {
        return table(HEADER, events.iter().map(table_row));
    }
    let [version, position, recorded, occurred, event, by, reason] = HEADER;
    let header = [
        version, position, recorded, occurred, event, by, reason, "CHANGES",
    ];
    table(
        header,
        events.iter().map(|event| {
            let [version, position, recorded, occurred, name, by, reason] = table_row(event);
            let changes = changes(&event["changes"]);
            [version, position, recorded, occurred, name, by, reason, changes]
        }),
    )
}

fn table_row(event: &Value) -> [String; 7] {
    let metadata = &event["metadata"];
    [
        cell(&event["stream_version"]),
        cell(&event["position"]),
        cell(&event["recorded_at"]),
        cell(&metadata["occurred_at"]),
        cell(&event["event_type"]),
        by(metadata),
        cell(&metadata["reason"]),
    ]
}

/// What an event changed, a part on each line.
fn changes(changes: &Value) -> String {
    let changes = changes.as_array().into_iter().flatten();
    let lines: Vec<_> = changes
        .map(|change| {
            let pointer = cell(&change["pointer"]);
            match (change.get("before"), change.get("after")) {
                (Some(before), Some(after)) => format!("{pointer}: {} → {}", cell(before), cell(after)),
                (Some(before), None) => format!("{pointer}: {} → (gone)", cell(before)),
                (None, after) => format!("{pointer}: {}", after.map(cell).unwrap_or_default()),
            }
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_says_who_asked_and_with_which_credential() {
        let event = json!({
            "stream_version": 1,
            "metadata": {"principal": "key:ab12cd34", "actor": "agent:jane"},
        });
        assert_eq!(table_row(&event)[0], "1");
        assert_eq!(table_row(&event)[5], "agent:jane (key:ab12cd34)");
        assert_eq!(by(&json!({})), "");
    }

    #[test]
    fn an_event_says_what_it_changed() {
        let changes = changes(&json!([
            {"pointer": "/closing_reason", "after": "no stock"},
            {"pointer": "/lines/1", "before": {"sku": "CD"}},
            {"pointer": "/status", "before": "PLACED", "after": "REJECTED"},
        ]));
        assert_eq!(
            changes,
            "/closing_reason: no stock\n/lines/1: {\"sku\":\"CD\"} → (gone)\n/status: PLACED → REJECTED"
        );
    }
}
