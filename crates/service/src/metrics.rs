//! Metrics in the OpenMetrics text format, for Prometheus.
//!
//! [`EventMoments`] is the measure of the whole machine: an event is *received* as a command, *committed* to the log,
//! *published* to the bus, *delivered* to a projector and *applied* to a read model, and the time between any two of
//! these is a histogram.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::MatchedPath;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric as _, LabelValueEncoder,
};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{self, Metric};

use crate::telemetry;

/// The upper bounds of the buckets of every latency, in seconds: 0.1 ms to 10 s, finest where the goals are.
const LATENCY_BUCKETS_SECONDS: [f64; 25] = [
    0.000_1, 0.000_2, 0.000_3, 0.000_5, 0.000_75, 0.001, 0.001_5, 0.002, 0.003, 0.004, 0.005, 0.007_5, 0.01,
    0.012, 0.015, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// All metrics of the process. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Mutex<registry::Registry>>);

impl Registry {
    /// An empty registry. Every metric's name begins with `daybook_`.
    #[must_use]
    pub fn new() -> Self {
        let registry = registry::Registry::with_prefix("daybook");
        Self(Arc::new(Mutex::new(registry)))
    }

    /// Registers a metric and gives it back. The name has neither prefix nor `_total`.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        self.with(|registry| registry.register(name, help, metric.clone()));
        metric
    }

    /// Registers what another crate counts.
    pub fn with<M>(&self, register: impl FnOnce(&mut registry::Registry) -> M) -> M {
        register(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything in the OpenMetrics text format.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        self.with(|registry| encode(&mut text, registry))
            .expect("writing to a string does not fail");
        text
    }
}

/// Log lines that were dropped because nobody read the log.
#[derive(Debug)]
pub(crate) struct DroppedLines;

impl Collector for DroppedLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let dropped = ConstCounter::new(telemetry::dropped_lines());
        let help = "Lines that were not logged because nobody read the log fast enough";
        let metric = encoder.encode_descriptor("log_lines_dropped", help, None, dropped.metric_type())?;
        dropped.encode(metric)
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

/// A histogram with the buckets of [`LATENCY_BUCKETS_SECONDS`].
fn latency_histogram() -> Histogram {
    Histogram::new(LATENCY_BUCKETS_SECONDS)
}

/// A moment in the life of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moment {
    /// The command that caused it came in.
    Received,
    /// The database committed it.
    Committed,
    /// The bus acknowledged it.
    Published,
    /// A projector had it in its hands.
    Delivered,
    /// A read model shows it.
    Applied,
}

impl EncodeLabelValue for Moment {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let name = match self {
            Self::Received => "received",
            Self::Committed => "committed",
            Self::Published => "published",
            Self::Delivered => "delivered",
            Self::Applied => "applied",
        };
        name.encode(encoder)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Between {
    from: Moment,
    to: Moment,
}

/// The times between the moments of events: `daybook_event_latency_seconds{from,to}`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EventMoments(Family<Between, Histogram>);

impl EventMoments {
    /// Registers the histograms.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self(registry.register(
            "event_latency_seconds",
            "The time between two moments of an event: received, committed, published, delivered, applied",
            Family::new_with_constructor(latency_histogram),
        ))
    }

    /// Notes that an event took this long from one moment to the other.
    pub fn observe(&self, from: Moment, to: Moment, elapsed: Duration) {
        self.latency(from, to).observe(elapsed.as_secs_f64());
    }

    /// The histogram itself, for a loop that keeps it at hand.
    #[must_use]
    pub fn latency(&self, from: Moment, to: Moment) -> Histogram {
        self.0.get_or_create_owned(&Between { from, to })
    }
}

/// How a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// gRPC or gRPC-Web.
    Grpc,
    /// HTTP with JSON.
    Http,
}

impl Transport {
    /// Its name in labels and spans.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }
}

impl EncodeLabelValue for Transport {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

/// The HTTP methods that become labels (RFC 9110 and RFC 5789). Callers can invent others.
const METHODS: [http::Method; 9] = [
    http::Method::GET,
    http::Method::HEAD,
    http::Method::POST,
    http::Method::PUT,
    http::Method::PATCH,
    http::Method::DELETE,
    http::Method::OPTIONS,
    http::Method::TRACE,
    http::Method::CONNECT,
];

/// The method, if it is one of the standard ones.
pub(crate) fn standard_method(method: &http::Method) -> Option<http::Method> {
    METHODS.iter().find(|known| *known == method).cloned()
}

/// The operation that was called, from a closed set: an RPC that exists, or a standard method on a route that exists.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    /// `/daybook.orders.v1.OrderService/PlaceOrder`.
    Rpc(Arc<str>),
    /// `GET /v1/orders/{id}`; another method than the standard ones is `None`, and `OTHER` as a label.
    Route(Option<http::Method>, Arc<str>),
    /// Anything that does not exist.
    Unknown,
}

impl Operation {
    /// The operation of an HTTP request by its route; axum matches that before it looks at the method.
    pub(crate) fn route(method: &http::Method, route: Option<&MatchedPath>) -> Self {
        match route {
            Some(path) => Self::Route(standard_method(method), Arc::from(path.as_str())),
            None => Self::Unknown,
        }
    }
}

impl EncodeLabelValue for Operation {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        use std::fmt::Write as _;
        match self {
            Self::Rpc(path) => encoder.write_str(path),
            Self::Route(Some(method), route) => write!(encoder, "{method} {route}"),
            Self::Route(None, route) => write!(encoder, "OTHER {route}"),
            Self::Unknown => encoder.write_str("unknown"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    transport: Transport,
    method: Operation,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    transport: Transport,
    method: Operation,
    code: u16,
}

/// The server's metrics: requests by method and code, their latency, and how many are open. Cheap to clone.
///
/// A stream counts when its first headers go out, as `OK`.
#[derive(Clone, Debug)]
pub struct ServerMetrics {
    requests: Family<OutcomeLabels, Counter>,
    durations: Family<OperationLabels, Histogram>,
    in_flight: Gauge,
    pub(crate) request_bytes_in_flight: Gauge,
    pub(crate) connections: Gauge,
    pub(crate) connections_refused: Counter,
}

impl ServerMetrics {
    /// Registers the server's metrics.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            requests: registry.register(
                "requests",
                "Requests that were answered; code is the HTTP status or the number of the gRPC status",
                Family::default(),
            ),
            durations: registry.register(
                "request_duration_seconds",
                "From a request's headers to the answer's headers",
                Family::new_with_constructor(latency_histogram),
            ),
            in_flight: registry.register(
                "requests_in_flight",
                "Requests without an answer yet",
                Gauge::default(),
            ),
            request_bytes_in_flight: registry.register(
                "request_bytes_in_flight",
                "Bytes that requests hold until their answers are taken: heads, bodies as promised or arrived, answers",
                Gauge::default(),
            ),
            connections: registry.register("connections", "Open connections of callers", Gauge::default()),
            connections_refused: registry.register(
                "connections_refused",
                "Connections that were closed at once because too many were open",
                Counter::default(),
            ),
        }
    }

    /// Counts a request as open until the guard is dropped.
    pub(crate) fn open(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// Notes an answer.
    pub(crate) fn answered(&self, transport: Transport, method: Operation, code: u16, elapsed: Duration) {
        let labels = OperationLabels { transport, method };
        self.durations
            .get_or_create(&labels)
            .observe(elapsed.as_secs_f64());
        let OperationLabels { transport, method } = labels;
        let labels = OutcomeLabels {
            transport,
            method,
            code,
        };
        self.requests.get_or_create(&labels).inc();
    }
}

/// An open request; its caller may go away at any time, so the end is in `drop`.
#[derive(Debug)]
pub(crate) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_between_two_moments_is_a_histogram_of_its_own() {
        let registry = Registry::new();
        let moments = EventMoments::new(&registry);
        moments.observe(Moment::Received, Moment::Committed, Duration::from_micros(250));
        moments.latency(Moment::Committed, Moment::Applied).observe(0.004);
        let text = registry.encode();
        let counts =
            |from, to| format!(r#"daybook_event_latency_seconds_count{{from="{from}",to="{to}"}} 1"#);
        assert!(text.contains(&counts("received", "committed")), "{text}");
        assert!(text.contains(&counts("committed", "applied")), "{text}");
        assert!(text.contains(
            r#"daybook_event_latency_seconds_bucket{le="0.0003",from="received",to="committed"} 1"#
        ));
        assert!(text.contains(
            r#"daybook_event_latency_seconds_bucket{le="0.0002",from="received",to="committed"} 0"#
        ));
    }
}
