//! Documents that do not change: anybody may ask for them without a key, so they are compressed once, and not for each of
//! those who ask.

use std::io::Write as _;

use axum::body::{Body, Bytes};
use axum::response::Response;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderValue};

/// A document that does not change, as it is and compressed.
#[derive(Clone, Debug)]
pub struct Document {
    plain: Bytes,
    gzip: Bytes,
}

impl Document {
    /// Compresses a text, which is JSON.
    ///
    /// # Panics
    /// Never: memory takes what is written to it.
    #[must_use]
    pub fn new(text: String) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        let written = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish());
        Self {
            gzip: written.expect("memory takes what is written").into(),
            plain: text.into(),
        }
    }

    /// The answer to a request with these headers.
    #[must_use]
    pub fn answer(&self, request: &HeaderMap) -> Response {
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
#[derive(Clone, Copy, Debug)]
pub struct Coding<'a> {
    /// As the caller wrote it, with its weight.
    pub text: &'a str,
    name: &'a str,
    is_refused: bool,
}

impl Coding<'_> {
    /// Whether the caller refuses an answer as it is.
    #[must_use]
    pub fn refuses_as_it_is(&self) -> bool {
        self.is_refused && (self.name == "*" || self.name.eq_ignore_ascii_case("identity"))
    }
}

/// The codings that a caller names.
pub fn codings(request: &HeaderMap) -> impl Iterator<Item = Coding<'_>> {
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
    use axum::body::to_bytes;

    use super::*;

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
