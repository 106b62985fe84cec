//! `daybook history --follow`: the events of an aggregate, each once, those that are there and then each as it is recorded. A call
//! that ends, however it does, is resumed behind what was shown, for as long as that may help.

use std::time::{Duration, Instant};

use daybook_client::Refusal;
use daybook_event_store::Metadata;
use daybook_proto::convert::from_timestamp;
use daybook_proto::history::v1::history_service_client::HistoryServiceClient;
use daybook_proto::history::v1::subscribe_request::Start;
use daybook_proto::history::v1::{Event, EventFilter, EventMetadata, SubscribeRequest, SubscribeResponse};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Status};

use super::{HEADER, table_row};
use crate::client::Authorized;
use crate::events::Format;
use crate::failure::Failure;
use crate::output::{print, print_json_lines, rfc3339};

/// How long a call goes on before the next one resumes it.
const CALL_TIMEOUT: Duration = Duration::from_hours(1);

/// How long a service may say nothing that says something every 15 seconds.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// How long the service may be away.
const ABSENCE_MAX: Duration = Duration::from_secs(60);

/// The pause before a call is resumed, where the service names none.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How wide the columns of a table are whose rows come one by one; the last one is as wide as it needs to be.
const WIDTHS: [usize; 6] = [7, 10, 30, 30, 24, 32];

/// What is followed, and how far that has come.
pub(super) struct Follower {
    id: String,
    from_version: u64,
    format: Format,
    start: Start,
    answered_at: Instant,
}

impl Follower {
    /// Follows an aggregate from its first event on, and shows it from a version on.
    ///
    /// # Errors
    /// For a format that has an end.
    pub(super) fn new(id: &str, from_version: u64, format: Format) -> Result<Self, Failure> {
        if matches!(format, Format::Json) {
            let message = "what is followed has no end: use --output ndjson";
            return Err(Failure::Usage(message.to_owned()));
        }
        Ok(Self {
            id: id.to_owned(),
            from_version,
            format,
            start: Start::AfterPosition(0),
            answered_at: Instant::now(),
        })
    }

    /// Shows events until somebody ends this program.
    ///
    /// # Errors
    /// The refusal after which there is no going on: the log was set back, say, or the service is away for too long.
    pub(super) async fn run(mut self, connection: Authorized) -> Result<(), Failure> {
        let mut client = HistoryServiceClient::new(connection);
        if matches!(self.format, Format::Table) {
            print(&line(HEADER.map(str::to_owned)))?;
        }
        loop {
            let refusal = self.call(&mut client).await?;
            if !may_go_on(&refusal) || self.answered_at.elapsed() > ABSENCE_MAX {
                return Err(Failure::Refused(Box::new(refusal)));
            }
            sleep(refusal.retry_after.unwrap_or(RETRY_PAUSE)).await;
        }
    }

    /// Shows what one call brings, and says why it has ended.
    async fn call(&mut self, client: &mut HistoryServiceClient<Authorized>) -> Result<Refusal, Failure> {
        let mut request = Request::new(SubscribeRequest {
            start: Some(self.start.clone()),
            filter: Some(EventFilter {
                stream_id: self.id.clone(),
                event_types: Vec::new(),
            }),
        });
        request.set_timeout(CALL_TIMEOUT);
        let mut responses = match timeout(SILENCE_MAX, client.subscribe(request)).await {
            Ok(Ok(responses)) => responses.into_inner(),
            Ok(Err(status)) => return Ok(status.into()),
            Err(_elapsed) => return Ok(silent()),
        };
        loop {
            match timeout(SILENCE_MAX, responses.message()).await {
                Ok(Ok(Some(response))) => self.show(response)?,
                Ok(Ok(None)) => return Ok(Status::unavailable("the call has ended").into()),
                Ok(Err(status)) => return Ok(status.into()),
                Err(_elapsed) => return Ok(silent()),
            }
        }
    }

    fn show(&mut self, response: SubscribeResponse) -> Result<(), Failure> {
        let SubscribeResponse { event, resume_token } = response;
        if let Some(event) = event.filter(|event| event.stream_version >= self.from_version) {
            let event = Recorded::from(event);
            match self.format {
                Format::Table => print(&line(table_row(&json!(event))))?,
                Format::Json | Format::Ndjson => print_json_lines(&[event])?,
            }
        }
        // What was shown is not asked for again, so not before it was.
        self.start = Start::ResumeToken(resume_token);
        self.answered_at = Instant::now();
        Ok(())
    }
}

fn silent() -> Refusal {
    Status::unavailable("the service says nothing").into()
}

/// Whether the next call may bring more. A reader that was too slow has shown what it was sent, and the end of a call's time is none of
/// the history's.
fn may_go_on(refusal: &Refusal) -> bool {
    refusal.is_transient() || matches!(refusal.grpc, Code::ResourceExhausted | Code::DeadlineExceeded)
}

fn line(cells: [String; 7]) -> String {
    let [cells @ .., last] = cells;
    let padded = WIDTHS.into_iter().zip(cells);
    let line = padded.fold(String::new(), |line, (width, cell)| {
        line + &format!("{cell:width$}  ")
    });
    (line + &last).trim_end().to_owned()
}

/// An event as the query service shows it over REST. Its payload is as it was recorded, byte for byte.
#[derive(Serialize)]
struct Recorded {
    event_id: String,
    event_type: String,
    schema_version: u32,
    partition: u32,
    position: u64,
    stream_id: String,
    stream_version: u64,
    payload: Box<RawValue>,
    metadata: Metadata,
    recorded_at: Option<String>,
}

impl From<Event> for Recorded {
    fn from(event: Event) -> Self {
        let payload = RawValue::from_string(event.payload_json);
        Self {
            event_id: event.event_id,
            event_type: event.event_type,
            schema_version: event.schema_version,
            partition: event.partition,
            position: event.position,
            stream_id: event.stream_id,
            stream_version: event.stream_version,
            payload: payload.unwrap_or_else(|_| RawValue::NULL.to_owned()),
            metadata: metadata(event.metadata.unwrap_or_default()),
            recorded_at: rfc3339(event.recorded_at.as_ref()),
        }
    }
}

fn metadata(metadata: EventMetadata) -> Metadata {
    let given = |text: String| (!text.is_empty()).then_some(text);
    Metadata {
        correlation_id: metadata.correlation_id,
        causation_id: given(metadata.causation_id),
        principal: metadata.principal,
        actor: given(metadata.actor),
        reason: given(metadata.reason),
        command: metadata.command,
        idempotency_key: metadata.idempotency_key,
        traceparent: given(metadata.traceparent),
        occurred_at: metadata.occurred_at.as_ref().and_then(from_timestamp),
        received_at_us: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_come_one_by_one_line_up() {
        let row = [
            "1",
            "20",
            "2026-11-01T00:00:00Z",
            "",
            "order.placed",
            "key:ab",
            "late",
        ];
        let (header, row) = (line(HEADER.map(str::to_owned)), line(row.map(str::to_owned)));
        assert_eq!(header.find("EVENT"), row.find("order.placed"));
        assert_eq!(header.find("REASON"), row.find("late"));
        let short = ["1", "20", "", "", "", "", ""].map(str::to_owned);
        assert_eq!(line(short), "1        20");
    }

    #[test]
    fn a_log_that_was_set_back_and_a_key_that_is_not_good_any_more_end_it() {
        let may_go_on = |code| may_go_on(&Status::new(code, "").into());
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::ResourceExhausted] {
            assert!(may_go_on(code), "{code:?}");
        }
        for code in [Code::OutOfRange, Code::Unauthenticated, Code::NotFound] {
            assert!(!may_go_on(code), "{code:?}");
        }
    }

    #[test]
    fn what_is_followed_has_no_end() {
        assert!(Follower::new("ord_1", 1, Format::Json).is_err());
    }
}
