//! The trait of aggregates: a state that decides commands into events, and that events change.
//!
//! The state itself implements it. Loading an aggregate is folding its stream over the default:
//! `history.iter().fold(State::default(), State::evolve)`.

use std::fmt::Display;
use std::str::FromStr;

use crate::event::Event;
use crate::rejection::Rejection;

/// An aggregate: the consistency boundary of its rules, with one stream of events. The default is an aggregate
/// without events.
pub trait Aggregate: Clone + Default + Send + Sync + 'static {
    /// The category of its streams, in `snake_case` ("order"). Its event types begin with it.
    const CATEGORY: &'static str;

    /// Many of them, in addresses ("orders").
    const PLURAL: &'static str;

    /// Its id, a TypeID, which names its stream.
    type Id: Display + FromStr<Err: Display> + Send + Sync + 'static;
    /// Its commands.
    type Command: Clone + Send + Sync + 'static;
    /// Its events.
    type Event: Event + Send + Sync + 'static;
    /// Why a command is refused.
    type Rejection: Rejection + Send + 'static;

    /// Decides a command: the events that it leads to.
    ///
    /// # Errors
    /// The rule that refuses the command.
    fn decide(&self, command: Self::Command) -> Result<Vec<Self::Event>, Self::Rejection>;

    /// The state after one more event.
    ///
    /// Total: an event that says something impossible (which the log cannot hold, but a bug could ask for)
    /// changes what it can and never panics.
    #[must_use]
    fn evolve(self, event: &Self::Event) -> Self;

    /// Whether the command is meant for an aggregate that has no events yet.
    fn opens(command: &Self::Command) -> bool;

    /// About how many bytes the state holds on the heap, for caches that are bounded by bytes.
    fn heap_bytes(&self) -> usize;
}

/// About how many bytes a `BTreeMap<K, V>` of this length holds on the heap, apart from what its entries hold
/// themselves: a node has room for 11 entries and, but for the root, at least 5 of them.
pub(crate) fn tree_bytes<K, V>(length: usize) -> usize {
    length.div_ceil(5) * 11 * (size_of::<K>() + size_of::<V>())
}
