//! Consecutive events of one partition, decoded once for every projection that takes them.

use std::time::Instant;

use daybook_event_bus::consume::Source;
use daybook_event_store::{Digest, RecordedEvent};
use daybook_read_model::{Event, ReadModel};
use serde::Deserialize;
use uuid::Uuid;

/// An event, decoded where that is possible: only who has to take it finds fault with one that is not.
#[derive(Debug)]
pub struct Decoded {
    /// Its position in the partition.
    pub position: u64,
    /// Its id.
    pub event_id: Uuid,
    /// Digest of events that came over the bus, which count only when the log holds the same. `None` for events read
    /// from the log.
    pub digest: Option<Digest>,
    /// Its category; `None` for one that this program does not know.
    pub category: Option<&'static str>,
    /// The decoded event.
    pub event: Event,
}

impl Decoded {
    /// Decodes an event.
    pub fn new(recorded: &RecordedEvent, source: Source) -> Self {
        Self {
            position: recorded.position,
            event_id: recorded.event_id,
            digest: (source == Source::Bus).then(|| recorded.digest()),
            category: Event::known_category(recorded),
            event: Event::decode(recorded),
        }
    }

    /// Whether a read model folds events of this category. Where it does not, the event flows past it, whether it can be
    /// decoded or not.
    pub fn concerns<M: ReadModel>(&self) -> bool {
        M::CATEGORIES.include(self.category)
    }
}

/// At least one event; their positions are consecutive.
#[derive(Debug)]
pub struct Batch {
    /// The generation of the log.
    pub log_generation: Uuid,
    /// The events, by position.
    pub events: Vec<Decoded>,
    /// How many bytes they took before they were decoded, which is about what they take now.
    pub bytes: usize,
    /// When the projector had them in its hands.
    pub delivered_at: Instant,
}

impl Batch {
    /// Decodes events that were just read, and lets go of each as soon as it is; `None` when there are none.
    pub fn decode(
        log_generation: Uuid,
        recorded: Vec<RecordedEvent>,
        source: Source,
        delivered_at: Instant,
    ) -> Option<Self> {
        let bytes = recorded.iter().map(RecordedEvent::size_bytes).sum();
        let decoded = recorded.into_iter().map(|event| Decoded::new(&event, source));
        let mut events = Vec::with_capacity(decoded.len());
        events.extend(decoded);
        (!events.is_empty()).then_some(Self {
            log_generation,
            events,
            bytes,
            delivered_at,
        })
    }

    /// The position of the first event.
    pub fn first(&self) -> u64 {
        self.events.first().map_or(0, |event| event.position)
    }

    /// The position of the last event.
    pub fn last(&self) -> u64 {
        self.events.last().map_or(0, |event| event.position)
    }

    /// The events after a position.
    pub fn after(&self, position: u64) -> &[Decoded] {
        let first = self.events.partition_point(|event| event.position <= position);
        &self.events[first..]
    }
}

/// An event's own history, from its metadata.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Origin {
    /// The trace of the request that caused it.
    pub(crate) traceparent: Option<String>,
    /// When the command came in, in microseconds since 1970.
    pub(crate) received_at_us: Option<i64>,
}

impl Origin {
    /// Values that cannot be read are absent.
    pub(crate) fn of(event: &Event) -> Self {
        serde_json::from_str(&event.metadata).unwrap_or_default()
    }
}
