//! The OpenAPI description of the commands. What is said about a request and its fields is what the wire contract says.

use daybook_proto::convert::CommandRequest;
use daybook_service::Code;
use daybook_service::identity::Scope;
use daybook_service::openapi::{
    API_KEY, COMMON, DescribedHeader, add_common, add_headers, problem, refusals, text,
};
use utoipa::openapi::path::{
    HttpMethod, Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn,
};
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::schema::{ArrayBuilder, Object, Schema, Type};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    ContentBuilder, OpenApi, Ref, RefOr, Required, ResponseBuilder, Responses, SecurityRequirement,
};
use utoipa::{OpenApi as _, PartialSchema as _, ToSchema};

use super::{BatchAnswer, BatchBody, ReceiptAnswer};
use crate::aggregates;
use crate::batch::ITEMS_MAX;
use crate::handler::Served;
use crate::operations;

/// The API as a whole.
#[derive(Debug, utoipa::OpenApi)]
#[openapi(
    info(
        title = "Daybook commands",
        description = "Each command has an `Idempotency-Key`, under which it may be sent again: it is done once, and answered \
                       as the first time. A key is the same over gRPC, where it is called \
                       `request_id`. Members that are not known are ignored; members may be added. What was changed can be \
                       read from the query service.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/", description = "This server")),
    components(schemas(ReceiptAnswer, BatchAnswer)),
)]
struct Api;

/// The description, as `/openapi.json` gives it.
#[must_use]
pub fn description() -> String {
    let mut api = Api::openapi();
    for operations in aggregates::operations() {
        operations.add_to(&mut api);
    }
    add_common(&mut api);
    add_headers(&mut api, headers_of);
    api.merge(operations::description());
    text(api)
}

/// The descriptions of an aggregate's commands.
pub(crate) struct Operations {
    tag: &'static str,
    scope: Scope,
    operations: Vec<(String, Operation)>,
    schemas: Vec<(String, RefOr<Schema>)>,
}

impl Operations {
    /// Nothing yet.
    pub(super) fn of<A: Served>() -> Self {
        Self {
            tag: A::PLURAL,
            scope: A::SCOPE,
            operations: Vec::new(),
            schemas: Vec::new(),
        }
    }

    /// Adds a command.
    pub(super) fn add<R: CommandRequest + ToSchema>(&mut self, path: &str) {
        R::schemas(&mut self.schemas);
        let mut body = R::schema();
        let mut operation = OperationBuilder::new()
            .tag(self.tag)
            .operation_id(Some(in_camel_case(R::NAME)))
            .summary(described(&body))
            .security(SecurityRequirement::new(API_KEY, [self.scope.as_str()]))
            .parameter(key_parameter())
            .parameter(if_match_parameter())
            .request_body(Some(request_body::<R>()))
            .responses(responses::<R>());
        // The address has it already.
        if let (Some(action), RefOr::T(Schema::Object(object))) = (R::ACTION, &mut body)
            && let Some(id) = object.properties.remove(action.id_field)
        {
            operation = operation.parameter(id_parameter(action.id_field, &id));
        }
        self.operations.push((path.to_owned(), operation.build()));
        self.schemas.push((R::name().into_owned(), body));
    }

    /// Adds a batch of a command.
    pub(super) fn add_batch<R: CommandRequest + ToSchema>(&mut self, path: &str, name: &'static str) {
        let what = format!(
            "{} Up to 100 in one request, all or nothing or each by itself.",
            summary_of::<R>()
        );
        let operation = OperationBuilder::new()
            .tag(self.tag)
            .operation_id(Some(in_camel_case(name.trim_end_matches("Request"))))
            .summary(Some(what))
            .security(SecurityRequirement::new(API_KEY, [self.scope.as_str()]))
            .parameter(key_parameter())
            .request_body(Some(json_body(Ref::from_schema_name(name), Required::True)))
            .responses(batch_responses());
        self.operations.push((path.to_owned(), operation.build()));
        let items = ArrayBuilder::new()
            .items(Ref::from_schema_name(R::name()))
            .min_items(Some(1))
            .max_items(Some(ITEMS_MAX))
            .description(Some(
                "What is begun: no two items the same aggregate, and `expected_version` 0 where it is given.",
            ));
        let mut body = BatchBody::schema();
        if let RefOr::T(Schema::Object(object)) = &mut body {
            object
                .properties
                .insert("items".to_owned(), Schema::Array(items.build()).into());
            object.required.push("items".to_owned());
        }
        self.schemas.push((name.to_owned(), body));
    }

    fn add_to(self, api: &mut OpenApi) {
        for (path, operation) in self.operations {
            api.paths
                .add_path_operation(path, vec![HttpMethod::Post], operation);
        }
        let components = api.components.get_or_insert_default();
        components.schemas.extend(self.schemas);
        let tag = TagBuilder::new()
            .name(self.tag)
            .description(Some(format!("Scope `{}`.", self.scope.as_str())));
        api.tags.get_or_insert_default().push(tag.build());
    }
}

fn in_camel_case(name: &str) -> String {
    let (first, rest) = name.split_at(1);
    first.to_ascii_lowercase() + rest
}

/// The summary of a command.
fn summary_of<R: ToSchema>() -> String {
    described(&R::schema()).unwrap_or_default()
}

fn described(schema: &RefOr<Schema>) -> Option<String> {
    match schema {
        RefOr::T(Schema::Object(object)) => object.description.clone(),
        _ => None,
    }
}

/// The parameter of idempotency keys.
pub(crate) fn key_parameter() -> Parameter {
    header("Idempotency-Key", Required::True)
        .description(Some(
            "Names the command: 1 to 128 visible ASCII characters, quoted or bare; a UUIDv7 suits best. The same key and \
             content gives the same answer for at least the retention time of the deployment, 30 days by default; the \
             header `Idempotency-Replayed` marks it.",
        ))
        .build()
}

fn if_match_parameter() -> Parameter {
    header("If-Match", Required::False)
        .description(Some(
            "The ETag of the aggregate as the caller read it, or a star: the command is refused with 412 unless the aggregate \
             has that version still. `expected_version` in the body asks for the same and is refused with 409.",
        ))
        .build()
}

fn header(name: &str, required: Required) -> ParameterBuilder {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(required)
        .schema(Some(Object::with_type(Type::String)))
}

fn id_parameter(name: &str, schema: &RefOr<Schema>) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(described(schema))
        .schema(Some(Object::with_type(Type::String)))
        .build()
}

/// A command without members of its own may do without a body.
fn request_body<R: CommandRequest + ToSchema>() -> RequestBody {
    json_body(Ref::from_schema_name(R::name()), Required::False)
}

fn json_body(schema: Ref, required: Required) -> RequestBody {
    let content = ContentBuilder::new().schema(Some(schema));
    RequestBodyBuilder::new()
        .content("application/json", content.build())
        .required(Some(required))
        .build()
}

fn batch_responses() -> Responses {
    let answer = ContentBuilder::new().schema(Some(Ref::from_schema_name(BatchAnswer::name())));
    let done = ResponseBuilder::new()
        .description("What became of each item, also where none was done.")
        .content("application/json", answer.build());
    let of_batches = [Code::UnsupportedMediaType, Code::IdempotencyKeyReused];
    let mut responses = Responses::new();
    responses.responses = refusals(COMMON.iter().chain(&of_batches));
    responses.responses.insert("200".to_owned(), done.build().into());
    responses
}

fn responses<R: CommandRequest>() -> Responses {
    let receipt = ContentBuilder::new().schema(Some(Ref::from_schema_name(ReceiptAnswer::name())));
    let (status, what, only_here) = match R::ACTION {
        None => (
            "201",
            "It has begun; `Location` says where it is.",
            Code::AlreadyExists,
        ),
        Some(_) => ("200", "It is done.", Code::ResourceNotFound),
    };
    let of_commands = [
        Code::VersionConflict,
        Code::UnsupportedMediaType,
        Code::IdempotencyKeyReused,
        Code::DomainRule("".into()),
        only_here,
    ];
    let done = ResponseBuilder::new()
        .description(what)
        .content("application/json", receipt.build());
    let mut responses = Responses::new();
    responses.responses = refusals(COMMON.iter().chain(&of_commands));
    responses.responses.insert(status.to_owned(), done.build().into());
    let stale = problem("VERSION_CONFLICT: The aggregate has another version than `If-Match` says.");
    responses.responses.insert("412".to_owned(), stale.into());
    responses
}

fn headers_of(status: &str) -> Vec<DescribedHeader> {
    let replayed = (
        "Idempotency-Replayed",
        Type::String,
        "`true` where the answer is that to an earlier send under the same key.",
    );
    let token = (
        "Daybook-Consistency",
        Type::String,
        "The receipt's `consistency_token`, where something was recorded.",
    );
    let location = ("Location", Type::String, "Where the aggregate can be read.");
    match status {
        "200" => vec![token, replayed],
        "201" => vec![location, token, replayed],
        "409" | "422" => vec![replayed],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    fn described() -> Value {
        serde_json::from_str(&description()).expect("the description is JSON")
    }

    #[test]
    fn the_committed_description_is_the_one_that_is_served() {
        // Cargo runs tests in the directory of their crate.
        let file = Path::new("openapi.json");
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(file, description()).expect("the file can be written");
        }
        let committed = std::fs::read_to_string(file).unwrap_or_default();
        assert!(
            committed == description(),
            "openapi.json is not up to date; run this test with UPDATE_OPENAPI=1 and look at the difference"
        );
    }

    #[test]
    fn every_command_says_what_every_status_means() {
        let api = described();
        let paths = api["paths"].as_object().expect("an object");
        let of_operations = |path: &str| {
            ["/v1/imports", "/v1/event-exports"].contains(&path) || path.starts_with("/v1/operations")
        };
        let commands = || paths.iter().filter(|(path, _)| !of_operations(path));
        assert!(
            commands().count() >= 22,
            "{} commands are described",
            commands().count()
        );
        for (path, item) in commands() {
            let begins = !path.contains('{');
            let is_batch = path.ends_with("/batch");
            let responses = item["post"]["responses"].as_object().expect("an object");
            let statuses: BTreeSet<&str> = responses.keys().map(String::as_str).collect();
            let mut expected = BTreeSet::from([
                "400", "401", "403", "408", "413", "414", "415", "422", "429", "431", "500", "503", "504",
            ]);
            expected.extend(match (begins, is_batch) {
                (_, true) => &["200"][..],
                (true, false) => &["201", "409", "412"],
                (false, false) => &["200", "404", "409", "412"],
            });
            assert_eq!(statuses, expected, "{path}");
        }
    }

    #[test]
    fn the_id_of_an_aggregate_is_in_the_address_and_the_key_in_a_header() {
        let api = described();
        let schema = |name: &str| &api["components"]["schemas"][name]["properties"];
        assert!(schema("CancelOrderRequest")["cancellation_reason"].is_object());
        for (request, field, is_there) in [
            ("CancelOrderRequest", "order_id", false),
            ("PlaceOrderRequest", "order_id", true),
            ("ReserveStockRequest", "stock_item_id", false),
            ("ReserveStockRequest", "order_id", true),
            ("PlaceOrderRequest", "request_id", false),
            ("CancelOrderRequest", "request_id", false),
        ] {
            assert_eq!(schema(request)[field].is_object(), is_there, "{request} {field}");
        }
    }

    #[test]
    fn everything_that_is_referred_to_is_there() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(members) => {
                    found.extend(members.get("$ref").and_then(Value::as_str));
                    members.values().for_each(|member| references(member, found));
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let api = described();
        let mut found = Vec::new();
        references(&api, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            assert!(api.pointer(&reference[1..]).is_some(), "{reference}");
        }
    }
}
