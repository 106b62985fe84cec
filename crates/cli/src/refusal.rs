//! How the process ends when a service refuses, by the catalogue of errors.

use daybook_client::Refusal;
use daybook_service::error::Code as Catalogued;

use crate::exit::Exit;

impl From<&Refusal> for Exit {
    fn from(refusal: &Refusal) -> Self {
        let mut all = Catalogued::ALL.into_iter();
        let catalogued = all.find(|code| refusal.is_answer && code.name() == refusal.code);
        match catalogued {
            Some(Catalogued::IdempotencyKeyReused) => Self::Conflict,
            Some(Catalogued::PayloadTooLarge) => Self::Usage,
            Some(code) => code.entry().grpc.into(),
            None => refusal.grpc.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use daybook_service::ApiError;
    use tonic::{Code, Status};
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    #[test]
    fn a_problem_is_shown_as_the_same_refusal_over_grpc_is() {
        let errors = [
            ApiError::invalid_field("as_of", "INVALID", "must be a version"),
            ApiError::permission_denied("orders:read"),
            ApiError::not_found("order", "ord_1"),
            ApiError::overloaded("full"),
            ApiError::payload_too_large(1),
            ApiError::domain_rule("ORDER_CLOSED", "it is closed"),
            ApiError::operation_running("rebuild", "order_list"),
        ];
        for error in errors {
            let body = error.to_problem().to_string();
            let problem = Refusal::from_problem(error.http_status(), body.as_bytes());
            let status = Refusal::from(Status::from(error));
            assert_eq!(problem.to_string(), status.to_string());
            assert_eq!(Exit::from(&problem), Exit::from(&status), "{status}");
            assert_eq!(problem.retry_after, status.retry_after, "{status}");
            assert_eq!(problem.is_transient(), status.is_transient(), "{status}");
        }
    }

    #[test]
    fn what_the_services_call_transient_is_sent_again_and_nothing_else() {
        let is_transient = |error: ApiError| Refusal::from(Status::from(error)).is_transient();
        assert!(is_transient(ApiError::overloaded("full")));
        assert!(is_transient(ApiError::shutting_down()));
        assert!(is_transient(ApiError::deadline_exceeded()));
        assert!(!is_transient(ApiError::unauthenticated()));
        assert!(!is_transient(ApiError::payload_too_large(1)));
        assert!(!is_transient(ApiError::internal("a fault")));
    }

    #[test]
    fn a_reused_key_is_a_conflict_although_grpc_calls_it_an_argument() {
        let details = ErrorDetails::with_error_info("IDEMPOTENCY_KEY_REUSED", "daybook", []);
        let status = Status::with_error_details(Code::InvalidArgument, "the key was used", details);
        assert_eq!(Exit::from(&Refusal::from(status)), Exit::Conflict);
    }
}
