//! How an answer looks: the envelope, the headers that say how fresh it is, and conditional requests.

use axum::body::Body;
use axum::response::Response;
use daybook_service::ApiError;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::params;
use super::schema::{Envelope, ListEnvelope, Pagination};
use crate::freshness::Staleness;
use crate::reads::{Answer, Page};

/// The position of the log that the answer includes, with everything before it: sealed, for another read to demand.
const DAYBOOK_CONSISTENCY: HeaderName = HeaderName::from_static(params::DAYBOOK_CONSISTENCY);

/// The same position, for those who may read the log.
pub(super) const DAYBOOK_POSITION: HeaderName = HeaderName::from_static("daybook-position");

/// How far the answer may be behind the log, in milliseconds.
pub(super) const DAYBOOK_LAG_MS: HeaderName = HeaderName::from_static("daybook-lag-ms");

/// Somebody's own data: nobody else's cache may keep it, and one's own asks before it is used.
const PRIVATE_NO_CACHE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// What an answer depends on beside its address.
const VARY_BY: HeaderValue = HeaderValue::from_static("authorization, accept-encoding");

const APPLICATION_JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What compression puts behind the tag: another encoding is another representation, which a strong tag has to tell.
const ENCODINGS: [&str; 3] = ["gzip", "br", "zstd"];

/// A strong entity tag, `"v<version>-<shape>"`. The version is what `If-Match` of a command compares. The shape is a hash of
/// the body, so it is another one for other `fields`, after a rebuild with another fold, in another history of the log, and in
/// another version of this program: for whatever makes another body of the same version.
#[derive(Clone, Debug, PartialEq, Eq)]
struct EntityTag(String);

impl EntityTag {
    fn of(version: u64, body: &[u8]) -> Self {
        let hash = Sha256::digest(body);
        let (shape, _) = hash.split_first_chunk().expect("a hash is longer");
        Self(format!("v{version}-{:016x}", u64::from_be_bytes(*shape)))
    }

    /// The tag under which the caller has this already (RFC 9110, 13.1.2): with the encoding that it has.
    fn known(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let lists = headers
            .get_all(IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok());
        lists.flat_map(|list| list.split(',')).find_map(|tag| {
            let tag = tag.trim();
            if tag == "*" {
                return Some(self.header());
            }
            let tag = unquoted(tag).filter(|tag| without_encoding(tag) == self.0)?;
            HeaderValue::from_str(&format!("\"{tag}\"")).ok()
        })
    }

    fn header(&self) -> HeaderValue {
        HeaderValue::from_str(&format!("\"{}\"", self.0)).expect("letters and digits are visible ASCII")
    }
}

fn unquoted(tag: &str) -> Option<&str> {
    tag.strip_prefix("W/")
        .unwrap_or(tag)
        .strip_prefix('"')?
        .strip_suffix('"')
}

fn without_encoding(tag: &str) -> &str {
    match tag.rsplit_once(';') {
        Some((tag, encoding)) if ENCODINGS.contains(&encoding) => tag,
        _ => tag,
    }
}

/// Puts the encoding of a compressed answer into its tag.
pub(super) async fn tag_encoding(mut response: Response) -> Response {
    if let Some(encoding) = response.headers().get(CONTENT_ENCODING)
        && let Some(tag) = response.headers().get(ETAG)
        && let (Ok(encoding), Ok(tag)) = (encoding.to_str(), tag.to_str())
        && let Some(tag) = unquoted(tag)
        && let Ok(tag) = HeaderValue::from_str(&format!("\"{tag};{encoding}\""))
    {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

/// One resource whose JSON is there already.
pub(super) fn document(json: &str, version: u64, staleness: &Staleness, request: &HeaderMap) -> Response {
    tagged(
        format!("{{\"data\":{json}}}").into_bytes(),
        version,
        staleness,
        request,
    )
}

/// One resource.
///
/// # Errors
/// `INTERNAL` when it cannot be written as JSON.
pub(super) fn resource<T: Serialize>(
    data: T,
    version: u64,
    staleness: &Staleness,
    request: &HeaderMap,
) -> Result<Response, ApiError> {
    let body = serde_json::to_vec(&Envelope { data }).map_err(ApiError::internal)?;
    Ok(tagged(body, version, staleness, request))
}

/// A page of a list; `show` makes an item of the contract out of what was read.
///
/// # Errors
/// `INTERNAL` when it cannot be written as JSON.
pub(super) fn list<'a, T, S: Serialize>(
    answer: &'a Answer<Page<T>>,
    show: impl Fn(&'a T) -> Result<S, serde_json::Error>,
) -> Result<Response, ApiError> {
    let body = page(&answer.data, show).map_err(ApiError::internal)?;
    Ok(with_freshness(json_body(body), &answer.staleness))
}

/// A page of what never changes but grows up to this version.
///
/// # Errors
/// `INTERNAL` when it cannot be written as JSON.
pub(super) fn history<'a, T, S: Serialize>(
    answer: &'a Answer<Page<T>>,
    show: impl Fn(&'a T) -> Result<S, serde_json::Error>,
    version: u64,
    request: &HeaderMap,
) -> Result<Response, ApiError> {
    let body = page(&answer.data, show).map_err(ApiError::internal)?;
    Ok(tagged(body, version, &answer.staleness, request))
}

fn page<'a, T, S: Serialize>(
    page: &'a Page<T>,
    show: impl Fn(&'a T) -> Result<S, serde_json::Error>,
) -> Result<Vec<u8>, serde_json::Error> {
    let Page { items, next_cursor } = page;
    serde_json::to_vec(&ListEnvelope {
        data: items.iter().map(show).collect::<Result<Vec<_>, _>>()?,
        pagination: Pagination {
            has_more: next_cursor.is_some(),
            next_cursor: next_cursor.clone(),
        },
    })
}

/// A body with its tag, unless the caller has it.
fn tagged(body: Vec<u8>, version: u64, staleness: &Staleness, request: &HeaderMap) -> Response {
    let tag = EntityTag::of(version, &body);
    let known = tag.known(request);
    let mut response = if known.is_some() {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        json_body(body)
    };
    let tag = known.unwrap_or_else(|| tag.header());
    response.headers_mut().insert(ETAG, tag);
    with_freshness(response, staleness)
}

fn json_body(body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, APPLICATION_JSON);
    response
}

fn with_freshness(mut response: Response, staleness: &Staleness) -> Response {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, PRIVATE_NO_CACHE);
    headers.insert(VARY, VARY_BY);
    if let Some(token) = staleness.token() {
        let token = HeaderValue::from_str(&token).expect("base64url is visible ASCII");
        headers.insert(DAYBOOK_CONSISTENCY, token);
    }
    if let Some(position) = staleness.plain_position() {
        headers.insert(DAYBOOK_POSITION, HeaderValue::from(position));
    }
    headers.insert(DAYBOOK_LAG_MS, HeaderValue::from(staleness.lag_ms));
    response
}

#[cfg(test)]
mod tests {
    use daybook_event_store::EpochId;

    use super::*;
    use crate::freshness::{Progress, Tokens};

    fn staleness(scopes: &[&str]) -> Staleness {
        let progress = Progress {
            position: 20,
            epoch: Some(EpochId::default()),
            ..Progress::default()
        };
        Staleness::new(progress, Tokens::of(7, 0, scopes))
    }

    #[test]
    fn the_position_is_sealed_for_all_and_plain_for_those_who_may_read_the_log() {
        for (scopes, plain) in [(&["orders:read"][..], None), (&["events:read"], Some("20"))] {
            let response = with_freshness(json_body(Vec::new()), &staleness(scopes));
            let header = |name: HeaderName| response.headers().get(name)?.to_str().ok();
            assert_eq!(header(DAYBOOK_POSITION), plain);
            let token = header(DAYBOOK_CONSISTENCY).expect("everybody has a token");
            assert!(Tokens::of(7, 0, &[]).open(token, "consistency").is_ok());
        }
    }

    /// The opaque part of the tag of `{"data":{}}` in version 3.
    fn opaque() -> String {
        EntityTag::of(3, br#"{"data":{}}"#).0
    }

    fn document_for(if_none_match: &str) -> Response {
        let tags = HeaderValue::from_str(if_none_match).expect("it is visible ASCII");
        let request = HeaderMap::from_iter([(IF_NONE_MATCH, tags)]);
        document("{}", 3, &staleness(&[]), &request)
    }

    #[test]
    fn a_tag_says_the_version_and_is_another_one_for_any_other_body() {
        assert!(opaque().starts_with("v3-"));
        let others = [(4, "{\"data\":{}}"), (3, "{\"data\":{ }}"), (3, "")];
        assert!(
            others
                .iter()
                .all(|(version, body)| EntityTag::of(*version, body.as_bytes()).0 != opaque())
        );
    }

    #[test]
    fn what_the_caller_has_is_not_sent_again() {
        let tag = opaque();
        for (known, sent) in [
            (format!("\"{tag}\""), format!("\"{tag}\"")),
            (format!("\"{tag};gzip\""), format!("\"{tag};gzip\"")),
            (format!("W/\"{tag};br\""), format!("\"{tag};br\"")),
            (format!("\"v1-1\", \"{tag}\""), format!("\"{tag}\"")),
            ("*".to_owned(), format!("\"{tag}\"")),
        ] {
            let response = document_for(&known);
            assert_eq!(response.status(), StatusCode::NOT_MODIFIED, "{known}");
            assert_eq!(response.headers()[ETAG], sent, "it is what the caller has");
            assert!(response.headers().contains_key(DAYBOOK_CONSISTENCY));
        }
    }

    #[test]
    fn what_the_caller_has_of_another_version_or_shape_is_sent() {
        let tag = opaque();
        for known in [
            "\"v3-0000000000000000\"".to_owned(),
            tag.clone(),
            format!("\"{}\"", tag.replace("v3", "v2")),
            format!("\"{tag};zip\""),
            String::new(),
        ] {
            let response = document_for(&known);
            assert_eq!(response.status(), StatusCode::OK, "{known}");
            assert_eq!(response.headers()[ETAG], format!("\"{tag}\""));
        }
    }

    #[tokio::test]
    async fn a_compressed_answer_has_a_tag_of_its_own() {
        let mut response = document("{}", 3, &staleness(&[]), &HeaderMap::new());
        let gzip = HeaderValue::from_static("gzip");
        response.headers_mut().insert(CONTENT_ENCODING, gzip);
        let response = tag_encoding(response).await;
        assert_eq!(response.headers()[ETAG], format!("\"{};gzip\"", opaque()));
    }
}
