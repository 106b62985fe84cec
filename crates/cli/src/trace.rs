//! `daybook trace`: all that one request caused, as a tree.

use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::client::{self, Service};
use crate::events::by;
use crate::failure::Failure;
use crate::output::{Format, cell, print, print_json};
use crate::settings::{Role, Settings};

/// Shows all events that one request caused, each below the one that caused it. Needs the scope events:read.
#[derive(Args)]
pub(crate) struct Arguments {
    /// What ties them together; every event has it in its metadata.
    correlation_id: String,

    /// What the output looks like.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// What the query service answers.
#[derive(Deserialize)]
struct Answer {
    /// It keeps its bytes.
    data: Box<RawValue>,
}

#[derive(Deserialize)]
struct Tree {
    nodes: Vec<Node>,
    truncated: bool,
}

#[derive(Deserialize)]
struct Node {
    event: Value,
    depth: usize,
}

/// Runs the verb.
pub(crate) async fn run(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let id = utf8_percent_encode(&arguments.correlation_id, NON_ALPHANUMERIC);
    let connection = client::connect(settings, Service::Query, Role::Auditor).await?;
    let Answer { data } = client::get(connection, &format!("/v1/correlations/{id}")).await?;
    match arguments.output {
        Format::Json => print_json(&data),
        Format::Text => {
            let tree = serde_json::from_str(data.get());
            let tree =
                tree.map_err(|error| Failure::Failed(format!("the answer is not as expected: {error}")))?;
            print(&text(&tree))
        }
    }
}

/// A line for each event.
fn text(tree: &Tree) -> String {
    let mut lines = Vec::with_capacity(tree.nodes.len() + 1);
    // Whether each node on the way down to this one is the last below its own.
    let mut way = Vec::new();
    for (node, is_last) in tree.nodes.iter().zip(are_last(&tree.nodes)) {
        way.truncate(node.depth);
        let above = way
            .iter()
            .skip(1)
            .map(|is_last| if *is_last { "   " } else { "│  " });
        let branch = match (node.depth, is_last) {
            (0, _) => "",
            (_, true) => "└─ ",
            (_, false) => "├─ ",
        };
        lines.push(format!(
            "{}{branch}{}",
            above.collect::<String>(),
            line(&node.event)
        ));
        way.push(is_last);
    }
    if tree.truncated {
        lines.push("(there are more)".to_owned());
    }
    lines.join("\n")
}

/// Of each node whether no other follows below the same one.
fn are_last(nodes: &[Node]) -> Vec<bool> {
    let mut are_last = vec![true; nodes.len()];
    // From the end on: whether there was one of each depth, since the last one above it.
    let mut seen = Vec::new();
    for (node, is_last) in nodes.iter().zip(&mut are_last).rev() {
        seen.resize(node.depth + 1, false);
        *is_last = !std::mem::replace(&mut seen[node.depth], true);
    }
    are_last
}

fn line(event: &Value) -> String {
    format!(
        "{} of {} v{}, at {}, {}, by {}",
        cell(&event["event_type"]),
        cell(&event["stream_id"]),
        cell(&event["stream_version"]),
        cell(&event["position"]),
        cell(&event["recorded_at"]),
        by(&event["metadata"]),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_event_stands_below_the_one_that_caused_it() {
        let node = |depth, position: u64| Node {
            event: json!({
                "event_type": "order.placed", "stream_id": "ord_1", "stream_version": 1, "position": position,
                "recorded_at": "2024-05-01T12:00:00Z", "metadata": {"principal": "key:ab12cd34"},
            }),
            depth,
        };
        let tree = Tree {
            nodes: vec![
                node(0, 1),
                node(1, 2),
                node(2, 3),
                node(1, 4),
                node(2, 5),
                node(0, 6),
            ],
            truncated: true,
        };
        let text = text(&tree);
        let shape: Vec<_> = text
            .lines()
            .map(|line| line.replace("order.placed of ord_1 v1, at ", ""))
            .map(|line| line.split(',').next().unwrap_or_default().to_owned())
            .collect();
        let expected = ["1", "├─ 2", "│  └─ 3", "└─ 4", "   └─ 5", "6", "(there are more)"];
        assert_eq!(shape, expected);
        assert!(text.contains("2024-05-01T12:00:00Z, by key:ab12cd34\n"), "{text}");
    }
}
