//! What waits for the reader of one stream, bounded in items and in bytes.
//!
//! What waits in all buffers of a tenant, and of all tenants, is bounded as well ([`super::room`]). Only the tail puts something in. A
//! reader that is too slow gets what waits, and then the end: nothing behind it was kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use daybook_event_store::{EpochId, RecordedEvent};
use daybook_read_model::order_list;
use tokio::sync::Notify;

use super::place::Place;
use super::room::{Held, Room};
use crate::reads::history::HistoryEvent;

/// How many items may wait.
const ITEMS_MAX: usize = 2_048;

/// What a row takes beside its texts, and an item beside what it shows.
const ITEM_BYTES: usize = 256;

/// What is shown.
#[derive(Clone, Debug)]
pub(crate) enum Shown {
    /// An event.
    Event(HistoryEvent),
    /// An order, as the list shows it now.
    Order(order_list::Row),
}

/// Something to show, shared by all readers who are shown it.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// Everything up to here has been shown when this has.
    pub(crate) place: Place,
    /// What is shown.
    pub(crate) shown: Shown,
    /// The same as JSON, once somebody has made it.
    json: OnceLock<String>,
    held: Held,
}

impl Delivery {
    pub(super) fn new(room: &Room, place: Place, shown: Shown) -> Arc<Self> {
        let (tenant_id, bytes) = match &shown {
            Shown::Event(event) => (event.recorded.tenant_id, event.recorded.size_bytes()),
            Shown::Order(row) => (row.tenant_id, ITEM_BYTES),
        };
        Arc::new(Self {
            place,
            shown,
            json: OnceLock::new(),
            held: room.hold(tenant_id, ITEM_BYTES + bytes),
        })
    }

    /// An event, read in this epoch.
    pub(super) fn of_event(room: &Room, epoch: EpochId, recorded: RecordedEvent) -> Arc<Self> {
        let position = recorded.position;
        let changes = None;
        Self::new(
            room,
            Place { epoch, position },
            Shown::Event(HistoryEvent { recorded, changes }),
        )
    }

    /// What is shown as JSON, which is made once for all readers.
    ///
    /// # Errors
    /// What making it fails with.
    pub(crate) fn json(
        &self,
        make: impl FnOnce(&Shown) -> Result<String, serde_json::Error>,
    ) -> Result<&str, serde_json::Error> {
        match self.json.get() {
            Some(json) => Ok(json),
            None => {
                let json = make(&self.shown)?;
                Ok(self.json.get_or_init(|| json))
            }
        }
    }

    /// About how many bytes of memory it takes, but for the JSON.
    fn size_bytes(&self) -> usize {
        self.held.bytes()
    }
}

/// Why nothing more comes from a tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// More waited than may: what came then is missing.
    Overflow,
    /// The log goes on in another epoch, which may not have all that was handed out.
    Forked,
    /// What came then cannot be read.
    Failed,
    /// The tail has ended.
    Stopped,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Arc<Delivery>>,
    bytes: usize,
    end: Option<End>,
}

/// What waits for one reader.
#[derive(Debug)]
pub(super) struct Buffer {
    state: Mutex<State>,
    bytes_max: usize,
    changed: Notify,
}

/// What was taken out of a buffer.
#[derive(Debug)]
pub(super) enum Taken {
    /// At least one item.
    Some(Vec<Arc<Delivery>>),
    /// Nothing waits now.
    Nothing,
    /// Nothing waits, and nothing more comes.
    End(End),
}

impl Buffer {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            state: Mutex::default(),
            bytes_max,
            changed: Notify::new(),
        }
    }

    /// Nothing panics while the lock is held, so what a poisoned one holds is whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item; one is taken however large it is. Whether it takes more.
    pub(super) fn push(&self, delivery: &Arc<Delivery>) -> bool {
        let mut state = self.state();
        if state.end.is_some() {
            return false;
        }
        let bytes = state.bytes + delivery.size_bytes();
        let is_full =
            state.waiting.len() >= ITEMS_MAX || bytes > self.bytes_max || !delivery.held.is_within_bounds();
        if is_full && !state.waiting.is_empty() {
            state.end = Some(End::Overflow);
        } else {
            state.bytes = bytes;
            state.waiting.push_back(Arc::clone(delivery));
        }
        let takes_more = state.end.is_none();
        drop(state);
        self.changed.notify_one();
        takes_more
    }

    /// Adds nothing more. What waits of a history that is gone is not shown.
    pub(super) fn end(&self, end: End) {
        let mut state = self.state();
        if end == End::Forked {
            state.waiting.clear();
            state.end = Some(end);
        }
        state.end.get_or_insert(end);
        drop(state);
        self.changed.notify_one();
    }

    /// Why nothing more comes; `None` while something may.
    pub(super) fn end_ahead(&self) -> Option<End> {
        self.state().end
    }

    /// Takes items out until they are more than `bytes`.
    pub(super) fn take(&self, bytes: usize) -> Taken {
        let mut state = self.state();
        let (mut taken, mut taken_bytes) = (Vec::new(), 0);
        while taken_bytes <= bytes
            && let Some(delivery) = state.waiting.pop_front()
        {
            taken_bytes += delivery.size_bytes();
            taken.push(delivery);
        }
        state.bytes = state.bytes.saturating_sub(taken_bytes);
        match state.end {
            _ if !taken.is_empty() => Taken::Some(taken),
            Some(end) => Taken::End(end),
            None => Taken::Nothing,
        }
    }

    /// Waits until there is something new.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::super::room::tests::unbounded;
    use super::*;

    /// An event at a position.
    pub(in crate::streams) fn delivery(position: u64, payload_bytes: usize) -> Arc<Delivery> {
        delivery_in(&unbounded(), position, payload_bytes)
    }

    fn delivery_in(room: &Room, position: u64, payload_bytes: usize) -> Arc<Delivery> {
        let recorded = RecordedEvent {
            partition: 0,
            position,
            tenant_id: Uuid::nil(),
            category: "order".to_owned(),
            stream_id: "ord_1".to_owned(),
            stream_version: position,
            event_id: Uuid::from_u128(u128::from(position)),
            event_type: "order.placed".to_owned(),
            schema_version: 1,
            payload: "x".repeat(payload_bytes),
            metadata: "{}".into(),
            recorded_at: OffsetDateTime::UNIX_EPOCH,
        };
        Delivery::of_event(room, EpochId::default(), recorded)
    }

    /// The positions of what is taken, and how it ends.
    fn drain(buffer: &Buffer) -> (Vec<u64>, Option<End>) {
        let mut positions = Vec::new();
        loop {
            match buffer.take(0) {
                Taken::Some(taken) => positions.extend(taken.iter().map(|delivery| delivery.place.position)),
                Taken::Nothing => return (positions, None),
                Taken::End(end) => return (positions, Some(end)),
            }
        }
    }

    #[test]
    fn a_slow_reader_gets_what_waits_and_then_the_end() {
        let buffer = Buffer::new(10_000);
        let taken = (1..).take_while(|position| buffer.push(&delivery(*position, 1_000)));
        let last = taken.last().expect("some fit");
        assert!((2..9).contains(&last), "{last}");
        assert!(!buffer.push(&delivery(100, 0)), "nothing comes behind a gap");
        assert_eq!(drain(&buffer), ((1..=last).collect(), Some(End::Overflow)));
    }

    #[test]
    fn a_reader_that_keeps_up_is_never_cut_off() {
        let buffer = Buffer::new(10_000);
        for position in 1..100 {
            assert!(buffer.push(&delivery(position, 9_000)));
            assert_eq!(drain(&buffer), (vec![position], None));
        }
    }

    #[test]
    fn an_event_that_is_larger_than_the_buffer_is_shown_alone() {
        let buffer = Buffer::new(1_024);
        assert!(buffer.push(&delivery(1, 100_000)));
        assert!(!buffer.push(&delivery(2, 0)));
        assert_eq!(drain(&buffer), (vec![1], Some(End::Overflow)));
    }

    #[test]
    fn where_a_tenant_holds_too_much_slow_readers_are_cut_off_and_others_are_not() {
        let room = Room::new(10_000, 2_000);
        let [slow, quick] = [(); 2].map(|()| Buffer::new(10_000));
        for position in 1..=3 {
            let delivery = delivery_in(&room, position, 800);
            assert_eq!(slow.push(&delivery), position == 1, "{position}");
            assert!(quick.push(&delivery));
            assert_eq!(drain(&quick), (vec![position], None));
        }
        assert_eq!(drain(&slow), (vec![1], Some(End::Overflow)));
    }

    #[test]
    fn what_waits_of_a_history_that_is_gone_is_not_shown() {
        let buffer = Buffer::new(1_024);
        buffer.push(&delivery(1, 0));
        buffer.end(End::Forked);
        assert_eq!(drain(&buffer), (Vec::new(), Some(End::Forked)));
    }
}
