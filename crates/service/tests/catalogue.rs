//! The catalogue of errors, held to the table of the contract: every code, on both transports.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::response::IntoResponse as _;
use daybook_service::error::{ApiError, Code, FieldViolation, Retry, grpc, problem};
use daybook_service::request::Context;
use http::{HeaderMap, HeaderValue};
use serde_json::Value;
use tonic::{Code as Grpc, Status};
use tonic_types::StatusExt as _;

/// code, gRPC, HTTP, retry: as the contract has it.
const CONTRACT: [(&str, Grpc, u16, Retry); 26] = [
    ("MALFORMED_REQUEST", Grpc::InvalidArgument, 400, Retry::No),
    ("VALIDATION_FAILED", Grpc::InvalidArgument, 400, Retry::No),
    ("INVALID_CURSOR", Grpc::InvalidArgument, 400, Retry::No),
    ("POSITION_UNKNOWN", Grpc::OutOfRange, 400, Retry::No),
    ("UNAUTHENTICATED", Grpc::Unauthenticated, 401, Retry::No),
    ("PERMISSION_DENIED", Grpc::PermissionDenied, 403, Retry::No),
    ("RESOURCE_NOT_FOUND", Grpc::NotFound, 404, Retry::No),
    ("GONE", Grpc::NotFound, 410, Retry::No),
    ("VERSION_CONFLICT", Grpc::Aborted, 409, Retry::AfterReload),
    ("ALREADY_EXISTS", Grpc::AlreadyExists, 409, Retry::No),
    ("IDEMPOTENCY_KEY_REUSED", Grpc::InvalidArgument, 422, Retry::No),
    (
        "OPERATION_RUNNING",
        Grpc::FailedPrecondition,
        409,
        Retry::WhenItEnds,
    ),
    ("RATE_LIMITED", Grpc::ResourceExhausted, 429, Retry::Later),
    ("READ_MODEL_BEHIND", Grpc::Unavailable, 503, Retry::Later),
    ("OVERLOADED", Grpc::Unavailable, 503, Retry::Later),
    ("DEPENDENCY_UNAVAILABLE", Grpc::Unavailable, 503, Retry::Later),
    ("SHUTTING_DOWN", Grpc::Unavailable, 503, Retry::Later),
    ("DEADLINE_EXCEEDED", Grpc::DeadlineExceeded, 504, Retry::SameKey),
    ("PAYLOAD_TOO_LARGE", Grpc::ResourceExhausted, 413, Retry::No),
    ("HEADERS_TOO_LARGE", Grpc::ResourceExhausted, 431, Retry::No),
    ("URI_TOO_LONG", Grpc::ResourceExhausted, 414, Retry::No),
    ("REQUEST_TIMEOUT", Grpc::DeadlineExceeded, 408, Retry::SameKey),
    ("UNSUPPORTED_MEDIA_TYPE", Grpc::Unimplemented, 415, Retry::No),
    ("METHOD_NOT_ALLOWED", Grpc::Unimplemented, 405, Retry::No),
    ("INTERNAL", Grpc::Internal, 500, Retry::No),
    ("ORDER_ALREADY_SHIPPED", Grpc::FailedPrecondition, 422, Retry::No),
];

fn every_code() -> Vec<Code> {
    let rule = Code::DomainRule("ORDER_ALREADY_SHIPPED".into());
    Code::ALL.into_iter().chain([rule]).collect()
}

#[test]
fn every_code_has_the_statuses_of_the_contract() {
    let catalogue: Vec<_> = every_code()
        .iter()
        .map(|code| {
            (
                code.name().to_owned(),
                code.entry().grpc,
                code.entry().http.as_u16(),
                code.entry().retry,
            )
        })
        .collect();
    let contract: Vec<_> = CONTRACT
        .map(|(name, grpc, http, retry)| (name.to_owned(), grpc, http, retry))
        .into();
    assert_eq!(catalogue, contract);
}

/// How large the headers of a refusal are at the most: what clients take at least, less what else is in a head.
const REFUSAL_BYTES_MAX: usize = 7 * 1_024;

#[test]
fn a_refusal_over_grpc_is_no_larger_than_clients_take_headers_whatever_is_in_it() {
    let long = || "é".repeat(10_000);
    let violation = |number| FieldViolation::new(format!("/{number}/{}", long()), "INVALID", long());
    let errors = [
        ApiError::validation((0..50).map(violation).collect()),
        ApiError::invalid_field("/sku", "INVALID", long()),
        ApiError::validation(vec![FieldViolation::new("/sku", "INVALID", "is none"); 100]),
        ApiError::not_found("order", long()),
        ApiError::domain_rule("ORDER_ALREADY_SHIPPED", long())
            .with_resource("order", long())
            .with_detail("order_status", long())
            .with_detail("others", vec![long(); 3]),
    ];
    for error in errors {
        let code = error.code().clone();
        let status = Status::from(error);
        let info = status.get_details_error_info().expect("always an ErrorInfo");
        assert_eq!(info.reason, code.name());
        let response = status.into_http::<()>();
        let headers = response.headers().iter();
        let bytes: usize = headers
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        assert!(bytes <= REFUSAL_BYTES_MAX, "{code}: {bytes} bytes");
    }
}

#[test]
fn both_transports_carry_the_code_and_the_message() {
    for code in every_code() {
        let error = ApiError::new(code.clone(), "what happened");
        let status = Status::from(error.clone());
        let info = status.get_details_error_info().expect("always an ErrorInfo");
        assert_eq!((&*info.reason, &*info.domain), (code.name(), "daybook"));
        assert_eq!(
            (status.code(), status.message()),
            (code.entry().grpc, "what happened")
        );
        let problem = error.to_problem();
        assert_eq!(problem["code"], code.name());
        assert_eq!(problem["detail"], "what happened");
        assert_eq!(problem["type"], format!("/problems/{}", code.slug()));
        assert_eq!(
            error.into_response().headers()["content-type"],
            "application/problem+json"
        );
    }
}

#[test]
fn every_dynamic_value_is_on_both_transports() {
    let error = ApiError::version_conflict(3, 5);
    let info = Status::from(error.clone())
        .get_details_error_info()
        .expect("always an ErrorInfo");
    assert_eq!(
        (
            &*info.metadata["expected_version"],
            &*info.metadata["actual_version"]
        ),
        ("3", "5")
    );
    let problem = error.to_problem();
    assert_eq!(
        (&problem["expected_version"], &problem["actual_version"]),
        (&3.into(), &5.into())
    );
}

#[test]
fn a_missing_scope_is_named() {
    let error = ApiError::permission_denied("orders:write");
    assert_eq!(error.to_problem()["missing_scope"], "orders:write");
}

#[test]
fn a_pause_is_told_in_each_transports_own_way() {
    let error = ApiError::rate_limited("commands", Duration::from_millis(1_200));
    let status = Status::from(error.clone());
    let details = status.get_error_details();
    let pause = details.retry_info().and_then(|info| info.retry_delay);
    assert_eq!(pause, Some(Duration::from_millis(1_200)));
    assert!(details.quota_failure().is_some());
    assert_eq!(
        status
            .metadata()
            .get("grpc-retry-pushback-ms")
            .expect("a pushback"),
        "1200"
    );
    let response = error.into_response();
    assert_eq!(response.headers()["retry-after"], "2");
}

#[test]
fn an_unauthenticated_answer_says_which_scheme() {
    let response = ApiError::unauthenticated().into_response();
    assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"daybook\"");
}

#[test]
fn a_domain_rule_names_its_precondition_and_its_resource() {
    let error =
        ApiError::domain_rule("ORDER_ALREADY_SHIPPED", "it is on its way").with_resource("order", "ord_7");
    let problem = error.to_problem();
    let details = Status::from(error).get_error_details();
    let violation = &details
        .precondition_failure()
        .expect("a PreconditionFailure")
        .violations[0];
    assert_eq!(
        (&*violation.r#type, &*violation.subject),
        ("ORDER_ALREADY_SHIPPED", "ord_7")
    );
    assert_eq!(
        details.resource_info().expect("a ResourceInfo").resource_name,
        "ord_7"
    );
    assert_eq!(problem["resource"]["id"], "ord_7");
}

#[test]
fn a_flood_of_violations_is_cut_and_the_rest_is_counted() {
    let violation = |index| FieldViolation::new(format!("/lines/{index}"), "REQUIRED", "is missing");
    let refused = |count| ApiError::validation((0..count).map(violation).collect());

    let details = Status::from(refused(1_000)).get_error_details();
    let listed = details
        .bad_request()
        .expect("a BadRequest")
        .field_violations
        .len();
    assert_eq!((listed, grpc::VIOLATIONS_MAX), (32, 32), "trailers are small");
    let info = details.error_info().expect("always an ErrorInfo");
    assert_eq!(info.metadata["more_violations"], "968");

    let problem = refused(1_000).to_problem();
    assert_eq!(problem["errors"].as_array().map(Vec::len), Some(100));
    assert_eq!(problem["more_violations"], 900);

    for (count, over_grpc) in [(32, None), (100, Some("68"))] {
        assert_eq!(refused(count).to_problem()["more_violations"], Value::Null);
        let info = Status::from(refused(count)).get_details_error_info();
        let metadata = info.expect("always an ErrorInfo").metadata;
        assert_eq!(metadata.get("more_violations").map(String::as_str), over_grpc);
    }
}

#[test]
fn a_version_that_if_match_demands_in_vain_is_a_precondition_that_failed() {
    let response = ApiError::version_conflict(3, 5).of_if_match().into_response();
    assert_eq!(response.status(), 412);
    let problem = ApiError::version_conflict(3, 5).of_if_match().to_problem();
    assert_eq!(
        (&problem["status"], &problem["code"]),
        (&412.into(), &"VERSION_CONFLICT".into())
    );
    let other = ApiError::not_found("order", "ord_7").of_if_match();
    assert_eq!(
        other.into_response().status(),
        404,
        "nothing else has to do with it"
    );
}

#[test]
fn an_operation_that_runs_already_is_named() {
    let error = ApiError::operation_running("rebuild", "order_list");
    let details = Status::from(error.clone()).get_error_details();
    let named = &details.resource_info().expect("a ResourceInfo").resource_name;
    assert_eq!(named, "rebuild/order_list");
    assert!(details.precondition_failure().is_some());
    assert_eq!(error.to_problem()["resource"]["id"], "rebuild/order_list");
}

#[test]
fn a_remembered_refusal_says_that_it_is_one_on_both_transports() {
    let error = |is_replay| ApiError::domain_rule("ORDER_CLOSED", "it is closed").replayed(is_replay);
    let marked = |is_replay| {
        let status = Status::from(error(is_replay));
        let response = error(is_replay).into_response();
        (
            status.metadata().get("idempotency-replayed").is_some(),
            response.headers().contains_key("idempotency-replayed"),
        )
    };
    assert_eq!((marked(true), marked(false)), ((true, true), (false, false)));
}

#[tokio::test]
async fn a_problem_is_an_instance_of_its_own_whatever_its_request_is_called() {
    for (id, instance) in [
        ("0190-abc", "/requests/0190-abc"),
        ("import/17", "/requests/import%2F17"),
    ] {
        let headers = HeaderMap::from_iter([(
            http::HeaderName::from_static("x-request-id"),
            HeaderValue::from_static(id),
        )]);
        let problem = async { ApiError::unauthenticated().to_problem() };
        let problem = Context::from_headers(&headers).scope(problem).await;
        assert_eq!(
            (&problem["request_id"], &problem["instance"]),
            (&id.into(), &instance.into())
        );
    }
}

/// The details of a status. The values of an `ErrorInfo` come in any order, so of the bytes only which ones they are.
fn comparable(status: &Status) -> (String, BTreeMap<String, String>, Vec<u8>) {
    let info = status.get_details_error_info().expect("an ErrorInfo");
    let mut bytes = status.details().to_vec();
    bytes.sort_unstable();
    (info.reason, info.metadata.into_iter().collect(), bytes)
}

#[test]
fn a_problem_that_is_read_back_is_the_error_that_it_was() {
    let errors = [
        ApiError::domain_rule("ORDER_CLOSED", "it is closed").with_detail("order_status", "CANCELLED"),
        ApiError::version_conflict(3, 5).with_resource("order", "ord_7"),
        ApiError::rate_limited("commands under way", Duration::from_millis(1_200)),
    ];
    for error in errors {
        let problem = error.to_problem();
        let read = problem::parse(problem.to_string().as_bytes()).expect("a problem");
        assert_eq!(read.code(), error.code());
        assert_eq!(read.to_problem(), problem);
        let (read, error) = (Status::from(read), Status::from(error));
        assert_eq!(comparable(&read), comparable(&error));
    }
    assert!(problem::parse(b"<html>").is_none() && problem::parse(b"{}").is_none());
}

#[test]
fn the_cause_of_an_internal_error_stays_inside() {
    let error = ApiError::internal("column \"secret\" does not exist");
    assert!(!error.to_problem().to_string().contains("secret"));
    let status = Status::from(error);
    assert!(!format!("{} {:?}", status.message(), status.get_error_details()).contains("secret"));
}
