//! Imports: taken before they are answered, done once whatever crashes, cancelled, and told of line by line.

use anyhow::Context as _;
use daybook_service::identity::Scope;
use daybook_tests::orders::new_key;
use daybook_tests::rest::Rest;
use daybook_tests::stack::Backend;
use daybook_tests::tenant::Tenant;
use daybook_tests::{log, wait};
use http::Method;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::operation::{
    NDJSON, chunks_left, ended, get, import, operations, order, orders, placed, rest, taken,
};

/// Holds the errors that an operation tells of against lines and the codes that they are refused with.
async fn tells(rest: &Rest, location: &str, codes: &[(&str, &str)]) -> anyhow::Result<()> {
    let first = rest
        .send(Method::GET, &format!("{location}/errors?limit=3"), &[], "")
        .await?;
    let cursor = first.json()["pagination"]["next_cursor"]
        .as_str()
        .context("there is more")?
        .to_owned();
    let rest_of_them = rest
        .send(
            Method::GET,
            &format!("{location}/errors?cursor={cursor}"),
            &[],
            "",
        )
        .await?;
    let errors: Vec<Value> = [first.json(), rest_of_them.json()]
        .iter()
        .flat_map(|page| page["data"].as_array().cloned().unwrap_or_default())
        .collect();
    let lines: Vec<_> = errors.iter().filter_map(|error| error["line"].as_u64()).collect();
    assert_eq!(lines, [3_002, 3_004, 3_006, 3_008, 3_010, 3_012]);
    for (error, (_, code)) in errors.iter().zip(codes) {
        assert_eq!(error["error"]["code"], *code, "{error}");
    }
    let csv = rest
        .send(
            Method::GET,
            &format!("{location}/errors"),
            &[("accept", "text/csv")],
            "",
        )
        .await?;
    let csv = String::from_utf8(csv.body.to_vec())?;
    assert_eq!(csv.lines().count(), 1 + codes.len(), "{csv}");
    assert!(csv.contains("\r\n3006,'=1+1,VALIDATION_FAILED,"), "{csv}");
    Ok(())
}

/// Lines that are refused, and the codes that they are refused with.
const BAD: [(&str, &str); 6] = [
    ("not JSON", "MALFORMED_REQUEST"),
    ("{}", "VALIDATION_FAILED"),
    (
        r#"{"order":"=1+1","customer":"c c","currency":"usd","placed_at":"1997-01-01T00:00:00Z","lines":[{"sku":"CD","quantity":1,"unit_price_minor":1}]}"#,
        "VALIDATION_FAILED",
    ),
    (
        r#"{"order":"b6","customer":"c","currency":"USD","placed_at":"1997-01-01T00:00:00Z","lines":[{"sku":"CD","quantity":1000000,"unit_price_minor":9223372036854775807}]}"#,
        "AMOUNT_OVERFLOW",
    ),
    (
        r#"{"order":"a\u0000b","customer":"c","currency":"USD","placed_at":"1997-01-01T00:00:00Z","lines":[{"sku":"CD","quantity":1,"unit_price_minor":1}]}"#,
        "VALIDATION_FAILED",
    ),
    (
        r#"{"order":"made-up-000003","customer":"other","currency":"USD","placed_at":"1997-01-01T00:00:00Z","lines":[]}"#,
        "VALIDATION_FAILED",
    ),
];

#[tokio::test]
async fn an_import_does_each_good_line_once_and_tells_of_each_bad_one() -> anyhow::Result<()> {
    const GOOD: usize = 3_000;
    let backend = Backend::start(1).await?;
    let rest = rest(&backend, 0);
    let mut input = orders(GOOD);
    BAD.iter().for_each(|(line, _)| input += &format!("\n{line}\r\n"));
    input += &order(7);
    let (key, total) = (new_key(), GOOD + BAD.len() + 1);
    let location = taken(&rest, &key, &input).await?;
    let operation = ended(&rest, &location).await?;
    assert_eq!(operation["state"], "SUCCEEDED");
    assert_eq!(operation["progress"]["lines_read"], total);
    assert_eq!(
        operation["progress"]["succeeded"],
        GOOD + 1,
        "the last line is there already"
    );
    assert_eq!(operation["progress"]["failed"], BAD.len());
    assert_eq!(
        operation["progress"]["bytes_done"],
        operation["progress"]["bytes_total"]
    );
    assert_eq!(placed(&backend).await?, GOOD);
    assert_eq!(chunks_left(&backend.superuser).await?, 0);

    tells(&rest, &location, &BAD).await?;

    let again = import(&rest, "/v1/imports", &key, &input).await?;
    assert_eq!((again.status, again.header("location")), (202, &*location));
    assert_eq!(again.header("idempotency-replayed"), "true");
    let other = import(&rest, "/v1/imports", &key, &orders(1)).await?;
    assert_eq!(other.json()["code"], "IDEMPOTENCY_KEY_REUSED");
    let second = taken(&rest, &new_key(), &input).await?;
    let second = ended(&rest, &second).await?;
    assert_eq!(second["progress"]["succeeded"], GOOD + 1);
    assert_eq!(
        placed(&backend).await?,
        GOOD,
        "the same import again changes nothing"
    );
    assert_eq!(
        get(&rest, "/v1/operations").await?.as_array().map(Vec::len),
        Some(2)
    );
    Ok(())
}

#[tokio::test]
async fn an_import_that_is_cancelled_ends_where_it_is_and_leaves_no_input() -> anyhow::Result<()> {
    const ORDERS: usize = 30_000;
    let backend = Backend::start(1).await?;
    let rest = rest(&backend, 0);
    let location = taken(&rest, &new_key(), &orders(ORDERS)).await?;
    let cancelled = rest
        .send(Method::POST, &format!("{location}/cancel"), &[], "")
        .await?;
    assert_eq!(cancelled.status, 200, "{cancelled:?}");
    let operation = ended(&rest, &location).await?;
    assert_eq!(operation["state"], "CANCELLED");
    let done = placed(&backend).await?;
    assert!(done < ORDERS, "{done}");
    assert_eq!(chunks_left(&backend.superuser).await?, 0);
    let again = rest
        .send(Method::POST, &format!("{location}/cancel"), &[], "")
        .await?;
    assert_eq!(
        again.json()["data"]["state"],
        "CANCELLED",
        "it changes nothing any more"
    );
    Ok(())
}

/// Begins an import of a megabyte, and sends so many lines of it.
async fn begin(backend: &Backend, lines: usize) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(backend.commands[0].address).await?;
    let head = format!(
        "POST /v1/imports HTTP/1.1\r\nhost: daybook\r\nauthorization: Bearer {}\r\nidempotency-key: {}\r\n\
         content-type: application/x-ndjson\r\ncontent-length: 1000000\r\n\r\n",
        backend.tenant.service_key,
        new_key()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(orders(lines).as_bytes()).await?;
    Ok(stream)
}

#[tokio::test]
async fn an_input_that_breaks_off_or_stalls_starts_nothing_and_leaves_nothing() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let superuser = &backend.superuser;
    let broken = begin(&backend, 4_000).await?;
    let mut stalled = begin(&backend, 10).await?;
    wait::until("some of it has arrived", async || {
        Ok(chunks_left(superuser).await? > 0)
    })
    .await?;
    drop(broken);
    wait::until("what broke off is gone", async || {
        Ok(operations(superuser).await? == 1)
    })
    .await?;
    let mut answer = String::new();
    stalled.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("REQUEST_TIMEOUT"), "{answer}");
    assert_eq!(
        (operations(superuser).await?, chunks_left(superuser).await?),
        (0, 0)
    );
    assert_eq!(log::head(superuser).await?, 0);
    Ok(())
}

#[tokio::test]
async fn an_operation_is_its_tenants_alone_and_needs_the_scope_of_its_kind() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let rest = rest(&backend, 0);
    let location = taken(&rest, &new_key(), &orders(10)).await?;
    ended(&rest, &location).await?;
    let articles = import(
        &rest,
        "/v1/imports?kind=stock-items",
        &new_key(),
        "{\"sku\":\"PEN\"}\n{\"sku\":\"\"}",
    )
    .await?;
    let articles = ended(&rest, articles.header("location")).await?;
    assert_eq!(
        (
            &articles["progress"]["succeeded"],
            &articles["progress"]["failed"]
        ),
        (&1.into(), &1.into())
    );

    let stranger = Tenant::create(&backend.superuser).await?;
    let stranger = rest.with_key(&stranger.service_key);
    for path in [location.clone(), format!("{location}/errors")] {
        let answer = stranger.send(Method::GET, &path, &[], "").await?;
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (404, &"RESOURCE_NOT_FOUND".into())
        );
    }
    let answer = stranger
        .send(Method::POST, &format!("{location}/cancel"), &[], "")
        .await?;
    assert_eq!(answer.status, 404);
    assert_eq!(get(&stranger, "/v1/operations").await?, Value::Array(Vec::new()));

    let stock = backend
        .tenant
        .key_with(&backend.superuser, Scope::StockWrite)
        .await?;
    let stock = rest.with_key(&stock);
    assert_eq!(
        get(&stock, "/v1/operations").await?.as_array().map(Vec::len),
        Some(1)
    );
    assert_eq!(stock.send(Method::GET, &location, &[], "").await?.status, 404);
    let answer = import(&stock, "/v1/imports", &new_key(), &orders(1)).await?;
    assert_eq!(
        (answer.status, &answer.json()["missing_scope"]),
        (403, &"orders:write".into())
    );
    Ok(())
}

#[tokio::test]
async fn what_is_no_import_is_refused_before_it_arrives() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let rest = rest(&backend, 0);
    let (key, input) = (new_key(), orders(1));
    let headers = [("content-type", "application/json"), ("idempotency-key", &*key)];
    let answer = rest
        .send(Method::POST, "/v1/imports", &headers, input.clone())
        .await?;
    assert_eq!(answer.json()["code"], "UNSUPPORTED_MEDIA_TYPE");
    let answer = import(&rest, "/v1/imports?kind=customers", &key, &input).await?;
    assert_eq!(answer.json()["errors"][0]["pointer"], "kind");
    let answer = rest.send(Method::POST, "/v1/imports", &[NDJSON], input).await?;
    assert_eq!(answer.json()["errors"][0]["pointer"], "Idempotency-Key");
    for path in [
        "/v1/operations?limit=0",
        "/v1/operations?cursor=nonsense",
        "/v1/operations/op_nonsense",
    ] {
        let answer = rest.send(Method::GET, path, &[], "").await?;
        assert!([400, 404].contains(&answer.status), "{path}: {answer:?}");
    }
    assert_eq!(operations(&backend.superuser).await?, 0);
    Ok(())
}

/// The headers that an operation's answer with this status is described with.
fn described_headers(api: &Value, path: &str, method: &str, status: u16) -> Vec<String> {
    let answer = &api["paths"][path][method]["responses"][status.to_string()];
    let shared = answer["$ref"]
        .as_str()
        .and_then(|reference| api.pointer(&reference[1..]));
    let headers = shared.unwrap_or(answer)["headers"].as_object();
    headers
        .into_iter()
        .flatten()
        .map(|(name, _)| name.to_lowercase())
        .collect()
}

#[tokio::test]
async fn an_answer_about_operations_has_each_header_that_is_described() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let rest = rest(&backend, 0);
    let api = rest.send(Method::GET, "/openapi.json", &[], "").await?.json();
    let (key, input) = (new_key(), orders(1));
    let location = taken(&rest, &key, &input).await?;
    ended(&rest, &location).await?;
    let replayed = import(&rest, "/v1/imports", &key, &input).await?;
    let mut answers = vec![("/v1/imports", "post", replayed)];
    for (described, method, path) in [
        ("/v1/operations", "get", "/v1/operations".to_owned()),
        ("/v1/operations/{operation_id}", "get", location.clone()),
        (
            "/v1/operations/{operation_id}/cancel",
            "post",
            format!("{location}/cancel"),
        ),
        (
            "/v1/operations/{operation_id}/errors",
            "get",
            format!("{location}/errors"),
        ),
    ] {
        let verb = method.to_uppercase().parse()?;
        answers.push((described, method, rest.send(verb, &path, &[], "").await?));
    }
    for (path, method, answer) in answers {
        let described = described_headers(&api, path, method, answer.status);
        assert!(!described.is_empty(), "{path}: {answer:?}");
        for header in described {
            assert!(
                answer.headers.contains_key(&header),
                "{path}: no {header} in {answer:?}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn every_statement_of_operations_is_valid_against_the_schema() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    for (name, statement) in daybook_command_svc::STATEMENTS {
        let prepare = format!("PREPARE \"{name}\" AS {statement}");
        let prepared = sqlx::raw_sql(AssertSqlSafe(prepare))
            .execute(&backend.superuser)
            .await;
        prepared.with_context(|| (*name).to_owned())?;
    }
    Ok(())
}
