//! What the log means: each event follows from the state before it, by the rules of its own domain.
//!
//! For each recorded event this derives the command that would produce it. The domain decides that command on the state
//! that the events before it fold to, and the very same event has to come out. So line numbers, previous quantities,
//! prices, totals, amounts, ids that are used once and the order of statuses are judged by the rules themselves, and
//! nothing is said twice. The recorded amounts enter the state only after they were found to be right.

use std::collections::HashMap;
use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::fmt::{Debug, Display};

use anyhow::{Context as _, anyhow, ensure};
use daybook_domain::event::DecodeError;
use daybook_event_store::RecordedEvent;
use uuid::Uuid;

use super::orders::Orders;

/// The aggregates that a log may hold, one line each.
const AGGREGATES: &[StreamOf] = &[stream_of::<Orders>];

/// Makes an empty stream, if the category is one aggregate's.
type StreamOf = fn(category: &str) -> Option<Box<dyn Stream>>;

/// An aggregate whose events say which command would produce them. Each command produces one event.
pub(super) trait Aggregate: 'static {
    /// The category of its streams.
    const CATEGORY: &'static str;
    /// What its rules look at.
    type State: Default;
    /// What may be asked of it.
    type Command;
    /// What happens to it.
    type Event: Debug + PartialEq;
    /// Why a command is refused.
    type Rejection: Display;

    /// Reads a stored event of any schema version.
    fn decode(recorded: &RecordedEvent) -> Result<Self::Event, DecodeError>;

    /// The command that would produce this event in a stream of this name.
    ///
    /// # Errors
    /// When no command of such a stream could.
    fn command(stream_id: &str, event: &Self::Event) -> anyhow::Result<Self::Command>;

    /// What the domain decides.
    ///
    /// # Errors
    /// The domain's refusal.
    fn decide(state: &Self::State, command: Self::Command) -> Result<Vec<Self::Event>, Self::Rejection>;

    /// The state after one more event.
    fn evolve(state: Self::State, event: &Self::Event) -> Self::State;
}

/// The streams of a log, each folded as far as it was read.
#[derive(Default)]
pub(super) struct Streams(HashMap<(Uuid, String), (String, Box<dyn Stream>)>);

impl Streams {
    /// Takes the next event of the log.
    ///
    /// # Errors
    /// When it does not follow from the events of its stream before it, with what the domain says instead.
    pub(super) fn take(&mut self, recorded: &RecordedEvent) -> anyhow::Result<()> {
        let key = (recorded.tenant_id, recorded.stream_id.clone());
        let (category, stream) = match self.0.entry(key) {
            Occupied(known) => known.into_mut(),
            Vacant(new) => {
                let category = recorded.category.clone();
                let mut streams = AGGREGATES.iter().filter_map(|stream_of| stream_of(&category));
                let stream = streams
                    .next()
                    .with_context(|| format!("no aggregate has the category {category}"))?;
                new.insert((category, stream))
            }
        };
        ensure!(
            *category == recorded.category,
            "{} is a stream of {category} and has an event of {}",
            recorded.stream_id,
            recorded.category
        );
        stream.take(recorded).with_context(|| {
            format!(
                "{} at position {}, version {} of {}, does not follow from the events before it",
                recorded.event_type, recorded.position, recorded.stream_version, recorded.stream_id
            )
        })
    }
}

/// One stream, folded as far as it was read.
trait Stream {
    fn take(&mut self, recorded: &RecordedEvent) -> anyhow::Result<()>;
}

fn stream_of<A: Aggregate>(category: &str) -> Option<Box<dyn Stream>> {
    (category == A::CATEGORY).then(|| Box::new(Folded::<A>(A::State::default())) as Box<dyn Stream>)
}

struct Folded<A: Aggregate>(A::State);

impl<A: Aggregate> Stream for Folded<A> {
    fn take(&mut self, recorded: &RecordedEvent) -> anyhow::Result<()> {
        let event = A::decode(recorded)?;
        let command = A::command(&recorded.stream_id, &event)?;
        let decided = A::decide(&self.0, command)
            .map_err(|rejection| anyhow!("the domain refuses it: {rejection}\n  recorded {event:?}"))?;
        ensure!(
            decided == [event],
            "the domain decides\n  {decided:?}\nbut recorded is\n  {}",
            recorded.payload
        );
        let state = std::mem::take(&mut self.0);
        self.0 = decided.iter().fold(state, A::evolve);
        Ok(())
    }
}
