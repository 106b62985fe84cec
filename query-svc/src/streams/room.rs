//! How many bytes streams hold of what their readers have not taken, of all tenants together and of each.
//!
//! An item counts once, however many readers it waits for. Beyond the bounds a buffer takes nothing more beside what waits in it, and
//! a reader that catches up waits until there is room. Each tenant leaves half of the rest to the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use daybook_service::shares::half_of_the_rest;
use uuid::Uuid;

/// Counts bytes. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Room {
    bytes_max: usize,
    tenant_bytes_max: usize,
    held: Arc<Mutex<Bytes>>,
}

#[derive(Debug, Default)]
struct Bytes {
    of_all: usize,
    by_tenant: HashMap<Uuid, usize>,
}

/// Bytes of a tenant's, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    room: Room,
    tenant_id: Uuid,
    bytes: usize,
}

impl Room {
    pub(super) fn new(bytes_max: usize, tenant_bytes_max: usize) -> Self {
        Self {
            bytes_max,
            tenant_bytes_max,
            held: Arc::default(),
        }
    }

    /// Counts bytes that are there, whatever the bounds say.
    pub(super) fn hold(&self, tenant_id: Uuid, bytes: usize) -> Held {
        let mut held = self.held();
        held.of_all += bytes;
        *held.by_tenant.entry(tenant_id).or_default() += bytes;
        drop(held);
        Held {
            room: self.clone(),
            tenant_id,
            bytes,
        }
    }

    /// Whether a tenant may hold so many bytes more.
    pub(super) fn has_room(&self, tenant_id: Uuid, bytes: usize) -> bool {
        let held = self.held();
        let of_tenant = held.by_tenant.get(&tenant_id).copied().unwrap_or_default();
        let share = half_of_the_rest(self.bytes_max, held.of_all - of_tenant);
        of_tenant + bytes <= share.min(self.tenant_bytes_max)
    }

    /// Nothing panics while the lock is held, so what a poisoned one holds is whole.
    fn held(&self) -> MutexGuard<'_, Bytes> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// How many bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the tenant holds no more than it may.
    pub(super) fn is_within_bounds(&self) -> bool {
        self.room.has_room(self.tenant_id, 0)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.room.held();
        held.of_all -= self.bytes;
        let of_tenant = held.by_tenant.remove(&self.tenant_id).unwrap_or_default();
        if of_tenant > self.bytes {
            held.by_tenant.insert(self.tenant_id, of_tenant - self.bytes);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const ANNE: Uuid = Uuid::from_u128(1);
    const BERT: Uuid = Uuid::from_u128(2);

    /// There is always room.
    pub(in crate::streams) fn unbounded() -> Room {
        Room::new(usize::MAX, usize::MAX)
    }

    #[test]
    fn a_tenant_has_its_share_and_leaves_half_of_the_rest_to_the_others() {
        let room = Room::new(100, 40);
        assert!(room.has_room(ANNE, 40) && !room.has_room(ANNE, 41));
        let of_anne = room.hold(ANNE, 50);
        assert!(!of_anne.is_within_bounds());
        assert!(room.has_room(BERT, 25) && !room.has_room(BERT, 26));
        let of_bert = room.hold(BERT, 20);
        assert!(of_bert.is_within_bounds());
        drop(of_anne);
        assert!(room.has_room(ANNE, 40));
        drop(of_bert);
        let held = room.held();
        assert_eq!((held.of_all, held.by_tenant.len()), (0, 0));
    }
}
