//! CSV (RFC 4180) for people and their spreadsheets: of any rows, and of the errors of an operation.

use super::document::ErrorLine;

/// The first line.
pub(super) const HEAD: &str = "line,reference,code,message\r\n";

/// What makes a spreadsheet take a cell for a formula when it begins with it.
const FORMULA: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

/// A line for an error.
pub(super) fn line(error: &ErrorLine) -> String {
    let text = |name: &str| error.error[name].as_str().unwrap_or_default();
    let cells = [
        &error.line.to_string(),
        error.reference.as_deref().unwrap_or_default(),
        text("code"),
        text("detail"),
    ];
    row(cells)
}

/// A line of these cells.
pub(super) fn row<const N: usize>(cells: [&str; N]) -> String {
    cells.map(cell).join(",") + "\r\n"
}

/// A cell that is text, whatever it begins with, and one cell, whatever is in it.
fn cell(text: &str) -> String {
    let harmless = match text.starts_with(FORMULA) {
        true => format!("'{text}"),
        false => text.to_owned(),
    };
    match harmless.contains(['"', ',', '\r', '\n']) {
        true => format!("\"{}\"", harmless.replace('"', "\"\"")),
        false => harmless,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_never_a_formula_and_always_one_cell() {
        for (text, expected) in [
            ("plain", "plain"),
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@cmd", "'@cmd"),
            ("\t=1", "'\t=1"),
            ("a, b", "\"a, b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("=\"a\",b\n", "\"'=\"\"a\"\",b\n\""),
        ] {
            assert_eq!(cell(text), expected);
        }
    }
}
