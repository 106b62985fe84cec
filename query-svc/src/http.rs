//! REST: the routes, who may take which, and the OpenAPI description that they are.
//!
//! `openapi.json` in this crate is that description, committed. A test holds the two equal; `UPDATE_OPENAPI=1` in its
//! environment writes the file anew.

mod answer;
mod compression;
pub mod correlations;
pub mod customers;
pub mod event_types;
pub mod events;
mod examples;
pub mod feed;
pub mod openapi;
pub mod orders;
mod params;
pub mod schema;
pub mod stock;
pub mod streams;
pub mod tickets;

use std::sync::Arc;

use axum::Extension;
use axum::extract::FromRequestParts;
use daybook_domain::aggregates::rules;
use daybook_service::ApiError;
use daybook_service::deprecation::Deprecation;
use daybook_service::identity::{Principal, principal};
use daybook_service::openapi as common;
use daybook_service::problems::{self, DomainRule};
use daybook_service::server::{Declared, Needs};
use http::request::Parts;
use utoipa::{IntoParams, OpenApi as _};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::compression::compressed;
use crate::reads::Reads;
use crate::streams::Streams;

/// How fresh the answer has to be, as headers say it.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
pub struct FreshnessHeaders {
    /// The consistency token of a receipt or of an answer: this answer includes that command, or is no older than that
    /// answer, or is `READ_MODEL_BEHIND`.
    #[param(rename = "Daybook-Consistency", nullable = false)]
    pub token: Option<String>,
    /// How long to wait for that, in seconds: `wait=2` when absent, and at the most ten.
    #[param(rename = "Prefer", nullable = false, example = "wait=2")]
    pub prefer: Option<String>,
}

/// What the caller has already.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
pub struct ConditionalHeaders {
    /// Tags of what the caller has already: one that is still good is answered with 304 and no body.
    #[param(rename = "If-None-Match", nullable = false, example = json!("\"v3-9a0364b9e99bb480\""))]
    pub tags: Option<String>,
}

/// How fresh the answer has to be, for those who cannot set headers.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct FreshnessQuery {
    /// A consistency token, as in `Daybook-Consistency`, which goes first.
    #[param(nullable = false)]
    pub consistency: Option<String>,
}

/// The tenant's caller of a request. The server has let nobody else through who lacks the scope that the route's description
/// names.
#[derive(Clone, Debug)]
pub struct Caller(pub Arc<Principal>);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        principal(&parts.extensions).map(Self)
    }
}

/// All routes: reads, streams, their description, and the catalogue of problems. Where one address leads to all services, this one may be
/// asked what a rule means that a command was refused by.
pub fn router(reads: Reads, streams: Streams, order_history: Deprecation) -> Declared {
    let (routes, mut api) = described_routes().split_for_parts();
    let (prepared, prepared_api) = prepared_routes().split_for_parts();
    api.merge(prepared_api);
    let routes = routes.layer(Extension(order_history)).with_state(reads.clone());
    let routes = compressed(routes).merge(prepared.with_state(reads));
    let needs = common::scopes(&api).into_iter();
    let needs = needs.map(|(path, scope)| (path, Needs::scope(scope)));
    Declared::new(routes, needs)
        .merge(stream_router(streams))
        .merge(common::router(description()))
        .merge(problems::router(
            &rules().map(DomainRule::from).collect::<Vec<_>>(),
        ))
}

fn stream_router(streams: Streams) -> Declared {
    let (routes, api) = described_streams().split_for_parts();
    let needs = common::scopes(&api).into_iter();
    let needs = needs.map(|(path, scope)| (path, Needs::scope(scope).streaming().or_ticket()));
    // Which scope a ticket needs is that of the stream that it is for.
    let for_ticket = Needs::key().with_body(tickets::BODY_BYTES_MAX);
    let needs = needs.chain([("/v1/stream-tickets".to_owned(), for_ticket)]);
    Declared::new(routes.with_state(streams), needs)
}

/// The OpenAPI description, as `/openapi.json` gives it.
#[must_use]
pub fn description() -> String {
    let (_, mut api) = described_routes().split_for_parts();
    common::add_headers(&mut api, openapi::headers_of);
    let (_, mut streams) = described_streams().split_for_parts();
    common::add_headers(&mut streams, |_| Vec::new());
    api.merge(streams);
    let (_, mut prepared_api) = prepared_routes().split_for_parts();
    common::add_headers(&mut prepared_api, |_| Vec::new());
    api.merge(prepared_api);
    common::text(api)
}

#[expect(deprecated, reason = "what is deprecated is served until its sunset")]
fn described_routes() -> OpenApiRouter<Reads> {
    OpenApiRouter::with_openapi(openapi::Api::openapi())
        .routes(routes!(orders::list_orders))
        .routes(routes!(orders::get_order))
        .routes(routes!(events::list_events))
        .routes(routes!(feed::list_feed))
        .routes(routes!(correlations::get_correlation))
        .routes(routes!(events::list_order_events))
        .routes(routes!(customers::list_customers))
        .routes(routes!(customers::get_customer_totals))
        .routes(routes!(stock::list_stock_items))
        .routes(routes!(stock::get_stock_item))
}

/// What does not change is compressed already.
fn prepared_routes() -> OpenApiRouter<Reads> {
    OpenApiRouter::new().routes(routes!(event_types::list_event_types))
}

fn described_streams() -> OpenApiRouter<Streams> {
    OpenApiRouter::new()
        .routes(routes!(streams::stream_events_of_aggregate))
        .routes(routes!(streams::stream_events))
        .routes(routes!(streams::stream_orders))
        .routes(routes!(tickets::create_stream_ticket))
}
