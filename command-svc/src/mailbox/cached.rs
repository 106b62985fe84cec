//! The state of an aggregate in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use daybook_domain::aggregate::Aggregate;
use daybook_domain::event::Event as _;
use daybook_domain::rejection::Rejection as _;
use daybook_event_store::{Decision, NewEvent};
use uuid::Uuid;

use super::Envelope;

/// Event ids that a cached state keeps while commands are in flight: more than can be. An idle one keeps the newest.
const RECENT_EVENTS_MAX: usize = 65_536;

/// After how many events of a stream a state of it is kept anew, from which the next load goes on.
const BASE_EVERY_EVENTS: u64 = 1_000;

/// The cached state: everything that was recorded when it was loaded, and everything that was decided since.
#[derive(Clone)]
pub(super) struct Cached<A> {
    aggregate: A,
    version: u64,
    /// The newest events in it, the newest last; none of an aggregate without events.
    recent: VecDeque<Uuid>,
}

impl<A: Aggregate> Cached<A> {
    /// An aggregate without events.
    pub(super) fn new() -> Self {
        Self {
            aggregate: A::default(),
            version: 0,
            recent: VecDeque::new(),
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn newest(&self) -> Option<Uuid> {
        self.recent.back().copied()
    }

    #[cfg(test)]
    pub(super) fn aggregate(&self) -> &A {
        &self.aggregate
    }

    pub(super) fn apply(&mut self, event: &A::Event, event_id: Uuid) {
        self.aggregate = std::mem::take(&mut self.aggregate).evolve(event);
        self.version += 1;
        if self.recent.len() == RECENT_EVENTS_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(event_id);
    }

    /// Remembers the newest event alone: whatever is answered to a question that is asked after this names it or a later
    /// one.
    pub(super) fn forget_older(&mut self) {
        self.recent = self.newest().into_iter().collect();
    }

    /// Whether an event is in this state, in flight or recorded. It may say no of one that is long past.
    pub(super) fn has(&self, event_id: Option<Uuid>) -> bool {
        event_id.is_none_or(|id| self.recent.iter().rev().any(|recent| *recent == id))
    }

    /// The state as one that a load goes on from: with its newest event alone.
    fn base(&self) -> Self {
        Self {
            aggregate: self.aggregate.clone(),
            version: self.version,
            recent: self.newest().into_iter().collect(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.aggregate.heap_bytes() + self.recent.capacity() * size_of::<Uuid>()
    }

    /// Decides a command, and takes its events into the state; `None` where there is no such aggregate, which is not a
    /// rule and may be true no longer when the key comes again.
    pub(super) fn decide(&mut self, envelope: &Envelope<A::Command>) -> Option<Decision> {
        let mut decision = Decision {
            decided_on: self.newest(),
            metadata: Arc::clone(&envelope.metadata),
            events: Vec::new(),
            rejection: None,
        };
        match self.aggregate.decide(envelope.command.clone()) {
            Ok(events) => {
                for event in &events {
                    let new = NewEvent {
                        event_id: Uuid::from_u128(rand::random()),
                        event_type: event.event_type(),
                        schema_version: event.schema_version(),
                        payload: event.encode(),
                    };
                    self.apply(event, new.event_id);
                    decision.events.push(new);
                }
            }
            Err(rejection) if rejection.is_not_found() => return None,
            Err(rejection) => {
                let remembered = serde_json::to_string(&rejection);
                decision.rejection = Some(remembered.expect("a rejection has string keys and plain values"));
            }
        }
        Some(decision)
    }
}

/// Earlier states of a long stream. A conflict drops the cached state; the load after it goes on from the newest of these
/// that is recorded, instead of reading the whole stream again.
pub(super) struct Bases<A> {
    /// All of its events are recorded.
    confirmed: Option<Cached<A>>,
    /// It was decided, and its newest event is not yet known to be recorded.
    next: Option<Cached<A>>,
}

impl<A> Default for Bases<A> {
    fn default() -> Self {
        Self {
            confirmed: None,
            next: None,
        }
    }
}

impl<A: Aggregate> Bases<A> {
    /// After a load.
    pub(super) fn loaded(cached: &Cached<A>) -> Self {
        Self {
            confirmed: (cached.version() >= BASE_EVERY_EVENTS).then(|| cached.base()),
            next: None,
        }
    }

    /// What a load goes on from.
    pub(super) fn confirmed(&self) -> Option<Cached<A>> {
        self.confirmed.clone()
    }

    /// Something was decided, and is in this state.
    pub(super) fn decided(&mut self, cached: &Cached<A>) {
        let confirmed = self.confirmed.as_ref().map_or(0, Cached::version);
        if self.next.is_none() && cached.version() >= confirmed + BASE_EVERY_EVENTS {
            self.next = Some(cached.base());
        }
    }

    /// What was decided is recorded up to this version.
    pub(super) fn recorded(&mut self, version: u64) {
        if self.next.as_ref().is_some_and(|next| next.version() <= version) {
            self.confirmed = self.next.take();
        }
    }

    /// The state that was decided on turned out to be wrong.
    pub(super) fn dropped(&mut self) {
        self.next = None;
    }

    pub(super) fn bytes(&self) -> usize {
        let both = [&self.confirmed, &self.next];
        both.into_iter().flatten().map(Cached::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use daybook_domain::stock::State;

    use super::*;

    fn state(version: u64) -> Cached<State> {
        Cached {
            version,
            recent: [Uuid::from_u128(version.into())].into(),
            ..Cached::new()
        }
    }

    fn confirmed(bases: &Bases<State>) -> Option<u64> {
        bases.confirmed().map(|base| base.version())
    }

    #[test]
    fn a_state_is_kept_every_thousand_events_and_only_once_it_is_recorded() {
        let mut bases = Bases::loaded(&state(7));
        bases.decided(&state(999));
        bases.recorded(999);
        assert_eq!(confirmed(&bases), None);
        bases.decided(&state(1_000));
        bases.decided(&state(1_500));
        bases.recorded(999);
        assert_eq!(confirmed(&bases), None);
        bases.recorded(1_000);
        assert_eq!(confirmed(&bases), Some(1_000));
        bases.decided(&state(1_999));
        bases.recorded(2_100);
        assert_eq!(confirmed(&bases), Some(1_000));
    }

    #[test]
    fn what_was_decided_on_a_state_that_is_dropped_is_never_gone_on_from() {
        let mut bases = Bases::loaded(&state(3_000));
        bases.decided(&state(4_000));
        bases.dropped();
        bases.recorded(5_000);
        assert_eq!(confirmed(&bases), Some(3_000));
    }
}
