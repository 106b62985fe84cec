//! Pages for people: one frame around all of them. They are made once, run no script, and load nothing from anywhere.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use http::header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};

use crate::document::Document;

/// How all pages look, by day and by night.
const STYLE: &str = include_str!("page.css");

/// The policy for browsers: a page may apply its own style, which is known by its hash, and nothing else.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = BASE64_STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).expect("base64 is visible ASCII")
});

/// A page with this title and content.
pub(crate) fn page(title: &str, content: &Markup) -> Document {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { (content) }
        }
    };
    Document::new("text/html; charset=utf-8", page.into_string())
        .with_header(CONTENT_SECURITY_POLICY, &POLICY)
        .with_header(X_CONTENT_TYPE_OPTIONS, &HeaderValue::from_static("nosniff"))
        .with_header(REFERRER_POLICY, &HeaderValue::from_static("no-referrer"))
}
