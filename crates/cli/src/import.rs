//! `daybook import`: hands a file to the command service, which does what its lines ask for, and shows how far that is.
//!
//! - The import belongs to the service: once the file has arrived, closing the terminal does not end it.
//! - It can be run again: ids and idempotency keys follow from what each line is about, so what is there already stays as it is.
//! - One bad line refuses itself and nothing else.

mod reader;

use std::io::{self, IsTerminal as _};
use std::pin::pin;
use std::time::{Duration, Instant};

use clap::Args;
use daybook_client::{Attempts, Connection, Credential};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tonic::Status;
use uuid::Uuid;

use self::reader::Source;
use crate::client::{self, Authorized, Service, Upload};
use crate::failure::Failure;
use crate::operation::{self, ABSENCE_MAX, Answer};
use crate::output::{Format, count, per_second, print, print_json};
use crate::settings::{Role, Settings};

/// How many pieces of the file may wait for the connection.
const PIECES_AHEAD_MAX: usize = 8;

/// How long the service may take to answer once the whole file is on its way.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// How many errors the summary shows.
const ERRORS_SHOWN: usize = 10;

/// Imports an NDJSON file, gzip or not. Needs the scope to write what its lines are.
///
/// What lines look like is said at /docs of the command service. Running it again changes nothing. Exits with 1 when a line was
/// refused.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The file; "-" is standard input.
    file: String,

    /// What its lines are, as it is called in addresses: orders, stock-items and so on.
    #[arg(long, value_name = "KIND", default_value = "orders")]
    kind: String,

    /// What the summary looks like.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// An operation, as far as it is shown.
#[derive(Debug, Clone, Deserialize)]
struct Operation {
    operation_id: String,
    state: String,
    #[serde(default)]
    ended_at: Option<String>,
    progress: Progress,
}

impl operation::Operation for Operation {
    fn id(&self) -> &str {
        &self.operation_id
    }

    fn has_ended(&self) -> bool {
        self.ended_at.is_some()
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Progress {
    lines_read: u64,
    succeeded: u64,
    failed: u64,
    bytes_done: u64,
    bytes_total: u64,
}

/// A line that was refused.
#[derive(Debug, Clone, Deserialize)]
struct Refused {
    line: u64,
    #[serde(default)]
    reference: Option<String>,
    error: Value,
}

/// Runs the verb.
pub(crate) async fn run(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let began = Instant::now();
    let bar = progress_bar();
    let connection = client::open(settings, Service::Command).await?;
    let credential = client::credential(settings, Role::Service)?;
    let started = hand_over(&connection, &credential, arguments, &bar).await?;
    bar.println(format!(
        "{} goes on by itself from here, also when this ends",
        started.operation_id
    ));
    let connection = connection.with(credential);
    let handed_over = Instant::now();
    let show_progress = |operation: &Operation| draw(&bar, operation, handed_over.elapsed());
    let operation = operation::watch(&connection, started, show_progress).await?;
    bar.finish_and_clear();
    let errors = errors(connection, &operation).await?;
    show(&operation, &errors, began.elapsed(), arguments.output)?;
    match (operation.state.as_str(), operation.progress.failed) {
        ("SUCCEEDED", 0) => Ok(()),
        ("SUCCEEDED", failed) => Err(Failure::Failed(format!("{} lines were refused", count(failed)))),
        _ => Err(Failure::Failed("the import was cancelled".to_owned())),
    }
}

/// Hands the file over, again and again while that may help: under one key it is one import.
async fn hand_over(
    connection: &Connection,
    credential: &Credential,
    arguments: &Arguments,
    bar: &ProgressBar,
) -> Result<Operation, Failure> {
    let key = Uuid::now_v7().to_string();
    let mut attempts = Attempts::new(ABSENCE_MAX);
    loop {
        let refusal = match hand_over_once(connection, credential, arguments, &key, bar).await {
            Err(Failure::Refused(refusal)) if arguments.file != "-" => refusal,
            handed_over => return handed_over,
        };
        match attempts.pause_after(&refusal) {
            Some(pause) => sleep(pause).await,
            None => return Err(Failure::Refused(refusal)),
        }
    }
}

async fn hand_over_once(
    connection: &Connection,
    credential: &Credential,
    arguments: &Arguments,
    key: &str,
    bar: &ProgressBar,
) -> Result<Operation, Failure> {
    let source = Source::open(&arguments.file)?;
    bar.set_position(0);
    bar.set_length(source.size_bytes().unwrap_or_default());
    bar.set_message("handing the file over");
    let (pieces, body) = mpsc::channel(PIECES_AHEAD_MAX);
    let reading_bar = bar.clone();
    let mut reading = tokio::task::spawn_blocking(move || reader::read(source, &pieces, &reading_bar));
    let upload = Upload {
        path: &format!("/v1/imports?kind={}", arguments.kind),
        media_type: "application/x-ndjson",
        key,
    };
    let mut uploading = pin!(client::upload::<Answer<Operation>>(
        connection, credential, upload, body
    ));
    let (read, answered) = tokio::select! {
        answered = &mut uploading => (reading.await, answered),
        read = &mut reading => {
            let answered = timeout(ANSWER_MAX, uploading).await;
            let too_late = || Status::deadline_exceeded("the service has the file and does not answer");
            (read, answered.unwrap_or_else(|_elapsed| Err(too_late().into())))
        }
    };
    // A file that cannot be read breaks the request off: that is the cause, and not what was said about it.
    read.expect("the reader does not panic")
        .map_err(|source| Failure::Input {
            name: reader::display_name(&arguments.file),
            source,
        })?;
    Ok(answered?.data)
}

/// The first lines that were refused.
async fn errors(connection: Authorized, operation: &Operation) -> Result<Vec<Refused>, Failure> {
    if operation.progress.failed == 0 {
        return Ok(Vec::new());
    }
    let path = format!(
        "/v1/operations/{}/errors?limit={ERRORS_SHOWN}",
        operation.operation_id
    );
    Ok(client::get::<Answer<Vec<Refused>>>(connection, &path).await?.data)
}

fn progress_bar() -> ProgressBar {
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template("import ▕{bar:20}▏ {percent} %  {msg}")
        .expect("the template is well formed")
        .progress_chars("█▉▊▋▌▍▎▏ ");
    ProgressBar::with_draw_target(Some(0), target).with_style(style)
}

fn draw(bar: &ProgressBar, operation: &Operation, took: Duration) {
    let progress = &operation.progress;
    bar.set_length(progress.bytes_total);
    bar.set_position(progress.bytes_done);
    bar.set_message(format!(
        "{} lines  {}/s  {} refused",
        count(progress.lines_read),
        count(per_second(progress.lines_read, took.as_secs_f64())),
        count(progress.failed)
    ));
}

fn show(operation: &Operation, errors: &[Refused], took: Duration, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => print_json(&document(operation, errors, took)),
        Format::Text => print(&summary(operation, errors, took)),
    }
}

fn document(operation: &Operation, errors: &[Refused], took: Duration) -> Value {
    let error = |refused: &Refused| json!({"line": refused.line, "reference": refused.reference, "error": refused.error});
    json!({
        "operation_id": operation.operation_id,
        "state": operation.state,
        "lines": operation.progress.lines_read,
        "succeeded": operation.progress.succeeded,
        "failed": operation.progress.failed,
        "seconds": took.as_secs_f64(),
        "errors": errors.iter().map(error).collect::<Vec<_>>(),
    })
}

fn summary(operation: &Operation, errors: &[Refused], took: Duration) -> String {
    let progress = &operation.progress;
    let seconds = took.as_secs_f64();
    let mut text = format!(
        "operation  {}\nsucceeded  {}\nrefused    {}\ntook       {seconds:.1} s ({} lines/s)",
        operation.operation_id,
        count(progress.succeeded),
        count(progress.failed),
        count(per_second(progress.lines_read, seconds))
    );
    for refused in errors {
        let about = refused
            .reference
            .as_ref()
            .map_or_else(String::new, |reference| format!(", {reference}"));
        let of_error = |name: &str| refused.error[name].as_str().unwrap_or_default().to_owned();
        text += &format!(
            "\nline {}{about}: {} {}",
            refused.line,
            of_error("code"),
            of_error("detail")
        );
    }
    if usize::try_from(progress.failed).is_ok_and(|failed| failed > errors.len()) {
        text += &format!(
            "\nall of them: GET /v1/operations/{}/errors",
            operation.operation_id
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_what_was_refused_and_shows_the_first_of_it() {
        let operation: Operation = serde_json::from_value(json!({
            "operation_id": "op_1", "state": "SUCCEEDED", "ended_at": "1997-01-01T00:00:00Z",
            "progress": {"lines_read": 3_000, "succeeded": 2_000, "failed": 1_000, "bytes_done": 1, "bytes_total": 1},
        }))
        .expect("it is an operation");
        let refused: Refused = serde_json::from_value(json!({
            "line": 7, "reference": "cdnow-7", "error": {"code": "VALIDATION_FAILED", "detail": "/currency: is not a code"},
        }))
        .expect("it is an error");
        let text = summary(&operation, &[refused], Duration::from_secs(2));
        assert!(
            text.contains("succeeded  2,000\nrefused    1,000\ntook       2.0 s (1,500 lines/s)"),
            "{text}"
        );
        assert!(
            text.contains("\nline 7, cdnow-7: VALIDATION_FAILED /currency: is not a code\n"),
            "{text}"
        );
        assert!(
            text.ends_with("all of them: GET /v1/operations/op_1/errors"),
            "{text}"
        );
    }
}
