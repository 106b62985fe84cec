//! Rows of the list of orders, driven from the log: what events changed is read as it is now.
//!
//! A row is shown in the place of the last event of its order that was read. So whoever resumes behind a row misses none
//! that changed later, and may see a row again that was newer than its place.

use std::collections::HashMap;
use std::sync::Arc;

use daybook_event_store::{EpochId, RecordedEvent};
use daybook_read_model::order_list::Row;
use daybook_read_model::{OrderList, ReadModel as _};

use super::buffer::{Delivery, Shown};
use super::place::Place;

/// The orders of one tenant that events changed, each with the position of the last of them.
#[derive(Debug, Default)]
pub(super) struct Changed(HashMap<String, u64>);

impl Changed {
    /// The orders that events changed.
    pub(super) fn by(events: &[RecordedEvent]) -> Self {
        let mut changed = Self::default();
        events.iter().for_each(|event| changed.note(event));
        changed
    }

    /// Notes what an event changed, which comes after those before it.
    pub(super) fn note(&mut self, event: &RecordedEvent) {
        if OrderList::CATEGORIES.include(Some(&event.category)) {
            self.0.insert(event.stream_id.clone(), event.position);
        }
    }

    /// Whose rows to read.
    pub(super) fn order_ids(&self) -> Arc<[String]> {
        self.0.keys().cloned().collect()
    }

    /// The rows as they are shown, in the order of their changes.
    pub(super) fn deliveries(&self, epoch: EpochId, rows: Vec<Row>) -> Vec<Arc<Delivery>> {
        let mut placed: Vec<_> = rows
            .into_iter()
            .filter_map(|row| Some((*self.0.get(&row.order_id)?, row)))
            .collect();
        placed.sort_unstable_by_key(|(position, _)| *position);
        let shown = placed
            .into_iter()
            .map(|(position, row)| Delivery::new(Place { epoch, position }, Shown::Order(row)));
        shown.collect()
    }
}
