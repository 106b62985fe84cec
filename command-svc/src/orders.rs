//! The commands on orders over gRPC.

use std::time::Instant;

use daybook_domain::event::DecodeError;
use daybook_domain::ids::OrderId;
use daybook_domain::order::{self, Command, Event, Rejection, State};
use daybook_event_store::{Receipt, RecordedEvent, Unanswered};
use daybook_proto::common::v1 as common;
use daybook_proto::convert::{OrderRequest, Violations, to_timestamp};
use daybook_proto::orders::v1 as wire;
use daybook_proto::orders::v1::order_service_server::{OrderService, OrderServiceServer};
use daybook_service::consistency::ConsistencyToken;
use daybook_service::error::ApiError;
use daybook_service::identity::{Principal, Scope, principal_with};
use daybook_service::problems::DomainRule;
use daybook_service::request::deadline;
use prometheus_client::metrics::histogram::Histogram;
use time::OffsetDateTime;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::COMMAND_BYTES_MAX;
use crate::aggregate::Aggregate;
use crate::aggregates::Core;
use crate::mailbox::{Envelope, HandleError, LoadError, Mailboxes, Outcome};
use crate::request::{check_key, fingerprint, metadata, validation_error};

/// The metadata that marks a receipt of an earlier send. The receipt itself is the first one, byte for byte.
const REPLAYED: &str = "idempotency-replayed";

/// `daybook.orders.v1.OrderService`, as it is served.
pub(crate) fn service(core: &Core) -> OrderServiceServer<OrderCommands> {
    let commands = OrderCommands {
        mailboxes: core.mailboxes(),
        received_to_committed: core.received_to_committed.clone(),
    };
    OrderServiceServer::new(commands)
        .max_decoding_message_size(COMMAND_BYTES_MAX)
        .max_encoding_message_size(COMMAND_BYTES_MAX)
}

/// The rules of the domain, for `GET /problems`.
pub(crate) fn rules() -> impl Iterator<Item = DomainRule> {
    let rules = Rejection::RULES.iter();
    rules.map(|&(code, explanation)| DomainRule { code, explanation })
}

/// Orders, as the mailboxes drive them.
#[derive(Debug)]
pub struct Orders;

impl Aggregate for Orders {
    const CATEGORY: &'static str = order::CATEGORY;

    type State = State;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;

    fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
        order::decide(state, command)
    }

    fn evolve(state: State, event: &Event) -> State {
        order::evolve(state, event)
    }

    fn encode(event: &Event) -> (&'static str, u32, String) {
        (event.event_type(), event.schema_version(), event.encode())
    }

    fn decode(event: &RecordedEvent) -> Result<Event, DecodeError> {
        Event::decode(&event.event_type, event.schema_version, &event.payload)
    }

    fn opens(command: &Command) -> bool {
        matches!(command, Command::Place { .. })
    }

    fn remember(rejection: &Rejection) -> Option<String> {
        if *rejection == Rejection::OrderNotFound {
            return None;
        }
        Some(serde_json::to_string(rejection).expect("a rejection has string keys and plain values"))
    }
}

/// `daybook.orders.v1.OrderService`.
#[derive(Debug)]
pub struct OrderCommands {
    mailboxes: Mailboxes<Orders>,
    received_to_committed: Histogram,
}

impl OrderCommands {
    async fn handle<R: OrderRequest>(
        &self,
        request: Request<R>,
    ) -> Result<Response<common::Receipt>, Status> {
        let (received_at, started) = (OffsetDateTime::now_utc(), Instant::now());
        let principal = principal_with(request.extensions(), Scope::OrdersWrite)?;
        let envelope = envelope(request.into_inner(), &principal, received_at)?;
        let handled = self.mailboxes.handle(&envelope);
        let outcome = match deadline() {
            Some(deadline) => tokio::time::timeout_at(deadline, handled)
                .await
                .map_err(|_| ApiError::deadline_exceeded())?,
            None => handled.await,
        };
        let is_replay = outcome.as_ref().is_ok_and(|outcome| outcome.is_replay);
        let mut answer = Response::new(receipt(outcome, &envelope.stream_id)?);
        if is_replay {
            let marker = MetadataValue::from_static("true");
            answer.metadata_mut().insert(REPLAYED, marker);
        }
        self.received_to_committed
            .observe(started.elapsed().as_secs_f64());
        Ok(answer)
    }
}

/// Checks a request as a whole, so that all that is wrong with it is reported at once.
fn envelope<R: OrderRequest>(
    mut request: R,
    principal: &Principal,
    received_at: OffsetDateTime,
) -> Result<Envelope<Command>, ApiError> {
    let mut violations = Violations::default();
    let key = request.take_request_id();
    check_key(&key, &mut violations);
    let fingerprint = fingerprint(R::NAME, &request);
    let context = request.take_context();
    let metadata = metadata(context, principal, R::NAME, &key, received_at, &mut violations);
    let expected_version = request.expected_version();
    let converted = request.into_command(|| OrderId::from_uuid(Uuid::now_v7()));
    let (order_id, command) = violations.join(converted).map_err(validation_error)?;
    Ok(Envelope {
        partition: principal.tenant_partition,
        tenant_id: principal.tenant_id,
        stream_id: order_id.to_string(),
        key,
        fingerprint,
        expected_version,
        metadata: metadata.encode(),
        command,
    })
}

fn receipt(outcome: Result<Outcome, HandleError>, order_id: &str) -> Result<common::Receipt, ApiError> {
    let receipt = outcome.map_err(|error| api_error(error, order_id))?.receipt;
    match &receipt.rejection {
        None => Ok(accepted(&receipt)),
        Some(rejection) => Err(refused(rejection, &receipt.stream_id)),
    }
}

fn accepted(receipt: &Receipt) -> common::Receipt {
    let positions = receipt.first_position..receipt.first_position + u64::from(receipt.event_count);
    let token = receipt.last_position().map(|position| ConsistencyToken {
        partition: receipt.partition,
        position,
        generation: receipt.generation,
    });
    common::Receipt {
        stream_id: receipt.stream_id.clone(),
        stream_version: receipt.stream_version,
        partition: receipt.partition.cast_unsigned(),
        positions: positions.collect(),
        consistency_token: token.map(|token| token.encode()).unwrap_or_default(),
        recorded_at: Some(to_timestamp(receipt.recorded_at)),
    }
}

/// A rule's refusal, as it was remembered: the same key is always refused in the same words.
fn refused(rejection: &str, order_id: &str) -> ApiError {
    let rejection: Rejection = match serde_json::from_str(rejection) {
        Ok(rejection) => rejection,
        Err(error) => return ApiError::internal(error),
    };
    let error = match &rejection {
        Rejection::OrderAlreadyExists { .. } => ApiError::already_exists("order", order_id),
        rule => ApiError::domain_rule(rule.code(), rule.to_string()).with_resource("order", order_id),
    };
    let details = rejection.details().into_iter();
    details.fold(error, |error, (name, value)| match name {
        // Every problem has a member of that name, which is the answer's; and callers know statuses in capitals.
        "status" => error.with_detail("order_status", value.to_ascii_uppercase()),
        name => error.with_detail(name, value),
    })
}

fn api_error(error: HandleError, order_id: &str) -> ApiError {
    match error {
        HandleError::VersionConflict { expected, actual } => {
            ApiError::version_conflict(expected, actual).with_resource("order", order_id)
        }
        HandleError::KeyReused => ApiError::idempotency_key_reused(),
        HandleError::NotFound => ApiError::not_found("order", order_id),
        HandleError::NoPartition => {
            ApiError::overloaded("this replica does not serve the tenant's partition yet")
        }
        HandleError::Overloaded => ApiError::overloaded("too many commands are waiting"),
        HandleError::Load(error) => match &*error {
            LoadError::Decode { .. } => ApiError::internal(error),
            LoadError::Read(_) | LoadError::GivenUp => ApiError::dependency_unavailable("postgres", error),
        },
        HandleError::Unanswered(error) => unanswered(error),
    }
}

fn unanswered(error: Unanswered) -> ApiError {
    match error {
        Unanswered::Refused(error) => ApiError::internal(error),
        Unanswered::Unknown(error) => ApiError::dependency_unavailable("postgres", error),
        Unanswered::Stopped => ApiError::shutting_down(),
    }
}

/// Every method does the same with another request; only the types differ.
macro_rules! commands {
    ($($method:ident($request:ident) -> $response:ident;)+) => {
        #[tonic::async_trait]
        impl OrderService for OrderCommands {
            $(
                async fn $method(
                    &self,
                    request: Request<wire::$request>,
                ) -> Result<Response<wire::$response>, Status> {
                    let answer = self.handle(request).await?;
                    Ok(answer.map(|receipt| wire::$response { receipt: Some(receipt) }))
                }
            )+
        }
    };
}

commands! {
    place_order(PlaceOrderRequest) -> PlaceOrderResponse;
    add_order_line(AddOrderLineRequest) -> AddOrderLineResponse;
    remove_order_line(RemoveOrderLineRequest) -> RemoveOrderLineResponse;
    change_line_quantity(ChangeLineQuantityRequest) -> ChangeLineQuantityResponse;
    change_shipping_address(ChangeShippingAddressRequest) -> ChangeShippingAddressResponse;
    confirm_order(ConfirmOrderRequest) -> ConfirmOrderResponse;
    reject_order(RejectOrderRequest) -> RejectOrderResponse;
    record_payment(RecordPaymentRequest) -> RecordPaymentResponse;
    ship_order(ShipOrderRequest) -> ShipOrderResponse;
    record_delivery(RecordDeliveryRequest) -> RecordDeliveryResponse;
    cancel_order(CancelOrderRequest) -> CancelOrderResponse;
    request_return(RequestReturnRequest) -> RequestReturnResponse;
    receive_return(ReceiveReturnRequest) -> ReceiveReturnResponse;
    refund_order(RefundOrderRequest) -> RefundOrderResponse;
}
