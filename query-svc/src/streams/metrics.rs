//! What streams count.

use daybook_service::Code;
use daybook_service::metrics::Registry;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::feed::{Feed, Source};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FeedLabels {
    feed: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    feed: &'static str,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TailLabels {
    source: &'static str,
    partition: i32,
}

/// The metrics of streams. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct StreamMetrics {
    open: Family<FeedLabels, Gauge>,
    deliveries: Family<FeedLabels, Counter>,
    resets: Family<FeedLabels, Counter>,
    ends: Family<EndLabels, Counter>,
    lags: Family<TailLabels, Gauge>,
}

/// How far a tail is behind its log, for as long as this lives.
#[derive(Debug)]
pub(super) struct TailLag {
    labels: TailLabels,
    lags: Family<TailLabels, Gauge>,
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
            lags: registry.register(
                "stream_tail_lag_positions",
                "How many positions of the log what is new for open streams is behind, at most a second ago",
                Family::default(),
            ),
        }
    }

    pub(super) fn tail(&self, source: Source, partition: i32) -> TailLag {
        let source = match source {
            Source::Log => "events",
            Source::OrderList => "orders",
        };
        TailLag {
            labels: TailLabels { source, partition },
            lags: self.lags.clone(),
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

impl TailLag {
    pub(super) fn set(&self, positions: u64) {
        let positions = i64::try_from(positions).unwrap_or(i64::MAX);
        self.lags.get_or_create(&self.labels).set(positions);
    }
}

impl Drop for TailLag {
    fn drop(&mut self) {
        self.lags.remove(&self.labels);
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.open.dec();
    }
}
