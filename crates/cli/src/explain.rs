//! `daybook explain`: what a code of the catalogue means and what to do about it.

use clap::Args;
use daybook_service::error::Code;

use crate::failure::Failure;
use crate::output::{print, table};

/// Explains an error's code; without one, lists them all.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The code, such as VERSION_CONFLICT; upper or lower case, with underscores or hyphens.
    code: Option<String>,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.code {
        None => print(&table(["CODE", "MEANING"], Code::ALL.map(|code| row(&code)))),
        Some(text) => print(&explanation(&find(text))),
    }
}

fn row(code: &Code) -> [String; 2] {
    [code.name().to_owned(), code.entry().title.to_owned()]
}

/// The code of this name. Any other is taken for a rule of the domain, of which each has a code of its own.
fn find(text: &str) -> Code {
    let name = text.to_ascii_uppercase().replace('-', "_");
    let known = Code::ALL.into_iter().find(|code| code.name() == name);
    known.unwrap_or_else(|| Code::DomainRule(name.into()))
}

fn explanation(code: &Code) -> String {
    let entry = code.entry();
    let heading = match code {
        Code::DomainRule(rule) => format!("{rule}: not a code of the machinery, so a rule of the domain"),
        _ => format!("{}: {}", entry.name, entry.title),
    };
    format!(
        "{heading}\n\n{}\n{}\n\ngRPC {:?}, HTTP {}",
        entry.explanation, entry.retry, entry.grpc, entry.http
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_found_however_it_is_written() {
        assert_eq!(find("VERSION_CONFLICT"), Code::VersionConflict);
        assert_eq!(find("version-conflict"), Code::VersionConflict);
        assert_eq!(
            find("ORDER_ALREADY_SHIPPED"),
            Code::DomainRule("ORDER_ALREADY_SHIPPED".into())
        );
    }

    #[test]
    fn an_explanation_says_what_it_is_and_whether_to_send_it_again() {
        let text = explanation(&Code::VersionConflict);
        assert!(
            text.starts_with("VERSION_CONFLICT: The aggregate has another version"),
            "{text}"
        );
        assert!(text.contains("Load the newest state"), "{text}");
        assert!(text.ends_with("gRPC Aborted, HTTP 409 Conflict"), "{text}");
    }
}
