//! What every command over HTTP refuses, whatever it does. Commands come from the description that is served, so a new one is
//! held to this without anyone thinking of it.

use anyhow::{Context as _, ensure};
use daybook_tests::client::Answer;
use daybook_tests::log;
use daybook_tests::orders::new_order_id;
use daybook_tests::rest::Rest;
use daybook_tests::stack::{Backend, Running};
use http::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::described::{Described, described};

/// Every command, at an address of its own.
async fn commands(rest: &Rest) -> anyhow::Result<Vec<Described>> {
    let description = rest.send(Method::GET, "/openapi.json", &[], "").await?;
    // What a command is conditional on, batches and imports are not: a version of an aggregate.
    let is_command = |operation: &Value| operation.pointer("/responses/412").is_some();
    let mut commands = described(&description, "post", is_command, 20)?;
    for Described { path, .. } in &mut commands {
        if let Some((begin, end)) = path.find('{').zip(path.find('}')) {
            path.replace_range(begin..=end, &new_order_id());
        }
    }
    Ok(commands)
}

fn refused(answer: &Answer, status: u16, code: &str) -> anyhow::Result<Value> {
    let problem = answer.json();
    ensure!(
        answer.status == status && problem["code"] == code && problem["status"] == status,
        "{} {problem} and not {status} {code}",
        answer.status
    );
    ensure!(
        answer.header("content-type") == "application/problem+json",
        "{answer:?}"
    );
    let id = answer.header("x-request-id");
    ensure!(!id.is_empty() && problem["request_id"] == id, "{answer:?}");
    ensure!(problem["instance"] == format!("/requests/{id}"), "{problem}");
    Ok(problem)
}

const HEADERS: [(&str, &str); 1] = [("idempotency-key", "a-key")];

#[tokio::test]
async fn no_command_answers_without_a_key_with_a_wrong_one_or_without_its_scope() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let rest = Rest::new(&backend.commands[0].url(), "");
    for Described { path, scope } in commands(&rest).await? {
        let unknown = daybook_service::identity::generate_api_key().plain;
        for key in ["", "nonsense", &unknown] {
            // Not even when everything else is wrong.
            let answer = rest.with_key(key).send(Method::POST, &path, &[], "{").await?;
            refused(&answer, 401, "UNAUTHENTICATED").with_context(|| path.clone())?;
            ensure!(
                answer.header("www-authenticate").starts_with("Bearer"),
                "{answer:?}"
            );
        }
        for key in backend.tenant.keys_without(&backend.superuser, scope).await? {
            let answer = rest.with_key(&key).send(Method::POST, &path, &[], "{").await?;
            let problem = refused(&answer, 403, "PERMISSION_DENIED").with_context(|| path.clone())?;
            assert_eq!(problem["missing_scope"], scope.as_str());
        }
    }
    assert_eq!(log::head(&backend.superuser).await?, 0);
    Ok(())
}

#[tokio::test]
async fn no_command_is_taken_without_an_idempotency_key_or_with_a_body_that_is_not_its_own()
-> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let anybody = Rest::new(&backend.commands[0].url(), "");
    for Described { path, scope } in commands(&anybody).await? {
        let key = backend.tenant.key_with(&backend.superuser, scope).await?;
        let rest = anybody.with_key(&key);
        let post = async |headers: &[(&str, &str)], body: &'static str| {
            let answer = rest.send(Method::POST, &path, headers, body).await;
            answer.with_context(|| path.clone())
        };
        let problem = refused(&post(&[], "{}").await?, 400, "VALIDATION_FAILED")?;
        assert_eq!(problem["errors"][0]["pointer"], "Idempotency-Key", "{path}");
        assert_eq!(problem["errors"][0]["code"], "REQUIRED", "{path}");

        let broken = post(&HEADERS, r#"{"context": {"actor": "a",, }}"#).await?;
        let problem = refused(&broken, 400, "MALFORMED_REQUEST")?;
        assert_eq!(problem["errors"][0]["pointer"], "/context", "{path}");
        let mistyped = post(&HEADERS, r#"{"context": {"actor": 7}}"#).await?;
        let problem = refused(&mistyped, 400, "VALIDATION_FAILED")?;
        assert_eq!(problem["errors"][0]["pointer"], "/context/actor", "{path}");
        refused(&post(&HEADERS, "[]").await?, 400, "VALIDATION_FAILED")?;

        let text = [HEADERS[0], ("content-type", "text/plain")];
        refused(&post(&text, "{}").await?, 415, "UNSUPPORTED_MEDIA_TYPE")?;
        let compressed = [HEADERS[0], ("content-encoding", "gzip")];
        refused(&post(&compressed, "{}").await?, 415, "UNSUPPORTED_MEDIA_TYPE")?;
        let weak = [HEADERS[0], ("if-match", "W/\"v1-a\"")];
        let problem = refused(&post(&weak, "{}").await?, 400, "VALIDATION_FAILED")?;
        assert_eq!(problem["errors"][0]["pointer"], "If-Match", "{path}");

        for method in [
            Method::GET,
            Method::PUT,
            Method::DELETE,
            Method::from_bytes(b"XYZ17")?,
        ] {
            let answer = rest.send(method, &path, &HEADERS, "").await?;
            refused(&answer, 405, "METHOD_NOT_ALLOWED").with_context(|| path.clone())?;
            assert_eq!(answer.header("allow"), "POST,OPTIONS", "{path}");
        }
    }
    assert_eq!(log::head(&backend.superuser).await?, 0);
    Ok(())
}

/// Sends the head of a command with a body that never comes, and gives what is answered.
async fn begun(service: &Running, path: &str, key: &str, length: usize) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(service.address).await?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nIdempotency-Key: a\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn no_command_waits_for_a_body_that_it_will_not_take() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let service = &backend.commands[0];
    for Described { path, scope } in commands(&Rest::new(&service.url(), "")).await? {
        let answer = begun(service, &path, "nonsense", 100).await?;
        ensure!(
            answer.starts_with("HTTP/1.1 401") && answer.contains("UNAUTHENTICATED"),
            "{path}: {answer}"
        );
        let key = backend.tenant.key_with(&backend.superuser, scope).await?;
        let answer = begun(service, &path, &key, 512 * 1_024 + 1).await?;
        ensure!(
            answer.starts_with("HTTP/1.1 413") && answer.contains("PAYLOAD_TOO_LARGE"),
            "{path}: {answer}"
        );
        ensure!(answer.contains("\"limit_bytes\":524288"), "{path}: {answer}");
    }
    Ok(())
}

#[tokio::test]
async fn all_that_is_wrong_with_a_body_is_said_at_once_up_to_a_hundred_violations() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let rest = Rest::new(&backend.commands[0].url(), &backend.tenant.service_key);
    let answer = rest.send(Method::POST, "/v1/orders", &HEADERS, "{}").await?;
    let problem = refused(&answer, 400, "VALIDATION_FAILED")?;
    let pointers: Vec<_> = problem["errors"]
        .as_array()
        .context("errors")?
        .iter()
        .map(|e| e["pointer"].clone())
        .collect();
    assert_eq!(pointers, ["/customer_id", "/currency", "/lines"]);

    let body = serde_json::json!({"lines": vec![serde_json::json!({}); 300]});
    let answer = rest.command_with("/v1/orders", &HEADERS, &body).await?;
    let problem = refused(&answer, 400, "VALIDATION_FAILED")?;
    assert_eq!(problem["errors"].as_array().map(Vec::len), Some(100));
    // Each line lacks an article and a quantity, and the order a customer and a currency.
    assert_eq!(problem["more_violations"], 2 + 2 * 300 - 100);
    Ok(())
}

#[tokio::test]
async fn what_has_no_route_is_told_to_whoever_has_a_key() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let rest = Rest::new(&backend.commands[0].url(), &backend.tenant.service_key);
    for path in [
        "/",
        "/v1/orders/42",
        "/v1/orders/42/nonsense",
        "/v2/orders",
        "/v1/orders/42/confirm/again",
    ] {
        refused(
            &rest.send(Method::POST, path, &HEADERS, "{}").await?,
            404,
            "RESOURCE_NOT_FOUND",
        )?;
        let stranger = rest.with_key("").send(Method::POST, path, &HEADERS, "{}").await?;
        refused(&stranger, 401, "UNAUTHENTICATED")?;
    }
    Ok(())
}
