//! Rows of the list of orders, driven from the log: what events changed is read as it is now.
//!
//! A row is shown in the place of the last event of its order that was read. So whoever resumes behind a row misses none
//! that changed later, and may see a row again that was newer than its place.

use std::collections::HashMap;
use std::sync::Arc;

use daybook_event_store::{EpochId, Lineage, RecordedEvent};
use daybook_read_model::checkpoint::LiveCheckpoint;
use daybook_read_model::order_list::Row;
use daybook_read_model::{OrderList, ReadModel as _};

use super::buffer::{Delivery, Shown};
use super::place::Place;
use super::room::Room;

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
    pub(super) fn order_ids(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// The rows as they are shown, in the order of their changes.
    pub(super) fn deliveries(&self, room: &Room, epoch: EpochId, rows: Vec<Row>) -> Vec<Arc<Delivery>> {
        let mut placed: Vec<_> = rows
            .into_iter()
            .filter_map(|row| Some((*self.0.get(&row.order_id)?, row)))
            .collect();
        placed.sort_unstable_by_key(|(position, _)| *position);
        let shown = placed
            .into_iter()
            .map(|(position, row)| Delivery::new(room, Place { epoch, position }, Shown::Order(row)));
        shown.collect()
    }
}

/// How far the list has come in a log with these epochs; `None` where its tables are of another history.
pub(super) fn position_in(lineage: &Lineage, checkpoint: Option<&LiveCheckpoint>) -> Option<u64> {
    let checkpoint = checkpoint.filter(|found| lineage.has(found.log_generation, found.position))?;
    Some(checkpoint.position)
}

#[cfg(test)]
mod tests {
    use daybook_event_store::Epoch;
    use daybook_read_model::Generation;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn tables_that_hold_what_the_log_has_not_have_come_nowhere() {
        let [log, restored] = [1, 2].map(Uuid::from_u128);
        let epochs = [(1, log, 1), (2, restored, 105)];
        let lineage = Lineage::from_iter(epochs.map(|(number, generation, from_position)| Epoch {
            number,
            generation,
            from_position,
        }));
        for (log_generation, position, expected) in [
            (log, 104, Some(104)),
            (log, 105, None),
            (restored, 120, Some(120)),
            (Uuid::from_u128(3), 7, None),
        ] {
            let checkpoint = LiveCheckpoint {
                projection: OrderList::NAME.to_owned(),
                partition: 0,
                position,
                log_generation,
                generation: Generation::FIRST,
            };
            assert_eq!(position_in(&lineage, Some(&checkpoint)), expected, "{position}");
        }
        assert_eq!(position_in(&lineage, None), None);
    }
}
