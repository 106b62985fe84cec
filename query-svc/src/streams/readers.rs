//! Who reads from one tail, by tenant and aggregate.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use uuid::Uuid;

use super::buffer::{Buffer, Delivery, End, Shown};
use super::feed::Feed;

/// One reader: it is gone when its buffer is.
#[derive(Debug)]
struct Reader {
    feed: Arc<Feed>,
    buffer: Weak<Buffer>,
}

impl Reader {
    /// Hands an item to the reader, if it shows it. Whether the reader takes more.
    fn hand(&self, delivery: &Arc<Delivery>) -> bool {
        let Some(buffer) = self.buffer.upgrade() else {
            return false;
        };
        let is_shown = match &delivery.shown {
            Shown::Event(event) => self.feed.shows(&event.recorded),
            Shown::Order(_) => true,
        };
        !is_shown || buffer.push(delivery)
    }
}

/// The readers of one tenant.
#[derive(Debug, Default)]
struct OfTenant {
    of_all: Vec<Reader>,
    of_aggregates: HashMap<String, Vec<Reader>>,
}

impl OfTenant {
    fn end(self, end: End) {
        let of_aggregates = self.of_aggregates.into_values().flatten();
        for reader in self.of_all.into_iter().chain(of_aggregates) {
            if let Some(buffer) = reader.buffer.upgrade() {
                buffer.end(end);
            }
        }
    }
}

/// The readers of one tail. Whoever is left when it ends is told.
#[derive(Debug, Default)]
pub(super) struct Readers(HashMap<Uuid, OfTenant>);

impl Readers {
    /// Adds one.
    pub(super) fn add(&mut self, tenant_id: Uuid, feed: Arc<Feed>, buffer: &Arc<Buffer>) {
        let of_tenant = self.0.entry(tenant_id).or_default();
        let readers = match &feed.stream {
            Some(stream) => of_tenant.of_aggregates.entry(stream.id().to_owned()).or_default(),
            None => &mut of_tenant.of_all,
        };
        let buffer = Arc::downgrade(buffer);
        readers.push(Reader { feed, buffer });
    }

    /// The tenants that somebody reads of.
    pub(super) fn tenants(&self) -> Vec<Uuid> {
        self.0.keys().copied().collect()
    }

    /// Whether there is nobody.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Hands an item to all of its tenant's readers who show it.
    pub(super) fn hand(&mut self, tenant_id: Uuid, delivery: &Arc<Delivery>) {
        let Some(of_tenant) = self.0.get_mut(&tenant_id) else {
            return;
        };
        of_tenant.of_all.retain(|reader| reader.hand(delivery));
        if let Shown::Event(event) = &delivery.shown
            && let Some(readers) = of_tenant.of_aggregates.get_mut(&event.recorded.stream_id)
        {
            readers.retain(|reader| reader.hand(delivery));
        }
    }

    /// Tells a tenant's readers that nothing more comes, and forgets them.
    pub(super) fn end_of(&mut self, tenant_id: Uuid, end: End) {
        self.0
            .remove(&tenant_id)
            .into_iter()
            .for_each(|of_tenant| of_tenant.end(end));
    }

    /// Forgets those who are gone.
    pub(super) fn prune(&mut self) {
        let is_there = |reader: &Reader| reader.buffer.strong_count() > 0;
        self.0.retain(|_, of_tenant| {
            of_tenant.of_all.retain(is_there);
            of_tenant.of_aggregates.retain(|_, readers| {
                readers.retain(is_there);
                !readers.is_empty()
            });
            !of_tenant.of_all.is_empty() || !of_tenant.of_aggregates.is_empty()
        });
    }

    /// Tells everybody that nothing more comes, and forgets them.
    pub(super) fn end(&mut self, end: End) {
        for of_tenant in std::mem::take(&mut self.0).into_values() {
            of_tenant.end(end);
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.end(End::Stopped);
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::Taken;
    use super::super::buffer::tests::delivery;
    use super::*;

    const ANNE: Uuid = Uuid::from_u128(1);
    const BERT: Uuid = Uuid::from_u128(2);

    fn of_types(types: &[&str]) -> Arc<Feed> {
        let types = types.iter().map(|name| (*name).to_owned());
        Arc::new(Feed::events(None, types.collect()))
    }

    fn has_something(buffer: &Buffer) -> bool {
        matches!(buffer.take(0), Taken::Some(_))
    }

    #[test]
    fn an_item_goes_to_those_of_its_tenant_who_show_it() {
        let mut readers = Readers::default();
        let [all, placed, cancelled, other] = [(); 4].map(|()| Arc::new(Buffer::new(10_000)));
        readers.add(ANNE, of_types(&[]), &all);
        readers.add(ANNE, of_types(&["order.placed"]), &placed);
        readers.add(ANNE, of_types(&["order.cancelled"]), &cancelled);
        readers.add(BERT, of_types(&[]), &other);
        readers.hand(ANNE, &delivery(1, 10));
        let shown = [&all, &placed, &cancelled, &other].map(|buffer| has_something(buffer));
        assert_eq!(shown, [true, true, false, false]);
    }

    #[test]
    fn who_is_gone_is_forgotten_and_who_is_left_at_the_end_is_told() {
        let mut readers = Readers::default();
        let buffer = Arc::new(Buffer::new(10_000));
        readers.add(ANNE, of_types(&[]), &Arc::new(Buffer::new(10_000)));
        readers.add(BERT, of_types(&[]), &buffer);
        readers.prune();
        assert_eq!(readers.tenants(), [BERT]);
        readers.end_of(ANNE, End::Failed);
        assert!(matches!(buffer.take(0), Taken::Nothing));
        drop(readers);
        assert!(matches!(buffer.take(0), Taken::End(End::Stopped)));
    }
}
