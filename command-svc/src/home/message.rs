//! What command services send to each other, as Protocol Buffers.

use std::sync::Arc;
use std::time::Duration;

use daybook_proto::FILE_DESCRIPTOR_SET;
use daybook_proto::common::v1::Receipt;
use daybook_service::error::problem;
use daybook_service::identity::{Principal, Scope, ScopeSet};
use daybook_service::request::RequestId;
use daybook_service::telemetry;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Forwarded, Request};
use crate::handler::{Answer, Caller};

/// Raised when something changes that replicas must agree on: the messages of this file, the hash that names homes, or what
/// a command's request means. Its form counts by itself.
const CONTRACT_VERSION: u32 = 3;

/// A digest of all that replicas must agree on, so that none is ever sent what it does not understand. It is a part of every
/// seal: while an older and a newer program run side by side, they ignore each other.
pub(super) fn contract() -> [u8; 32] {
    Sha256::new()
        .chain_update(CONTRACT_VERSION.to_be_bytes())
        .chain_update(FILE_DESCRIPTOR_SET)
        .finalize()
        .into()
}

/// A live replica.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Announcement {
    /// Whether it is stopping.
    #[prost(bool, tag = "2")]
    pub(super) is_stopping: bool,
}

/// A command, and who sent it. The credential stays where it came in.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ForwardedCommand {
    /// The command's name, as auditors see it.
    #[prost(string, tag = "1")]
    pub(super) name: String,
    /// The request without its key, context included.
    #[prost(bytes = "vec", tag = "2")]
    content: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    tenant_id: Vec<u8>,
    #[prost(int32, tag = "4")]
    tenant_partition: i32,
    #[prost(string, tag = "5")]
    key_prefix: String,
    #[prost(string, tag = "6")]
    key_name: String,
    #[prost(string, repeated, tag = "7")]
    scopes: Vec<String>,
    /// When the command came in, in microseconds since 1970.
    #[prost(int64, tag = "8")]
    received_at_us: i64,
    /// The `X-Request-Id` that answers and logs name.
    #[prost(string, tag = "9")]
    pub(super) request_id: String,
    /// The trace that it belongs to.
    #[prost(string, optional, tag = "10")]
    pub(super) traceparent: Option<String>,
    /// How long somebody waits for the answer, in microseconds.
    #[prost(uint64, tag = "11")]
    pub(super) patience_us: u64,
    /// The caller's idempotency key.
    #[prost(string, tag = "12")]
    key: String,
}

impl ForwardedCommand {
    /// A command as a part of the request that is being answered.
    pub(super) fn new(request: Request<'_>, caller: &Caller, patience: Duration) -> Self {
        let principal = &caller.principal;
        Self {
            name: request.name.to_owned(),
            key: request.key.to_owned(),
            content: request.content.to_vec(),
            tenant_id: principal.tenant_id.as_bytes().to_vec(),
            tenant_partition: principal.tenant_partition,
            key_prefix: principal.key_prefix.clone(),
            key_name: principal.name.clone(),
            scopes: principal
                .scopes
                .iter()
                .map(Scope::as_str)
                .map(str::to_owned)
                .collect(),
            received_at_us: i64::try_from(caller.received_at.unix_timestamp_nanos() / 1_000)
                .unwrap_or_default(),
            request_id: RequestId::current()
                .map(|id| id.as_str().to_owned())
                .unwrap_or_default(),
            traceparent: telemetry::current_traceparent(),
            patience_us: u64::try_from(patience.as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// The request.
    pub(super) fn request(&self) -> Request<'_> {
        Request {
            name: &self.name,
            key: &self.key,
            content: &self.content,
        }
    }

    /// Whose command it is; `None` when this program does not understand it.
    pub(super) fn caller(&self) -> Option<Caller> {
        let principal = Principal {
            tenant_id: Uuid::from_slice(&self.tenant_id).ok()?,
            tenant_partition: self.tenant_partition,
            key_prefix: self.key_prefix.clone(),
            name: self.key_name.clone(),
            scopes: ScopeSet::from_names(self.scopes.iter().map(String::as_str)),
        };
        let received_at_ns = i128::from(self.received_at_us) * 1_000;
        Some(Caller {
            principal: Arc::new(principal),
            received_at: OffsetDateTime::from_unix_timestamp_nanos(received_at_ns).ok()?,
        })
    }
}

/// What became of a forwarded command: a receipt, a refusal, or neither. Without a word on that it is unknown.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ForwardedAnswer {
    #[prost(message, optional, tag = "1")]
    receipt: Option<Receipt>,
    #[prost(bool, tag = "2")]
    is_replay: bool,
    /// A problem of the catalogue, as JSON.
    #[prost(bytes = "vec", optional, tag = "3")]
    refusal: Option<Vec<u8>>,
    /// Whether the home has had commands for this aggregate from elsewhere as well, of late.
    #[prost(bool, tag = "4")]
    is_shared: bool,
    /// Whether the home certainly has not recorded the command, and does not.
    #[prost(bool, tag = "5")]
    is_not_handled: bool,
}

impl From<Forwarded> for ForwardedAnswer {
    fn from(forwarded: Forwarded) -> Self {
        let mut message = Self::default();
        match forwarded {
            Forwarded::Answered { answer, is_shared } => {
                message.is_shared = is_shared;
                match answer {
                    Ok(answer) => {
                        message.is_replay = answer.is_replay;
                        message.receipt = Some(answer.receipt);
                    }
                    Err(error) => {
                        message.is_replay = error.is_replay();
                        message.refusal = Some(error.answer().to_string().into_bytes());
                    }
                }
            }
            Forwarded::NotHandled => message.is_not_handled = true,
            Forwarded::Unknown => {}
        }
        message
    }
}

impl From<ForwardedAnswer> for Forwarded {
    fn from(message: ForwardedAnswer) -> Self {
        let (is_replay, is_shared) = (message.is_replay, message.is_shared);
        let refusal = message.refusal.and_then(|refusal| problem::parse(&refusal));
        let answer = match (message.receipt, refusal) {
            (Some(receipt), _) => Ok(Answer { receipt, is_replay }),
            (None, Some(refusal)) => Err(refusal.replayed(is_replay)),
            (None, None) if message.is_not_handled => return Self::NotHandled,
            (None, None) => return Self::Unknown,
        };
        Self::Answered { answer, is_shared }
    }
}

#[cfg(test)]
mod tests {
    use daybook_service::error::ApiError;

    use super::*;

    #[test]
    fn a_refusal_arrives_as_the_homes_own_caller_would_have_got_it() {
        let rule =
            ApiError::domain_rule("ORDER_CLOSED", "it is closed").with_detail("order_status", "CANCELLED");
        let full = ApiError::rate_limited("commands under way", Duration::from_secs(1));
        for refusal in [rule.replayed(true), full] {
            let message = ForwardedAnswer::from(Forwarded::Answered {
                answer: Err(refusal.clone()),
                is_shared: true,
            });
            let Forwarded::Answered {
                answer: Err(arrived),
                is_shared: true,
            } = message.into()
            else {
                panic!("it is a refusal");
            };
            assert_eq!(arrived.to_problem(), refusal.to_problem());
            assert_eq!(arrived.is_replay(), refusal.is_replay());
            assert_eq!(arrived.retry_after(), refusal.retry_after());
        }
    }

    #[test]
    fn a_home_that_does_not_say_that_it_did_not_handle_a_command_may_have_recorded_it() {
        let arrives = |forwarded: Forwarded| Forwarded::from(ForwardedAnswer::from(forwarded));
        assert!(matches!(arrives(Forwarded::NotHandled), Forwarded::NotHandled));
        assert!(matches!(arrives(Forwarded::Unknown), Forwarded::Unknown));
    }

    #[test]
    fn a_forwarded_command_brings_its_principal_and_moment_along() {
        let caller = Caller {
            principal: Arc::new(Principal {
                tenant_id: Uuid::from_u128(7),
                tenant_partition: 3,
                key_prefix: "ab345678".to_owned(),
                name: "shop".to_owned(),
                scopes: [Scope::OrdersWrite, Scope::EventsRead].into_iter().collect(),
            }),
            received_at: OffsetDateTime::from_unix_timestamp(1_790_000_000).expect("a moment"),
        };
        let request = Request {
            name: "PlaceOrder",
            key: "key-1",
            content: b"content",
        };
        let arrived = ForwardedCommand::new(request, &caller, Duration::ZERO).caller();
        let arrived = arrived.expect("it is understood");
        assert_eq!(arrived.principal, caller.principal);
        assert_eq!(arrived.received_at, caller.received_at);
    }
}
