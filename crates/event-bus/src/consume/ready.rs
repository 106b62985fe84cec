//! Events that are ready to be handed out.

use std::collections::VecDeque;

use daybook_event_store::RecordedEvent;

use super::Source;

/// Events with consecutive positions, the oldest first.
#[derive(Debug)]
pub(super) struct Ready {
    events: VecDeque<RecordedEvent>,
    bytes: usize,
    source: Source,
}

impl Ready {
    pub(super) fn new() -> Self {
        Self {
            events: VecDeque::new(),
            bytes: 0,
            source: Source::Log,
        }
    }

    pub(super) fn push(&mut self, event: RecordedEvent, source: Source) {
        if self.events.is_empty() || source == Source::Bus {
            self.source = source;
        }
        self.bytes += event.size_bytes();
        self.events.push_back(event);
    }

    /// The oldest events, at most `events_max` but at least one, and where they came from; `None` when there are none.
    pub(super) fn take(&mut self, events_max: usize) -> Option<(Vec<RecordedEvent>, Source)> {
        let count = self.events.len().min(events_max.max(1));
        let events: Vec<_> = self.events.drain(..count).collect();
        self.bytes -= events.iter().map(RecordedEvent::size_bytes).sum::<usize>();
        (!events.is_empty()).then_some((events, self.source))
    }

    pub(super) fn has_room(&self, events_max: usize, bytes_max: usize) -> bool {
        self.events.len() < events_max && self.bytes < bytes_max
    }
}
