//! `daybook.history.v1.HistoryService`.

use std::collections::BTreeSet;
use std::sync::Arc;

use daybook_domain::ids::OrderId;
use daybook_event_store::Direction;
use daybook_proto::history::v1::history_service_server::HistoryService;
use daybook_proto::history::v1::{
    EventFilter, GetCorrelationRequest, GetCorrelationResponse, ListEventsRequest, ListEventsResponse,
    ListOrderEventsRequest, ListOrderEventsResponse, ListStreamEventsRequest, ListStreamEventsResponse,
    SubscribeRequest, SubscribeResponse, subscribe_request,
};
use daybook_read_model::event_index::{self, Period};
use daybook_service::ApiError;
use daybook_service::identity::{Principal, Scope};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use super::fields::{given, page_token};
use super::{Queries, wire};
use crate::freshness::{Demand, Tokens};
use crate::reads::feed::ListFeed;
use crate::reads::history::{ListEvents, Stream, successor_of_order_events};
use crate::streams::{Feed, Item, Opening, Reader, Shown, Start};
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

    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let caller = super::caller_with(Scope::EventsRead, &request)?;
        Ok(Response::new(self.feed(&caller, request.into_inner()).await?))
    }

    async fn get_correlation(
        &self,
        request: Request<GetCorrelationRequest>,
    ) -> Result<Response<GetCorrelationResponse>, Status> {
        let caller = super::caller_with(Scope::EventsRead, &request)?;
        Ok(Response::new(self.correlation(&caller, request.get_ref()).await?))
    }

    async fn list_order_events(
        &self,
        request: Request<ListOrderEventsRequest>,
    ) -> Result<Response<ListOrderEventsResponse>, Status> {
        let caller = super::caller_with(Scope::EventsRead, &request)?;
        let request = request.into_inner();
        let successor = successor_of_order_events(&request.order_id);
        let answered = self.order_events(&caller, request);
        self.order_history.call(&successor, answered).await
    }

    type SubscribeStream = BoxStream<'static, Result<SubscribeResponse, Status>>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let caller = super::caller_with(Scope::EventsRead, &request)?;
        let opening = opening(caller, request.into_inner())?;
        let reader = self.streams.open(opening).await?;
        Ok(Response::new(reader.into_stream(response).boxed()))
    }
}

/// An item as it is sent.
fn response(reader: &Reader, item: Item) -> Result<SubscribeResponse, Status> {
    let (event, resume_token) = match item {
        Item::Delivery(delivery) => {
            let event = match &delivery.shown {
                Shown::Event(event) => Some(wire::event(event.clone())),
                Shown::Order(_) => None,
            };
            (event, reader.seal(delivery.place))
        }
        Item::Nothing => (None, reader.place()),
        Item::Reset(error) | Item::End(error) => return Err(error.into()),
    };
    Ok(SubscribeResponse { event, resume_token })
}

fn opening(caller: Arc<Principal>, request: SubscribeRequest) -> Result<Opening, ApiError> {
    let mut violations = Violations::default();
    let EventFilter {
        stream_id,
        event_types,
    } = request.filter.unwrap_or_default();
    let stream = match stream_id.as_str() {
        "" => None,
        id => {
            let stream = Stream::of_any_kind(id);
            if stream.is_none() {
                let message = "must be the TypeID of an aggregate";
                violations.refuse("/filter/stream_id", "INVALID_ID", message);
            }
            stream
        }
    };
    let types = BTreeSet::from_iter(event_types);
    violations.event_types("/filter/event_types", &types);
    let feed = violations.finish(Some(Feed::events(stream, types)))?;
    let start = match request.start {
        Some(subscribe_request::Start::AfterPosition(position)) => Start::Behind(position),
        Some(subscribe_request::Start::ResumeToken(token)) => Start::Resume(token),
        None => Start::Now,
    };
    Ok(Opening {
        caller,
        feed,
        start,
        ticket: None,
    })
}

impl Queries {
    async fn stream_events(
        &self,
        caller: &Principal,
        request: ListStreamEventsRequest,
    ) -> Result<ListStreamEventsResponse, ApiError> {
        let (list, demand) = list_events(request, self.reads.tokens(caller))?;
        let page = self.reads.events(caller, &list, demand.as_ref()).await?;
        Ok(ListStreamEventsResponse {
            events: page.data.items.into_iter().map(wire::event).collect(),
            next_page_token: page.data.next_cursor.unwrap_or_default(),
            staleness: Some(wire::staleness(&page.staleness)),
        })
    }

    async fn feed(
        &self,
        caller: &Principal,
        request: ListEventsRequest,
    ) -> Result<ListEventsResponse, ApiError> {
        let (list, demand) = list_feed(request, self.reads.tokens(caller))?;
        let page = self.reads.feed(caller, list, demand.as_ref()).await?;
        Ok(ListEventsResponse {
            events: page.data.items.into_iter().map(wire::event).collect(),
            next_page_token: page.data.next_cursor.unwrap_or_default(),
            staleness: Some(wire::staleness(&page.staleness)),
        })
    }

    async fn correlation(
        &self,
        caller: &Principal,
        request: &GetCorrelationRequest,
    ) -> Result<GetCorrelationResponse, ApiError> {
        let mut violations = Violations::default();
        let correlation_id = violations.searched("/correlation_id", &request.correlation_id);
        let demand = violations.freshness(request.freshness.as_ref(), self.reads.tokens(caller));
        let correlation_id = violations.finish(correlation_id)?;
        let found = self
            .reads
            .correlation(caller, correlation_id, demand.as_ref())
            .await?;
        Ok(GetCorrelationResponse {
            correlation_id: found.data.correlation_id,
            nodes: found.data.nodes.into_iter().map(wire::correlation_node).collect(),
            truncated: found.data.is_truncated,
            staleness: Some(wire::staleness(&found.staleness)),
        })
    }

    async fn order_events(
        &self,
        caller: &Principal,
        request: ListOrderEventsRequest,
    ) -> Result<ListOrderEventsResponse, ApiError> {
        let mut violations = Violations::default();
        let id: Option<OrderId> = violations.id("/order_id", &request.order_id);
        violations.finish(id)?;
        let of_stream = ListStreamEventsRequest {
            stream_id: request.order_id,
            page_size: request.page_size,
            page_token: request.page_token,
            ..ListStreamEventsRequest::default()
        };
        let page = self.stream_events(caller, of_stream).await?;
        Ok(ListOrderEventsResponse {
            events: page.events,
            next_page_token: page.next_page_token,
        })
    }
}

fn list_feed(request: ListEventsRequest, tokens: Tokens) -> Result<(ListFeed, Option<Demand>), ApiError> {
    let mut violations = Violations::default();
    let mut searched = |pointer, text| violations.searched(pointer, given(text)?);
    let filter = event_index::Filter {
        event_type: searched("/event_type", &request.event_type),
        stream_id: searched("/stream_id", &request.stream_id),
        actor: searched("/actor", &request.actor),
        correlation_id: searched("/correlation_id", &request.correlation_id),
    };
    let period = Period {
        after: violations.time("/recorded_after", request.recorded_after.as_ref()),
        before: violations.time("/recorded_before", request.recorded_before.as_ref()),
    };
    let sort = given(&request.order_by)
        .and_then(|text| violations.sort("/order_by", text, &event_index::ACCESS_PATHS));
    let limit = violations.page_size(request.page_size);
    let demand = violations.freshness(request.freshness.as_ref(), tokens);
    let scan = violations.scan("/order_by", || filter.scan(sort.as_ref()));
    let list = ListFeed {
        scan: violations.finish(scan)?,
        filter,
        period,
        limit,
        cursor: page_token(request.page_token),
    };
    Ok((list, demand))
}

fn list_events(
    request: ListStreamEventsRequest,
    tokens: Tokens,
) -> Result<(ListEvents, Option<Demand>), ApiError> {
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
    let demand = violations.freshness(request.freshness.as_ref(), tokens);
    let list = ListEvents {
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
    };
    Ok((list, demand))
}
