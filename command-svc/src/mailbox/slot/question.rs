//! What a mailbox asks the log about a command that it does not decide: whether its key is known, and what the aggregate's
//! newest event is.

use std::sync::Arc;

use daybook_domain::aggregate::Aggregate;
use daybook_event_store::{Intent, Newest, Unanswered, Verdict};

use super::{InFlight, Mailbox, Pending, Slot, State, Submitted, outcome};
use crate::mailbox::HandleError;

/// Why a question is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// Keys are looked up before commands are decided.
    KeyKnown,
    /// The caller expects another version than the aggregate seems to have.
    VersionStale { expected: u64 },
    /// The aggregate seems not to exist.
    Missing,
}

impl<A: Aggregate> Mailbox<A> {
    pub(super) fn ask(self: &Arc<Self>, slot: &mut Slot<A>, command: Pending<A>, question: Question) {
        self.submit(slot, command, Intent::Ask, Submitted::Question(question));
    }

    pub(super) fn question_answered(
        self: &Arc<Self>,
        slot: &mut Slot<A>,
        in_flight: InFlight<A>,
        question: Question,
        verdict: Result<Verdict, Unanswered>,
    ) {
        let InFlight {
            command,
            state_number,
            ..
        } = in_flight;
        let answer = match verdict {
            Ok(Verdict::Replayed(receipt) | Verdict::Appended(receipt)) => Ok(outcome(receipt, true)),
            Ok(Verdict::KeyReused) => Err(HandleError::KeyReused),
            Err(unanswered) => Err(unanswered.into()),
            Ok(Verdict::KeyIsNew(newest) | Verdict::Conflict(newest)) => {
                if question == Question::KeyKnown {
                    return slot.waiting.push_back(command);
                }
                slot.drop_state_unless_it_has(newest, state_number);
                match question {
                    Question::VersionStale { expected } if newest.version != expected => {
                        let actual = newest.version;
                        Err(HandleError::VersionConflict { expected, actual })
                    }
                    Question::Missing if newest.event_id.is_none() => Err(HandleError::NotFound),
                    Question::VersionStale { .. } | Question::Missing | Question::KeyKnown => {
                        return self.decide_again(slot, command);
                    }
                }
            }
        };
        self.reply(slot, command, answer);
    }
}

impl<A: Aggregate> Slot<A> {
    /// Drops the state when somebody else wrote: the newest event of the log is not in it.
    fn drop_state_unless_it_has(&mut self, newest: Newest, state_number: u64) {
        if matches!(&self.state, State::Cached(cached) if !cached.has(newest.event_id)) {
            self.drop_state(state_number);
        }
    }
}
