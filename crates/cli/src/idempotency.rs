//! `daybook idempotency`: the two tables of idempotency keys, and their turn.

use clap::{Args, Subcommand};
use daybook_event_store::keys::{self, KeyTable, KeyTurn};
use time::format_description::well_known::Rfc3339;

use crate::database;
use crate::failure::Failure;
use crate::output::{print, table};
use crate::settings::Settings;

/// Shows where idempotency keys are remembered, or forgets the older ones.
///
/// Keys are kept for at least the command services' retention time, 30 days by default, in two tables that take turns. The
/// command services have them take turns by themselves. Works on the database of DATABASE_URL.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Shows the two tables: how many keys they hold, and since when.
    Show,
    /// Empties the older table now and makes it the current one. A command that is sent again under a key that was in it
    /// is then a new command.
    Turn {
        /// Says that the keys in the older table may be forgotten before their time.
        #[arg(long)]
        yes: bool,
    },
}

/// Runs the verb.
pub(crate) async fn run(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let mut connection = database::connect(settings).await?;
    match arguments.verb {
        Verb::Show => show(&keys::tables(&mut connection).await?),
        Verb::Turn { yes: false } => Err(Failure::Usage(
            "the keys in the older table are forgotten by this: say --yes".to_owned(),
        )),
        Verb::Turn { yes: true } => match keys::turn(&mut connection).await? {
            KeyTurn::Turned => print("the tables took turns"),
            KeyTurn::Early => Err(Failure::Conflict(
                "somebody else turned the tables just now".to_owned(),
            )),
            KeyTurn::InUse => Err(Failure::Conflict(
                "the tables are in use by somebody who holds them for long, a backup perhaps; try again"
                    .to_owned(),
            )),
        },
    }
}

fn show(tables: &[KeyTable]) -> Result<(), Failure> {
    let rows = tables.iter().map(|one| {
        [
            if one.is_current { "current" } else { "older" }.to_owned(),
            one.keys
                .map_or_else(|| "not counted yet".to_owned(), |keys| format!("about {keys}")),
            one.bytes.to_string(),
            format!("{:.1}", one.counted.as_seconds_f64() / 86_400.0),
            one.turned_at.format(&Rfc3339).unwrap_or_default(),
        ]
    });
    print(&table(
        ["TABLE", "KEYS", "BYTES", "DAYS COUNTED", "TURNED AT"],
        rows,
    ))
}
