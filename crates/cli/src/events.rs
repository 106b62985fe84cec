//! `daybook get events`: what happened to all of a tenant's aggregates; and how any list of events is shown, and what it is filtered
//! by.

use clap::{Args, ValueEnum};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::client::{self, Authorized, Service};
use crate::failure::Failure;
use crate::moment::{Point, parse_moment};
use crate::output::{cell, print, print_json, print_json_lines, table};
use crate::settings::{Role, Settings};

/// How many events are asked for at once: the most that the service gives.
const PAGE_EVENTS: u64 = 100;

/// Shows events of all aggregates, oldest first. Needs the scope events:read.
///
/// One of --type, --stream, --actor and --correlation can be given.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    filters: Filters,

    /// Shows the newest event first.
    #[arg(long)]
    newest_first: bool,

    /// How many events to show at the most.
    #[arg(long, value_name = "NUMBER", default_value_t = PAGE_EVENTS, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,

    /// What the output looks like.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Which events.
#[derive(Args)]
pub(crate) struct Filters {
    /// Only events of this type ("order.placed").
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,

    /// Only events of the aggregate with this id ("ord_…").
    #[arg(long = "stream", value_name = "ID")]
    stream_id: Option<String>,

    /// Only what this actor asked for.
    #[arg(long)]
    actor: Option<String>,

    /// Only what the request with this correlation id caused.
    #[arg(long = "correlation", value_name = "ID")]
    correlation_id: Option<String>,

    /// Only events recorded then or later: at a time (2026-11-01T00:00Z), or so long ago (2h, 30m).
    #[arg(long, value_name = "MOMENT", value_parser = parse_moment)]
    after: Option<Point>,

    /// Only events recorded before then.
    #[arg(long, value_name = "MOMENT", value_parser = parse_moment)]
    before: Option<Point>,
}

impl Filters {
    /// Those that are given, by their names in the interface.
    pub(crate) fn given(
        &self,
        now: OffsetDateTime,
    ) -> Result<impl Iterator<Item = (&'static str, String)>, Failure> {
        let moment = |point: &Option<Point>| {
            let before_all_time = || Failure::Usage("a moment is before all time".to_owned());
            let moment = |point: &Point| point.as_of(now).ok_or_else(before_all_time);
            point.as_ref().map(moment).transpose()
        };
        let parameters = [
            ("event_type", self.event_type.clone()),
            ("stream_id", self.stream_id.clone()),
            ("actor", self.actor.clone()),
            ("correlation_id", self.correlation_id.clone()),
            ("recorded_after", moment(&self.after)?),
            ("recorded_before", moment(&self.before)?),
        ];
        let given = parameters.into_iter();
        Ok(given.filter_map(|(name, value)| Some((name, value?))))
    }
}

/// What a list of events looks like.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    /// A line for each event, without payloads.
    Table,
    /// One JSON array. Payloads are as they were recorded, byte for byte.
    Json,
    /// A JSON object on each line, as the events arrive.
    Ndjson,
}

/// Runs the verb.
pub(crate) async fn run(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let path = path(arguments, OffsetDateTime::now_utc())?;
    let connection = client::connect(settings, Service::Query, Role::Auditor).await?;
    show(connection, path, arguments.limit, arguments.output, as_table).await
}

fn path(arguments: &Arguments, now: OffsetDateTime) -> Result<String, Failure> {
    let sort = if arguments.newest_first {
        "-position"
    } else {
        "position"
    };
    let given = arguments.filters.given(now)?;
    Ok(
        given.fold(format!("/v1/events?sort={sort}"), |path, (name, value)| {
            format!("{path}&{name}={}", utf8_percent_encode(&value, NON_ALPHANUMERIC))
        }),
    )
}

/// Shows the first events of a list, whose path has a query string.
pub(crate) async fn show(
    connection: Authorized,
    path: String,
    limit: u64,
    output: Format,
    as_table: impl Fn(&[Value]) -> String,
) -> Result<(), Failure> {
    let path = format!("{path}&limit={}", limit.min(PAGE_EVENTS));
    let mut pages = Pages {
        connection,
        next: Some(path.clone()),
        path,
        left: limit,
    };
    let mut events = Vec::new();
    while let Some(page) = pages.next().await? {
        match output {
            Format::Ndjson => print_json_lines(&page)?,
            Format::Table | Format::Json => events.extend(page),
        }
    }
    match output {
        Format::Ndjson => Ok(()),
        Format::Json => print_json(&events),
        Format::Table => {
            let events = events.iter().map(|event| serde_json::from_str(event.get()));
            let events: Result<Vec<_>, _> = events.collect();
            print(&as_table(&events.expect("raw JSON is JSON")))
        }
    }
}

/// The events, a page at a time.
struct Pages {
    connection: Authorized,
    /// The first page.
    path: String,
    /// The next page; `None` after the last one.
    next: Option<String>,
    /// How many events are wanted still.
    left: u64,
}

impl Pages {
    async fn next(&mut self) -> Result<Option<Vec<Box<RawValue>>>, Failure> {
        let Some(path) = self.next.take().filter(|_| self.left > 0) else {
            return Ok(None);
        };
        let mut page: Page = client::get(self.connection.clone(), &path).await?;
        let cursor = page.pagination.next_cursor;
        self.next = cursor.map(|cursor| format!("{}&cursor={cursor}", self.path));
        page.data
            .truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= page.data.len() as u64;
        Ok(Some(page.data))
    }
}

/// What the query service answers.
#[derive(Deserialize)]
struct Page {
    /// Events, which keep their bytes.
    data: Vec<Box<RawValue>>,
    pagination: Pagination,
}

#[derive(Deserialize)]
struct Pagination {
    next_cursor: Option<String>,
}

const HEADER: [&str; 7] = [
    "POSITION",
    "RECORDED",
    "EVENT",
    "STREAM",
    "VERSION",
    "BY",
    "CORRELATION",
];

fn as_table(events: &[Value]) -> String {
    let row = |event: &Value| {
        let metadata = &event["metadata"];
        [
            cell(&event["position"]),
            cell(&event["recorded_at"]),
            cell(&event["event_type"]),
            cell(&event["stream_id"]),
            cell(&event["stream_version"]),
            by(metadata),
            cell(&metadata["correlation_id"]),
        ]
    };
    table(HEADER, events.iter().map(row))
}

/// The credential is proved, the actor is what its holder said.
pub(crate) fn by(metadata: &Value) -> String {
    let principal = cell(&metadata["principal"]);
    match metadata["actor"].as_str() {
        Some(actor) => format!("{actor} ({principal})"),
        None => principal,
    }
}
