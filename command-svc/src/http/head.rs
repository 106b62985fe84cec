//! A command's headers and address: its key, its aggregate, and the version that it is for.

use daybook_proto::convert::{CommandRequest, Violations};
use daybook_service::error::ApiError;
use http::header::IF_MATCH;
use http::{HeaderMap, HeaderName};

use crate::request::{check_key, validation_error};

/// The header with the idempotency key.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// How violations name it.
const KEY_FIELD: &str = "Idempotency-Key";

/// How violations name the header with the version.
const IF_MATCH_FIELD: &str = "If-Match";

/// The head of a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    key: String,
    /// The version that `If-Match` demands.
    version: Option<u64>,
}

impl Head {
    /// Reads the headers.
    ///
    /// # Errors
    /// `VALIDATION_FAILED`, with all that is wrong with them.
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut violations = Violations::default();
        let key = key(headers, &mut violations);
        let version = version(headers, &mut violations);
        let head = violations.finish(key.zip(version));
        let (key, version) = head.map_err(validation_error)?;
        Ok(Self { key, version })
    }

    /// The head of a batch: its key.
    ///
    /// # Errors
    /// `VALIDATION_FAILED`: also where it demands a version, for what a batch begins has none.
    pub(super) fn read_key(headers: &HeaderMap) -> Result<String, ApiError> {
        let Self { key, version } = Self::read(headers)?;
        let mut violations = Violations::default();
        if version.is_some() {
            violations.add(
                IF_MATCH_FIELD,
                "CONTRADICTION",
                "nothing is there yet that could have a version",
            );
        }
        violations.finish(Some(key)).map_err(validation_error)
    }

    /// Puts into a command what its body leaves out. An id in the body is that of the address.
    ///
    /// # Errors
    /// `VALIDATION_FAILED` when the body says something else than the head.
    pub(super) fn complete<R: CommandRequest>(
        &self,
        command: &mut R,
        id: Option<String>,
    ) -> Result<(), ApiError> {
        let mut violations = Violations::default();
        command.set_request_id(self.key.clone());
        if let (Some(id), Some(field), Some(action)) = (id, command.aggregate_id(), R::ACTION) {
            if !field.is_empty() && *field != id {
                let message = "is another one than in the address; it can be left out";
                violations.add(format!("/{}", action.id_field), "CONTRADICTION", message);
            }
            *field = id;
        }
        if let Some(version) = self.version {
            if command
                .expected_version()
                .is_some_and(|expected| expected != version)
            {
                let message = "is another version than in If-Match; one of them can be left out";
                violations.add("/expected_version", "CONTRADICTION", message);
            }
            command.set_expected_version(version);
        }
        violations.finish(Some(())).map_err(validation_error)
    }

    /// A refusal, as it is answered to a command with this head.
    pub(super) fn refused(&self, error: ApiError) -> ApiError {
        match self.version {
            Some(_) => error.of_if_match(),
            None => error,
        }
    }
}

/// The idempotency key: bare, or quoted as the draft on `Idempotency-Key` has it (a string of RFC 8941).
fn key(headers: &HeaderMap, violations: &mut Violations) -> Option<String> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let (value, another) = (values.next(), values.next());
    if another.is_some() {
        violations.add(KEY_FIELD, "DUPLICATE", "Idempotency-Key is there twice");
        return None;
    }
    let text = value.map_or(Ok(""), |value| value.to_str()).unwrap_or("\u{fffd}");
    let key = match text.strip_prefix('"') {
        None => Some(text.to_owned()),
        Some(quoted) => unquoted(quoted),
    };
    match key {
        Some(key) => {
            check_key(KEY_FIELD, &key, violations);
            Some(key)
        }
        None => {
            violations.add(
                KEY_FIELD,
                "INVALID_QUOTES",
                "a quote is not closed, or too much is behind it",
            );
            None
        }
    }
}

/// The text inside of quotes, the first of which has gone already.
fn unquoted(quoted: &str) -> Option<String> {
    let mut text = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => return characters.as_str().is_empty().then_some(text),
            '\\' => text.push(
                characters
                    .next()
                    .filter(|escaped| matches!(escaped, '"' | '\\'))?,
            ),
            character => text.push(character),
        }
    }
}

/// The version that `If-Match` demands; within, `None` where it demands none: it is absent, or a star, which every aggregate
/// satisfies that is there.
fn version(headers: &HeaderMap, violations: &mut Violations) -> Option<Option<u64>> {
    let mut demanded = None;
    for value in headers.get_all(IF_MATCH) {
        let tags = value.to_str().unwrap_or_default().split(',');
        for tag in tags.map(str::trim).filter(|tag| *tag != "*") {
            let Some(version) = tag_version(tag) else {
                let message = "If-Match must be the strong ETag of a document, or *";
                violations.add(IF_MATCH_FIELD, "INVALID_TAG", message);
                return None;
            };
            if demanded.is_some_and(|demanded| demanded != version) {
                violations.add(IF_MATCH_FIELD, "DUPLICATE", "If-Match names two versions");
                return None;
            }
            demanded = Some(version);
        }
    }
    Some(demanded)
}

/// The version in a strong entity tag: `"v3-…"`. What is behind it tells the document's form, which a command has nothing to
/// do with.
fn tag_version(tag: &str) -> Option<u64> {
    let (version, _form) = tag.strip_prefix("\"v")?.strip_suffix('"')?.split_once('-')?;
    let is_number = version.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| version.parse().ok())?
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(headers: &[(&'static str, &str)]) -> Result<Head, Vec<String>> {
        let headers = headers.iter().map(|(name, value)| {
            let value = HeaderValue::from_bytes(value.as_bytes()).expect("a valid header");
            (HeaderName::from_static(name), value)
        });
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value);
        }
        Head::read(&map).map_err(|error| {
            let violations = error.violations().iter();
            violations
                .map(|violation| format!("{} {}", violation.pointer, violation.code))
                .collect()
        })
    }

    #[test]
    fn a_key_may_be_quoted_or_bare() {
        for (sent, key) in [
            ("0190-abc", "0190-abc"),
            ("\"0190-abc\"", "0190-abc"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            ("a\"b", "a\"b"),
        ] {
            let head = read(&[("idempotency-key", sent)]).expect("it is a key");
            assert_eq!(head.key, key, "{sent}");
        }
        let long = "k".repeat(129);
        for (sent, code) in [
            ("", "REQUIRED"),
            ("\"\"", "REQUIRED"),
            ("\"open", "INVALID_QUOTES"),
            ("\"a\";b=1", "INVALID_QUOTES"),
            (r#""a\n""#, "INVALID_QUOTES"),
            ("with space", "FORBIDDEN_CHARACTER"),
            ("caf\u{e9}", "FORBIDDEN_CHARACTER"),
            (&long, "TOO_LONG"),
        ] {
            let wanted = vec![format!("Idempotency-Key {code}")];
            assert_eq!(read(&[("idempotency-key", sent)]), Err(wanted), "{sent}");
        }
        assert_eq!(read(&[]), Err(vec!["Idempotency-Key REQUIRED".to_owned()]));
        let twice = read(&[("idempotency-key", "a"), ("idempotency-key", "b")]);
        assert_eq!(twice, Err(vec!["Idempotency-Key DUPLICATE".to_owned()]));
    }

    #[test]
    fn of_a_tag_the_version_alone_counts() {
        let version =
            |tags: &str| read(&[("idempotency-key", "a"), ("if-match", tags)]).map(|head| head.version);
        for (tags, wanted) in [
            ("\"v3-order.1\"", Some(3)),
            ("\"v3-order.1;gzip\"", Some(3)),
            ("\"v3-a\", \"v3-b\"", Some(3)),
            ("*", None),
        ] {
            assert_eq!(version(tags), Ok(wanted), "{tags}");
        }
        for (tags, code) in [
            ("W/\"v3-a\"", "INVALID_TAG"),
            ("\"3-a\"", "INVALID_TAG"),
            ("\"v3\"", "INVALID_TAG"),
            ("\"v-a\"", "INVALID_TAG"),
            ("\"v+3-a\"", "INVALID_TAG"),
            ("\"v99999999999999999999-a\"", "INVALID_TAG"),
            ("v3-a", "INVALID_TAG"),
            ("", "INVALID_TAG"),
            ("\"v3-a\", \"v4-a\"", "DUPLICATE"),
        ] {
            assert_eq!(version(tags), Err(vec![format!("If-Match {code}")]), "{tags}");
        }
    }
}
