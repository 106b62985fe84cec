//! The path of every command, whichever aggregate it is for: request, envelope, mailbox, receipt.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daybook_domain::aggregate::Aggregate;
use daybook_domain::rejection::Rejection as _;
use daybook_event_store::{NotAdmitted, Receipt, Unanswered};
use daybook_proto::common::v1 as common;
use daybook_proto::convert::{CommandRequest, Violations, to_timestamp};
use daybook_service::consistency::ConsistencyToken;
use daybook_service::error::ApiError;
use daybook_service::identity::{Principal, Scope, principal_with};
use daybook_service::request::deadline;
use prometheus_client::metrics::histogram::Histogram;
use time::OffsetDateTime;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::aggregates::Core;
use crate::fingerprint::Fingerprints;
use crate::mailbox::{Envelope, HandleError, LoadError, Mailboxes, Outcome};
use crate::request::{check_key, metadata, validation_error};

/// The metadata that marks a receipt of an earlier send. The receipt itself is the first one, byte for byte.
const REPLAYED: &str = "idempotency-replayed";

/// When a tenant that has all its commands under way may try again: some of them are answered by then.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What an aggregate adds to the path that all commands take.
pub(crate) trait Served: Aggregate {
    /// The scope that its commands need.
    const SCOPE: Scope;

    /// A value of a refusal, by the name and in the form that callers know it.
    fn detail(name: &'static str, value: String) -> (&'static str, String) {
        (name, value)
    }
}

/// Handles the commands of one kind of aggregate.
pub(crate) struct Handler<A: Aggregate> {
    mailboxes: Mailboxes<A>,
    fingerprints: Fingerprints,
    received_to_committed: Histogram,
}

impl<A: Aggregate> fmt::Debug for Handler<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler")
            .field("mailboxes", &self.mailboxes)
            .finish_non_exhaustive()
    }
}

impl<A: Served> Handler<A> {
    /// A handler with mailboxes of its own.
    pub(crate) fn new(core: &Core) -> Self {
        Self {
            mailboxes: core.mailboxes(),
            fingerprints: core.fingerprints.clone(),
            received_to_committed: core.received_to_committed.clone(),
        }
    }

    /// Handles a request: the receipt, or why there is none.
    pub(crate) async fn handle<R: CommandRequest<Aggregate = A>>(
        &self,
        request: Request<R>,
    ) -> Result<Response<common::Receipt>, Status> {
        let (received_at, started) = (OffsetDateTime::now_utc(), Instant::now());
        let principal = principal_with(request.extensions(), A::SCOPE)?;
        let envelope = envelope(request.into_inner(), &principal, &self.fingerprints, received_at)?;
        let id = Arc::clone(&envelope.stream_id);
        let handled = self.mailboxes.handle(envelope);
        let outcome = match deadline() {
            Some(deadline) => tokio::time::timeout_at(deadline, handled)
                .await
                .map_err(|_| ApiError::deadline_exceeded())?,
            None => handled.await,
        };
        let is_replay = outcome.as_ref().is_ok_and(|outcome| outcome.is_replay);
        let mut answer = Response::new(receipt::<A>(outcome, &id)?);
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
fn envelope<R: CommandRequest>(
    mut request: R,
    principal: &Principal,
    fingerprints: &Fingerprints,
    received_at: OffsetDateTime,
) -> Result<Envelope<<R::Aggregate as Aggregate>::Command>, ApiError> {
    let mut violations = Violations::default();
    let key = request.take_request_id();
    check_key(&key, &mut violations);
    let request_bytes = request.encoded_len();
    let fingerprints = fingerprints.of(R::NAME, &request);
    let context = request.take_context();
    let metadata = metadata(context, principal, R::NAME, &key, received_at, &mut violations);
    let expected_version = request.expected_version();
    let converted = request.into_command(Uuid::now_v7);
    let (id, command) = violations.join(converted).map_err(validation_error)?;
    Ok(Envelope {
        partition: principal.tenant_partition,
        tenant_id: principal.tenant_id,
        stream_id: id.to_string().into(),
        key: key.into(),
        fingerprints,
        expected_version,
        metadata: metadata.encode(),
        request_bytes,
        command,
    })
}

fn receipt<A: Served>(outcome: Result<Outcome, HandleError>, id: &str) -> Result<common::Receipt, ApiError> {
    let receipt = outcome
        .map_err(|error| api_error(error, A::CATEGORY, id))?
        .receipt;
    match &receipt.rejection {
        None => Ok(accepted(&receipt)),
        Some(rejection) => Err(refused::<A>(rejection, &receipt.stream_id)),
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
        stream_id: receipt.stream_id.to_string(),
        stream_version: receipt.stream_version,
        partition: receipt.partition.cast_unsigned(),
        positions: positions.collect(),
        consistency_token: token.map(|token| token.encode()).unwrap_or_default(),
        recorded_at: Some(to_timestamp(receipt.recorded_at)),
    }
}

/// A rule's refusal, as it was remembered: the same key is always refused in the same words.
fn refused<A: Served>(rejection: &str, id: &str) -> ApiError {
    let rejection: A::Rejection = match serde_json::from_str(rejection) {
        Ok(rejection) => rejection,
        Err(error) => return ApiError::internal(error),
    };
    let error = if rejection.is_already_there() {
        ApiError::already_exists(A::CATEGORY, id)
    } else {
        ApiError::domain_rule(rejection.code(), rejection.to_string()).with_resource(A::CATEGORY, id)
    };
    let details = rejection.details().into_iter();
    details.fold(error, |error, (name, value)| {
        let (name, value) = A::detail(name, value);
        error.with_detail(name, value)
    })
}

fn api_error(error: HandleError, kind: &'static str, id: &str) -> ApiError {
    match error {
        HandleError::VersionConflict { expected, actual } => {
            ApiError::version_conflict(expected, actual).with_resource(kind, id)
        }
        HandleError::KeyReused => ApiError::idempotency_key_reused(),
        HandleError::NotFound => ApiError::not_found(kind, id),
        HandleError::NoPartition => {
            ApiError::overloaded("this replica does not serve the tenant's partition yet")
        }
        HandleError::NotAdmitted(NotAdmitted::Full) => {
            ApiError::overloaded("too many commands are under way")
        }
        HandleError::NotAdmitted(NotAdmitted::TenantShareFull) => {
            ApiError::rate_limited("commands under way", RETRY_AFTER)
        }
        HandleError::Contended => ApiError::overloaded("other replicas keep writing to it"),
        HandleError::Panicked(_) => ApiError::internal(error),
        HandleError::Load(error) => match &*error {
            LoadError::Decode { .. } | LoadError::Panicked => ApiError::internal(error),
            LoadError::Read(_) | LoadError::Unstable => ApiError::dependency_unavailable("postgres", error),
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

/// Implements a gRPC service whose methods all do the same, each with another request.
macro_rules! command_methods {
    ($service:ident for $aggregate:ty: $($method:ident($request:ident) -> $response:ident;)+) => {
        #[tonic::async_trait]
        impl $service for $crate::handler::Handler<$aggregate> {
            $(
                async fn $method(
                    &self,
                    request: tonic::Request<wire::$request>,
                ) -> Result<tonic::Response<wire::$response>, tonic::Status> {
                    let answer = self.handle(request).await?;
                    Ok(answer.map(|receipt| wire::$response { receipt: Some(receipt) }))
                }
            )+
        }
    };
}

pub(crate) use command_methods;
