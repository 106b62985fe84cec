//! One line in the log for each request, without anything that is nobody's business.

use anyhow::Context as _;
use bytes::Bytes;
use daybook_tests::client::Caller;
use daybook_tests::command;
use daybook_tests::orders::new_order_id;
use daybook_tests::stack::{Role, Running, Servers};
use daybook_tests::tenant::Tenant;
use daybook_tests::{metrics, wait};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgPool};
use tokio::net::TcpStream;

/// What must be in no log.
const SECRET: &str = "nobodys-business";

/// The lines about requests that a service has written.
fn lines(servers: &Servers, service: &Running) -> anyhow::Result<Vec<Value>> {
    let name = format!("-{}.log", service.address.port());
    let logs = std::fs::read_dir(servers.directory())?.filter_map(Result::ok);
    let mut logs = logs.filter(|file| file.file_name().to_string_lossy().ends_with(&name));
    let log = std::fs::read_to_string(logs.next().context("the service has a log")?.path())?;
    assert!(!log.contains(SECRET), "{log}");
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(lines
        .filter(|line| line["target"] == "daybook::requests")
        .collect())
}

/// The line about this request, when it is there, without what no two have in common.
async fn line(servers: &Servers, service: &Running, request_id: &str) -> anyhow::Result<Value> {
    let mut line = wait::value("the request has its line", async || {
        let mut of_request = lines(servers, service)?
            .into_iter()
            .filter(|line| line["request.id"] == request_id);
        let line = of_request.next();
        assert!(of_request.next().is_none(), "there is more than one");
        Ok(line)
    })
    .await?;
    let members = line.as_object_mut().context("a line is an object")?;
    let duration = members.remove("request.duration_us");
    assert!(duration.is_some_and(|duration| duration.is_u64()));
    for name in ["timestamp", "level", "target", "request.id"] {
        members.remove(name).context(name)?;
    }
    Ok(line)
}

/// Both services, whose logs are JSON, and a caller of theirs.
struct Logged {
    servers: Servers,
    superuser: PgPool,
    tenant: Tenant,
    command: Running,
    query: Running,
    caller: Caller,
}

impl Logged {
    async fn start() -> anyhow::Result<Self> {
        let servers = Servers::start().await?;
        let superuser = servers.database.superuser().await?;
        let tenant = Tenant::create(&superuser).await?;
        let json_lines = [("DAYBOOK_LOG_FORMAT", "json")];
        let command = servers.run(Role::Command, &json_lines).await?;
        let query = servers.run(Role::Query, &json_lines).await?;
        let caller = Caller::new(&command.url(), &query.url(), &command.url(), tenant.clone())?;
        Ok(Self {
            servers,
            superuser,
            tenant,
            command,
            query,
            caller,
        })
    }
}

/// A key as the log names it.
fn prefix(key: &str) -> anyhow::Result<String> {
    let prefix = daybook_service::identity::api_key_prefix(key).context("it is one of ours")?;
    Ok(format!("key:{prefix}"))
}

#[tokio::test]
async fn every_request_has_one_line_that_says_what_by_whom_and_how_and_nothing_secret() -> anyhow::Result<()>
{
    let Logged {
        servers,
        tenant,
        query,
        caller,
        ..
    } = &Logged::start().await?;
    let id = new_order_id();
    let auditor = tenant.auditor_key.as_str();
    for (request_id, key, path, expected) in [
        (
            "list",
            auditor,
            format!("/v1/orders?customer_id={SECRET}"),
            json!({"request.route": "/v1/orders", "request.status": 200, "request.principal": prefix(auditor)?}),
        ),
        (
            "one",
            auditor,
            format!("/v1/orders/{id}?fields=status&x={SECRET}"),
            json!({"request.route": "/v1/orders/{order_id}", "request.status": 404, "request.principal": prefix(auditor)?}),
        ),
        (
            "nothing",
            SECRET,
            format!("/v1/{SECRET}?{SECRET}"),
            json!({"request.status": 401}),
        ),
        (
            "probe",
            "",
            "/healthz".to_owned(),
            json!({"request.route": "/healthz", "request.status": 200}),
        ),
    ] {
        caller.get_as(key, &path, &[("x-request-id", request_id)]).await?;
        let mut expected = expected;
        let members = expected.as_object_mut().context("an object")?;
        members.insert("request.transport".to_owned(), "http".into());
        members.insert("request.method".to_owned(), "GET".into());
        members.insert("message".to_owned(), "answered".into());
        assert_eq!(line(servers, query, request_id).await?, expected);
    }
    let on_query = lines(servers, query)?.len();
    assert_eq!(on_query, 4, "the private listener's requests are not among them");
    Ok(())
}

#[tokio::test]
async fn a_call_has_its_line_and_so_has_a_request_whose_caller_goes_away() -> anyhow::Result<()> {
    let Logged {
        servers,
        superuser,
        tenant,
        command,
        caller,
        ..
    } = &Logged::start().await?;
    let id = new_order_id();
    let refused = caller
        .send(command::confirm(&id))
        .await
        .expect_err("there is none");
    let request_id = daybook_tests::refusal::request_id(&refused);
    let expected = json!({
        "request.transport": "grpc",
        "request.route": "/daybook.orders.v1.OrderService/ConfirmOrder",
        "request.status": tonic::Code::NotFound as u16,
        "request.principal": prefix(&tenant.service_key)?,
        "message": "answered",
    });
    assert_eq!(line(servers, command, &request_id).await?, expected);

    let mut connection = superuser.acquire().await?;
    let mut holder = connection.begin().await?;
    holder
        .execute("SELECT FROM event_store.log WHERE partition = 0 FOR UPDATE")
        .await?;
    go_away(command, &tenant.service_key, "gone").await?;
    let expected = json!({
        "request.transport": "http",
        "request.method": "POST",
        "request.route": "/v1/orders",
        "request.principal": prefix(&tenant.service_key)?,
        "message": "the caller went away",
    });
    assert_eq!(line(servers, command, "gone").await?, expected);
    Ok(holder.rollback().await?)
}

/// Sends a command that waits for the log, and closes the connection when it has been let in.
async fn go_away(service: &Running, key: &str, request_id: &str) -> anyhow::Result<()> {
    let stream = TcpStream::connect(service.address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let order = json!({
        "customer_id": "customer-1", "currency": "USD",
        "lines": [{"sku": "CD", "quantity": 1, "unit_price_minor": 5}],
    });
    let request = http::Request::post("/v1/orders")
        .header("host", "daybook")
        .header("x-request-id", request_id)
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json")
        .header("idempotency-key", "a")
        .body(Full::new(Bytes::from(order.to_string())))?;
    let sending = tokio::spawn(async move { drop(sender.send_request(request).await) });
    wait::until("the request is let in", async || {
        let held = metrics::sum(service.admin, "daybook_request_bytes_in_flight").await?;
        Ok(held > 0.0)
    })
    .await?;
    connection.abort();
    sending.abort();
    Ok(())
}
