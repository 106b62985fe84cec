//! Data on standard output, for people and for programs.

use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use daybook_proto::convert::from_timestamp;
use indicatif::HumanCount;
use prost_types::Timestamp;
use serde::Serialize;
use serde_json::Value;
use time::format_description::well_known::Rfc3339;

use crate::failure::Failure;

/// What the output of one thing looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// JSON. Fields may be added, none changes.
    Json,
}

/// Writes a text and a line break.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(Failure::Output)
}

/// Writes a text as it is; nothing, when it is empty.
pub(crate) fn print_raw(text: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text)
        .and_then(|()| out.flush())
        .map_err(Failure::Output)
}

/// Writes a value as JSON over several lines.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string_pretty(value).map_err(unwritable)?)
}

/// Writes values as JSON, one on each line.
pub(crate) fn print_json_lines(values: &[impl Serialize]) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for value in values {
        serde_json::to_writer(&mut lines, value).map_err(unwritable)?;
        lines.push(b'\n');
    }
    print_raw(&lines)
}

fn unwritable(error: serde_json::Error) -> Failure {
    Failure::Output(error.into())
}

/// Columns that line up, without lines between them: easy to read and to cut.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// A value of a document in a table: a text without its quotes, nothing for null and for what is absent.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Rows as CSV (RFC 4180).
pub(crate) fn csv<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let line = |fields: [String; N]| fields.map(csv_field).join(",") + "\r\n";
    let header = line(header.map(str::to_owned));
    rows.into_iter().fold(header, |text, row| text + &line(row))
}

fn csv_field(field: String) -> String {
    if field.contains(['"', ',', '\r', '\n']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field
    }
}

/// 1248112 as `1,248,112`.
pub(crate) fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

/// A share of a whole, in percent; all of nothing is all.
#[expect(clippy::cast_precision_loss, reason = "for people, to a decimal")]
pub(crate) fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 100.0;
    }
    100.0 * part.min(whole) as f64 / whole as f64
}

/// How many of something there were in a second.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "for people, rounded"
)]
pub(crate) fn per_second(number: u64, seconds: f64) -> u64 {
    (number as f64 / seconds.max(0.001)).round() as u64
}

/// A moment in RFC 3339; `None` when there is none, or one that cannot be written.
pub(crate) fn rfc3339(timestamp: Option<&Timestamp>) -> Option<String> {
    from_timestamp(timestamp?)?.format(&Rfc3339).ok()
}

/// How urgent a word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Color {
    /// All is well.
    Green,
    /// Worth a look.
    Yellow,
    /// Wrong.
    Red,
}

/// Colours a word where standard output is a terminal and nobody minds (<https://no-color.org>).
pub(crate) fn paint(word: &str, color: Color) -> String {
    let minds = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if minds || !io::stdout().is_terminal() {
        return word.to_owned();
    }
    let code = match color {
        Color::Green => 32,
        Color::Yellow => 33,
        Color::Red => 31,
    };
    format!("\x1b[{code}m{word}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let rows = [["order_list", "8"], ["customer_totals", "12"]].map(|row| row.map(str::to_owned));
        assert_eq!(
            table(["NAME", "GENERATION"], rows),
            "NAME             GENERATION\norder_list       8\ncustomer_totals  12"
        );
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let rows = [["a,b", "say \"so\""], ["plain", "two\nlines"]].map(|row| row.map(str::to_owned));
        assert_eq!(
            csv(["name", "error"], rows),
            "name,error\r\n\"a,b\",\"say \"\"so\"\"\"\r\nplain,\"two\nlines\"\r\n"
        );
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(count(1_248_112), "1,248,112");
        assert_eq!(count(7), "7");
    }

    #[test]
    fn moments_are_written_in_utc() {
        let moment = Timestamp {
            seconds: 852_076_800,
            nanos: 250_000_000,
        };
        assert_eq!(rfc3339(Some(&moment)).as_deref(), Some("1997-01-01T00:00:00.25Z"));
        assert_eq!(rfc3339(None), None);
    }
}
