//! Rows in memory, and events folded over them. Pure: what has to be loaded before and stored after is data.
//!
//! Between batches rows are kept, so that a row that is touched again need not be loaded again. That is safe because a
//! generation of tables has one writer: whoever else advanced the checkpoint would make the next advance fail, and with
//! it everything that was kept is dropped.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use daybook_read_model::{Categories, DecodeError, Event, FoldError, ReadModel};
use thiserror::Error;

use crate::batch::Decoded;

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
    kept_max: usize,
    /// Whether `kept` has every row of the table, so that a row that is not in it does not exist.
    is_whole: bool,
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
    /// Keeps up to `kept_max` rows. `is_whole` says that the table is empty so far.
    pub(crate) fn new(kept_max: usize, is_whole: bool) -> Self {
        Self {
            touched: HashMap::new(),
            kept: HashMap::new(),
            kept_max,
            is_whole,
        }
    }

    /// The keys whose rows have to be loaded before these events can be folded.
    pub(crate) fn missing(&self, events: &[&Decoded]) -> Vec<M::Key> {
        if self.is_whole {
            return Vec::new();
        }
        let mut known = HashSet::new();
        let mut missing = HashSet::new();
        let concerning = events.iter().filter(|decoded| decoded.concerns::<M>());
        for event in concerning.map(|decoded| &decoded.event) {
            let is_first = M::opens(event);
            for key in M::keys(event) {
                if is_first {
                    known.insert(key);
                } else if !known.contains(&key) && !self.has(&key) {
                    missing.insert(key);
                }
            }
        }
        missing.into_iter().collect()
    }

    fn has(&self, key: &M::Key) -> bool {
        self.touched.contains_key(key) || self.kept.contains_key(key)
    }

    /// Takes what was loaded for the keys that were missing.
    pub(crate) fn put_loaded(&mut self, missing: Vec<M::Key>, mut loaded: HashMap<M::Key, M::Row>) {
        let found = missing.into_iter().map(|key| {
            let row = loaded.remove(&key);
            (key, Touched::before(row))
        });
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
        let rows = self
            .touched
            .drain()
            .filter_map(|(key, touched)| Some((key, touched.row?)));
        self.kept.extend(rows.filter(|_| M::ROWS_CHANGE));
        if self.kept.len() > self.kept_max {
            self.kept.clear();
            self.is_whole = false;
        }
    }

    /// The batch is not committed: nothing that is in memory is certain any more.
    pub(crate) fn forget(&mut self) {
        self.touched.clear();
        self.kept.clear();
        self.is_whole = false;
    }
}
