//! How many streams are open, of all tenants together and of each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use daybook_service::ApiError;
use daybook_service::error::RETRY_AFTER_DEFAULT;
use uuid::Uuid;

/// The name of a tenant's share, as its refusal says it.
const QUOTA: &str = "open streams";

/// Counts open streams. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Openings {
    max: usize,
    tenant_max: usize,
    open: Arc<Mutex<HashMap<Uuid, usize>>>,
}

/// An open stream, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Open {
    openings: Openings,
    tenant_id: Uuid,
}

impl Openings {
    pub(super) fn new(max: usize, tenant_max: usize) -> Self {
        let open = Arc::default();
        Self {
            max,
            tenant_max,
            open,
        }
    }

    /// Counts one more.
    ///
    /// # Errors
    /// `OVERLOADED` when as many are open as may be, `RATE_LIMITED` when as many of the tenant's are.
    pub(super) fn open(&self, tenant_id: Uuid) -> Result<Open, ApiError> {
        let mut open = self.counts();
        if open.values().sum::<usize>() >= self.max {
            return Err(ApiError::overloaded("too many streams are open"));
        }
        let of_tenant = open.get(&tenant_id).copied().unwrap_or_default();
        if of_tenant >= self.tenant_max {
            return Err(ApiError::rate_limited(QUOTA, RETRY_AFTER_DEFAULT));
        }
        open.insert(tenant_id, of_tenant + 1);
        Ok(Open {
            openings: self.clone(),
            tenant_id,
        })
    }

    /// Nothing panics while the lock is held, so what a poisoned one holds is whole.
    fn counts(&self) -> MutexGuard<'_, HashMap<Uuid, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = self.openings.counts();
        let of_tenant = open.remove(&self.tenant_id).unwrap_or_default();
        if of_tenant > 1 {
            open.insert(self.tenant_id, of_tenant - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use daybook_service::Code;

    use super::*;

    #[test]
    fn a_tenant_has_its_share_and_all_have_theirs_together() {
        let openings = Openings::new(3, 2);
        let [anne, bert] = [1, 2].map(Uuid::from_u128);
        let refused = |tenant_id| {
            openings
                .open(tenant_id)
                .map(drop)
                .map_err(|error| error.code().clone())
        };
        let of_anne = [anne, anne].map(|id| openings.open(id).expect("her share"));
        assert_eq!(refused(anne), Err(Code::RateLimited));
        let of_bert = openings.open(bert).expect("there is room");
        assert_eq!(refused(bert), Err(Code::Overloaded));
        drop(of_anne);
        assert_eq!(refused(anne), Ok(()));
        drop(of_bert);
        assert!(openings.counts().is_empty());
    }
}
