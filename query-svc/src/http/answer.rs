//! How an answer looks: the envelope, the headers that say how fresh it is, and conditional requests.

use axum::body::Body;
use axum::response::Response;
use daybook_service::ApiError;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use uuid::Uuid;

use super::params;
use super::schema::{Envelope, ListEnvelope, Pagination};
use super::sparse::Fields;
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

/// A strong entity tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EntityTag(String);

impl EntityTag {
    /// The tag of a version of something, of all of it or of some fields. The generation of the log is in it, so that a
    /// version that came to be before the log was set back is another one.
    pub(super) fn new(version: u64, generation: Uuid, fields: Option<&Fields>) -> Self {
        let (log, ..) = generation.as_fields();
        Self(match fields {
            Some(fields) => format!("{version}-{log:08x}-{}", fields.name()),
            None => format!("{version}-{log:08x}"),
        })
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
        HeaderValue::from_str(&format!("\"{}\"", self.0))
            .expect("digits and names of fields are visible ASCII")
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
pub(super) fn document(json: &str, tag: &EntityTag, staleness: &Staleness, request: &HeaderMap) -> Response {
    let known = tag.known(request);
    let mut response = if known.is_some() {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        json_body(format!("{{\"data\":{json}}}").into_bytes())
    };
    let tag = known.unwrap_or_else(|| tag.header());
    response.headers_mut().insert(ETAG, tag);
    with_freshness(response, staleness)
}

/// One resource.
///
/// # Errors
/// `INTERNAL` when it cannot be written as JSON.
pub(super) fn resource<T: Serialize>(answer: Answer<T>) -> Result<Response, ApiError> {
    let body = serde_json::to_vec(&Envelope { data: answer.data }).map_err(ApiError::internal)?;
    Ok(with_freshness(json_body(body), &answer.staleness))
}

/// A page of a list; `show` makes an item of the contract out of what was read.
///
/// # Errors
/// `INTERNAL` when it cannot be written as JSON.
pub(super) fn list<'a, T, S: Serialize>(
    answer: &'a Answer<Page<T>>,
    show: impl Fn(&'a T) -> Result<S, serde_json::Error>,
) -> Result<Response, ApiError> {
    let Page { items, next_cursor } = &answer.data;
    let envelope = ListEnvelope {
        data: items
            .iter()
            .map(show)
            .collect::<Result<Vec<_>, _>>()
            .map_err(ApiError::internal)?,
        pagination: Pagination {
            has_more: next_cursor.is_some(),
            next_cursor: next_cursor.clone(),
        },
    };
    let body = serde_json::to_vec(&envelope).map_err(ApiError::internal)?;
    Ok(with_freshness(json_body(body), &answer.staleness))
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

    const LOG: Uuid = Uuid::from_u128(0x17 << 96);

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

    fn if_none_match(tags: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_static(tags))])
    }

    #[test]
    fn a_tag_is_found_among_others_weak_or_encoded() {
        let tag = EntityTag::new(3, LOG, None);
        for tags in [
            "\"3-00000017\"",
            "\"1-1\", \"3-00000017\"",
            "W/\"3-00000017\"",
            "\"3-00000017;gzip\"",
            "*",
        ] {
            assert!(tag.known(&if_none_match(tags)).is_some(), "{tags}");
        }
        for tags in [
            "\"3-00000018\"",
            "3-00000017",
            "\"3-00000017-status\"",
            "\"3-00000017;zip\"",
            "",
        ] {
            assert!(tag.known(&if_none_match(tags)).is_none(), "{tags}");
        }
    }

    #[test]
    fn some_fields_are_another_representation() {
        let fields = Fields::parse("status", &["status"]).expect("it is known");
        assert_ne!(
            EntityTag::new(3, LOG, Some(&fields)),
            EntityTag::new(3, LOG, None)
        );
    }

    #[test]
    fn what_the_caller_has_is_not_sent_again() {
        let tag = EntityTag::new(3, LOG, None);
        let staleness = staleness(&[]);
        let response = document("{}", &tag, &staleness, &if_none_match("\"3-00000017\""));
        assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(response.headers()[ETAG], "\"3-00000017\"");
        assert_eq!(
            document("{}", &tag, &staleness, &HeaderMap::new()).status(),
            StatusCode::OK
        );
        for (known, sent) in [
            ("\"3-00000017;gzip\"", "\"3-00000017;gzip\""),
            ("W/\"3-00000017;br\"", "\"3-00000017;br\""),
            ("\"1-1\", \"3-00000017\"", "\"3-00000017\""),
            ("*", "\"3-00000017\""),
        ] {
            let response = document("{}", &tag, &staleness, &if_none_match(known));
            assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
            assert_eq!(response.headers()[ETAG], sent, "it is what the caller has");
        }
    }

    #[tokio::test]
    async fn a_compressed_answer_has_a_tag_of_its_own() {
        let mut response = document(
            "{}",
            &EntityTag::new(3, LOG, None),
            &staleness(&[]),
            &HeaderMap::new(),
        );
        response
            .headers_mut()
            .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert_eq!(
            tag_encoding(response).await.headers()[ETAG],
            "\"3-00000017;gzip\""
        );
    }
}
