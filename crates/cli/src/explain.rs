//! `daybook explain`: what an error's code means and what to do about it.

use clap::Args;
use daybook_domain::aggregates::AGGREGATES;
use daybook_service::error::Code;

use crate::exit::Exit;
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
    let Some(text) = &arguments.code else {
        return print(&table(["CODE", "MEANING"], all()));
    };
    match explanation(text) {
        Some(explanation) => print(&explanation),
        None => {
            eprintln!("error: there is no code {text}; `daybook explain` lists them all");
            Err(Failure::Shown(Exit::NotFound))
        }
    }
}

fn all() -> impl Iterator<Item = [String; 2]> {
    let row = |code: &str, meaning: &str| [code.to_owned(), meaning.to_owned()];
    let machinery = Code::ALL
        .into_iter()
        .map(move |code| row(code.name(), code.entry().title));
    machinery.chain(rules().map(move |(code, meaning)| row(code, meaning)))
}

/// The rules of every aggregate.
fn rules() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    AGGREGATES.iter().flat_map(|kind| kind.rules)
}

fn explanation(text: &str) -> Option<String> {
    let name = text.to_ascii_uppercase().replace('-', "_");
    let known = Code::ALL.into_iter().find(|code| code.name() == name);
    known.map(|code| of_machinery(&code)).or_else(|| of_domain(&name))
}

fn of_machinery(code: &Code) -> String {
    let entry = code.entry();
    format!(
        "{}: {}\n\n{}\n{}\n\n{}",
        entry.name,
        entry.title,
        entry.explanation,
        entry.retry,
        transports(code)
    )
}

/// Each rule has a code of its own; what holds for all of them is in the catalogue.
fn of_domain(name: &str) -> Option<String> {
    let (rule, meaning) = rules().find(|(rule, _)| *rule == name)?;
    let code = Code::DomainRule((*rule).into());
    let explanation = code.entry().explanation;
    Some(format!(
        "{rule}: {meaning}\n\n{explanation}\n\n{}",
        transports(&code)
    ))
}

fn transports(code: &Code) -> String {
    let entry = code.entry();
    format!("gRPC {:?}, HTTP {}", entry.grpc, entry.http)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_found_however_it_is_written() {
        assert!(explanation("VERSION_CONFLICT").is_some());
        assert_eq!(explanation("version-conflict"), explanation("VERSION_CONFLICT"));
        assert_eq!(explanation("NO_SUCH_CODE"), None);
    }

    #[test]
    fn an_explanation_says_what_it_is_and_whether_to_send_it_again() {
        let text = explanation("VERSION_CONFLICT").expect("it is in the catalogue");
        assert!(
            text.starts_with("VERSION_CONFLICT: The aggregate has another version"),
            "{text}"
        );
        assert!(text.contains("Load the newest state"), "{text}");
        assert!(text.ends_with("gRPC Aborted, HTTP 409 Conflict"), "{text}");
    }

    #[test]
    fn every_rule_of_the_domain_is_explained() {
        for (code, meaning) in rules() {
            let text = explanation(code).expect("every rule is known");
            assert!(text.starts_with(&format!("{code}: {meaning}")), "{text}");
        }
    }
}
