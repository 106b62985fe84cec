//! Compressed answers.
//!
//! An answer that is complete is compressed in one go, before it is sent: so the encoder, which may need megabytes, is gone
//! when the caller begins to read, and what is left has a size that counts like any other's.

use axum::Router;
use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::Request;
use axum::middleware::{map_request, map_response};
use axum::response::{IntoResponse as _, Response};
use daybook_service::ApiError;
use daybook_service::document::codings;
use http::HeaderValue;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
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

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use http::HeaderMap;
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
}
