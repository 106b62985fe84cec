//! What the OpenAPI description says about imports and operations.

use daybook_service::Code;
use daybook_service::identity::Scope;
use daybook_service::openapi::{API_KEY, COMMON, refusals};
use utoipa::openapi::content::Content;
use utoipa::openapi::path::{
    HttpMethod, Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    ContentBuilder, OpenApi, Ref, Required, ResponseBuilder, Responses, SecurityRequirement,
};
use utoipa::{PartialSchema, ToSchema};

use super::http::{ErrorList, OperationAnswer, OperationList};
use super::{ERRORS_MAX, RETENTION, exports};
use crate::http::key_parameter;

/// How the operations are found together.
pub(super) const TAG: &str = "operations";

/// Adds imports and operations.
pub(crate) fn add_to(api: &mut OpenApi) {
    add_schema::<OperationAnswer>(api);
    add_schema::<OperationList>(api);
    add_schema::<ErrorList>(api);
    let paths = [
        ("/v1/imports", HttpMethod::Post, import()),
        ("/v1/operations", HttpMethod::Get, list()),
        ("/v1/operations/{operation_id}", HttpMethod::Get, show()),
        ("/v1/operations/{operation_id}/cancel", HttpMethod::Post, cancel()),
        ("/v1/operations/{operation_id}/errors", HttpMethod::Get, errors()),
    ];
    for (path, method, operation) in paths {
        api.paths.add_path_operation(path, vec![method], operation);
    }
    exports::add_to(api);
    let days = RETENTION.as_secs() / (24 * 60 * 60);
    let what = format!(
        "What takes longer than a request: imports and exports. An operation is kept for {days} days after it has ended, and so \
         is its file. Scope `orders:write` for orders, `stock:write` for stock items, `events:read` for exports."
    );
    let tag = TagBuilder::new().name(TAG).description(Some(what));
    api.tags.get_or_insert_default().push(tag.build());
}

pub(super) fn add_schema<T: ToSchema + PartialSchema>(api: &mut OpenApi) {
    let mut schemas = vec![(T::name().into_owned(), T::schema())];
    T::schemas(&mut schemas);
    api.components.get_or_insert_default().schemas.extend(schemas);
}

fn begin(id: &str, summary: &str) -> OperationBuilder {
    OperationBuilder::new()
        .tag(TAG)
        .operation_id(Some(id))
        .summary(Some(summary))
        .security(SecurityRequirement::new(API_KEY, [Scope::OrdersWrite.as_str()]))
        .security(SecurityRequirement::new(API_KEY, [Scope::StockWrite.as_str()]))
}

/// An operation of any kind.
fn of_any_kind(id: &str, summary: &str) -> OperationBuilder {
    begin(id, summary).security(SecurityRequirement::new(API_KEY, [Scope::EventsRead.as_str()]))
}

fn import() -> Operation {
    let line = ObjectBuilder::new().schema_type(Type::String).description(Some(
        "A line of orders is {\"order\": the caller's reference, \"customer\", \"currency\", \"placed_at\", \"lines\": [{\"sku\", \
         \"quantity\", \"unit_price_minor\"}]}, a line of stock-items is {\"sku\"}. Blank lines are passed over.",
    ));
    let content = ContentBuilder::new().schema(Some(line.build())).build();
    let body = RequestBodyBuilder::new()
        .content("application/x-ndjson", content)
        .required(Some(Required::True));
    let kind = query(
        "kind",
        Type::String,
        "What is imported: `orders`, which is the default, or `stock-items`.",
    );
    begin("import", "Imports what an NDJSON stream holds, however long it is.")
        .description(Some(
            "Each line is a command under a key that follows from what the line is about: the same line again changes nothing. \
             The input is kept before this is answered, and then the operation goes on by itself.",
        ))
        .parameter(kind)
        .parameter(key_parameter())
        .request_body(Some(body.build()))
        .responses(responses(
            "202",
            "It was taken; `Location` says where its operation is.",
            "application/json",
            of::<OperationAnswer>(),
            &[Code::UnsupportedMediaType, Code::IdempotencyKeyReused],
        ))
        .build()
}

fn list() -> Operation {
    of_any_kind("listOperations", "Operations, the newest first.")
        .parameter(limit())
        .parameter(cursor())
        .responses(ok(of::<OperationList>(), &[Code::InvalidCursor]))
        .build()
}

fn show() -> Operation {
    of_any_kind("getOperation", "How an operation stands.")
        .parameter(id())
        .responses(ok(of::<OperationAnswer>(), &[Code::ResourceNotFound]))
        .build()
}

fn cancel() -> Operation {
    of_any_kind(
        "cancelOperation",
        "Has an operation end before it is done: what was done stays.",
    )
    .description(Some(
        "An operation that has ended stays as it is, so this may be sent as often as one likes.",
    ))
    .parameter(id())
    .responses(ok(of::<OperationAnswer>(), &[Code::ResourceNotFound]))
    .build()
}

fn errors() -> Operation {
    let csv = ContentBuilder::new()
        .schema(Some(Object::with_type(Type::String)))
        .build();
    let what = format!(
        "The first {ERRORS_MAX} are kept, and all are counted. `Accept: text/csv` asks for all of them as a file, in which no cell \
         begins like a formula."
    );
    let mut responses = ok(of::<ErrorList>(), &[Code::ResourceNotFound, Code::InvalidCursor]);
    if let Some(utoipa::openapi::RefOr::T(done)) = responses.responses.get_mut("200") {
        done.content.insert("text/csv".to_owned(), csv.into());
    }
    of_any_kind(
        "listOperationErrors",
        "Why lines of an operation failed, by their numbers.",
    )
    .description(Some(what))
    .parameter(id())
    .parameter(limit())
    .parameter(cursor())
    .responses(responses)
    .build()
}

pub(super) fn of<T: ToSchema>() -> Content {
    ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(T::name())))
        .build()
}

fn ok(content: Content, others: &[Code]) -> Responses {
    responses("200", "It is there.", "application/json", content, others)
}

pub(super) fn responses(
    status: &str,
    what: &str,
    media_type: &str,
    content: Content,
    others: &[Code],
) -> Responses {
    let done = ResponseBuilder::new()
        .description(what)
        .content(media_type, content);
    let mut responses = Responses::new();
    responses.responses = refusals(COMMON.iter().chain(others));
    responses.responses.insert(status.to_owned(), done.build().into());
    responses
}

pub(super) fn id() -> Parameter {
    ParameterBuilder::new()
        .name("operation_id")
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some("The TypeID of the operation."))
        .schema(Some(Object::with_type(Type::String)))
        .build()
}

fn limit() -> Parameter {
    query(
        "limit",
        Type::Integer,
        "How many items a page has: 1 to 100, 20 by default.",
    )
}

fn cursor() -> Parameter {
    query("cursor", Type::String, "The `next_cursor` of the page before.")
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
