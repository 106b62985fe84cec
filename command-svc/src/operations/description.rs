//! What the OpenAPI description says about operations beside what the handlers say: how lines look and which scopes do
//! follow from what can be imported.

use std::collections::BTreeMap;

use daybook_service::Code;
use daybook_service::openapi::{API_KEY, COMMON, DescribedHeader, add_headers, refusals};
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{Object, ObjectBuilder, Schema, Type};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{OpenApi, RefOr, Required, Response, SecurityRequirement};
use utoipa::{IntoParams, IntoResponses, PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ERRORS_MAX, Operations, RETENTION, exports, http, upload};
use crate::aggregates;
use crate::http::key_parameter;

/// The routes that take inputs.
pub(super) fn uploads() -> OpenApiRouter<Operations> {
    OpenApiRouter::new().routes(routes!(upload::upload))
}

/// The other routes.
pub(super) fn reads() -> OpenApiRouter<Operations> {
    OpenApiRouter::new()
        .routes(routes!(http::list))
        .routes(routes!(http::show))
        .routes(routes!(http::cancel))
        .routes(routes!(http::errors))
}

/// What is said about all of them.
pub(crate) fn description() -> OpenApi {
    let importable = aggregates::importable();
    let imports: Vec<_> = importable.iter().map(|kind| kind.scope.as_str()).collect();
    let exports = [exports::SCOPE.as_str()];
    let mut api = with_scopes(uploads(), &imports);
    api.merge(with_scopes(reads(), &[&*imports, &exports].concat()));
    api.merge(with_scopes(exports::routes(), &exports));
    let scopes = importable
        .iter()
        .map(|kind| format!("`{}` for {}", kind.scope, kind.name));
    let scopes: Vec<_> = scopes
        .chain([format!("`{}` for exports", exports::SCOPE)])
        .collect();
    let what = format!(
        "What takes longer than a request: imports and exports. An operation is kept for {} days after it has ended, and so is its \
         file. Scope {}.",
        RETENTION.as_secs() / (24 * 60 * 60),
        scopes.join(", ")
    );
    let tag = TagBuilder::new().name("operations").description(Some(what));
    api.tags.get_or_insert_default().push(tag.build());
    add_headers(&mut api, headers_of);
    api
}

/// What is said about these routes, for keys with one of these scopes.
fn with_scopes(routes: OpenApiRouter<Operations>, scopes: &[&str]) -> OpenApi {
    let (_, mut api) = routes.split_for_parts();
    let security = scopes
        .iter()
        .map(|scope| SecurityRequirement::new(API_KEY, [*scope]));
    let security: Vec<_> = security.collect();
    for item in api.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
            operation.security = Some(security.clone());
        }
    }
    api
}

fn headers_of(status: &str) -> Vec<DescribedHeader> {
    let kept = [
        ("Cache-Control", Type::String, "Always `private, no-cache`."),
        (
            "Vary",
            Type::String,
            "What the answer depends on beside its address.",
        ),
    ];
    let taken = [
        ("Location", Type::String, "Where the operation is."),
        (
            "Idempotency-Replayed",
            Type::String,
            "`true` where the answer is that to an earlier send under the same key.",
        ),
    ];
    match status {
        "200" => kept.into(),
        "202" => kept.into_iter().chain(taken).collect(),
        _ => Vec::new(),
    }
}

/// The body of an import.
pub(super) struct ImportBody;

impl PartialSchema for ImportBody {
    fn schema() -> RefOr<Schema> {
        let lines: Vec<_> = aggregates::importable()
            .iter()
            .map(|kind| format!("a line of {} is {}", kind.name, kind.line))
            .collect();
        let what = format!(
            "One value on each line: {}. Blank lines are passed over.",
            lines.join(", ")
        );
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(what))
            .into()
    }
}

impl ToSchema for ImportBody {}

/// The parameters of an import.
pub(super) struct ImportParams;

impl IntoParams for ImportParams {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let names: Vec<_> = aggregates::importable()
            .iter()
            .map(|kind| format!("`{}`", kind.name))
            .collect();
        let what = format!(
            "What is imported: {}; `{}` by default.",
            names.join(", "),
            upload::KIND_DEFAULT
        );
        vec![query("kind", Type::String, &what), key_parameter()]
    }
}

/// Which page of a list.
pub(super) struct Page;

impl IntoParams for Page {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let limit = "How many items a page has: 1 to 100, 20 by default.";
        vec![
            query("limit", Type::Integer, limit),
            query("cursor", Type::String, "The `next_cursor` of the page before."),
        ]
    }
}

fn query(name: &str, schema_type: Type, description: &str) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(Object::with_type(schema_type)))
        .build()
}

/// What the description of errors says about how many there are.
pub(super) fn errors_kept() -> String {
    format!(
        "The first {ERRORS_MAX} are kept, and all are counted. `Accept: text/csv` asks for all of them as a file, in which no cell \
         begins like a formula."
    )
}

/// The refusals that every request can end in.
pub(super) struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        refusals(&COMMON)
    }
}

/// The refusals of lists.
pub(super) struct RefusalsOfLists;

impl IntoResponses for RefusalsOfLists {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        refusals(COMMON.iter().chain(&[Code::InvalidCursor]))
    }
}

/// The refusals of imports.
pub(super) struct RefusalsOfImports;

impl IntoResponses for RefusalsOfImports {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let of_imports = [Code::UnsupportedMediaType, Code::IdempotencyKeyReused];
        refusals(COMMON.iter().chain(&of_imports))
    }
}

/// The refusal where there is no such operation.
pub(super) struct NotFound;

impl IntoResponses for NotFound {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        refusals(&[Code::ResourceNotFound])
    }
}

#[cfg(test)]
mod tests {
    use daybook_domain::each_aggregate;
    use serde_json::{Value, json, to_value};

    use super::description;
    use crate::handler::Served;

    #[test]
    fn each_scope_of_what_can_be_imported_or_exported_lets_a_caller_in() {
        let scopes = each_aggregate!(A => <A as Served>::SCOPE.as_str());
        let imports = scopes.map(|scope| json!({"api_key": [scope]}));
        let exports = [json!({"api_key": ["events:read"]})];
        let any_kind = [&imports[..], &exports].concat();
        let api = to_value(description()).expect("it is JSON");
        let paths = api["paths"].as_object().expect("an object");
        let operations = paths
            .values()
            .flat_map(|item| item.as_object().expect("an object").values());
        let operations: Vec<_> = operations.filter(|operation| operation.is_object()).collect();
        assert_eq!(operations.len(), 7);
        for operation in operations {
            let expected: &[Value] = match operation["operationId"].as_str() {
                Some("import") => &imports,
                Some("exportEvents" | "getOperationOutput") => &exports,
                _ => &any_kind,
            };
            assert_eq!(
                operation["security"],
                json!(expected),
                "{}",
                operation["operationId"]
            );
        }
    }
}
