//! The OpenAPI description: what the handlers say about themselves, and what is the same for all of them.

use std::collections::BTreeMap;

use daybook_read_model::access_path::AccessPath;
use daybook_read_model::order_details::OrderView;
use daybook_read_model::schema::OrderStatus;
use daybook_read_model::stock_levels::StockItem;
use daybook_service::Code;
use daybook_service::openapi::{COMMON, DescribedHeader, add_common, refusals};
use utoipa::openapi::schema::{AnyOfBuilder, ArrayBuilder, ObjectBuilder, Schema, Type};
use utoipa::openapi::{OpenApi, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, Modify, ToSchema};

use super::examples;
use super::schema::{
    CUSTOMER_FIELDS, CustomerTotals, ORDER_FIELDS, ORDER_SUMMARY_FIELDS, OrderSummary, Pagination,
};

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
        (name = "Streams", description = "What happens, as it happens. Events need the scope `events:read`, rows of lists that of the \
                                       list."),
        (name = "Histories", description = "What happened, as it was recorded. Scope `events:read`."),
    ),
    components(schemas(OrderView, OrderStatus, OrderSummary, CustomerTotals)),
    security(("api_key" = [])),
    modifiers(&Common),
)]
pub struct Api;

/// The refusals that every read can end in.
#[derive(Debug)]
pub struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let of_reads = [Code::InvalidCursor, Code::PositionUnknown, Code::ReadModelBehind];
        refusals(COMMON.iter().chain(&of_reads))
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
        refusals(&[Code::ResourceNotFound])
    }
}

/// The refusal of what has been deprecated for long enough.
#[derive(Debug)]
pub struct Ended;

impl IntoResponses for Ended {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        refusals(&[Code::Gone])
    }
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

/// A page of customers, or of those of their members that `fields` names.
#[derive(Debug, ToSchema)]
pub struct CustomerListAnswer {
    /// The customers of this page.
    #[schema(schema_with = customers_or_fields)]
    pub data: (),
    /// The way to the next page.
    pub pagination: Pagination,
}

/// What a list says about itself: the sorts that there are, and the filters that each goes with.
pub fn served<R>(paths: &[AccessPath<R>]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| format!("- {path}")).collect();
    format!(
        "What is served comes from an index, so a page takes the same time wherever in the list it is. Each line is a sort, \
         and the filters that it goes with:\n\n{}\n\nEverything else is refused with `VALIDATION_FAILED`.",
        paths.join("\n")
    )
}

fn order_or_fields() -> Schema {
    whole_or_fields(&OrderView::name(), &ORDER_FIELDS).into()
}

fn order_summaries_or_fields() -> Schema {
    let item = whole_or_fields(&OrderSummary::name(), &ORDER_SUMMARY_FIELDS);
    page_of(item, "The orders of this page.")
}

fn customers_or_fields() -> Schema {
    let item = whole_or_fields(&CustomerTotals::name(), &CUSTOMER_FIELDS);
    page_of(item, "The customers of this page.")
}

fn page_of(item: AnyOfBuilder, description: &'static str) -> Schema {
    ArrayBuilder::new()
        .items(item)
        .description(Some(description))
        .into()
}

fn whole_or_fields(schema: &str, fields: &[&'static str]) -> AnyOfBuilder {
    let field_name = ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(fields.iter().copied()));
    let mut some = ObjectBuilder::new()
        .description(Some("Only the members that `fields` named."))
        .property_names(Some(field_name));
    for field in fields {
        // Each is what it is in the whole, for those who make types of this.
        let member = Ref::new(format!("#/components/schemas/{schema}/properties/{field}"));
        some = some.property(*field, member);
    }
    AnyOfBuilder::new().item(Ref::from_schema_name(schema)).item(some)
}

/// What is the same for all operations.
struct Common;

impl Modify for Common {
    fn modify(&self, api: &mut OpenApi) {
        add_common(api);
        let components = api.components.get_or_insert_default();
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

/// The headers of answers that are not refusals.
pub fn headers_of(status: &str) -> Vec<DescribedHeader> {
    match status {
        "200" | "304" => vec![
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
            (
                "Vary",
                Type::String,
                "What the answer depends on beside its address.",
            ),
        ],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use daybook_read_model::order_details::OrderView;
    use serde_json::{Value, json};

    use crate::http::{description, event_types, examples, schema, stock};

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
        let expected = [
            "200", "400", "401", "403", "408", "413", "414", "429", "431", "500", "503", "504",
        ];
        for (path, item) in api["paths"].as_object().expect("an object") {
            let (get, post) = (&item["get"]["responses"], &item["post"]["responses"]);
            let mut statuses = names(if get.is_object() { get } else { post });
            statuses.remove("304");
            assert_eq!(
                statuses.remove("410"),
                item["get"]["deprecated"] == true,
                "{path}"
            );
            assert_eq!(statuses.remove("415"), post.is_object(), "{path}");
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
            ("Correlation", examples::correlation()),
            ("EventType", event_types::example()),
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
        assert_eq!(of(&schema::CUSTOMER_FIELDS), names(&examples::customer_totals()));
    }
    #[test]
    fn members_that_were_asked_for_are_described_as_in_the_whole() {
        let api = described();
        for (answer, whole) in [
            ("OrderAnswer/properties/data", "Order"),
            ("OrderListAnswer/properties/data/items", "OrderSummary"),
            ("CustomerListAnswer/properties/data/items", "CustomerTotals"),
        ] {
            let forms = &api["components"]["schemas"];
            let properties = &forms[whole]["properties"];
            let some = forms.pointer(&format!("/{answer}/anyOf/1/properties"));
            let some = some.and_then(Value::as_object).expect(answer);
            assert_eq!(some.len(), names(properties).len());
            for (name, member) in some {
                let reference = member["$ref"].as_str().expect("a reference");
                let described = api.pointer(&reference[1..]).expect("it leads somewhere");
                assert_eq!(described, &properties[name], "{answer}: {name}");
            }
        }
    }
}
