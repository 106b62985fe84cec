//! What the OpenAPI description says about exports beside what the handlers say.

use std::collections::BTreeMap;

use daybook_service::Code;
use daybook_service::openapi::{COMMON, refusals};
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::openapi::{RefOr, Response};
use utoipa::{IntoParams, IntoResponses};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{EXPORT_BYTES_MAX, TENANT_BYTES_MAX, http};
use crate::http::key_parameter;
use crate::operations::Operations;

/// The routes of exports.
pub(in crate::operations) fn routes() -> OpenApiRouter<Operations> {
    OpenApiRouter::new()
        .routes(routes!(http::begin))
        .routes(routes!(http::output))
}

/// What the description of exports says about what is in a file.
pub(super) fn exported() -> String {
    format!(
        "All that the log has now and that passes the filters, in the order of the log: what is recorded later is not in it. The \
         operation goes on by itself, and tells the manifest when it has succeeded. Its file is at `output`, for as long as the \
         operation is kept; a tenant has room for {} GiB, and one file for {} GiB of it.",
        TENANT_BYTES_MAX >> 30,
        EXPORT_BYTES_MAX >> 30
    )
}

/// The idempotency key.
pub(super) struct KeyParameter;

impl IntoParams for KeyParameter {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![key_parameter()]
    }
}

/// The refusals of exports.
pub(super) struct RefusalsOfExports;

impl IntoResponses for RefusalsOfExports {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let of_exports = [Code::UnsupportedMediaType, Code::IdempotencyKeyReused];
        refusals(COMMON.iter().chain(&of_exports))
    }
}

/// The refusals of files.
pub(super) struct RefusalsOfOutputs;

impl IntoResponses for RefusalsOfOutputs {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let of_outputs = [Code::ResourceNotFound, Code::OperationRunning];
        refusals(COMMON.iter().chain(&of_outputs))
    }
}
