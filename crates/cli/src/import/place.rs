//! Places one order, again and again while that may help.

use daybook_client::{Commands, Failure};

use super::line::Line;
use super::turn::Turn;
use crate::refusal::concerns_every_request;

/// What a malformed line is counted under; it never leaves this machine.
const MALFORMED_LINE: &str = "MALFORMED_LINE";

/// What became of a line.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The order is there.
    Placed {
        /// It was there before.
        is_replay: bool,
    },
    /// The line was refused; others may fare better.
    Refused(Refused),
    /// Others will not fare better.
    Hopeless(Failure),
}

/// A line that was refused.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Its number in the file.
    pub(crate) line: u64,
    /// The order's reference, where it could be read.
    pub(crate) reference: Option<String>,
    /// Why, as a code.
    pub(crate) code: String,
    /// Why, in words.
    pub(crate) message: String,
}

/// Places the order of a line when its turn has come.
pub(crate) async fn place(commands: Commands, line: Line, mut turn: Option<Turn>) -> Outcome {
    let number = line.number;
    let request = match line.request {
        Ok(request) => request,
        Err(message) => return Outcome::Refused(malformed(number, message)),
    };
    if let Some(turn) = &mut turn {
        turn.come().await;
    }
    let reference = request.reference.clone();
    match commands.send_and_tell(request).await {
        Ok(sent) => Outcome::Placed {
            is_replay: sent.is_replay,
        },
        Err(Failure::Refused(refusal)) if !refusal.is_transient() && !concerns_every_request(&refusal) => {
            Outcome::Refused(Refused {
                line: number,
                reference: Some(reference),
                message: refusal.summary(),
                code: refusal.code,
            })
        }
        Err(failure) => Outcome::Hopeless(failure),
    }
}

fn malformed(line: u64, message: String) -> Refused {
    Refused {
        line,
        reference: None,
        code: MALFORMED_LINE.to_owned(),
        message,
    }
}
