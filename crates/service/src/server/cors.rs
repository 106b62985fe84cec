//! CORS (the Fetch standard): which web pages of other origins may call this service from a browser. None, unless its origin
//! is on the list.
//!
//! A credential is a header that the page itself sets, so browsers are never told to send cookies. A preflight carries no
//! credential: it is answered from the list alone, before anything else.

use std::convert::Infallible;
use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use http::header::{
    ACCESS_CONTROL_REQUEST_METHOD, ALLOW, AUTHORIZATION, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, LINK,
    LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use thiserror::Error;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_http::cors::CorsLayer;

/// For how long a browser may remember the answer to a preflight; the longest that any of them takes.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);

const METHODS: [Method; 3] = [Method::GET, Method::HEAD, Method::POST];

/// Headers that a page may send: credentials, conditions, freshness, retries, traces, and what gRPC-Web needs.
const REQUEST_HEADERS: [HeaderName; 14] = [
    AUTHORIZATION,
    CONTENT_TYPE,
    IF_MATCH,
    IF_NONE_MATCH,
    HeaderName::from_static("daybook-consistency"),
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("last-event-id"),
    HeaderName::from_static("prefer"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("x-grpc-web"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-user-agent"),
];

/// Headers of an answer that a page may see, beside those that browsers show of any.
const ANSWER_HEADERS: [HeaderName; 17] = [
    ALLOW,
    ETAG,
    LINK,
    LOCATION,
    RETRY_AFTER,
    WWW_AUTHENTICATE,
    HeaderName::from_static("daybook-consistency"),
    HeaderName::from_static("daybook-lag-ms"),
    HeaderName::from_static("daybook-position"),
    HeaderName::from_static("deprecation"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-retry-pushback-ms"),
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-status-details-bin"),
    HeaderName::from_static("idempotency-replayed"),
    HeaderName::from_static("sunset"),
    HeaderName::from_static("x-request-id"),
];

/// The origin of web pages, as browsers write it: `https://shop.example`, with a port where it is not the scheme's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(HeaderValue);

/// The text is no origin.
#[derive(Debug, Error)]
#[error("an origin is written like https://shop.example or http://localhost:3000, without a path")]
pub struct InvalidOrigin;

impl FromStr for Origin {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        let uri: Uri = text.parse().map_err(|_| InvalidOrigin)?;
        let parts = (
            uri.scheme_str(),
            uri.host(),
            uri.path_and_query().map(PathAndQuery::as_str),
        );
        let (Some(scheme @ ("http" | "https")), Some(host), None | Some("/")) = parts else {
            return Err(InvalidOrigin);
        };
        let usual_port = if scheme == "http" { 80 } else { 443 };
        let port = uri.port_u16().filter(|port| *port != usual_port);
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        let is_as_browsers_write_it = text == format!("{scheme}://{}{port}", host.to_ascii_lowercase());
        let header = HeaderValue::from_str(text)
            .ok()
            .filter(|_| is_as_browsers_write_it);
        header.map(Self).ok_or(InvalidOrigin)
    }
}

/// Answers browsers for the pages of some origins. The default has none.
#[derive(Clone, Debug, Default)]
pub struct Cors(Option<CorsLayer>);

impl Cors {
    /// For the pages of these origins.
    #[must_use]
    pub fn of(origins: &[Origin]) -> Self {
        let layer = || {
            CorsLayer::new()
                .allow_origin(origins.iter().map(|origin| origin.0.clone()).collect::<Vec<_>>())
                .allow_methods(METHODS)
                .allow_headers(REQUEST_HEADERS)
                .expose_headers(ANSWER_HEADERS)
                .max_age(PREFLIGHT_MAX_AGE)
        };
        Self((!origins.is_empty()).then(layer))
    }

    /// Answers a request, or the preflight of one.
    pub(super) async fn answer<F>(
        &self,
        request: Request<Body>,
        answer: impl Fn(Request<Body>) -> F,
    ) -> Response<Body>
    where
        F: Future<Output = Response<Body>>,
    {
        let is_preflight = request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        match &self.0 {
            // To the layer every OPTIONS is a preflight.
            Some(layer) if is_preflight || request.method() != Method::OPTIONS => {
                let answer = |request| {
                    let answered = answer(request);
                    async { Ok::<_, Infallible>(answered.await) }
                };
                let Ok(answered) = layer.layer(service_fn(answer)).oneshot(request).await;
                answered
            }
            _ => answer(request).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_as_browsers_write_it() {
        for origin in [
            "https://shop.example",
            "http://localhost:3000",
            "https://shop.example:8443",
            "http://[::1]:8080",
        ] {
            assert!(origin.parse::<Origin>().is_ok(), "{origin}");
        }
        for text in [
            "",
            "*",
            "null",
            "shop.example",
            "https://*.shop.example/x",
            "https://shop.example/",
            "https://shop.example/path",
            "https://Shop.example",
            "https://shop.example:443",
            "https://user@shop.example",
            "https://shop.example?x",
            "ftp://shop.example",
            "https://",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }
}
