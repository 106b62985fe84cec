//! gRPC-Web: gRPC for browsers and gateways, who see no trailers and may speak HTTP/1. A call is made into one of gRPC before
//! anything else looks at it, and its answer into one of gRPC-Web after everything else.

use std::convert::Infallible;

use axum::body::Body;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, Request, Response};
use tonic_web::GrpcWebLayer;
use tower::{Layer as _, ServiceExt as _, service_fn};

/// The content types, as the protocol has them: messages as they are, or in base64.
const CONTENT_TYPES: [&str; 4] = [
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
];

/// Prefix of the content types of messages in base64.
const IN_BASE64: &[u8] = b"application/grpc-web-text";

/// In the extensions of a request whose body comes in base64: it is smaller than it declares.
#[derive(Clone, Copy, Debug)]
pub(super) struct InBase64;

impl InBase64 {
    /// How many bytes come out of so many at the least: the last four may be one.
    pub(super) fn decoded(bytes: usize) -> usize {
        (bytes / 4 * 3).saturating_sub(2)
    }
}

/// Whether a request is a call of gRPC-Web.
pub(super) fn is_call(request: &Request<Body>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE);
    let is_known = content_type.is_some_and(|given| CONTENT_TYPES.iter().any(|known| given == known));
    is_known && request.method() == Method::POST
}

/// A call that asks for no form of the answer is answered in its own.
fn accept_what_was_sent(request: &mut Request<Body>) {
    let headers = request.headers_mut();
    let is_said = headers
        .get(ACCEPT)
        .is_some_and(|given| CONTENT_TYPES.iter().any(|known| given == known));
    if let Some(sent) = headers.get(CONTENT_TYPE).cloned().filter(|_| !is_said) {
        headers.insert(ACCEPT, sent);
    }
}

/// Answers a call of gRPC-Web by what answers gRPC.
pub(super) async fn translated<F>(
    mut request: Request<Body>,
    answer: impl Fn(Request<Body>) -> F,
) -> Response<Body>
where
    F: Future<Output = Response<Body>>,
{
    accept_what_was_sent(&mut request);
    let content_type = request.headers().get(CONTENT_TYPE);
    if content_type.is_some_and(|given| given.as_bytes().starts_with(IN_BASE64)) {
        request.extensions_mut().insert(InBase64);
    }
    let grpc = service_fn(|request: Request<tonic::body::Body>| {
        let answered = answer(request.map(Body::new));
        async { Ok::<_, Infallible>(answered.await) }
    });
    match GrpcWebLayer::new().layer(grpc).oneshot(request).await {
        Ok(mut response) => {
            // Trailers go into the body, which tells the size that it had without them: a stream tells none.
            response.headers_mut().remove(CONTENT_LENGTH);
            response.map(|body| Body::from_stream(Body::new(body).into_data_stream()))
        }
        Err(never) => match never {},
    }
}
