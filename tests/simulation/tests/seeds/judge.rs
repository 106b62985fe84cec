//! What must be true of a seed's log, and of everything that anybody was told.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use daybook_command_svc::mailbox::{HandleError, Together};
use daybook_domain::aggregate::Aggregate as _;
use daybook_domain::event::Event as _;
use daybook_domain::order;
use daybook_event_store::{RecordedEvent, Remembered};
use daybook_simulation::meaning;
use daybook_simulation::model::Model;

use crate::run::{Batch, Sent, TENANT, Told};

/// Tells two logs apart.
pub(crate) type Digest = u64;

/// The log means something; what is remembered of each command is what the domain makes of it in the state that the
/// receipt names; and everybody was told the truth.
///
/// # Errors
/// What is not so.
pub(crate) fn judge(model: &Model, told: &[Told], batches: &[Batch]) -> anyhow::Result<Digest> {
    meaning::log(&model.events)?;
    for batch in batches {
        stands_together(model, batch).with_context(|| format!("{batch:?}"))?;
    }
    let history = History::of(&model.events)?;
    let mut by_key = HashMap::<&str, Vec<&Told>>::new();
    for one in told {
        by_key.entry(&one.sent.key).or_default().push(one);
    }
    let mut event_count = 0;
    let is_of_batch = |key: &Arc<str>| batches.iter().any(|batch| batch.key == *key);
    for ((_, key), remembered) in model.keys.iter().filter(|((_, key), _)| !is_of_batch(key)) {
        let told = by_key.get(&**key).with_context(|| format!("nobody sent {key}"))?;
        ensure!(
            told.iter().any(|one| !one.is_refused()),
            "{key} is recorded, and whoever sent it was told that it is not: {told:?}"
        );
        history
            .was_decided(key, remembered, told)
            .with_context(|| format!("{key} is remembered as {remembered:?}, sent as {told:?}"))?;
        event_count += remembered.receipt.event_count as usize;
    }
    ensure!(
        event_count == model.events.len(),
        "there are events of commands that are not remembered"
    );
    for one in told {
        let remembered = model.keys.get(&(TENANT, Arc::clone(&one.sent.key)));
        is_true(one, remembered, &history).with_context(|| format!("{one:?}"))?;
    }
    Ok(digest(&model.events))
}

/// A batch is remembered as a whole, with its own key; of one that is all or nothing its refusals may be remembered alone.
fn stands_together(model: &Model, batch: &Batch) -> anyhow::Result<()> {
    let keys = batch.items.iter().map(|item| (TENANT, Arc::clone(&item.key)));
    let remembered: Vec<_> = keys.filter_map(|key| model.keys.get(&key)).collect();
    let refused = remembered
        .iter()
        .filter(|one| one.receipt.rejection.is_some())
        .count();
    let own = model.keys.contains_key(&(TENANT, Arc::clone(&batch.key)));
    ensure!(own != remembered.is_empty(), "its key is remembered: {own}");
    let (all, is_whole) = (batch.items.len(), remembered.len() == batch.items.len());
    match batch.together {
        Together::AllOrNothing => ensure!(
            (is_whole && refused == 0) || remembered.len() == refused,
            "{} of {all} are remembered, {refused} of them refused",
            remembered.len()
        ),
        Together::EachByItself => ensure!(is_whole, "{} of {all} are remembered", remembered.len()),
    }
    Ok(())
}

/// Everything that was ever true.
struct History<'a> {
    streams: HashMap<&'a str, Vec<Moment>>,
    by_key: HashMap<String, Vec<&'a RecordedEvent>>,
}

/// A stream after one of its events: the position of that and the state that it led to.
struct Moment {
    position: u64,
    state: order::State,
}

impl<'a> History<'a> {
    fn of(events: &'a [RecordedEvent]) -> anyhow::Result<Self> {
        let mut streams = HashMap::<&str, Vec<Moment>>::new();
        let mut by_key = HashMap::<String, Vec<&RecordedEvent>>::new();
        for recorded in events {
            let event =
                order::Event::decode(&recorded.event_type, recorded.schema_version, &recorded.payload)?;
            let stream = streams.entry(&recorded.stream_id).or_default();
            let before = stream
                .last()
                .map_or_else(order::State::default, |moment| moment.state.clone());
            stream.push(Moment {
                position: recorded.position,
                state: before.evolve(&event),
            });
            let key = recorded.decoded_metadata().idempotency_key;
            by_key.entry(key).or_default().push(recorded);
        }
        Ok(Self { streams, by_key })
    }

    fn stream(&self, stream_id: &str) -> &[Moment] {
        self.streams.get(stream_id).map_or(&[], Vec::as_slice)
    }

    /// The version that a stream had when this was the newest position.
    fn version_at(&self, stream_id: &str, head: u64) -> u64 {
        let stream = self.stream(stream_id);
        stream.partition_point(|moment| moment.position <= head) as u64
    }

    /// What is remembered of a command is in the log, once, and is what the domain makes of it.
    fn was_decided(&self, key: &str, remembered: &Remembered, told: &[&Told]) -> anyhow::Result<()> {
        let receipt = &remembered.receipt;
        let events = self.by_key.get(key).map_or(&[][..], Vec::as_slice);
        let first_version = receipt.stream_version + 1 - u64::from(receipt.event_count);
        let places = events
            .iter()
            .map(|event| (&*event.stream_id, event.stream_version, event.position));
        let claimed = (0..u64::from(receipt.event_count)).map(|index| {
            (
                &*receipt.stream_id,
                first_version + index,
                receipt.first_position + index,
            )
        });
        ensure!(places.eq(claimed), "its events are {events:?}");
        let version = first_version - 1;
        let before = self.stream(&receipt.stream_id).get(..usize::try_from(version)?);
        let before = before
            .context("it was decided on events that are not there")?
            .last();
        ensure!(
            receipt.event_count > 0 || receipt.first_position == before.map_or(0, |moment| moment.position),
            "it was decided on another position"
        );
        let state = before.map(|moment| moment.state.clone()).unwrap_or_default();
        let decides = |sent: &Sent| {
            let is_expected = sent.expected_version.is_none_or(|expected| expected == version);
            is_expected && leads_to(&state, sent, receipt.rejection.as_deref(), events)
        };
        ensure!(
            told.iter().any(|one| decides(&one.sent)),
            "the domain decides something else"
        );
        Ok(())
    }
}

/// Whether the domain makes this of a command: a refusal, or events.
fn leads_to(state: &order::State, sent: &Sent, rejection: Option<&str>, events: &[&RecordedEvent]) -> bool {
    match state.decide(sent.command.clone()) {
        Ok(decided) => {
            let recorded = events
                .iter()
                .map(|event| (event.event_type.as_str(), event.payload.as_str()));
            let decided: Vec<_> = decided
                .iter()
                .map(|event| (event.event_type(), event.encode()))
                .collect();
            let decided = decided.iter().map(|(name, payload)| (*name, payload.as_str()));
            rejection.is_none() && recorded.eq(decided)
        }
        Err(refused) => {
            let refused = serde_json::to_string(&refused).expect("a rejection is plain");
            events.is_empty() && rejection == Some(&*refused)
        }
    }
}

/// A receipt is the one that is remembered; a refusal that no key remembers was right at a moment between the call and
/// the answer.
fn is_true(told: &Told, remembered: Option<&Remembered>, history: &History<'_>) -> anyhow::Result<()> {
    let sent = &told.sent;
    let version_at = |head| history.version_at(&sent.order.to_string(), head);
    match &told.answer {
        Some(Ok(outcome)) => ensure!(
            remembered.is_some_and(|remembered| remembered.receipt == outcome.receipt),
            "another receipt is remembered: {remembered:?}"
        ),
        Some(Err(HandleError::VersionConflict { expected, actual })) => ensure!(
            Some(*expected) == sent.expected_version
                && expected != actual
                && (version_at(*told.head.start())..=version_at(*told.head.end())).contains(actual),
            "it was another version"
        ),
        Some(Err(HandleError::NotFound)) => {
            ensure!(version_at(*told.head.start()) == 0, "it was there");
        }
        Some(Err(HandleError::KeyReused)) => ensure!(
            remembered.is_some_and(|remembered| remembered.fingerprint != sent.fingerprint()),
            "it was the same content"
        ),
        Some(Err(HandleError::NoPartition | HandleError::Panicked(_))) => bail!("that must never happen"),
        Some(Err(
            HandleError::NotAdmitted(_)
            | HandleError::Contended
            | HandleError::Load(_)
            | HandleError::Unanswered(_),
        ))
        | None => {}
    }
    Ok(())
}

fn digest(events: &[RecordedEvent]) -> Digest {
    let mut hash = DefaultHasher::new();
    for event in events {
        (&event.stream_id, &event.metadata, &event.payload).hash(&mut hash);
    }
    hash.finish()
}
