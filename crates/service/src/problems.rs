//! `GET /problems/{slug}`: what each code means and what to do about it. The `type` of every problem leads here.

use std::sync::Arc;

use axum::extract::Path;
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::HeaderMap;
use http::header::ACCEPT;
use serde_json::{Value, json};

use crate::error::{ApiError, Code, grpc};
use crate::server::{Declared, Needs};

/// A rule of the domain that a service can refuse a request with.
#[derive(Clone, Copy, Debug)]
pub struct DomainRule {
    /// The rule's code: `ORDER_ALREADY_SHIPPED`.
    pub code: &'static str,
    /// What it means, in a sentence or two.
    pub explanation: &'static str,
}

impl From<(&'static str, &'static str)> for DomainRule {
    fn from((code, explanation): (&'static str, &'static str)) -> Self {
        Self { code, explanation }
    }
}

/// The routes of the catalogue, with the rules of the service's domain.
pub fn router(rules: &[DomainRule]) -> Declared {
    let catalogue: Arc<[Explanation]> = catalogue(rules).into();
    let all = Arc::clone(&catalogue);
    let router = Router::new()
        .route(
            "/problems",
            get(async move || Json(all.iter().map(Explanation::to_json).collect::<Value>())),
        )
        .route(
            "/problems/{slug}",
            get(async move |Path(slug): Path<String>, headers: HeaderMap| {
                explain(&catalogue, &slug, &headers)
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

fn explain(catalogue: &[Explanation], slug: &str, headers: &HeaderMap) -> Result<Response, ApiError> {
    let explanation = catalogue
        .iter()
        .find(|explanation| explanation.code.slug() == slug)
        .ok_or_else(|| ApiError::not_found("problem", slug))?;
    let wants_html = headers
        .get(ACCEPT)
        .is_some_and(|accept| accept.as_bytes().windows(9).any(|part| part == b"text/html"));
    Ok(if wants_html {
        Html(explanation.to_html()).into_response()
    } else {
        Json(explanation.to_json()).into_response()
    })
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

    /// Nothing in it comes from a request, so nothing needs to be escaped.
    fn to_html(&self) -> String {
        let entry = self.code.entry();
        format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{code}</title>\
             <h1>{title}</h1><p><code>{code}</code> · HTTP {http} · gRPC {grpc}</p><p>{text}</p><p>{retry}</p></html>",
            code = self.code,
            title = entry.title,
            http = entry.http.as_u16(),
            grpc = grpc::code_name(entry.grpc),
            text = self.text,
            retry = entry.retry,
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
        let catalogue = catalogue(RULES);
        let rule = Code::DomainRule("ORDER_ALREADY_SHIPPED".into());
        for code in Code::ALL.into_iter().chain([rule]) {
            let problem = ApiError::new(code.clone(), "what happened").to_problem();
            let slug = problem["type"]
                .as_str()
                .and_then(|kind| kind.strip_prefix("/problems/"))
                .expect("a type");
            explain(&catalogue, slug, &HeaderMap::new()).expect("an explanation");
        }
        explain(&catalogue, "nothing", &HeaderMap::new()).expect_err("no such code");
    }
}
