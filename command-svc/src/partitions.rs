//! The mailboxes of every partition of the log.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use daybook_service::error::ApiError;

use crate::aggregate::Aggregate;
use crate::mailbox::Mailboxes;

/// The mailboxes of one kind of aggregate, by partition. Cheap to clone.
pub struct Partitions<A: Aggregate>(Arc<HashMap<i32, Mailboxes<A>>>);

impl<A: Aggregate> Clone for Partitions<A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<A: Aggregate> fmt::Debug for Partitions<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Partitions").field(&self.0).finish()
    }
}

impl<A: Aggregate> FromIterator<(i32, Mailboxes<A>)> for Partitions<A> {
    fn from_iter<I: IntoIterator<Item = (i32, Mailboxes<A>)>>(mailboxes: I) -> Self {
        Self(Arc::new(mailboxes.into_iter().collect()))
    }
}

impl<A: Aggregate> Partitions<A> {
    /// The mailboxes of a tenant's partition. A partition that was added after this process had started is served once
    /// it starts again.
    pub fn of(&self, partition: i32) -> Result<&Mailboxes<A>, ApiError> {
        self.0
            .get(&partition)
            .ok_or_else(|| ApiError::overloaded("this replica does not serve the tenant's partition yet"))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (i32, &Mailboxes<A>)> {
        self.0
            .iter()
            .map(|(partition, mailboxes)| (*partition, mailboxes))
    }
}
