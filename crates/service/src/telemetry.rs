//! Logs and traces.
//!
//! Logs go to standard error, one line each: JSON in production, for people in development. A thread of its own writes them:
//! where nobody reads them any more, lines are dropped and counted, and no request waits. Traces go out over OTLP when
//! `OTEL_EXPORTER_OTLP_ENDPOINT` is set. Request spans are of level `debug` and only the OTLP layer asks for them, so
//! with OTLP off and logs at `info` a span costs one comparison.
//!
//! A trace is passed on even where nothing is exported: [`current_traceparent`] falls back to the `traceparent` that the
//! request came with.

use std::io::{BufWriter, IsTerminal as _};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::time::Duration;

use http::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Span, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use crate::config::{LogFormat, TelemetryConfig};
use crate::request::{self, RequestId};

/// The header of the W3C trace context.
pub const TRACEPARENT: &str = "traceparent";

/// Where its flags begin, the last two bytes.
const FLAGS: usize = 53;

/// How long the last spans may take to go out.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Spans of our own crates are exported; those of libraries are not ours to explain.
const EXPORTED_TARGETS: &str = "daybook";

/// Lines that may wait to be written: a few MiB.
const LOG_LINES_WAITING_MAX: usize = 2_048;

/// Counts the lines that were dropped.
static DROPPED_LINES: OnceLock<ErrorCounter> = OnceLock::new();

/// Set when spans are exported; without it nobody asks OpenTelemetry for anything.
static EXPORTING: OnceLock<()> = OnceLock::new();

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `DAYBOOK_LOG` is not a filter.
    #[error("DAYBOOK_LOG is not a log filter")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The OTLP exporter refuses its configuration.
    #[error("cannot export traces")]
    Exporter(#[from] ExporterBuildError),
    /// Something else set it up before.
    #[error("cannot install the log subscriber")]
    Install(#[from] TryInitError),
}

/// Keeps telemetry going; [`TelemetryGuard::flush`] sends out what is left.
#[derive(Debug)]
#[must_use = "without a flush at the end the last lines and spans are lost"]
pub struct TelemetryGuard {
    provider: Option<SdkTracerProvider>,
    /// Writes the last lines when it is dropped.
    _lines: WorkerGuard,
}

impl TelemetryGuard {
    /// Sends the last spans, for at most a second, and writes the last lines, for hardly longer.
    pub async fn flush(mut self) {
        let Some(provider) = self.provider.take() else {
            return;
        };
        // The exporter's channel runs on this runtime, so no thread of the runtime may block on it.
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        if let Ok(Err(error)) = flushed.await {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// Starts logs, and traces when an endpoint is configured, for the whole process. Call it once, inside a runtime.
///
/// # Errors
/// When the filter or the exporter's configuration is wrong, or telemetry was started before.
pub fn init(service_name: &'static str, config: &TelemetryConfig) -> Result<TelemetryGuard, TelemetryError> {
    let filter = EnvFilter::builder().parse(&config.log)?;
    let provider = match &config.otlp_endpoint {
        Some(endpoint) => Some(tracer_provider(service_name, endpoint)?),
        None => None,
    };
    let exporting = provider.as_ref().map(|provider| {
        let ours = Targets::new().with_target(EXPORTED_TARGETS, Level::DEBUG);
        let tracer = provider.tracer(service_name);
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_filter(ours)
    });
    let (lines, writer) = NonBlockingBuilder::default()
        .buffered_lines_limit(LOG_LINES_WAITING_MAX)
        .thread_name("log")
        .finish(BufWriter::new(std::io::stderr()));
    DROPPED_LINES.get_or_init(|| lines.error_counter());
    tracing_subscriber::registry()
        .with(log_layer(config.format(), lines).with_filter(filter))
        .with(exporting)
        .try_init()?;
    if provider.is_some() {
        EXPORTING.get_or_init(|| ());
    }
    std::panic::set_hook(Box::new(log_panic));
    Ok(TelemetryGuard {
        provider,
        _lines: writer,
    })
}

/// How many log lines were dropped because nobody read them.
pub(crate) fn dropped_lines() -> u64 {
    let dropped = DROPPED_LINES.get().map(ErrorCounter::dropped_lines);
    dropped.unwrap_or_default().try_into().unwrap_or(u64::MAX)
}

fn log_layer<S>(format: LogFormat, lines: NonBlocking) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(lines);
    match format {
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
        LogFormat::Text => layer.with_ansi(std::io::stderr().is_terminal()).boxed(),
    }
}

fn tracer_provider(
    service_name: &'static str,
    endpoint: &str,
) -> Result<SdkTracerProvider, ExporterBuildError> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()?;
    let resource = Resource::builder().with_service_name(service_name).build();
    Ok(SdkTracerProvider::builder()
        .with_resource(resource)
        .with_batch_exporter(exporter)
        .build())
}

/// A panic is logged like every other error: on one line, with the request that it happened in.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let request_id = RequestId::current();
    let request_id = request_id.as_ref().map_or("-", RequestId::as_str);
    let location = panic
        .location()
        .map_or_else(|| "unknown".to_owned(), ToString::to_string);
    let message = panic.payload_as_str().unwrap_or("no message");
    tracing::error!(
        request.id = request_id,
        panic.location = location,
        panic.message = message,
        "panic"
    );
}

/// Whether spans are exported.
fn is_exporting() -> bool {
    EXPORTING.get().is_some()
}

/// The `traceparent` of a request's headers, if it is one of version 00 (W3C Trace Context 1, section 3.2.2).
pub(crate) fn traceparent_from(headers: &HeaderMap) -> Option<String> {
    let given = headers.get(TRACEPARENT)?.to_str().ok()?;
    let understood = traceparent_of(&context_of(given))?;
    // The propagator also takes later versions and ids without their leading zeros. Flags that it does not know it clears.
    let is_whole = given.len() == understood.len() && given[..FLAGS] == understood[..FLAGS];
    is_whole.then_some(understood)
}

/// The `traceparent` to hand on: the current span's when spans are exported, else the one that the request came with.
#[must_use]
pub fn current_traceparent() -> Option<String> {
    let own = is_exporting().then(|| traceparent_of(&Span::current().context()));
    own.flatten().or_else(request::incoming_traceparent)
}

/// Makes a span a child of the span that `traceparent` names. Does nothing when that is not valid or nothing is exported.
pub fn set_parent(span: &Span, traceparent: &str) {
    if !is_exporting() || span.is_disabled() {
        return;
    }
    let context = context_of(traceparent);
    if context.has_active_span() {
        // It fails when the span has begun to be exported; then the trace has a second root and nothing is lost.
        let _ = span.set_parent(context);
    }
}

/// One `traceparent`, as OpenTelemetry asks for headers.
struct Carrier<'a>(&'a str);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == TRACEPARENT).then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

fn context_of(traceparent: &str) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Carrier(traceparent))
}

fn traceparent_of(context: &Context) -> Option<String> {
    let span = context.span();
    let span = span.span_context();
    let flags = span.trace_flags().to_u8();
    let text = || format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id());
    span.is_valid().then(text)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn believed(traceparent: &str) -> Option<String> {
        let value = HeaderValue::from_str(traceparent).expect("a valid header");
        let headers = HeaderMap::from_iter([(HeaderName::from_static(TRACEPARENT), value)]);
        traceparent_from(&headers)
    }

    #[test]
    fn only_a_valid_traceparent_is_believed() {
        let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(believed(valid).as_deref(), Some(valid));
        let wrong = [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-001",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
        ];
        for text in wrong {
            assert_eq!(believed(text), None, "{text}");
        }
        assert_eq!(traceparent_from(&HeaderMap::new()), None);
    }

    #[test]
    fn flags_of_later_versions_do_not_spoil_a_trace() {
        let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03";
        let kept = believed(given).expect("a valid traceparent");
        assert_eq!(kept, given.replace("-03", "-01"));
    }
}
