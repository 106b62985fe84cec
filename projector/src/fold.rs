//! Rows in memory, and events folded over them. Pure: what has to be loaded before and stored after is data.
//!
//! Between batches rows are kept, so that a row that is touched again need not be loaded again. That is safe because a
//! generation of tables has one writer: whoever else advanced the checkpoint would make the next advance fail, and with
//! it everything that was kept is dropped.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use daybook_read_model::{Categories, DecodeError, Event, FoldError, Loaded, ReadModel};
use thiserror::Error;

use crate::batch::Decoded;

/// What part of the memory of all rows those may take that a batch loads, and those that it touches: while they are stored they
/// are there as rows, encoded, as a statement's parameters, and on their way to the server.
const PART_OF_BATCH: usize = 8;

/// What part those may take that are kept.
const PART_KEPT: usize = 2;

/// An event that a projection cannot take.
#[derive(Debug, Error)]
#[error("the event at position {position} cannot be applied")]
pub struct Poison {
    /// Its position.
    pub position: u64,
    /// Why it cannot be applied.
    #[source]
    pub reason: Reason,
}

/// Why an event cannot be applied.
#[derive(Debug, Error)]
pub enum Reason {
    /// It cannot be read.
    #[error("it cannot be decoded")]
    Decode(#[source] Arc<DecodeError>),
    /// It contradicts the rows.
    #[error("the fold rejects it")]
    Fold(#[source] FoldError),
    /// The database does not take what was made of it.
    #[error("its rows cannot be stored")]
    Store(#[source] sqlx::Error),
}

/// The rows that a batch touches, and those that are kept from the batches before.
#[derive(Debug)]
pub(crate) struct Rows<M: ReadModel> {
    touched: HashMap<M::Key, Touched<M::Row>>,
    kept: HashMap<M::Key, M::Row>,
    kept_bytes: usize,
    /// How many bytes all of them may take, and what is made of them while they are stored.
    bytes_max: usize,
    /// Whether `kept` has every row of the table, so that a row that is not in it does not exist.
    is_whole: bool,
}

/// What has to be loaded before events can be folded.
#[derive(Debug)]
pub(crate) struct Missing<K> {
    /// The keys of the rows, in the order in which the events need them.
    pub(crate) keys: Vec<K>,
    /// For each key the number of events that can be folded without its row.
    pub(crate) events_before: Vec<usize>,
    /// The number of events that can be folded with all of them. More would touch too much that is kept.
    pub(crate) events: usize,
}

/// A row in the course of a batch; `None` where there is none.
#[derive(Debug)]
struct Touched<R> {
    row: Option<R>,
    /// Whether the table has it.
    is_stored: bool,
    has_changed: bool,
}

impl<R> Touched<R> {
    fn before(row: Option<R>) -> Self {
        Self {
            is_stored: row.is_some(),
            row,
            has_changed: false,
        }
    }
}

/// A batch's changes of the table. Rows come in the order of their keys, which is that of the table's index.
#[derive(Debug)]
pub(crate) struct Changes<'a, M: ReadModel> {
    /// Rows of keys that have none in the table.
    pub(crate) new: Vec<&'a M::Row>,
    /// Rows of keys that have one, or of a model that replaces its rows.
    pub(crate) changed: Vec<&'a M::Row>,
}

impl<M: ReadModel> Changes<'_, M> {
    /// Whether no row changes.
    pub(crate) fn is_empty(&self) -> bool {
        self.new.is_empty() && self.changed.is_empty()
    }

    /// Whether one statement can make all the changes and advance the checkpoint.
    pub(crate) fn fit_one_statement(&self) -> bool {
        self.new.is_empty() || self.changed.is_empty()
    }
}

impl<M: ReadModel> Rows<M> {
    /// Takes about so many bytes, with what is made of rows while they are stored. `is_whole` says that the table is empty so far.
    pub(crate) fn new(bytes_max: usize, is_whole: bool) -> Self {
        Self {
            touched: HashMap::new(),
            kept: HashMap::new(),
            kept_bytes: 0,
            bytes_max,
            is_whole,
        }
    }

    /// How many bytes of rows a batch may load, and touch.
    pub(crate) fn batch_bytes_max(&self) -> usize {
        self.bytes_max / PART_OF_BATCH
    }

    /// What has to be loaded before these events can be folded, and how many of them can be folded at once. Rows that are opened
    /// are about as large as the events that open them, and those are bounded.
    pub(crate) fn missing(&self, events: &[&Decoded]) -> Missing<M::Key> {
        let mut missing = Missing {
            keys: Vec::new(),
            events_before: Vec::new(),
            events: events.len(),
        };
        if self.is_whole && self.kept_bytes <= self.batch_bytes_max() {
            return missing;
        }
        let (mut seen, mut bytes) = (HashSet::new(), 0);
        for (number, decoded) in events.iter().enumerate() {
            if !decoded.concerns::<M>() {
                continue;
            }
            if bytes >= self.batch_bytes_max() && number > 0 {
                missing.events = number;
                break;
            }
            let is_first = M::opens(&decoded.event);
            for key in M::keys(&decoded.event) {
                if seen.contains(&key) {
                    continue;
                }
                if let Some(row) = self.kept.get(&key) {
                    bytes += M::size_bytes(row);
                } else if !is_first && !self.is_whole {
                    missing.keys.push(key.clone());
                    missing.events_before.push(number);
                }
                seen.insert(key);
            }
        }
        missing
    }

    /// Takes what was loaded for keys that were missing.
    pub(crate) fn put_loaded(&mut self, missing: &[M::Key], mut loaded: Loaded<M::Key, M::Row>) {
        let looked_up = missing.iter().take(loaded.keys);
        let found = looked_up.map(|key| (key.clone(), Touched::before(loaded.rows.remove(key))));
        self.touched.extend(found);
    }

    /// Folds events in order. After an error the rows are good for nothing but [`Self::forget`].
    pub(crate) fn fold(&mut self, events: &[&Decoded]) -> Result<(), Poison> {
        for decoded in events.iter().filter(|decoded| decoded.concerns::<M>()) {
            let folded = match (&decoded.event.body, M::CATEGORIES) {
                (Err(error), Categories::Named(_)) => Err(Reason::Decode(Arc::clone(error))),
                _ => self.fold_one(&decoded.event).map_err(Reason::Fold),
            };
            folded.map_err(|reason| Poison {
                position: decoded.position,
                reason,
            })?;
        }
        Ok(())
    }

    fn fold_one(&mut self, event: &Event) -> Result<(), FoldError> {
        for key in M::keys(event) {
            let entry = match self.touched.entry(key) {
                Entry::Occupied(entry) => entry,
                Entry::Vacant(entry) => {
                    let row = self.kept.remove(entry.key());
                    self.kept_bytes -= row.as_ref().map_or(0, M::size_bytes);
                    entry.insert_entry(Touched::before(row))
                }
            };
            if let Some(row) = M::fold(entry.key(), entry.get().row.as_ref(), event)? {
                let touched = entry.into_mut();
                touched.row = Some(row);
                touched.has_changed = true;
            }
        }
        Ok(())
    }

    /// The changes to store.
    pub(crate) fn changes(&self) -> Changes<'_, M> {
        let mut touched: Vec<_> = self
            .touched
            .iter()
            .filter(|(_, touched)| touched.has_changed)
            .filter_map(|(key, touched)| Some((key, touched.row.as_ref()?, touched.is_stored)))
            .collect();
        touched.sort_unstable_by_key(|(key, ..)| *key);
        let mut changes = Changes {
            new: Vec::new(),
            changed: Vec::new(),
        };
        for (_, row, is_stored) in touched {
            // Replacing a row that is not there is no harm, and then one statement does for all.
            if is_stored || !M::REPLACE.is_empty() {
                changes.changed.push(row);
            } else {
                changes.new.push(row);
            }
        }
        changes
    }

    /// The batch is committed: its rows are kept for the next one.
    pub(crate) fn keep(&mut self) {
        for (key, touched) in self.touched.drain() {
            if let Some(row) = touched.row.filter(|_| M::ROWS_CHANGE) {
                self.kept_bytes += M::size_bytes(&row);
                self.kept.insert(key, row);
            }
        }
        if self.kept_bytes > self.bytes_max / PART_KEPT {
            self.forget();
        }
    }

    /// The batch is not committed: nothing that is in memory is certain any more.
    pub(crate) fn forget(&mut self) {
        self.touched.clear();
        self.kept.clear();
        self.kept_bytes = 0;
        self.is_whole = false;
    }
}

#[cfg(test)]
mod tests {
    use daybook_event_bus::consume::Source;
    use daybook_event_store::RecordedEvent;
    use daybook_read_model::OrderDetails;
    use serde_json::json;
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    const MIB: usize = 1_024 * 1_024;

    /// An order of many lines is placed.
    fn placed(position: u64) -> Decoded {
        let line =
            |number| json!({"line_number": number, "sku": "PEN", "quantity": 1, "unit_price_minor": 1});
        let lines: Vec<_> = (1..=500).map(line).collect();
        let payload = json!({
            "order_id": "ord_01h455vb4pex5vsknk084sn02q", "customer_id": "c1", "currency": "EUR", "lines": lines,
            "total_minor": 500, "item_count": 500,
        });
        let recorded = RecordedEvent {
            partition: 0,
            position,
            tenant_id: Uuid::nil(),
            category: "order".to_owned(),
            stream_id: format!("order {position}"),
            stream_version: 1,
            event_id: Uuid::nil(),
            event_type: "order.placed".to_owned(),
            schema_version: 2,
            payload: payload.to_string(),
            metadata: "{}".into(),
            recorded_at: OffsetDateTime::UNIX_EPOCH,
        };
        Decoded::new(&recorded, Source::Log)
    }

    #[test]
    fn rows_are_kept_within_their_part_of_memory_however_large_each_is() {
        let mut rows = Rows::<OrderDetails>::new(MIB, true);
        let mut kept_max = 0;
        for position in 1..=100 {
            rows.fold(&[&placed(position)]).expect("an order");
            rows.keep();
            let bytes: usize = rows.kept.values().map(OrderDetails::size_bytes).sum();
            assert_eq!(bytes, rows.kept_bytes);
            kept_max = kept_max.max(bytes);
        }
        assert!((MIB / 4..=MIB / 2).contains(&kept_max), "{kept_max}");
    }

    #[test]
    fn a_batch_takes_no_more_of_the_rows_that_are_kept_than_can_be_stored_at_once() {
        let mut rows = Rows::<OrderDetails>::new(8 * MIB, true);
        let events: Vec<_> = (1..=40).map(placed).collect();
        let events: Vec<_> = events.iter().collect();
        assert_eq!(
            rows.missing(&events).events,
            40,
            "what is opened is bounded by its event"
        );
        rows.fold(&events).expect("orders");
        rows.keep();
        let again = rows.missing(&events);
        assert!(
            again.keys.is_empty() && (10..20).contains(&again.events),
            "{again:?}"
        );
    }
}
