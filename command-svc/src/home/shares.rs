//! Places that all tenants share.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use daybook_service::shares::half_of_the_rest;
use uuid::Uuid;

/// So many places, of which a tenant has at most half of what all others leave free.
pub(super) struct Shares {
    places: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_tenant: HashMap<Uuid, usize>,
}

/// A tenant's place, given back when it is dropped.
pub(super) struct Place<'a> {
    shares: &'a Shares,
    tenant_id: Uuid,
}

impl Shares {
    pub(super) fn new(places: usize) -> Self {
        Self {
            places,
            taken: Mutex::default(),
        }
    }

    /// Takes a place, if there is one for the tenant.
    pub(super) fn take(&self, tenant_id: Uuid) -> Option<Place<'_>> {
        let mut taken = self.taken();
        let of_tenant = taken.by_tenant.get(&tenant_id).copied().unwrap_or_default();
        if of_tenant >= half_of_the_rest(self.places, taken.all - of_tenant) {
            return None;
        }
        taken.all += 1;
        taken.by_tenant.insert(tenant_id, of_tenant + 1);
        Some(Place {
            shares: self,
            tenant_id,
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        taken.all -= 1;
        let of_tenant = taken.by_tenant.remove(&self.tenant_id);
        let left = of_tenant.expect("a place is counted") - 1;
        if left > 0 {
            taken.by_tenant.insert(self.tenant_id, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes all places that a tenant gets.
    fn take_all(shares: &Shares, tenant: u128) -> Vec<Place<'_>> {
        std::iter::from_fn(|| shares.take(Uuid::from_u128(tenant))).collect()
    }

    #[test]
    fn a_tenant_has_at_most_half_of_the_places_that_the_others_leave() {
        let shares = Shares::new(8);
        let first = take_all(&shares, 1);
        let others: Vec<_> = (2..5).map(|tenant| take_all(&shares, tenant)).collect();
        assert_eq!(first.len(), 4);
        assert_eq!(others.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1]);
        assert!(shares.take(Uuid::from_u128(5)).is_none(), "all are taken");
        drop(first);
        assert_eq!(take_all(&shares, 5).len(), 2);
        drop(others);
        assert!(
            shares.taken().by_tenant.is_empty(),
            "nothing is kept of who has no place"
        );
    }
}
