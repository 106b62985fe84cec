//! Answers over HTTP, held to the descriptions that the services commit: every answer that a test gets is checked.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{Method, Uri};
use jsonschema::{Draft, Validator};
use serde_json::{Value, json};

use crate::client::Answer;

/// What begins with this is described; the rest is for people, and for the process itself.
const DESCRIBED: &str = "/v1/";

/// What is wrong with a request that leads to no operation is a problem all the same.
const PROBLEM: &str = "#/components/schemas/Problem";

static DESCRIPTIONS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let texts = [
        include_str!("../../command-svc/openapi.json"),
        include_str!("../../query-svc/openapi.json"),
    ];
    let parsed = texts.map(|text| serde_json::from_str(text).expect("a test of the service writes it"));
    parsed.into()
});

/// The schemas that were met, compiled, by the text of what they are made of.
static VALIDATORS: LazyLock<Mutex<HashMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);

/// Holds an answer to its description: its status, its type, and its body where that is JSON.
///
/// # Errors
/// What the description does not have.
pub fn check(method: &Method, address: &str, answer: &Answer) -> anyhow::Result<()> {
    let path = address
        .parse::<Uri>()
        .map_or_else(|_| String::new(), |uri| uri.path().to_owned());
    if !path.starts_with(DESCRIBED) || *method == Method::OPTIONS {
        return Ok(());
    }
    // Another service may have the operation: then this one has no such method.
    let operation = of_operation(method, &path).filter(|_| answer.status != 405);
    let described = operation.map_or_else(
        || of_no_operation(answer),
        |(description, operation)| of_answer(description, operation, answer),
    );
    described.with_context(|| {
        let body = String::from_utf8_lossy(&answer.body);
        format!("{method} {address} was answered {} {body}", answer.status)
    })
}

/// The operation at a path, in the description that has it: the one with the most literal segments.
fn of_operation(method: &Method, path: &str) -> Option<(&'static Value, &'static Value)> {
    let method = if *method == Method::HEAD {
        &Method::GET
    } else {
        method
    };
    let method = method.as_str().to_ascii_lowercase();
    let operations = DESCRIPTIONS.iter().flat_map(|description| {
        let paths = description["paths"].as_object().into_iter().flatten();
        paths.map(move |(template, operations)| (description, template, operations))
    });
    operations
        .filter_map(|(description, template, operations)| {
            let operation = operations.get(&method)?;
            Some((literal_segments(template, path)?, description, operation))
        })
        .max_by_key(|(literal, ..)| *literal)
        .map(|(_, description, operation)| (description, operation))
}

/// How many segments of a path are as in the template; `None` when it is not a path of it.
fn literal_segments(template: &str, path: &str) -> Option<usize> {
    let (template, path): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
    let fits = template.len() == path.len()
        && template
            .iter()
            .zip(&path)
            .all(|(part, segment)| part == segment || (part.starts_with('{') && !segment.is_empty()));
    fits.then(|| {
        template
            .iter()
            .zip(&path)
            .filter(|(part, segment)| part == segment)
            .count()
    })
}

fn of_answer(description: &Value, operation: &Value, answer: &Answer) -> anyhow::Result<()> {
    let responses = &operation["responses"];
    let response = resolved(description, &responses[answer.status.to_string()]);
    ensure!(response.is_object(), "its description has no such status");
    let media_type = answer
        .header(CONTENT_TYPE.as_str())
        .split(';')
        .next()
        .unwrap_or_default();
    if answer.body.is_empty() {
        return Ok(());
    }
    let media = &response["content"][media_type];
    ensure!(
        media.is_object(),
        "its description has no {media_type:?} with this status"
    );
    let is_json = media_type == "application/json" || media_type.ends_with("+json");
    if is_json && answer.header(CONTENT_ENCODING.as_str()).is_empty() {
        check_body(description, &media["schema"], answer)?;
    }
    Ok(())
}

/// Where nothing is described there is nothing but a problem.
fn of_no_operation(answer: &Answer) -> anyhow::Result<()> {
    ensure!(answer.status >= 400, "nothing is described there");
    match answer.body.is_empty() {
        true => Ok(()),
        false => check_body(&DESCRIPTIONS[0], &json!({ "$ref": PROBLEM }), answer),
    }
}

fn check_body(description: &Value, schema: &Value, answer: &Answer) -> anyhow::Result<()> {
    let validator = validator(description, schema)?;
    let body: Value = serde_json::from_slice(&answer.body).context("its body is not JSON")?;
    let wrong: Vec<_> = validator
        .iter_errors(&body)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    ensure!(
        wrong.is_empty(),
        "its body is not as described: {}",
        wrong.join("; ")
    );
    Ok(())
}

fn validator(description: &Value, schema: &Value) -> anyhow::Result<Arc<Validator>> {
    let mut validators = VALIDATORS.lock().unwrap_or_else(PoisonError::into_inner);
    let key = format!("{} {schema}", description["info"]["title"]);
    if let Some(validator) = validators.get(&key) {
        return Ok(Arc::clone(validator));
    }
    let document = json!({ "components": description["components"], "allOf": [schema] });
    let validator = jsonschema::options()
        .with_draft(Draft::Draft202012)
        .build(&document)
        .map_err(|error| anyhow::anyhow!("{error}"))
        .context("its description is no schema")?;
    let validator = Arc::new(validator);
    validators.insert(key, Arc::clone(&validator));
    Ok(validator)
}

/// A part of a description, or what it refers to.
fn resolved<'d>(description: &'d Value, part: &'d Value) -> &'d Value {
    let target = part["$ref"].as_str().and_then(|target| target.strip_prefix('#'));
    target
        .and_then(|pointer| description.pointer(pointer))
        .unwrap_or(part)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;

    use super::*;

    fn answer(status: u16, media_type: &'static str, body: &Value) -> Answer {
        let content_type = (CONTENT_TYPE, http::HeaderValue::from_static(media_type));
        Answer {
            status,
            headers: HeaderMap::from_iter([content_type]),
            body: Bytes::from(body.to_string()),
        }
    }

    #[test]
    fn an_answer_that_its_description_does_not_have_is_found() {
        let list = json!({ "data": [], "pagination": { "next_cursor": null, "has_more": false } });
        let of_orders = |answer: &Answer| check(&Method::GET, "/v1/orders?limit=3", answer);
        of_orders(&answer(200, "application/json", &list)).expect("an empty list");
        for wrong in [
            answer(200, "application/json", &json!({ "data": [] })),
            answer(
                200,
                "application/json",
                &json!({ "data": [{ "order_id": 5 }], "pagination": { "next_cursor": null, "has_more": false } }),
            ),
            answer(200, "text/plain", &list),
            answer(418, "application/json", &list),
            answer(404, "application/problem+json", &json!({ "status": "404" })),
        ] {
            of_orders(&wrong).expect_err("it is not described");
        }
        check(
            &Method::GET,
            "/v1/nothing",
            &answer(200, "application/json", &list),
        )
        .expect_err("no operation");
    }

    #[test]
    fn a_path_belongs_to_the_template_with_the_most_literal_segments() {
        let of = |path| of_operation(&Method::GET, path).map(|(_, operation)| &operation["operationId"]);
        assert_ne!(of("/v1/orders/stream"), of("/v1/orders/ord_1"));
        assert_eq!(
            of("/v1/orders/ord_1/events/stream"),
            Some(&json!("streamEventsOfAggregate"))
        );
        assert_eq!(of("/v1/orders/"), None);
    }
}
