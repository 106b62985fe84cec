//! What a command's caller is told when there is no receipt.

use std::time::Duration;

use daybook_domain::rejection::Rejection as _;
use daybook_event_store::{NotAdmitted, Unanswered};
use daybook_service::error::problem::RESERVED_MEMBERS;
use daybook_service::error::{ApiError, DATABASE};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Served;
use crate::mailbox::{HandleError, LoadError};

/// When a tenant that has all its commands under way may try again: some of them are answered by then.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A rule's refusal, as it was remembered: the same key is always refused in the same words.
pub(super) fn refused<A: Served>(rejection: &str, id: &str) -> ApiError {
    let Ok(rejection) = serde_json::from_str::<A::Rejection>(rejection) else {
        return refused_elsewhere(rejection, A::CATEGORY, id);
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

/// A refusal that this program does not know: while replicas are replaced, one of another version may have remembered it.
fn refused_elsewhere(rejection: &str, kind: &'static str, id: &str) -> ApiError {
    #[derive(Deserialize)]
    struct Remembered {
        code: String,
        #[serde(flatten)]
        values: Map<String, Value>,
    }

    let remembered: Remembered = match serde_json::from_str(rejection) {
        Ok(remembered) => remembered,
        Err(error) => return ApiError::internal(error),
    };
    let error = ApiError::domain_rule(remembered.code, "a rule refused the command when it first came");
    let values = remembered.values.into_iter();
    values.fold(error.with_resource(kind, id), |error, (name, value)| {
        // Some names are the answer's own.
        let name = match RESERVED_MEMBERS.contains(&name.as_str()) {
            true => format!("{kind}_{name}"),
            false => name,
        };
        error.with_detail(name, value)
    })
}

pub(crate) fn api_error(error: HandleError, kind: &'static str, id: &str) -> ApiError {
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
            LoadError::Read(_) | LoadError::Unstable => ApiError::dependency_unavailable(DATABASE, error),
        },
        HandleError::Unanswered(error) => unanswered(error),
    }
}

fn unanswered(error: Unanswered) -> ApiError {
    match error {
        Unanswered::Refused(error) => ApiError::internal(error),
        Unanswered::Unknown(error) => ApiError::dependency_unavailable(DATABASE, error),
        Unanswered::Stopped => ApiError::dependency_unavailable("appender", error),
    }
}
