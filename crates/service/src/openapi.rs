//! The common parts of all services' OpenAPI descriptions: problems and the statuses that they come with, the
//! credential, the headers of every answer, and what a description says about who may call.

use std::collections::BTreeMap;

use axum::Router;
use axum::routing::get;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{Object, Schema, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{PartialSchema as _, ToSchema};

use crate::docs::docs;
use crate::document::Document;
use crate::error::{Code, FieldViolation, Resource};
use crate::identity::Scope;
use crate::server::{Declared, Needs};

/// The name of the credential in descriptions.
pub const API_KEY: &str = "api_key";

/// The member with the values of an enumeration that may grow; `enum` would mean that there can be no others.
const EXTENSIBLE_ENUM: &str = "x-extensible-enum";

/// The codes that any request may be refused with, by the server or for its credential.
pub const COMMON: [Code; 14] = [
    Code::MalformedRequest,
    Code::ValidationFailed,
    Code::Unauthenticated,
    Code::PermissionDenied,
    Code::RequestTimeout,
    Code::PayloadTooLarge,
    Code::UriTooLong,
    Code::RateLimited,
    Code::HeadersTooLarge,
    Code::Internal,
    Code::Overloaded,
    Code::DependencyUnavailable,
    Code::ShuttingDown,
    Code::DeadlineExceeded,
];

/// Why a request was refused or failed (RFC 9457). Every dynamic value of the message is a member, too.
#[derive(Debug, ToSchema)]
#[schema(example = example)]
pub struct Problem {
    /// Where the problem is explained: `/problems/{slug}`.
    #[schema(format = "uri-reference")]
    pub r#type: String,
    /// A summary that is the same for every occurrence.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong this time.
    pub detail: String,
    /// Names this occurrence, by its request: a URI that leads nowhere.
    #[schema(format = "uri-reference", nullable = false)]
    pub instance: Option<String>,
    /// Why, for programs: one code of the catalogue.
    pub code: String,
    /// The request, for whoever looks into it.
    #[schema(nullable = false)]
    pub request_id: Option<String>,
    /// The fields that are wrong, at most 100 of them.
    #[schema(nullable = false)]
    pub errors: Option<Vec<FieldViolation>>,
    /// How many more fields are wrong.
    #[schema(nullable = false)]
    pub more_violations: Option<u64>,
    /// What the request was about.
    #[schema(nullable = false)]
    pub resource: Option<Resource>,
    /// How long to wait before the next attempt, in milliseconds.
    #[schema(nullable = false)]
    pub retry_after_ms: Option<u64>,
}

/// A refusal.
fn example() -> Value {
    json!({
        "type": "/problems/validation-failed",
        "title": "A field is not valid",
        "status": 400,
        "detail": "limit: must be a number from 1 to 100",
        "instance": "/requests/018f3a5e-7c1a-7f3e-9c55-2f6d3f1f9a10",
        "code": "VALIDATION_FAILED",
        "request_id": "018f3a5e-7c1a-7f3e-9c55-2f6d3f1f9a10",
        "errors": [{"pointer": "limit", "code": "OUT_OF_RANGE", "message": "must be a number from 1 to 100"}],
    })
}

/// The statuses that these codes come with, each with what its codes say.
pub fn refusals<'a>(codes: impl IntoIterator<Item = &'a Code>) -> BTreeMap<String, RefOr<Response>> {
    let mut meanings = BTreeMap::<u16, Vec<String>>::new();
    for code in codes {
        let entry = code.entry();
        let of_status = meanings.entry(entry.http.as_u16()).or_default();
        let name = match code {
            Code::DomainRule(_) => "The code of a rule (`/problems` has all)",
            _ => entry.name,
        };
        of_status.push(format!("{name}: {}.", entry.title));
    }
    let meanings = meanings.into_iter();
    meanings
        .map(|(status, meanings)| (status.to_string(), problem(meanings.join(" ")).into()))
        .collect()
}

/// An answer that is a problem.
pub fn problem(meaning: impl Into<String>) -> Response {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .build();
    ResponseBuilder::new()
        .description(meaning)
        .content("application/problem+json", content)
        .build()
}

/// Adds what every description refers to: problems, and the credential.
pub fn add_common(api: &mut OpenApi) {
    let key = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("dbk_live_…")
        .description(Some(
            "An API key of a tenant's. An operator's key reads no tenant's data.",
        ))
        .build();
    let components = api.components.get_or_insert_default();
    components.add_security_scheme(API_KEY, SecurityScheme::Http(key));
    let mut schemas = Vec::new();
    Problem::schemas(&mut schemas);
    components.schemas.extend(schemas);
    components
        .schemas
        .insert(Problem::name().into_owned(), Problem::schema());
}

/// A header of an answer: its name, its type, and what it says.
pub type DescribedHeader = (&'static str, Type, &'static str);

/// Adds the headers that every answer has, and those that answers of a status have besides. The operations have to be there
/// already.
pub fn add_headers(api: &mut OpenApi, of_status: impl Fn(&str) -> Vec<DescribedHeader>) {
    for operation in operations(api) {
        add_operation_headers(operation, &of_status);
    }
}

fn operations(api: &mut OpenApi) -> impl Iterator<Item = &mut Operation> {
    api.paths.paths.values_mut().flat_map(|item| {
        let operations = [
            &mut item.get,
            &mut item.post,
            &mut item.put,
            &mut item.patch,
            &mut item.delete,
        ];
        operations.into_iter().flatten()
    })
}

fn add_operation_headers(operation: &mut Operation, of_status: impl Fn(&str) -> Vec<DescribedHeader>) {
    let responses = &mut operation.responses.responses;
    let is_conditional = responses.contains_key("304");
    for (status, response) in responses {
        if let RefOr::T(response) = response {
            let tag = (is_conditional && ["200", "304"].contains(&status.as_str())).then_some(ETAG);
            let headers = headers_of(status).into_iter().chain(of_status(status));
            for (name, schema_type, description) in headers.chain(tag) {
                let header = HeaderBuilder::new()
                    .schema(Some(Object::with_type(schema_type)))
                    .description(Some(description));
                response.headers.insert(name.to_owned(), header.build().into());
            }
        }
    }
}

const ETAG: DescribedHeader = (
    "ETag",
    Type::String,
    "A strong tag of this body: its version, its shape, and its encoding where it has one (`\"v3-9a0364b9e99bb480;gzip\"`). \
     `If-Match` of a command takes it and compares the version.",
);

fn headers_of(status: &str) -> Vec<DescribedHeader> {
    let mut headers = vec![(
        "X-Request-Id",
        Type::String,
        "The request's id: the caller's, or a new one.",
    )];
    match status {
        "401" => headers.push((
            "WWW-Authenticate",
            Type::String,
            "What kind of credential is needed.",
        )),
        "429" | "503" => headers.push(("Retry-After", Type::Integer, "How long to wait, in seconds.")),
        _ => {}
    }
    headers
}

/// A description as it is committed and served: what several operations answer is described once, and enumerations are open.
///
/// # Panics
/// Never: it has string keys, and no serializer that fails.
#[must_use]
pub fn text(mut api: OpenApi) -> String {
    share_responses(&mut api);
    open_enumerations(&mut api);
    let text = api.to_pretty_json();
    let mut text = text.expect("the description has string keys and no failing serializer");
    text.push('\n');
    text
}

/// Describes once what several operations answer alike, under the name of its status.
fn share_responses(api: &mut OpenApi) {
    let mut answers = Vec::<(String, RefOr<Response>, usize)>::new();
    for (status, answer) in operations(api).flat_map(|operation| &operation.responses.responses) {
        let known = answers
            .iter_mut()
            .find(|(at, known, _)| (at, known) == (status, answer));
        match known {
            Some((.., uses)) => *uses += 1,
            None => answers.push((status.clone(), answer.clone(), 1)),
        }
    }
    answers.retain(|(.., uses)| *uses > 1);
    let mut shared = BTreeMap::new();
    for (status, answer, _) in answers {
        let reason = reason(&status);
        let names = (1..).map(|number| match number {
            1 => reason.clone(),
            _ => format!("{reason}{number}"),
        });
        let mut names = names.skip_while(|name| shared.contains_key(name));
        let name = names.next().expect("there is always another number");
        let reference = RefOr::Ref(Ref::from_response_name(&name));
        for operation in operations(api) {
            let of_status = operation.responses.responses.get_mut(&status);
            if let Some(own) = of_status.filter(|own| **own == answer) {
                *own = reference.clone();
            }
        }
        shared.insert(name, answer);
    }
    api.components.get_or_insert_default().responses.extend(shared);
}

/// The name of a status, for a component: `NotFound`.
fn reason(status: &str) -> String {
    let status = StatusCode::from_bytes(status.as_bytes()).ok();
    let reason = status.and_then(|status| status.canonical_reason());
    reason.unwrap_or("Answer").replace([' ', '-'], "")
}

/// Values may be added to the enumerations that answers have: whoever reads a description must not take them for closed.
fn open_enumerations(api: &mut OpenApi) {
    for schema in api.components.get_or_insert_default().schemas.values_mut() {
        if let RefOr::T(Schema::Object(object)) = schema
            && let Some(values) = object.enum_values.take()
        {
            let extensions = object.extensions.get_or_insert_default();
            extensions.insert(EXTENSIBLE_ENUM.to_owned(), Value::Array(values));
        }
    }
}

/// `GET /openapi.json`, and the same as a page, `GET /docs`, for everybody.
///
/// # Panics
/// When the text is not JSON.
pub fn router(text: String) -> Declared {
    let page = docs(&serde_json::from_str(&text).expect("a description is JSON"));
    let document = Document::json(text);
    let router = Router::new()
        .route(
            "/openapi.json",
            get(async move |headers: HeaderMap| document.answer(&headers)),
        )
        .route(
            "/docs",
            get(async move |headers: HeaderMap| page.answer(&headers)),
        );
    Declared::new(
        router,
        ["/openapi.json", "/docs"].map(|route| (route, Needs::nothing())),
    )
}

/// The scope that each path needs: the one that the description of its operations names. A path without one, or with two,
/// is left out, and so it answers nobody.
#[must_use]
pub fn scopes(api: &OpenApi) -> Vec<(String, Scope)> {
    let scopes = api.paths.paths.iter().filter_map(|(path, item)| {
        let operations = serde_json::to_value(item).ok()?;
        let operations = operations
            .as_object()?
            .values()
            .filter(|member| member.is_object());
        let mut scopes = operations.map(scope);
        let scope = scopes.next()??;
        let is_only = scopes.all(|other| other == Some(scope));
        is_only.then(|| (path.clone(), scope))
    });
    scopes.collect()
}

fn scope(operation: &Value) -> Option<Scope> {
    let name = operation.pointer("/security/0/api_key/0")?;
    Scope::by_name(name.as_str()?)
}
