//! What the command service needs to know of an aggregate; the rules themselves are in the domain.

use daybook_event_store::RecordedEvent;

/// An aggregate of the domain, as the mailboxes drive it. Each implementation forwards to one module of the domain.
pub trait Aggregate: Send + Sync + 'static {
    /// The category of its streams ("order").
    const CATEGORY: &'static str;

    /// What the rules look at; the default is an aggregate without events.
    type State: Default + Send + Sync + 'static;
    /// What may be asked of it.
    type Command: Clone + Send + Sync + 'static;
    /// What happens to it.
    type Event: Send + 'static;
    /// Why a command is refused.
    type Rejection: Send + 'static;

    /// What a command makes happen.
    fn decide(state: &Self::State, command: Self::Command) -> Result<Vec<Self::Event>, Self::Rejection>;

    /// The state after one more event.
    fn evolve(state: Self::State, event: &Self::Event) -> Self::State;

    /// An event as it is stored: its type, the version of its schema and its payload.
    fn encode(event: &Self::Event) -> (&'static str, u32, String);

    /// A stored event of any schema version.
    fn decode(event: &RecordedEvent) -> Result<Self::Event, daybook_domain::event::DecodeError>;

    /// Whether the command is meant for an aggregate that has no events yet. Its state is then not looked for: the
    /// append finds out.
    fn opens(command: &Self::Command) -> bool;

    /// The refusal as it is remembered with the idempotency key; `None` for "there is no such aggregate", which is not
    /// a rule and may be true no longer when the key comes again.
    fn remember(rejection: &Self::Rejection) -> Option<String>;
}
