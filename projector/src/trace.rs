//! The last span of an event's trace: from a projector's hands into a read model.
//!
//! Spans are made only for events whose request was sampled, and only when spans are exported.

use daybook_service::telemetry;
use tracing::Span;

use crate::batch::{Decoded, Origin};

/// How many events of one batch get a span.
const SPANS_PER_BATCH_MAX: usize = 64;

/// At the end of a `traceparent` whose trace is sampled.
const SAMPLED: &str = "-01";

/// Spans of a batch's events, each a child of the request that caused it. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct EventSpans {
    _spans: Vec<Span>,
}

impl EventSpans {
    /// Begins the spans.
    pub(crate) fn begin(projection: &'static str, events: &[&Decoded]) -> Self {
        let is_asked_for = !tracing::debug_span!("apply").is_disabled();
        let spans = match is_asked_for {
            true => events
                .iter()
                .filter_map(|event| begin_one(projection, event))
                .take(SPANS_PER_BATCH_MAX)
                .collect(),
            false => Vec::new(),
        };
        Self { _spans: spans }
    }
}

fn begin_one(projection: &'static str, decoded: &Decoded) -> Option<Span> {
    let event = &decoded.event;
    let traceparent = Origin::of(event)
        .traceparent
        .filter(|trace| trace.ends_with(SAMPLED))?;
    let span = tracing::debug_span!(
        "apply",
        otel.kind = "consumer",
        projection.name = projection,
        event.position = event.position,
        stream.id = event.stream_id,
    );
    telemetry::set_parent(&span, &traceparent);
    Some(span)
}
