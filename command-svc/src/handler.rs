//! The path of every command, whichever aggregate it is for and whichever transport it came over: request, envelope, mailbox,
//! receipt. A command for a contended aggregate is handled at its home. Batches have a path of their own (`batch.rs`).

mod methods;
mod refusal;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daybook_domain::aggregate::Aggregate;
use daybook_event_store::{NotAdmitted, Receipt, Unanswered};
use daybook_proto::common::v1 as common;
use daybook_proto::convert::{CommandRequest, Violations, to_timestamp};
use daybook_service::consistency::ConsistencyToken;
use daybook_service::error::{ApiError, Code, IDEMPOTENCY_REPLAYED};
use daybook_service::grpc::GrpcServices;
use daybook_service::identity::{Principal, Scope, principal_with};
use daybook_service::request::deadline;
use daybook_service::sealing::KeyRing;
use http::Extensions;
use prometheus_client::metrics::histogram::Histogram;
use time::OffsetDateTime;
use tokio::time::timeout_at;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};
use uuid::Uuid;

pub(crate) use self::methods::command_methods;
pub(crate) use self::refusal::api_error;
use self::refusal::refused;
use crate::aggregates::Core;
use crate::fingerprint::Fingerprints;
use crate::home::{Forwarded, HandleForwarded, Homes, Request as ForwardedRequest};
use crate::http::Routes;
use crate::mailbox::{Envelope, HandleError, Mailboxes, Outcome, Stream};
use crate::request::{check_key, metadata, validation_error};

/// How often a command is decided here before its aggregate's home is asked, if that is elsewhere.
const ATTEMPTS_BEFORE_FORWARDING: u32 = 3;

/// How long a command may lose against other replicas, here and at its aggregate's home in turn, before its caller is told.
/// Replicas that have just started, or left each other alone for a while, know each other again by then.
const CONTENDED_MAX: Duration = Duration::from_secs(10);

/// Who sent a command, and when it came in.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) principal: Arc<Principal>,
    pub(crate) received_at: OffsetDateTime,
}

/// A command that is ready for its mailbox.
pub(crate) type Command<A> = Envelope<<A as Aggregate>::Command>;

/// The reply to an accepted command.
#[derive(Debug)]
pub(crate) struct Answer {
    /// What was recorded.
    pub(crate) receipt: common::Receipt,
    /// Whether it was recorded before, under the same key.
    pub(crate) is_replay: bool,
}

/// What an aggregate adds to the path that all commands take.
pub(crate) trait Served: Aggregate {
    /// The scope that its commands need.
    const SCOPE: Scope;

    /// A value of a refusal, by the name and in the form that callers know it.
    fn detail(name: &'static str, value: String) -> (&'static str, String) {
        (name, value)
    }
}

/// The commands of an aggregate, as they are served: `command_methods!` lists them.
pub(crate) trait Commands: Served {
    /// Adds their gRPC service.
    fn add_service(services: GrpcServices, handler: Arc<Handler<Self>>) -> GrpcServices;

    /// Their routes over HTTP.
    fn routes() -> Routes<Self>;
}

/// Handles the commands of one kind of aggregate.
pub(crate) struct Handler<A: Aggregate> {
    mailboxes: Mailboxes<A>,
    fingerprints: Fingerprints,
    sealing: KeyRing,
    homes: Arc<Homes>,
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
    /// A handler with mailboxes of its own, which handles what other replicas forward as well.
    pub(crate) fn new(core: &Core) -> Arc<Self>
    where
        Self: HandleForwarded + 'static,
    {
        let handler = Arc::new(Self {
            mailboxes: core.mailboxes(),
            fingerprints: core.fingerprints.clone(),
            sealing: core.sealing.clone(),
            homes: Arc::clone(&core.homes),
            received_to_committed: core.received_to_committed.clone(),
        });
        core.add_handler(Arc::clone(&handler) as _);
        handler
    }

    /// Where its commands are decided.
    pub(crate) fn mailboxes(&self) -> &Mailboxes<A> {
        &self.mailboxes
    }

    /// What tells whether a key comes with the same content again.
    pub(crate) fn fingerprints(&self) -> &Fingerprints {
        &self.fingerprints
    }

    /// Answers a call of gRPC: the receipt, or why there is none.
    pub(crate) async fn answer_call<R>(&self, call: Request<R>) -> Result<Response<common::Receipt>, Status>
    where
        R: CommandRequest<Aggregate = A>,
    {
        let (_, extensions, request) = call.into_parts();
        let Answer { receipt, is_replay } = self.handle(request, &extensions).await?;
        Ok(marked(Response::new(receipt), is_replay))
    }

    /// Handles a request of either transport; its extensions say who calls.
    pub(crate) async fn handle<R>(&self, request: R, extensions: &Extensions) -> Result<Answer, ApiError>
    where
        R: CommandRequest<Aggregate = A>,
    {
        let (received_at, started) = (OffsetDateTime::now_utc(), Instant::now());
        let caller = Caller {
            principal: principal_with(extensions, A::SCOPE)?,
            received_at,
        };
        let handled = self.handle_anywhere(request, &caller);
        let answer = match deadline() {
            Some(deadline) => timeout_at(deadline, handled)
                .await
                .map_err(|_| ApiError::deadline_exceeded())?,
            None => handled.await,
        }?;
        self.received_to_committed
            .observe(started.elapsed().as_secs_f64());
        Ok(answer)
    }

    /// Handles a command: here, or, where other replicas write to its aggregate as well, at that aggregate's home.
    pub(crate) async fn handle_anywhere<R>(&self, mut request: R, caller: &Caller) -> Result<Answer, ApiError>
    where
        R: CommandRequest<Aggregate = A>,
    {
        let key = request.take_request_id();
        let content = request.encode_to_vec();
        let envelope = Arc::new(self.envelope(request, &key, &content, caller)?);
        let (stream, contended) = (envelope.stream(), self.mailboxes.contended());
        let give_up_at = Instant::now() + CONTENDED_MAX;
        let mut may_be_recorded = false;
        let mut is_contended = contended.contains(&stream);
        loop {
            let home = match is_contended {
                true => self.homes.elsewhere(&stream),
                false => None,
            };
            if let Some(home) = home {
                let request = ForwardedRequest {
                    name: R::NAME,
                    key: &key,
                    content: &content,
                };
                match self.homes.forward(home, request, caller).await {
                    Forwarded::Answered {
                        answer: Err(refusal), ..
                    } if may_be_recorded && is_of_the_moment(&refusal) => {}
                    Forwarded::Answered { answer, is_shared } => {
                        if is_shared {
                            contended.note(&stream);
                        }
                        return answer;
                    }
                    Forwarded::NotHandled => {}
                    Forwarded::Unknown => may_be_recorded = true,
                }
            } else if is_contended {
                contended.is_shared(&stream, self.homes.own());
            }
            let attempts = ATTEMPTS_BEFORE_FORWARDING;
            let outcome = self
                .mailboxes
                .handle_within(Arc::clone(&envelope), attempts)
                .await;
            match outcome {
                // Nothing was recorded. Whoever it lost against may be the home, or may be known by now.
                Err(HandleError::Contended) if Instant::now() < give_up_at => is_contended = true,
                Err(error) if may_be_recorded && says_that_nothing_is_recorded(&error) => {
                    return Err(ApiError::dependency_unavailable("replica", error));
                }
                outcome => return self.answer(outcome, &stream),
            }
        }
    }

    /// Handles a command that another replica forwarded, whoever its home is by this replica's own reckoning.
    pub(crate) async fn handle_for<R>(
        &self,
        key: &str,
        content: &[u8],
        caller: &Caller,
        from: Uuid,
    ) -> Forwarded
    where
        R: CommandRequest<Aggregate = A> + Default,
    {
        let request = R::decode(content).ok();
        let request = request.filter(|_| caller.principal.scopes.contains(A::SCOPE));
        let envelope = request.map(|request| self.envelope(request, key, content, caller));
        let Some(Ok(envelope)) = envelope else {
            return Forwarded::NotHandled;
        };
        let stream = envelope.stream();
        let is_shared = self.mailboxes.contended().forwarded(&stream, from);
        let outcome = self.mailboxes.handle(envelope).await;
        if let Some(forwarded) = without_answer(&outcome) {
            return forwarded;
        }
        Forwarded::Answered {
            answer: self.answer(outcome, &stream),
            is_shared,
        }
    }

    fn envelope<R>(
        &self,
        request: R,
        key: &str,
        content: &[u8],
        caller: &Caller,
    ) -> Result<Command<A>, ApiError>
    where
        R: CommandRequest<Aggregate = A>,
    {
        let mut violations = Violations::default();
        check_key("/request_id", key, &mut violations);
        let fingerprints = self.fingerprints.of(R::NAME, content);
        envelope(request, key, fingerprints, content.len(), caller, violations)
    }

    pub(crate) fn answer(
        &self,
        outcome: Result<Outcome, HandleError>,
        stream: &Stream,
    ) -> Result<Answer, ApiError> {
        let (tenant_id, id) = stream;
        let Outcome { receipt, is_replay } = outcome.map_err(|error| api_error(error, A::CATEGORY, id))?;
        match &receipt.rejection {
            None => Ok(Answer {
                receipt: accepted(&receipt, &self.sealing, *tenant_id),
                is_replay,
            }),
            Some(rejection) => Err(refused::<A>(rejection, &receipt.stream_id).replayed(is_replay)),
        }
    }
}

/// Checks a request without its key as a whole, so that all that is wrong with it is reported at once, with what was found wrong
/// before.
pub(crate) fn envelope<R: CommandRequest>(
    mut request: R,
    key: &str,
    fingerprints: Vec<i64>,
    request_bytes: usize,
    caller: &Caller,
    mut violations: Violations,
) -> Result<Command<R::Aggregate>, ApiError> {
    let Caller {
        principal,
        received_at,
    } = caller;
    let context = request.take_context();
    let metadata = metadata(context, principal, R::NAME, key, *received_at, &mut violations);
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

/// What a replica that forwarded a command is told when this one cannot answer it. A fault of this replica is not reported
/// to the caller: the other replica may be able to handle the command.
fn without_answer(outcome: &Result<Outcome, HandleError>) -> Option<Forwarded> {
    match outcome.as_ref().err()? {
        // The log says so. And a tenant's share of this replica is not made up for by its share of the other.
        HandleError::VersionConflict { .. }
        | HandleError::KeyReused
        | HandleError::NotFound
        | HandleError::NotAdmitted(NotAdmitted::TenantShareFull) => None,
        HandleError::Unanswered(Unanswered::Unknown(_) | Unanswered::Stopped) => Some(Forwarded::Unknown),
        HandleError::NotAdmitted(NotAdmitted::Full)
        | HandleError::NoPartition
        | HandleError::Contended
        | HandleError::Load(_)
        | HandleError::Panicked(_)
        | HandleError::Unanswered(Unanswered::Refused(_)) => Some(Forwarded::NotHandled),
    }
}

/// Whether an error means that nothing was recorded. That may not be said of a command that a home may have recorded, or
/// may record yet.
fn says_that_nothing_is_recorded(error: &HandleError) -> bool {
    match error {
        HandleError::NotFound
        | HandleError::NoPartition
        | HandleError::NotAdmitted(_)
        | HandleError::Contended => true,
        // Versions grow: one that is not there yet may come, and the command with it.
        HandleError::VersionConflict { expected, actual } => actual < expected,
        HandleError::KeyReused
        | HandleError::Load(_)
        | HandleError::Panicked(_)
        | HandleError::Unanswered(_) => false,
    }
}

/// Whether a home's refusal may say that nothing was recorded. Then it is asked for here as well.
fn is_of_the_moment(refusal: &ApiError) -> bool {
    matches!(
        refusal.code(),
        Code::ResourceNotFound | Code::RateLimited | Code::VersionConflict
    )
}

/// The receipt as its caller gets it. The token is the same whenever it is sent again, as long as the key is.
fn accepted(receipt: &Receipt, sealing: &KeyRing, tenant_id: Uuid) -> common::Receipt {
    let token = receipt.last_position().map(|position| ConsistencyToken {
        partition: receipt.partition,
        position,
        epoch: receipt.epoch.number,
        generation: receipt.epoch.generation,
    });
    common::Receipt {
        stream_id: receipt.stream_id.to_string(),
        stream_version: receipt.stream_version,
        consistency_token: token
            .map(|token| token.seal(sealing, tenant_id))
            .unwrap_or_default(),
        recorded_at: Some(to_timestamp(receipt.recorded_at)),
    }
}

/// An answer, marked where it is that to an earlier send.
pub(crate) fn marked<T>(mut answer: Response<T>, is_replay: bool) -> Response<T> {
    if is_replay {
        let marker = MetadataValue::from_static("true");
        answer.metadata_mut().insert(IDEMPOTENCY_REPLAYED, marker);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::LoadError;

    #[test]
    fn a_fault_of_the_home_is_not_reported_to_the_caller() {
        let told = |error| without_answer(&Err(error));
        for error in [
            HandleError::NotAdmitted(NotAdmitted::Full),
            HandleError::NoPartition,
            HandleError::Contended,
            HandleError::Load(Arc::new(LoadError::Unstable)),
        ] {
            assert!(matches!(told(error), Some(Forwarded::NotHandled)));
        }
        let stopped = HandleError::Unanswered(Unanswered::Stopped);
        assert!(matches!(told(stopped), Some(Forwarded::Unknown)));
    }

    #[test]
    fn a_version_that_is_not_there_yet_does_not_say_that_a_command_is_not_recorded() {
        let conflict = |expected, actual| HandleError::VersionConflict { expected, actual };
        assert!(says_that_nothing_is_recorded(&conflict(6, 5)));
        assert!(!says_that_nothing_is_recorded(&conflict(5, 6)));
        assert!(is_of_the_moment(&api_error(conflict(6, 5), "order", "ord_1")));
    }

    #[test]
    fn nobody_is_told_that_a_command_is_not_recorded_whose_answer_got_lost() {
        let lost = HandleError::Unanswered(Unanswered::Stopped);
        assert!(!says_that_nothing_is_recorded(&lost));
        let told = api_error(lost, "order", "ord_1");
        assert_eq!(*told.code(), Code::DependencyUnavailable);
    }

    #[test]
    fn what_the_log_says_and_a_tenants_full_share_at_the_home_are_answers() {
        let (expected, actual) = (1, 2);
        for error in [
            HandleError::VersionConflict { expected, actual },
            HandleError::KeyReused,
            HandleError::NotFound,
            HandleError::NotAdmitted(NotAdmitted::TenantShareFull),
        ] {
            assert!(without_answer(&Err(error)).is_none());
        }
    }
}
