//! `daybook import`: places the orders of a file through the public API.
//!
//! - It can be run again: ids and idempotency keys follow from each order's reference, so an order that is there already
//!   is answered with its first receipt and nothing changes.
//! - One bad line refuses itself and nothing else. What would refuse every line (a key that is not valid, a service that
//!   is away for good) ends the import, with a summary of what was done.
//! - A window of orders is in flight over a few connections; reading is held back when it is full.

mod line;
mod place;
mod reader;
mod tally;
mod turn;

use std::io::{self, IsTerminal as _};
use std::num::NonZeroUsize;

use clap::Args;
use daybook_client::Commands;
use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use self::place::Outcome;
use self::reader::{Batch, Source};
use self::tally::Tally;
use self::turn::Turns;
use crate::client::{self, Service};
use crate::failure::Failure;
use crate::output::{Format, count, print, print_json};
use crate::settings::{Role, Settings};

/// How many batches the reader may be ahead of the window.
const BATCHES_AHEAD_MAX: usize = 4;

/// How many outcomes there are between two looks at the progress bar.
const OUTCOMES_PER_DRAW: u64 = 128;

/// Places the orders of an NDJSON file, gzip or not. Needs the scope orders:write.
///
/// A line is {"order", "customer", "currency", "placed_at", "lines": [{"sku", "quantity", "unit_price_minor"}]}. Running
/// it again changes nothing. Exits with 1 when anything was refused.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The file; "-" is standard input.
    file: String,

    /// How many orders may be on their way at once.
    #[arg(long, value_name = "NUMBER", default_value = "512")]
    in_flight: NonZeroUsize,

    /// Over how many connections they go.
    #[arg(long, value_name = "NUMBER", default_value = "4")]
    connections: NonZeroUsize,

    /// What the summary looks like.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Runs the verb.
pub(crate) async fn run(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let source = Source::open(&arguments.file)?;
    let clients = connect(settings, arguments.connections).await?;
    let bar = progress_bar(source.size_bytes());
    let (batches, read) = mpsc::channel(BATCHES_AHEAD_MAX);
    let reading = tokio::task::spawn_blocking(move || reader::read(source, &batches));
    let mut tally = Tally::new();
    let ended = place_all(read, &clients, arguments.in_flight, &mut tally, &bar).await;
    bar.finish_and_clear();
    match arguments.output {
        Format::Json => print_json(&tally.summary(ended.as_ref().err()))?,
        Format::Text => print(&tally.summary(ended.as_ref().err()).to_string())?,
    }
    ended?;
    let read = reading.await.expect("the reader does not panic");
    read.map_err(|source| Failure::Input {
        name: reader::display_name(&arguments.file),
        source,
    })?;
    match tally.refused() {
        0 => Ok(()),
        refused => Err(Failure::Failed(format!("{} lines were refused", count(refused)))),
    }
}

/// One connection after the other, so that an address that is wrong is told once.
async fn connect(settings: &Settings, connections: NonZeroUsize) -> Result<Vec<Commands>, Failure> {
    let mut clients = Vec::with_capacity(connections.get());
    for _ in 0..connections.get() {
        let connection = client::connect(settings, Service::Command, Role::Service).await?;
        clients.push(Commands::new(connection));
    }
    Ok(clients)
}

/// Places what is read, with at most `in_flight` orders on their way, until all is done or nothing more can be.
async fn place_all(
    read: mpsc::Receiver<Batch>,
    clients: &[Commands],
    in_flight: NonZeroUsize,
    tally: &mut Tally,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let orders = ReceiverStream::new(read).flat_map(|batch| {
        bar.set_position(batch.read_bytes);
        futures::stream::iter(batch.lines)
    });
    let mut turns = Turns::new();
    let outcomes = orders
        .zip(futures::stream::iter(clients.iter().cycle()))
        .map(|(line, client)| {
            let turn = line
                .request
                .as_ref()
                .ok()
                .map(|request| turns.take(&request.request_id));
            place::place(client.clone(), line, turn)
        })
        .buffer_unordered(in_flight.get());
    let mut outcomes = std::pin::pin!(outcomes);
    bar.set_message(tally.progress());
    while let Some(outcome) = outcomes.next().await {
        match outcome {
            Outcome::Placed { is_replay } => tally.placed(is_replay),
            Outcome::Refused(refused) => tally.refuse(refused),
            Outcome::Hopeless(failure) => return Err(failure.into()),
        }
        if tally.total().is_multiple_of(OUTCOMES_PER_DRAW) {
            bar.set_message(tally.progress());
        }
    }
    Ok(())
}

/// How far the file is read; the window and what is read ahead are a small part of it.
fn progress_bar(size_bytes: Option<u64>) -> ProgressBar {
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let template = match size_bytes {
        Some(_) => "import ▕{bar:20}▏ {percent} %  {msg}  {eta} left",
        None => "import {spinner} {msg}",
    };
    let style = ProgressStyle::with_template(template)
        .expect("the template is well formed")
        .progress_chars("█▉▊▋▌▍▎▏ ");
    ProgressBar::with_draw_target(size_bytes, target).with_style(style)
}
