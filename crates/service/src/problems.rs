//! `GET /problems/{slug}`: what each code means and what to do about it. The `type` of every problem leads here.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::response::Response;
use axum::routing::get;
use http::header::{ACCEPT, VARY};
use http::{HeaderMap, HeaderValue};
use maud::html;
use serde_json::{Value, json};

use crate::document::Document;
use crate::error::{ApiError, Code, grpc};
use crate::page::page;
use crate::server::{Declared, Needs};

/// A rule of the domain that a service can refuse a request with.
#[derive(Clone, Copy, Debug)]
pub struct DomainRule {
    /// The rule's code: `ORDER_ALREADY_SHIPPED`.
    pub code: &'static str,
    /// Its meaning, in a sentence or two.
    pub explanation: &'static str,
}

impl From<(&'static str, &'static str)> for DomainRule {
    fn from((code, explanation): (&'static str, &'static str)) -> Self {
        Self { code, explanation }
    }
}

/// The routes of the catalogue, with the rules of the service's domain.
pub fn router(rules: &[DomainRule]) -> Declared {
    let catalogue = catalogue(rules);
    let all = catalogue.iter().map(Explanation::to_json).collect::<Value>();
    let all = Document::json(all.to_string());
    let explained: Arc<Explained> = Arc::new(explained(&catalogue));
    let router = Router::new()
        .route(
            "/problems",
            get(async move |headers: HeaderMap| all.answer(&headers)),
        )
        .route(
            "/problems/{slug}",
            get(async move |Path(slug): Path<String>, headers: HeaderMap| {
                explain(&explained, &slug, &headers)
            }),
        );
    let for_everybody = ["/problems", "/problems/{slug}"].map(|route| (route, Needs::nothing()));
    Declared::new(router, for_everybody)
}

/// A code with everything that is said about it.
struct Explanation {
    code: Code,
    text: &'static str,
}

/// The explanation of each code, by its slug: for programs, and for people.
type Explained = HashMap<String, (Document, Document)>;

fn catalogue(rules: &[DomainRule]) -> Vec<Explanation> {
    let of_all = Code::ALL.into_iter().map(|code| Explanation {
        text: code.entry().explanation,
        code,
    });
    let of_domain = rules.iter().map(|rule| Explanation {
        code: Code::DomainRule(rule.code.into()),
        text: rule.explanation,
    });
    of_all.chain(of_domain).collect()
}

fn explained(catalogue: &[Explanation]) -> Explained {
    let vary = HeaderValue::from_static("accept, accept-encoding");
    let documents = |explanation: &Explanation| {
        let json = Document::json(explanation.to_json().to_string());
        let documents = (
            json.with_header(VARY, &vary),
            explanation.to_page().with_header(VARY, &vary),
        );
        (explanation.code.slug(), documents)
    };
    catalogue.iter().map(documents).collect()
}

fn explain(explained: &Explained, slug: &str, headers: &HeaderMap) -> Result<Response, ApiError> {
    let documents = explained.get(slug);
    let (json, page) = documents.ok_or_else(|| ApiError::not_found("problem", slug))?;
    let wants_html = headers
        .get(ACCEPT)
        .is_some_and(|accept| accept.as_bytes().windows(9).any(|part| part == b"text/html"));
    let document = if wants_html { page } else { json };
    Ok(document.answer(headers))
}

impl Explanation {
    fn to_json(&self) -> Value {
        let entry = self.code.entry();
        json!({
            "type": format!("/problems/{}", self.code.slug()),
            "code": self.code.name(),
            "title": entry.title,
            "http_status": entry.http.as_u16(),
            "grpc_status": grpc::code_name(entry.grpc),
            "explanation": self.text,
            "retry": entry.retry.to_string(),
        })
    }

    fn to_page(&self) -> Document {
        let entry = self.code.entry();
        page(
            self.code.name(),
            &html! {
                main {
                    h1 { (entry.title) }
                    p { code { (self.code.name()) } " · HTTP " (entry.http.as_u16()) " · gRPC " (grpc::code_name(entry.grpc)) }
                    p { (self.text) }
                    p { (entry.retry.to_string()) }
                }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &[DomainRule] = &[DomainRule {
        code: "ORDER_ALREADY_SHIPPED",
        explanation: "Nothing can be changed any more.",
    }];

    #[test]
    fn the_type_of_every_problem_leads_to_its_explanation() {
        let explained = explained(&catalogue(RULES));
        let rule = Code::DomainRule("ORDER_ALREADY_SHIPPED".into());
        for code in Code::ALL.into_iter().chain([rule]) {
            let problem = ApiError::new(code.clone(), "what happened").to_problem();
            let slug = problem["type"]
                .as_str()
                .and_then(|kind| kind.strip_prefix("/problems/"))
                .expect("a type");
            explain(&explained, slug, &HeaderMap::new()).expect("an explanation");
        }
        explain(&explained, "nothing", &HeaderMap::new()).expect_err("no such code");
    }
}
