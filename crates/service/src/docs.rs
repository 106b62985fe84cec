//! `GET /docs`: an OpenAPI description as a page for people, made once when the service starts.

use maud::{Markup, PreEscaped, html};
use pulldown_cmark::{Event, Parser};
use serde_json::{Map, Value};

use crate::document::Document;
use crate::page::page;

/// The methods that a description can have (OpenAPI 3.1, 4.8.9).
const METHODS: [&str; 8] = [
    "get", "put", "post", "delete", "options", "head", "patch", "trace",
];

/// The page of a description.
pub(crate) fn docs(api: &Value) -> Document {
    let title = text(&api["info"]["title"]);
    let operations = operations(api);
    let content = html! {
        a.skip href="#content" { "Skip to the operations" }
        header {
            h1 { (title) }
            (markdown(&api["info"]["description"]))
            p { "The same for programs: " a href="/openapi.json" { "/openapi.json" } ". What refusals mean: "
                a href="/problems" { "/problems" } "." }
        }
        nav aria-label="Operations" { (contents(api, &operations)) }
        main #content {
            @for tag in items(&api["tags"]) {
                section aria-labelledby=(tag_id(tag)) {
                    h2 id=(tag_id(tag)) { (text(&tag["name"])) }
                    (markdown(&tag["description"]))
                    @for operation in operations.iter().filter(|it| it.is_of(tag)) { (described(api, operation)) }
                }
            }
            section aria-labelledby="schemas" {
                h2 #schemas { "Schemas" }
                @for (name, schema) in members(&api["components"]["schemas"]) { (described_schema(name, schema)) }
            }
        }
    };
    page(title, &content)
}

/// An operation, and where it is.
struct Operation<'a> {
    method: String,
    path: &'a str,
    value: &'a Value,
}

impl Operation<'_> {
    fn id(&self) -> &str {
        text(&self.value["operationId"])
    }

    fn is_of(&self, tag: &Value) -> bool {
        items(&self.value["tags"]).first() == Some(&tag["name"])
    }

    fn is_deprecated(&self) -> bool {
        self.value["deprecated"] == true
    }
}

fn operations(api: &Value) -> Vec<Operation<'_>> {
    let mut operations = Vec::new();
    for (path, item) in members(&api["paths"]) {
        let methods = METHODS
            .iter()
            .filter_map(|method| Some((method, item.get(method)?)));
        operations.extend(methods.map(|(method, value)| Operation {
            method: method.to_ascii_uppercase(),
            path,
            value,
        }));
    }
    operations
}

fn contents(api: &Value, operations: &[Operation<'_>]) -> Markup {
    html! {
        ul {
            @for tag in items(&api["tags"]) {
                li {
                    a href={ "#" (tag_id(tag)) } { (text(&tag["name"])) }
                    ul {
                        @for operation in operations.iter().filter(|it| it.is_of(tag)) {
                            li { a href={ "#" (operation.id()) } { code { (operation.method) " " (operation.path) } } }
                        }
                    }
                }
            }
            li { a href="#schemas" { "Schemas" } }
        }
    }
}

fn described(api: &Value, operation: &Operation<'_>) -> Markup {
    let value = operation.value;
    html! {
        article aria-labelledby=(operation.id()) {
            h3 id=(operation.id()) { code { (operation.method) " " (operation.path) } }
            @if operation.is_deprecated() { p.deprecated { "Deprecated" } }
            (markdown(&value["summary"]))
            (markdown(&value["description"]))
            @for scope in value["security"].as_array().into_iter().flatten().flat_map(scopes) {
                p { "Scope " code { (scope) } }
            }
            (parameters(value))
            @for (media_type, content) in members(&value["requestBody"]["content"]) {
                p { "Body, " code { (media_type) } ": " (kind(&content["schema"])) }
            }
            (responses(api, value))
        }
    }
}

fn scopes(requirement: &Value) -> impl Iterator<Item = &str> {
    members(requirement).flat_map(|(_, scopes)| items(scopes).iter().map(text))
}

fn parameters(operation: &Value) -> Markup {
    let parameters = items(&operation["parameters"]);
    html! {
        @if !parameters.is_empty() {
            table {
                caption { "Parameters" }
                thead { tr { th scope="col" { "Name" } th scope="col" { "In" } th scope="col" { "What" } } }
                tbody {
                    @for parameter in parameters {
                        tr {
                            th scope="row" { code { (text(&parameter["name"])) }
                                @if parameter["required"] == true { span.quiet { " required" } } }
                            td { (text(&parameter["in"])) }
                            td { (kind(&parameter["schema"])) (markdown(&parameter["description"])) }
                        }
                    }
                }
            }
        }
    }
}

fn responses(api: &Value, operation: &Value) -> Markup {
    html! {
        table {
            caption { "Answers" }
            thead { tr { th scope="col" { "Status" } th scope="col" { "Body" } th scope="col" { "What" } } }
            tbody {
                @for (status, response) in members(&operation["responses"]) {
                    @let response = resolved(api, response);
                    tr {
                        th scope="row" { (status) }
                        td { @for (_, content) in members(&response["content"]) { (kind(&content["schema"])) } }
                        td { (markdown(&response["description"])) }
                    }
                }
            }
        }
    }
}

fn described_schema(name: &str, schema: &Value) -> Markup {
    html! {
        article aria-labelledby={ "schema-" (name) } {
            h3 id={ "schema-" (name) } { (name) }
            (markdown(&schema["description"]))
            @if schema["properties"].is_object() {
                table {
                    caption { "Members" }
                    thead { tr { th scope="col" { "Name" } th scope="col" { "What" } } }
                    tbody {
                        @for (member, value) in members(&schema["properties"]) {
                            tr {
                                th scope="row" { code { (member) }
                                    @if items(&schema["required"]).iter().any(|it| it == member) { span.quiet { " always" } } }
                                td { (kind(value)) (markdown(&value["description"])) }
                            }
                        }
                    }
                }
            } @else {
                p { (kind(schema)) }
            }
            @if let Some(example) = schema.get("example") {
                details { summary { "Example" } pre tabindex="0" { (format!("{example:#}")) } }
            }
        }
    }
}

/// The kind of value that a schema describes, in a few words.
fn kind(schema: &Value) -> Markup {
    let any_of = ["anyOf", "oneOf", "allOf"]
        .into_iter()
        .flat_map(|word| items(&schema[word]));
    let any_of: Vec<_> = any_of.filter(|it| it["type"] != "null").collect();
    let values = [&schema["enum"], &schema["x-extensible-enum"]]
        .into_iter()
        .flat_map(items);
    let values: Vec<_> = values.collect();
    html! {
        @if let Some(reference) = schema["$ref"].as_str() {
            @let name = reference.rsplit('/').next().unwrap_or(reference);
            a href={ "#schema-" (name) } { (name) }
        } @else if schema["type"] == "array" {
            "list of " (kind(&schema["items"]))
        } @else if !any_of.is_empty() {
            @for (index, one) in any_of.iter().enumerate() { @if index > 0 { " or " } (kind(one)) }
        } @else {
            (types(&schema["type"]))
            @if let Some(format) = schema["format"].as_str() { ", " (format) }
            @if let Some(pattern) = schema["pattern"].as_str() { ", " code { (pattern) } }
        }
        @for (word, name) in [("minimum", "at least"), ("maximum", "at most"), ("default", "default")] {
            @if let Some(value) = schema.get(word) { ", " (name) " " code { (value) } }
        }
        @for (index, value) in values.iter().enumerate() { @if index > 0 { ", " } @else { ": " } code { (text(value)) } }
        @if schema["x-extensible-enum"].is_array() { " (may grow)" }
    }
}

fn types(value: &Value) -> String {
    match value {
        Value::Array(types) => types.iter().map(text).collect::<Vec<_>>().join(" or "),
        one => text(one).to_owned(),
    }
}

/// A description is CommonMark. Should there be HTML in one, it is shown as it is written.
fn markdown(value: &Value) -> Markup {
    let events = Parser::new(text(value)).map(|event| match event {
        Event::Html(html) | Event::InlineHtml(html) => Event::Text(html),
        other => other,
    });
    let mut html = String::new();
    pulldown_cmark::html::push_html(&mut html, events);
    PreEscaped(html)
}

/// The target of a reference, or the value itself.
fn resolved<'a>(api: &'a Value, value: &'a Value) -> &'a Value {
    let pointer = value["$ref"].as_str().and_then(|it| it.strip_prefix('#'));
    pointer.and_then(|pointer| api.pointer(pointer)).unwrap_or(value)
}

fn tag_id(tag: &Value) -> String {
    format!("tag-{}", text(&tag["name"]))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}
