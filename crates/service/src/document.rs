//! Documents that do not change: anybody may ask for them without a key, so they are compressed and tagged once, and not for
//! each of those who ask.

use std::io::Write as _;

use axum::body::{Body, Bytes};
use axum::response::Response;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use sha2::{Digest as _, Sha256};

/// A cache asks before it uses its copy, and gets a head alone when that is still the same.
const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache");

/// A document that does not change, as it is and compressed.
#[derive(Clone, Debug)]
pub struct Document {
    plain: Representation,
    gzip: Representation,
}

/// A document in one encoding, with its headers.
#[derive(Clone, Debug)]
struct Representation {
    headers: HeaderMap,
    body: Bytes,
}

impl Document {
    /// Prepares a text of this type.
    ///
    /// # Panics
    /// Never: memory takes what is written to it.
    #[must_use]
    pub fn new(content_type: &'static str, text: String) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        let written = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish());
        let gzip = written.expect("memory takes what is written");
        let hash = hex::encode(&Sha256::digest(&text)[..8]);
        let headers = |tag: String| {
            let tag = HeaderValue::from_str(&tag).expect("hexadecimal digits are visible ASCII");
            HeaderMap::from_iter([
                (CONTENT_TYPE, HeaderValue::from_static(content_type)),
                (VARY, HeaderValue::from_static("accept-encoding")),
                (CACHE_CONTROL, NO_CACHE),
                (ETAG, tag),
            ])
        };
        let mut gzip = Representation {
            headers: headers(format!("\"{hash};gzip\"")),
            body: gzip.into(),
        };
        gzip.headers
            .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        Self {
            plain: Representation {
                headers: headers(format!("\"{hash}\"")),
                body: text.into(),
            },
            gzip,
        }
    }

    /// Prepares a text that is JSON.
    #[must_use]
    pub fn json(text: String) -> Self {
        Self::new("application/json", text)
    }

    /// The same document with one more header, or another value of it.
    #[must_use]
    pub fn with_header(mut self, name: http::HeaderName, value: &HeaderValue) -> Self {
        for representation in [&mut self.plain, &mut self.gzip] {
            representation.headers.insert(name.clone(), value.clone());
        }
        self
    }

    /// The answer to a request with these headers.
    #[must_use]
    pub fn answer(&self, request: &HeaderMap) -> Response {
        let representation = match takes_gzip(request) {
            true => &self.gzip,
            false => &self.plain,
        };
        let mut response = if representation.is_known(request) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            Response::new(Body::from(representation.body.clone()))
        };
        *response.headers_mut() = representation.headers.clone();
        response
    }
}

impl Representation {
    /// Whether the caller has it already (RFC 9110, 13.1.2).
    fn is_known(&self, request: &HeaderMap) -> bool {
        let lists = request.get_all(IF_NONE_MATCH).iter();
        let mut tags = lists
            .filter_map(|list| list.to_str().ok())
            .flat_map(|list| list.split(','));
        tags.any(|tag| {
            let tag = tag.trim();
            tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == self.headers[ETAG].as_bytes()
        })
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
        let document = Document::json("{}".repeat(10_000));
        let accepting =
            |codings| HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(codings))]);
        for codings in ["gzip", "br, GZIP;q=0.5", "gzip, br"] {
            let response = document.answer(&accepting(codings));
            assert_eq!(response.headers()[CONTENT_ENCODING], "gzip", "{codings}");
            let bytes = to_bytes(response.into_body(), usize::MAX)
                .await
                .expect("it is whole");
            assert_eq!(bytes.as_ptr(), document.gzip.body.as_ptr(), "it was made again");
        }
        for codings in ["", "br", "gzip;q=0", "gzip; q=0.0", "identity"] {
            let response = document.answer(&accepting(codings));
            assert!(!response.headers().contains_key(CONTENT_ENCODING), "{codings}");
            let bytes = to_bytes(response.into_body(), usize::MAX)
                .await
                .expect("it is whole");
            assert_eq!(bytes.as_ptr(), document.plain.body.as_ptr(), "it was copied");
        }
    }

    #[test]
    fn what_the_caller_has_is_not_sent_again() {
        let (document, other) = (Document::json("{}".to_owned()), Document::json("[]".to_owned()));
        let asked = |headers: &[(http::HeaderName, &HeaderValue)]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (name.clone(), (*value).clone()));
            document.answer(&headers.collect())
        };
        let gzip = HeaderValue::from_static("gzip");
        let compressed = asked(&[(ACCEPT_ENCODING, &gzip)]);
        let (tag, tag_of_gzip) = (
            asked(&[]).headers()[ETAG].clone(),
            compressed.headers()[ETAG].clone(),
        );
        let again = asked(&[(IF_NONE_MATCH, &tag)]);
        assert_eq!(
            (again.status(), &again.headers()[ETAG]),
            (StatusCode::NOT_MODIFIED, &tag)
        );
        let again = asked(&[(IF_NONE_MATCH, &tag_of_gzip), (ACCEPT_ENCODING, &gzip)]);
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        let of_other = other.answer(&HeaderMap::new()).headers()[ETAG].clone();
        for unknown in [tag_of_gzip, of_other] {
            assert_eq!(asked(&[(IF_NONE_MATCH, &unknown)]).status(), StatusCode::OK);
        }
    }
}
