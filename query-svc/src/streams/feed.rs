//! What a stream shows.

use std::collections::BTreeSet;

use daybook_event_store::RecordedEvent;
use daybook_service::identity::{Principal, Scope};
use uuid::Uuid;

use crate::cursor::Question;
use crate::reads::history::Stream;

/// The most types of events that a filter names.
pub(crate) const TYPES_MAX: usize = 50;

/// The longest name of a type, in bytes.
const TYPE_BYTES_MAX: usize = 100;

/// Where what streams show comes from: each is followed by a tail of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// Events, as they are recorded.
    Log,
    /// Rows of the list of orders, as they change.
    OrderList,
}

/// What a stream shows: positions and tickets are good for one of these.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    pub(super) source: Source,
    /// Of this aggregate alone.
    pub(super) stream: Option<Stream>,
    /// Of these types alone; all when there are none.
    types: BTreeSet<String>,
}

impl Feed {
    /// The events of one aggregate, or else of the tenant; of some types, or else of all.
    pub(crate) fn events(stream: Option<Stream>, types: BTreeSet<String>) -> Self {
        Self {
            source: Source::Log,
            stream,
            types,
        }
    }

    /// The rows of the list of orders.
    pub(crate) fn orders() -> Self {
        Self {
            source: Source::OrderList,
            ..Self::events(None, BTreeSet::new())
        }
    }

    /// The scope that it needs.
    pub(crate) fn scope(&self) -> Scope {
        match self.source {
            Source::Log => Scope::EventsRead,
            Source::OrderList => Scope::OrdersRead,
        }
    }

    /// Its name in metrics.
    pub(super) fn name(&self) -> &'static str {
        match (self.source, &self.stream) {
            (Source::Log, Some(_)) => "aggregate",
            (Source::Log, None) => "events",
            (Source::OrderList, _) => "orders",
        }
    }

    /// Whether it shows an event of the tenant; of the aggregate, where it is of one.
    pub(super) fn shows(&self, event: &RecordedEvent) -> bool {
        self.types.is_empty() || self.types.contains(&event.event_type)
    }

    /// What its positions are bound to: the tenant, what is shown, and the ticket that it was opened with.
    pub(super) fn question(&self, caller: &Principal, ticket: Option<Uuid>) -> Question {
        let question = Question::new(caller.tenant_id, "stream")
            .with("feed", self.name())
            .with("stream_id", self.stream.as_ref().map_or("", Stream::id))
            .with("ticket", &ticket.map(|id| id.to_string()).unwrap_or_default());
        let types = self.types.iter();
        types.fold(question, |question, name| question.with("type", name))
    }
}

/// Whether a text can be the type of an event.
///
/// # Errors
/// What it has to be.
pub(crate) fn check_type(text: &str) -> Result<(), &'static str> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    match (1..=TYPE_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain) {
        true => Ok(()),
        false => Err("must be the type of an event, like order.placed"),
    }
}
