//! What the log means: each event follows from the state before it, by the rules of its own domain.
//!
//! For each recorded event this derives the command that would produce it. The domain decides that command on the state
//! that the events before it fold to, and the very same event has to come out. So line numbers, previous quantities,
//! prices, totals, amounts, ids that are used once and the order of statuses are judged by the rules themselves, and
//! nothing is said twice. The recorded amounts enter the state only after they were found to be right.

mod orders;
mod stock;

use std::any::Any;
use std::collections::HashMap;
use std::fmt::Debug;

use anyhow::{Context as _, anyhow, ensure};
use daybook_domain::aggregate::Aggregate;
use daybook_domain::each_aggregate;
use daybook_domain::event::Event as _;
use daybook_event_store::RecordedEvent;
use uuid::Uuid;

/// The aggregates that a log may hold.
const AGGREGATES: &[StreamOf] = &each_aggregate!(A => stream_of::<A>);

/// Makes an empty stream, if the category is one aggregate's.
type StreamOf = fn(category: &str) -> Option<Box<dyn Stream>>;

/// Positions and versions have no holes, times do not go back, and each event follows from those before it in its stream.
///
/// # Errors
/// The first place where they do.
pub fn log(events: &[RecordedEvent]) -> anyhow::Result<()> {
    let mut versions = HashMap::new();
    let mut ids = HashMap::new();
    let mut newest = None;
    let mut streams = Streams::default();
    for (index, event) in events.iter().enumerate() {
        ensure!(
            event.position == index as u64 + 1,
            "position {} comes at place {}",
            event.position,
            index + 1
        );
        let version: &mut u64 = versions
            .entry((event.tenant_id, event.stream_id.as_str()))
            .or_default();
        *version += 1;
        ensure!(
            event.stream_version == *version,
            "version {} of {} comes where {version} is next",
            event.stream_version,
            event.stream_id
        );
        ensure!(
            newest.is_none_or(|newest| event.recorded_at >= newest),
            "time goes back at position {}",
            event.position
        );
        newest = Some(event.recorded_at);
        ensure!(
            ids.insert(event.event_id, event.position).is_none(),
            "an event's id is used twice"
        );
        streams.take(event)?;
    }
    Ok(())
}

/// An aggregate whose events say which command would produce them. Each command produces one event.
trait Reproducible: Aggregate<Event: Debug + PartialEq> {
    /// The command that would produce this event in a stream of this name.
    ///
    /// # Errors
    /// When no command of such a stream could.
    fn command(stream_id: &str, event: &Self::Event) -> anyhow::Result<Self::Command>;
}

/// The streams of a log, each folded as far as it was read.
#[derive(Default)]
pub struct Streams(HashMap<(Uuid, String), (String, Box<dyn Stream>)>);

impl Streams {
    /// Takes the next event of the log.
    ///
    /// # Errors
    /// When it does not follow from the events of its stream before it, with what the domain says instead.
    pub fn take(&mut self, recorded: &RecordedEvent) -> anyhow::Result<()> {
        let key = (recorded.tenant_id, recorded.stream_id.clone());
        let (category, stream) = match self.0.entry(key) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
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

    /// Checks that a command leads to the next event of the log.
    ///
    /// # Errors
    /// When the domain decides something else on the events of its stream before it.
    pub fn leads_to<A: Aggregate>(
        &self,
        command: A::Command,
        recorded: &RecordedEvent,
    ) -> anyhow::Result<()> {
        let stream = self.0.get(&(recorded.tenant_id, recorded.stream_id.clone()));
        let decided = match stream.map(|(_, stream)| stream.state().downcast_ref::<A>()) {
            None => A::default().decide(command),
            Some(state) => state
                .context("the stream is another aggregate's")?
                .decide(command),
        };
        let decided = decided.map_err(|rejection| anyhow!("the domain refuses the command: {rejection}"))?;
        let written = decided.iter().map(|event| (event.event_type(), event.encode()));
        let written: Vec<_> = written.collect();
        ensure!(
            written == [(recorded.event_type.as_str(), recorded.payload.clone())],
            "the domain decides {written:?}, but recorded is {recorded:?}"
        );
        Ok(())
    }
}

/// One stream, folded as far as it was read.
trait Stream {
    fn take(&mut self, recorded: &RecordedEvent) -> anyhow::Result<()>;

    /// What it folds to.
    fn state(&self) -> &dyn Any;
}

/// An empty stream, if the category is this aggregate's.
fn stream_of<A: Reproducible>(category: &str) -> Option<Box<dyn Stream>> {
    (category == A::CATEGORY).then(|| Box::new(Folded(A::default())) as Box<dyn Stream>)
}

struct Folded<A>(A);

impl<A: Reproducible> Stream for Folded<A> {
    fn take(&mut self, recorded: &RecordedEvent) -> anyhow::Result<()> {
        let event = A::Event::decode(&recorded.event_type, recorded.schema_version, &recorded.payload)?;
        let command = A::command(&recorded.stream_id, &event)?;
        let decided = self
            .0
            .decide(command)
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

    fn state(&self) -> &dyn Any {
        &self.0
    }
}
