//! `daybook export events`: has the command service write a file, waits for it, fetches it and holds it against its hash.
//!
//! The file is there under its name when all of it is, and is what the manifest says.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use daybook_client::{Attempts, Connection, Credential, Refusal};
use futures::TryStreamExt as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::sleep;
use uuid::Uuid;

use crate::client::{self, Service, Upload};
use crate::events::Filters;
use crate::failure::Failure;
use crate::operation::{self, ABSENCE_MAX, Answer};
use crate::output::{count, print_json};
use crate::settings::{Role, Settings};

/// Exports events of all aggregates into a file, oldest first: all that there are now. Needs the scope events:read.
///
/// Where several filters are given, an event has to meet all of them. Prints the manifest: what is in the file, and its SHA-256.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    filters: Filters,

    /// What the file looks like.
    #[arg(long, value_enum)]
    format: FileFormat,

    /// The file. One that is there is replaced when the new one is whole.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// What a file looks like.
#[derive(Clone, Copy, ValueEnum)]
enum FileFormat {
    /// An event on each line.
    Ndjson,
    /// A row for each event. No cell begins like a formula.
    Csv,
}

/// An operation, as far as it is needed.
#[derive(Debug, Deserialize)]
struct Operation {
    operation_id: String,
    state: String,
    #[serde(default)]
    ended_at: Option<String>,
    export: Export,
    #[serde(default)]
    manifest: Option<Value>,
    #[serde(default)]
    error: Value,
}

#[derive(Debug, Deserialize)]
struct Export {
    positions_done: u64,
    positions_total: u64,
}

impl operation::Operation for Operation {
    fn id(&self) -> &str {
        &self.operation_id
    }

    fn has_ended(&self) -> bool {
        self.ended_at.is_some()
    }
}

/// Runs the verb.
pub(crate) async fn run(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let bar = progress_bar();
    let connection = client::open(settings, Service::Command).await?;
    let credential = client::credential(settings, Role::Auditor)?;
    let body = body(arguments, OffsetDateTime::now_utc())?;
    let started = begin(&connection, &credential, body).await?;
    let authorized = connection.clone().with(credential.clone());
    let operation = operation::watch(&authorized, started, |operation: &Operation| {
        bar.set_length(operation.export.positions_total);
        bar.set_position(operation.export.positions_done);
        bar.set_message(format!(
            "{} positions of the log",
            count(operation.export.positions_done)
        ));
    })
    .await?;
    bar.finish_and_clear();
    let Some(manifest) = &operation.manifest else {
        return Err(Failure::Failed(unfinished(&operation)));
    };
    fetch(&connection, &credential, &operation, manifest, &arguments.output).await?;
    print_json(manifest)
}

/// What is asked for.
fn body(arguments: &Arguments, now: OffsetDateTime) -> Result<Bytes, Failure> {
    let format = match arguments.format {
        FileFormat::Ndjson => "ndjson",
        FileFormat::Csv => "csv",
    };
    let filters = arguments.filters.given(now)?;
    let members = filters.chain([("format", format.to_owned())]);
    let members: Map<String, Value> = members
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    Ok(Value::Object(members).to_string().into())
}

/// Asks for the export, again and again while that may help: under one key it is one export.
async fn begin(connection: &Connection, credential: &Credential, body: Bytes) -> Result<Operation, Failure> {
    let key = Uuid::now_v7().to_string();
    let mut attempts = Attempts::new(ABSENCE_MAX);
    loop {
        let (piece, pieces) = mpsc::channel(1);
        piece.try_send(Ok(body.clone())).expect("there is room for one");
        drop(piece);
        let request = Upload {
            path: "/v1/event-exports",
            media_type: "application/json",
            key: &key,
        };
        let answered = client::upload::<Answer<Operation>>(connection, credential, request, pieces).await;
        wait_after(
            &mut attempts,
            match answered {
                Err(Failure::Refused(refusal)) => refusal,
                answered => return Ok(answered?.data),
            },
        )
        .await?;
    }
}

/// Waits before the next attempt, where there is to be one.
async fn wait_after(attempts: &mut Attempts, refusal: Box<Refusal>) -> Result<(), Failure> {
    match attempts.pause_after(&refusal) {
        Some(pause) => sleep(pause).await,
        None => return Err(Failure::Refused(refusal)),
    }
    Ok(())
}

fn unfinished(operation: &Operation) -> String {
    match operation.error["detail"].as_str() {
        Some(why) => format!("the export {} failed: {why}", operation.operation_id),
        None => format!(
            "the export {} is {}",
            operation.operation_id,
            operation.state.to_lowercase()
        ),
    }
}

/// Fetches the file beside its place, and puts it there when it is what the manifest says.
async fn fetch(
    connection: &Connection,
    credential: &Credential,
    operation: &Operation,
    manifest: &Value,
    file: &Path,
) -> Result<(), Failure> {
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let path = format!("/v1/operations/{}/output", operation.operation_id);
    let mut attempts = Attempts::new(ABSENCE_MAX);
    let sha256 = loop {
        match fetch_once(connection, credential, &path, &part).await {
            Err(Failure::Refused(refusal)) => wait_after(&mut attempts, refusal).await?,
            fetched => break fetched?,
        }
    };
    if manifest["sha256"] != sha256 {
        let message = format!(
            "{} is not what the manifest says: its SHA-256 is {sha256}",
            part.display()
        );
        return Err(Failure::Failed(message));
    }
    std::fs::rename(&part, file).map_err(Failure::Output)
}

/// Fetches the file; its SHA-256.
async fn fetch_once(
    connection: &Connection,
    credential: &Credential,
    path: &str,
    part: &Path,
) -> Result<String, Failure> {
    let mut pieces = client::download(connection, credential, path).await?;
    let mut file = io::BufWriter::new(std::fs::File::create(part).map_err(Failure::Output)?);
    let mut hash = Sha256::new();
    while let Some(piece) = pieces.try_next().await? {
        hash.update(&piece);
        file.write_all(&piece).map_err(Failure::Output)?;
    }
    file.flush().map_err(Failure::Output)?;
    Ok(hex::encode(hash.finalize()))
}

fn progress_bar() -> ProgressBar {
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template("export ▕{bar:20}▏ {percent} %  {msg}")
        .expect("the template is well formed")
        .progress_chars("█▉▊▋▌▍▎▏ ");
    ProgressBar::with_draw_target(Some(0), target).with_style(style)
}
