//! The OpenAPI description: what the handlers say about themselves, and what is the same for all of them.

use std::collections::BTreeMap;

use daybook_read_model::order_details::OrderView;
use daybook_read_model::stock_levels::StockItem;
use daybook_read_model::schema::OrderStatus;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{AnyOfBuilder, ArrayBuilder, Object, ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, Modify, ToSchema};

use super::examples;
use super::schema::{ORDER_FIELDS, ORDER_SUMMARY_FIELDS, OrderSummary, Pagination, Problem};

/// The API as a whole.
#[derive(Debug, utoipa::OpenApi)]
#[openapi(
    info(
        title = "Daybook queries",
        description = "Orders, what customers have bought, stock levels, and event histories. Every answer says how fresh it is, and \
                       waits to be fresher on demand. Every address takes HEAD and OPTIONS, too. Parameters and members \
                       that are not known are ignored; members and values of enumerations may be added.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/", description = "This server")),
    tags(
        (name = "Orders", description = "Orders as they are, and as they were. Scope `orders:read`."),
        (name = "Customers", description = "What customers have bought. Scope `orders:read`."),
        (name = "Stock", description = "How much there is of articles. Scope `stock:read`."),
        (name = "Histories", description = "What happened, as it was recorded. Scope `events:read`."),
    ),
    components(schemas(OrderView, OrderStatus, OrderSummary, Problem)),
    security(("api_key" = [])),
    modifiers(&Common),
)]
pub struct Api;

/// The refusals that every read can end in.
#[derive(Debug)]
pub struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        refusals(&[
            (
                "400",
                "VALIDATION_FAILED, INVALID_CURSOR, POSITION_UNKNOWN or MALFORMED_REQUEST: the request cannot be understood.",
            ),
            ("401", "UNAUTHENTICATED: there is no valid credential."),
            ("403", "PERMISSION_DENIED: the credential lacks the scope."),
            (
                "413",
                "PAYLOAD_TOO_LARGE: the answer is larger than the service can send; a smaller page may fit.",
            ),
            ("429", "RATE_LIMITED: the tenant has too much under way."),
            ("500", "INTERNAL: a fault of the service."),
            (
                "503",
                "READ_MODEL_BEHIND, OVERLOADED, DEPENDENCY_UNAVAILABLE or SHUTTING_DOWN: later it may succeed.",
            ),
            ("504", "DEADLINE_EXCEEDED: the time is up."),
        ])
    }
}

/// The answer to whoever has the resource already.
#[derive(Debug)]
pub struct NotModified;

impl IntoResponses for NotModified {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let response = ResponseBuilder::new()
            .description("The caller has this already.")
            .build();
        BTreeMap::from([("304".to_owned(), response.into())])
    }
}

/// The refusal of a read of something that may not be there.
#[derive(Debug)]
pub struct NotFound;

impl IntoResponses for NotFound {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        refusals(&[(
            "404",
            "RESOURCE_NOT_FOUND: there is no such thing for this credential's tenant.",
        )])
    }
}

fn refusals(meanings: &[(&str, &str)]) -> BTreeMap<String, RefOr<Response>> {
    meanings
        .iter()
        .map(|(status, meaning)| ((*status).to_owned(), refusal(meaning).into()))
        .collect()
}

fn refusal(meaning: &str) -> Response {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .build();
    ResponseBuilder::new()
        .description(meaning)
        .content("application/problem+json", content)
        .build()
}

/// One order, or those of its members that `fields` names.
#[derive(Debug, ToSchema)]
pub struct OrderAnswer {
    /// The order.
    #[schema(schema_with = order_or_fields)]
    pub data: (),
}

/// A page of orders, or of those of their members that `fields` names.
#[derive(Debug, ToSchema)]
pub struct OrderListAnswer {
    /// The orders of this page.
    #[schema(schema_with = order_summaries_or_fields)]
    pub data: (),
    /// The way to the next page.
    pub pagination: Pagination,
}

fn order_or_fields() -> Schema {
    whole_or_fields(&OrderView::name(), &ORDER_FIELDS).into()
}

fn order_summaries_or_fields() -> Schema {
    let item = whole_or_fields(&OrderSummary::name(), &ORDER_SUMMARY_FIELDS);
    ArrayBuilder::new()
        .items(item)
        .description(Some("The orders of this page."))
        .into()
}

fn whole_or_fields(schema: &str, fields: &[&'static str]) -> AnyOfBuilder {
    let field_name = ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(fields.iter().copied()));
    let some = ObjectBuilder::new()
        .description(Some("Only the members that `fields` named."))
        .property_names(Some(field_name));
    AnyOfBuilder::new().item(Ref::from_schema_name(schema)).item(some)
}

/// What is the same for all operations.
struct Common;

impl Modify for Common {
    fn modify(&self, api: &mut OpenApi) {
        let key = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("dbk_live_…")
            .description(Some(
                "An API key of a tenant's. An operator's key reads no tenant's data.",
            ))
            .build();
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("api_key", SecurityScheme::Http(key));
        for (name, example) in [
            (OrderView::name(), examples::order()),
            (StockItem::name(), super::stock::example()),
        ] {
            if let Some(RefOr::T(Schema::Object(document))) = components.schemas.get_mut(&*name) {
                document.example = Some(example);
            }
        }
    }
}

/// Adds the headers that every answer of a kind has. The handlers' own operations have to be there already.
pub fn add_headers(api: &mut OpenApi) {
    for item in api.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.post,
            &mut item.put,
            &mut item.patch,
            &mut item.delete,
        ];
        operations.into_iter().flatten().for_each(add_operation_headers);
    }
}

fn add_operation_headers(operation: &mut Operation) {
    let responses = &mut operation.responses.responses;
    let is_conditional = responses.contains_key("304");
    for (status, response) in responses {
        if let RefOr::T(response) = response {
            let tag = (is_conditional && ["200", "304"].contains(&status.as_str())).then_some(ETAG);
            for (name, schema_type, description) in headers_of(status).into_iter().chain(tag) {
                let header = HeaderBuilder::new()
                    .schema(Some(Object::with_type(schema_type)))
                    .description(Some(description));
                response.headers.insert(name.to_owned(), header.build().into());
            }
        }
    }
}

const ETAG: (&str, Type, &str) = (
    "ETag",
    Type::String,
    "A strong tag of this body: its version, its shape, and its encoding where it has one (`\"v3-9a0364b9e99bb480;gzip\"`). \
     `If-Match` of a command takes it and compares the version.",
);

fn headers_of(status: &str) -> Vec<(&'static str, Type, &'static str)> {
    let mut headers = vec![(
        "X-Request-Id",
        Type::String,
        "The request's id: the caller's, or a new one.",
    )];
    match status {
        "200" | "304" => headers.extend([
            (
                "Daybook-Consistency",
                Type::String,
                "The position of the log that the answer includes, with everything before it, sealed: a token for other reads.",
            ),
            (
                "Daybook-Position",
                Type::Integer,
                "The same position, for callers with the scope `events:read` alone.",
            ),
            (
                "Daybook-Lag-Ms",
                Type::Integer,
                "How long ago, at the most, the oldest event was recorded that the answer may lack; 0 for none.",
            ),
            ("Cache-Control", Type::String, "Always `private, no-cache`."),
            ("Vary", Type::String, "What the answer depends on beside its address."),
        ]),
        "401" => headers.push(("WWW-Authenticate", Type::String, "What kind of credential is needed.")),
        "429" | "503" => headers.push(("Retry-After", Type::Integer, "How long to wait, in seconds.")),
        _ => {}
    }
    headers
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use daybook_read_model::order_details::OrderView;
    use serde_json::{Value, json};

    use crate::http::{description, examples, schema, stock};

    fn described() -> Value {
        serde_json::from_str(&description()).expect("the description is JSON")
    }

    fn names(object: &Value) -> BTreeSet<&str> {
        object
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect()
    }

    /// Every object in an example has the members that its schema has, all the way down.
    fn assert_complete(api: &Value, schema: &Value, example: &Value) {
        let schema = match schema["$ref"].as_str() {
            Some(reference) => &api
                .pointer(&reference[1..])
                .expect("every reference leads somewhere")
                .clone(),
            None => schema,
        };
        match example {
            Value::Object(members) if schema["properties"].is_object() => {
                assert_eq!(names(example), names(&schema["properties"]));
                for (name, member) in members {
                    assert_complete(api, &schema["properties"][name], member);
                }
            }
            Value::Array(items) => {
                assert!(!items.is_empty(), "an empty example shows nothing");
                items
                    .iter()
                    .for_each(|item| assert_complete(api, &schema["items"], item));
            }
            _ => {}
        }
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
    fn it_is_openapi_3_1_and_says_what_every_status_means() {
        let api = described();
        assert_eq!(api["openapi"], "3.1.0");
        let expected = ["200", "400", "401", "403", "413", "429", "500", "503", "504"];
        for (path, item) in api["paths"].as_object().expect("an object") {
            let mut statuses = names(&item["get"]["responses"]);
            statuses.remove("304");
            assert_eq!(statuses.remove("404"), path.contains('{'), "{path}");
            assert_eq!(statuses, BTreeSet::from(expected), "{path}");
        }
    }

    #[test]
    fn the_order_that_is_described_is_the_one_that_read_models_keep() {
        let view: OrderView = serde_json::from_value(examples::order()).expect("the example is an order");
        let kept = serde_json::to_value(&view).expect("an order can be written");
        assert_eq!(kept, examples::order());
    }

    #[test]
    fn examples_have_every_member_that_is_described_and_no_other() {
        let api = described();
        let schemas = [
            ("Order", examples::order()),
            ("OrderSummary", examples::order_summary()),
            ("CustomerTotals", examples::customer_totals()),
            ("StockItem", stock::example()),
            ("Event", examples::event()),
        ];
        for (name, example) in schemas {
            let schema = json!({ "$ref": format!("#/components/schemas/{name}") });
            assert_complete(&api, &schema, &example);
        }
    }

    #[test]
    fn every_member_can_be_asked_for_by_its_name() {
        let of = |fields: &[&'static str]| fields.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(of(&schema::ORDER_FIELDS), names(&examples::order()));
        assert_eq!(
            of(&schema::ORDER_SUMMARY_FIELDS),
            names(&examples::order_summary())
        );
    }
}
