//! The mailboxes in memory: bounded by bytes, the least recently used goes first, and none that is at work.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use daybook_domain::aggregate::Aggregate;
use hashlink::LinkedHashMap;
use uuid::Uuid;

use super::MailboxMetrics;
use super::slot::Mailbox;

/// A tenant and one of its streams.
pub(crate) type Stream = (Uuid, Arc<str>);

/// Busy mailboxes that are skipped in one search for something to evict.
const EVICTION_SKIPS_MAX: usize = 64;

pub(super) struct Cache<A: Aggregate> {
    bytes_max: usize,
    entries: Mutex<Entries<A>>,
    metrics: Arc<MailboxMetrics>,
}

struct Entries<A: Aggregate> {
    /// The least recently used comes first.
    by_stream: LinkedHashMap<Stream, Entry<A>>,
    bytes: usize,
}

struct Entry<A: Aggregate> {
    mailbox: Arc<Mailbox<A>>,
    bytes: usize,
}

impl<A: Aggregate> Cache<A> {
    pub(super) fn new(bytes_max: usize, metrics: Arc<MailboxMetrics>) -> Self {
        let entries = Entries {
            by_stream: LinkedHashMap::new(),
            bytes: 0,
        };
        Self {
            bytes_max,
            entries: Mutex::new(entries),
            metrics,
        }
    }

    /// The mailbox of a stream, which becomes the most recently used.
    pub(super) fn get_or_insert(&self, stream: &Stream, new: impl FnOnce() -> Mailbox<A>) -> Arc<Mailbox<A>> {
        let mut entries = self.entries();
        if let Some(entry) = entries.by_stream.to_back(stream) {
            return Arc::clone(&entry.mailbox);
        }
        let mailbox = Arc::new(new());
        let entry = Entry {
            mailbox: Arc::clone(&mailbox),
            bytes: 0,
        };
        entries.by_stream.insert(stream.clone(), entry);
        mailbox
    }

    /// Notes how many bytes a mailbox holds that has nothing to do, and evicts what is too much. One that holds nothing is
    /// not kept.
    pub(super) fn report(&self, stream: &Stream, bytes: Option<usize>) {
        let mut entries = self.entries();
        let before = entries.bytes;
        let Some(entry) = entries.by_stream.get_mut(stream) else {
            return;
        };
        let of_mailbox = std::mem::replace(&mut entry.bytes, bytes.unwrap_or(0));
        // The map and whoever reports: nobody is about to use it.
        if bytes.is_none() && Arc::strong_count(&entry.mailbox) <= 2 {
            entries.by_stream.remove(stream);
        }
        entries.bytes = before - of_mailbox + bytes.unwrap_or(0);
        entries.evict(self.bytes_max);
        let difference = entries.bytes as i64 - before as i64;
        drop(entries);
        self.metrics.bytes.inc_by(difference);
    }

    fn entries(&self) -> MutexGuard<'_, Entries<A>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A: Aggregate> Entries<A> {
    fn evict(&mut self, bytes_max: usize) {
        let mut skipped = 0;
        while self.bytes > bytes_max && skipped < EVICTION_SKIPS_MAX {
            let Some((stream, entry)) = self.by_stream.pop_front() else {
                return;
            };
            // A busy mailbox has another holder; new holders come only through this map, which is locked.
            if Arc::strong_count(&entry.mailbox) > 1 {
                self.by_stream.insert(stream, entry);
                skipped += 1;
            } else {
                self.bytes -= entry.bytes;
            }
        }
    }
}
