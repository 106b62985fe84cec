//! The partitions of the log that this process appends to.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use daybook_event_store::Appender;
use daybook_service::shares::Shares;

use crate::mailbox::ReadStream;

/// One partition: where its streams are read, and where they are appended to.
#[derive(Clone)]
pub struct Partition {
    /// Reads the streams of one tenant at a time.
    pub streams: Arc<dyn ReadStream>,
    /// How many of them are read at once, and of one tenant.
    pub loads: Shares,
    /// Appends.
    pub appender: Appender,
}

/// All partitions, by number. Cheap to clone.
#[derive(Clone)]
pub struct Partitions(Arc<HashMap<i32, Partition>>);

impl fmt::Debug for Partitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl FromIterator<Partition> for Partitions {
    fn from_iter<I: IntoIterator<Item = Partition>>(partitions: I) -> Self {
        let by_number = partitions.into_iter().map(|one| (one.appender.partition(), one));
        Self(Arc::new(by_number.collect()))
    }
}

impl Partitions {
    /// A tenant's partition. One that was added after this process had started is served once it starts again.
    #[must_use]
    pub fn get(&self, partition: i32) -> Option<&Partition> {
        self.0.get(&partition)
    }
}
