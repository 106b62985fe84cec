//! What streams count.

use daybook_service::Code;
use daybook_service::metrics::Registry;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::feed::Feed;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FeedLabels {
    feed: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    feed: &'static str,
    code: String,
}

/// The metrics of streams. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct StreamMetrics {
    open: Family<FeedLabels, Gauge>,
    deliveries: Family<FeedLabels, Counter>,
    resets: Family<FeedLabels, Counter>,
    ends: Family<EndLabels, Counter>,
}

/// The metrics of one open stream, which counts as open until this is dropped.
#[derive(Debug)]
pub(super) struct OpenStream {
    feed: &'static str,
    open: Gauge,
    deliveries: Counter,
    metrics: StreamMetrics,
}

impl StreamMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            open: registry.register("streams_open", "Streams that are open", Family::default()),
            deliveries: registry.register(
                "stream_deliveries",
                "Events and rows that were shown, to each reader",
                Family::default(),
            ),
            resets: registry.register(
                "stream_resets",
                "Streams whose readers were told to read anew, because the log has not what they had",
                Family::default(),
            ),
            ends: registry.register(
                "stream_ends",
                "Streams that were ended by us, by the code that their readers were told; RATE_LIMITED is a reader that was too slow",
                Family::default(),
            ),
        }
    }

    pub(super) fn open(&self, feed: &Feed) -> OpenStream {
        let labels = FeedLabels { feed: feed.name() };
        let open = self.open.get_or_create_owned(&labels);
        open.inc();
        OpenStream {
            feed: labels.feed,
            open,
            deliveries: self.deliveries.get_or_create_owned(&labels),
            metrics: self.clone(),
        }
    }
}

impl OpenStream {
    pub(super) fn delivered(&self) {
        self.deliveries.inc();
    }

    pub(super) fn reset(&self) {
        let labels = FeedLabels { feed: self.feed };
        self.metrics.resets.get_or_create(&labels).inc();
    }

    pub(super) fn ended(&self, code: &Code) {
        let labels = EndLabels {
            feed: self.feed,
            code: code.name().to_owned(),
        };
        self.metrics.ends.get_or_create(&labels).inc();
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.open.dec();
    }
}
