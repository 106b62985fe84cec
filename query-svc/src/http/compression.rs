//! Compressed answers.
//!
//! An answer that is complete is compressed in one go, before it is sent: so the encoder, which may need megabytes, is gone
//! when the caller begins to read, and what is left has a size that counts like any other's. What anybody may ask for without
//! a key is compressed once, or not at all.

use std::io::Write as _;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::Request;
use axum::middleware::{map_request, map_response};
use axum::response::{IntoResponse as _, Response};
use daybook_service::ApiError;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderValue};
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::Predicate;

use super::answer;

/// From which size on, in bytes, a body is compressed: a smaller one fits a packet or two as it is.
const COMPRESSED_BYTES_MIN: u64 = 2_048;

/// Up to which size: a thread works on nothing else meanwhile, some milliseconds for each megabyte.
const COMPRESSED_BYTES_MAX: u64 = 1_024 * 1_024;

/// Answers that are complete, and of a size that is worth it.
#[derive(Clone, Copy, Debug)]
struct IsWorthIt;

impl Predicate for IsWorthIt {
    fn should_compress<B: HttpBody>(&self, response: &http::Response<B>) -> bool {
        let size = response.body().size_hint().exact();
        size.is_some_and(|size| (COMPRESSED_BYTES_MIN..=COMPRESSED_BYTES_MAX).contains(&size))
    }
}

/// Has the answers of these routes compressed as their callers like it.
pub(super) fn compressed(router: Router) -> Router {
    router
        .layer(CompressionLayer::new().compress_when(IsWorthIt))
        .layer(map_response(in_one_go))
        .layer(map_response(answer::tag_encoding))
        .layer(map_request(accept_as_it_is))
}

/// Leaves out that a caller refuses an answer as it is: where it takes no other either, the layer would make 406 of an answer
/// that is there. It may be sent all the same (RFC 9110, 12.5.3).
async fn accept_as_it_is(mut request: Request) -> Request {
    if codings(request.headers()).any(|coding| coding.refuses_as_it_is()) {
        let others = codings(request.headers()).filter(|coding| !coding.refuses_as_it_is());
        let others = others.map(|coding| coding.text).collect::<Vec<_>>().join(",");
        let others = HeaderValue::from_str(&others).expect("it came in a header");
        request.headers_mut().insert(ACCEPT_ENCODING, others);
    }
    request
}

/// Compresses the answer now. Nothing is waited for, as the body is complete: there are never more encoders than threads.
async fn in_one_go(response: Response) -> Response {
    if !response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let (parts, body) = response.into_parts();
    match to_bytes(body, usize::MAX).await {
        Ok(bytes) => Response::from_parts(parts, Body::from(bytes)),
        Err(error) => ApiError::internal(error).into_response(),
    }
}

/// A document that does not change, as it is and compressed.
#[derive(Clone, Debug)]
pub(super) struct Document {
    plain: Bytes,
    gzip: Bytes,
}

impl Document {
    /// Compresses a text.
    pub(super) fn new(text: String) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        let written = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish());
        Self {
            gzip: written.expect("memory takes what is written").into(),
            plain: text.into(),
        }
    }

    /// The answer to a request with these headers.
    pub(super) fn answer(&self, request: &HeaderMap) -> Response {
        let mut response = if takes_gzip(request) {
            let mut response = Response::new(Body::from(self.gzip.clone()));
            let gzip = HeaderValue::from_static("gzip");
            response.headers_mut().insert(CONTENT_ENCODING, gzip);
            response
        } else {
            Response::new(Body::from(self.plain.clone()))
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        response
    }
}

/// Whether the caller names gzip, and not to refuse it (RFC 9110, 12.5.3).
fn takes_gzip(request: &HeaderMap) -> bool {
    codings(request).any(|coding| coding.name.eq_ignore_ascii_case("gzip") && !coding.is_refused)
}

/// A coding that a caller names.
struct Coding<'a> {
    text: &'a str,
    name: &'a str,
    is_refused: bool,
}

impl Coding<'_> {
    fn refuses_as_it_is(&self) -> bool {
        self.is_refused && (self.name == "*" || self.name.eq_ignore_ascii_case("identity"))
    }
}

fn codings(request: &HeaderMap) -> impl Iterator<Item = Coding<'_>> {
    let lists = request.get_all(ACCEPT_ENCODING).iter();
    let codings = lists
        .filter_map(|list| list.to_str().ok())
        .flat_map(|list| list.split(','));
    codings.map(|text| {
        let (name, weight) = text.split_once(';').unwrap_or((text, ""));
        let weight = weight.trim().trim_start_matches(['q', 'Q']);
        Coding {
            text,
            name: name.trim(),
            is_refused: weight.trim_start_matches('=').parse() == Ok(0.0),
        }
    })
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tower::ServiceExt as _;

    use super::*;

    async fn body_of(path: &'static str) -> (HeaderMap, Body) {
        let (parts, body) = answer_of(path, "gzip").await.into_parts();
        (parts.headers, body)
    }

    async fn answer_of(path: &'static str, codings: &'static str) -> Response {
        let page = |bytes: usize| get(async move || "x".repeat(bytes));
        let stream =
            get(async || Body::from_stream(futures::stream::iter([Ok::<_, ApiError>("x".repeat(4_096))])));
        let router = Router::new()
            .route("/small", page(100))
            .route("/page", page(100_000))
            .route("/large", page(3_000_000))
            .route("/stream", stream);
        let request = http::Request::get(path)
            .header(ACCEPT_ENCODING, codings)
            .body(Body::empty());
        let Ok(response) = compressed(router)
            .oneshot(request.expect("a valid request"))
            .await;
        response
    }

    #[tokio::test]
    async fn whatever_codings_a_caller_refuses_there_is_an_answer() {
        for codings in [
            "identity;q=0",
            "*;q=0",
            "identity;q=0, *;Q=0.0",
            "odd, identity;q=0",
            "gzip;q=0, *;q=0",
        ] {
            for path in ["/page", "/small", "/nothing"] {
                let answer = answer_of(path, codings).await;
                let status = if path == "/nothing" { 404 } else { 200 };
                assert_eq!(answer.status(), status, "{path} {codings}");
                assert!(
                    !answer.headers().contains_key(CONTENT_ENCODING),
                    "{path} {codings}"
                );
            }
        }
        for codings in ["gzip, identity;q=0", "gzip, *;q=0", "identity;q=0.2, GZIP;q=0.5"] {
            let answer = answer_of("/page", codings).await;
            assert_eq!(answer.headers()[CONTENT_ENCODING], "gzip", "{codings}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_compressed_is_complete_and_has_a_size() {
        let (headers, body) = body_of("/page").await;
        assert_eq!(headers[CONTENT_ENCODING], "gzip");
        let size = body.size_hint().exact().expect("its size is known");
        let bytes = to_bytes(body, usize::MAX).await.expect("it is whole");
        assert_eq!(bytes.len() as u64, size);
        assert!(size < 10_000, "{size}");
    }

    #[tokio::test]
    async fn what_is_small_or_large_or_not_complete_is_sent_as_it_is() {
        for path in ["/small", "/large", "/stream"] {
            let (headers, _) = body_of(path).await;
            assert!(!headers.contains_key(CONTENT_ENCODING), "{path}");
        }
    }

    #[tokio::test]
    async fn a_document_is_compressed_once_for_all_who_take_it_so() {
        let document = Document::new("{}".repeat(10_000));
        let accepting =
            |codings| HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(codings))]);
        for codings in ["gzip", "br, GZIP;q=0.5", "gzip, br"] {
            let response = document.answer(&accepting(codings));
            assert_eq!(response.headers()[CONTENT_ENCODING], "gzip", "{codings}");
            let bytes = to_bytes(response.into_body(), usize::MAX)
                .await
                .expect("it is whole");
            assert_eq!(bytes.as_ptr(), document.gzip.as_ptr(), "it was made again");
        }
        for codings in ["", "br", "gzip;q=0", "gzip; q=0.0", "identity"] {
            let response = document.answer(&accepting(codings));
            assert!(!response.headers().contains_key(CONTENT_ENCODING), "{codings}");
            let bytes = to_bytes(response.into_body(), usize::MAX)
                .await
                .expect("it is whole");
            assert_eq!(bytes.as_ptr(), document.plain.as_ptr(), "it was copied");
        }
    }
}
