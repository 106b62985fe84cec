//! `daybook.history.v1.HistoryService`.

use daybook_event_store::Direction;
use daybook_proto::history::v1::history_service_server::HistoryService;
use daybook_proto::history::v1::{ListStreamEventsRequest, ListStreamEventsResponse};
use daybook_service::ApiError;
use daybook_service::identity::{Principal, Scope};
use tonic::{Request, Response, Status};

use super::fields::page_token;
use super::{Queries, wire};
use crate::reads::history::{ListEvents, Stream};
use crate::violations::Violations;

#[tonic::async_trait]
impl HistoryService for Queries {
    async fn list_stream_events(
        &self,
        request: Request<ListStreamEventsRequest>,
    ) -> Result<Response<ListStreamEventsResponse>, Status> {
        let caller = super::caller_with(Scope::EventsRead, &request)?;
        Ok(Response::new(
            self.stream_events(&caller, request.into_inner()).await?,
        ))
    }
}

impl Queries {
    async fn stream_events(
        &self,
        caller: &Principal,
        request: ListStreamEventsRequest,
    ) -> Result<ListStreamEventsResponse, ApiError> {
        let page = self.reads.events(caller, &list_events(request)?).await?;
        Ok(ListStreamEventsResponse {
            events: page.data.items.into_iter().map(wire::event).collect(),
            next_page_token: page.data.next_cursor.unwrap_or_default(),
        })
    }
}

fn list_events(request: ListStreamEventsRequest) -> Result<ListEvents, ApiError> {
    let mut violations = Violations::default();
    let stream = Stream::of_any_kind(&request.stream_id);
    if stream.is_none() {
        violations.refuse("/stream_id", "INVALID_ID", "must be the TypeID of an aggregate");
    }
    let limit = violations.page_size(request.page_size);
    // Zero is what an absent number looks like.
    let from = request.from_version.max(1);
    let to = if request.to_version == 0 {
        u64::MAX
    } else {
        request.to_version
    };
    if from > to {
        violations.refuse(
            "/to_version",
            "OUT_OF_RANGE",
            "must not be less than from_version",
        );
    }
    Ok(ListEvents {
        stream: violations.finish(stream)?,
        versions: from..=to,
        direction: if request.descending {
            Direction::Backward
        } else {
            Direction::Forward
        },
        limit,
        cursor: page_token(request.page_token),
        diff: request.diff,
    })
}
