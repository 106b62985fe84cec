//! Each code of the catalogue, caused over gRPC and over HTTP: the same code and the same details.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use daybook_devstack::PostgresOptions;
use daybook_devstack::process::Signal;
use daybook_proto::common::v1::{Freshness, Receipt};
use daybook_proto::orders::v1::{GetOrderRequest, GetOrderResponse, ListOrdersRequest, PlaceOrderRequest};
use daybook_proto::projections::v1::RebuildProjectionRequest;
use daybook_service::error::Code;
use daybook_service::error::problem::RESERVED_MEMBERS;
use daybook_tests::client::{Answer, Caller, channel};
use daybook_tests::command::{self, Command as _};
use daybook_tests::orders::{new_key, new_order_id, place};
use daybook_tests::rest::Rest;
use daybook_tests::stack::{Backend, Role, Running, Servers};
use daybook_tests::tenant::Tenant;
use daybook_tests::{log, metrics, raw, refusal, sealing, wait};
use futures::future::join_all;
use futures::stream::{self, StreamExt as _};
use http::Method;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost_types::FieldMask;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};
use tonic_types::StatusExt as _;

/// A method to call.
const PLACE_ORDER: &str = "/daybook.orders.v1.OrderService/PlaceOrder";

/// The largest body that a command takes.
const BODY_BYTES_MAX: usize = 512 * 1_024;

/// What a refusal says beside its words.
#[derive(Clone, Debug, PartialEq)]
struct Refused {
    code: String,
    message: String,
    values: BTreeMap<String, String>,
    violations: Vec<String>,
    resource: Option<(String, String)>,
    retry_after_ms: Option<u128>,
}

fn over_grpc(status: &Status) -> Refused {
    let details = status.get_error_details();
    let info = details
        .error_info()
        .cloned()
        .unwrap_or_else(|| panic!("{status:?} has no ErrorInfo"));
    let resource = details.resource_info();
    let pause = details.retry_info().and_then(|retry| retry.retry_delay);
    Refused {
        code: info.reason,
        message: status.message().to_owned(),
        values: info.metadata.into_iter().collect(),
        violations: refusal::violations(status),
        resource: resource.map(|it| (it.resource_type.clone(), it.resource_name.clone())),
        retry_after_ms: pause.map(|pause| pause.as_millis()),
    }
}

fn over_http(answer: &Answer) -> anyhow::Result<Refused> {
    let problem = answer.json();
    let members = problem
        .as_object()
        .with_context(|| format!("{answer:?} is no problem"))?;
    ensure!(
        answer.header("content-type") == "application/problem+json",
        "{answer:?}"
    );
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let values = members
        .iter()
        .filter(|(name, _)| !RESERVED_MEMBERS.contains(&name.as_str()));
    let violations = problem["errors"].as_array().into_iter().flatten();
    let resource = members.get("resource");
    Ok(Refused {
        code: text(&problem["code"]),
        message: text(&problem["detail"]),
        values: values.map(|(name, value)| (name.clone(), text(value))).collect(),
        violations: violations
            .map(|it| format!("{} {}", text(&it["pointer"]), text(&it["code"])))
            .collect(),
        resource: resource.map(|it| (text(&it["type"]), text(&it["id"]))),
        retry_after_ms: problem["retry_after_ms"].as_u64().map(u128::from),
    })
}

/// Checks that both refusals are of one code, with the statuses of the catalogue.
fn both_say(code: &str, status: &Status, answer: &Answer) -> anyhow::Result<(Refused, Refused)> {
    let entry = Code::by_name(code).entry();
    let (grpc, http) = (over_grpc(status), over_http(answer)?);
    ensure!(
        (grpc.code.as_str(), status.code()) == (code, entry.grpc),
        "not {code}: {status:?}"
    );
    ensure!(
        (http.code.as_str(), answer.status) == (code, entry.http.as_u16()),
        "not {code}: {answer:?}"
    );
    ensure!(
        grpc.retry_after_ms.is_some() != answer.header("retry-after").is_empty(),
        "{answer:?}"
    );
    Ok((grpc, http))
}

/// Checks that both refusals are of one code, and the same in all that they say.
fn agree(
    code: &str,
    answer: Result<impl std::fmt::Debug, Status>,
    problem: &Answer,
) -> anyhow::Result<Refused> {
    let status = answer.err().with_context(|| format!("{code}: it was accepted"))?;
    let (grpc, http) = both_say(code, &status, problem)?;
    let (grpc, comparable) = (without_sealed(grpc), without_sealed(http.clone()));
    ensure!(grpc == comparable, "{grpc:?} over gRPC is not {comparable:?}");
    Ok(http)
}

/// Positions are sealed into another text each time: of them only the length is the same.
fn without_sealed(mut refused: Refused) -> Refused {
    for name in ["position", "wanted_position"] {
        if let Some(sealed) = refused.values.get_mut(name) {
            *sealed = sealed.len().to_string();
        }
    }
    refused
}

/// A caller of a command service, over both transports.
struct Both {
    caller: Caller,
    rest: Rest,
}

impl Both {
    fn new(backend: &Backend) -> anyhow::Result<Self> {
        Self::of(&backend.commands[0], &backend.tenant)
    }

    fn of(command: &Running, tenant: &Tenant) -> anyhow::Result<Self> {
        let url = command.url();
        Ok(Self {
            caller: Caller::new(&url, &url, &url, tenant.clone())?,
            rest: Rest::new(&url, &tenant.service_key),
        })
    }

    async fn confirm(&self, order_id: &str, body: Value) -> anyhow::Result<Answer> {
        let path = format!("/v1/orders/{order_id}/confirm");
        self.rest.command(&path, &new_key(), &body).await
    }
}

fn an_order(order_id: &str) -> Value {
    json!({
        "order_id": order_id, "customer_id": "customer-1", "currency": "USD",
        "lines": [{"sku": "CD", "quantity": 1, "unit_price_minor": 5}],
    })
}

#[tokio::test]
async fn what_commands_are_refused_for_is_the_same_on_both_transports() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let both = Both::new(&backend)?;
    let (caller, id) = (&both.caller, new_order_id());

    let nothing = both.confirm(&id, json!({})).await?;
    let refused = agree(
        "RESOURCE_NOT_FOUND",
        caller.send(command::confirm(&id)).await,
        &nothing,
    )?;
    assert_eq!(refused.resource, Some(("order".to_owned(), id.clone())));

    let invalid = PlaceOrderRequest {
        request_id: new_key(),
        currency: "usd".to_owned(),
        ..PlaceOrderRequest::default()
    };
    let problem = both
        .rest
        .command("/v1/orders", "invalid", &json!({"currency": "usd"}))
        .await?;
    let refused = agree("VALIDATION_FAILED", caller.send(invalid).await, &problem)?;
    assert_eq!(
        refused.violations,
        ["/customer_id EMPTY", "/currency UNKNOWN_CODE", "/lines EMPTY"]
    );

    caller.place(&id, "customer-1").await?;
    let stale = both.confirm(&id, json!({"expected_version": 7})).await?;
    let refused = agree(
        "VERSION_CONFLICT",
        caller.send(command::confirm(&id).expecting(7)).await,
        &stale,
    )?;
    assert_eq!(refused.values["actual_version"], "1");

    let again = both.rest.command("/v1/orders", "again", &an_order(&id)).await?;
    agree("ALREADY_EXISTS", caller.place(&id, "customer-1").await, &again)?;

    let used = place(&new_order_id(), "customer-1");
    caller.send(used.clone()).await?;
    let other = both
        .rest
        .command("/v1/orders", &used.request_id, &an_order(""))
        .await?;
    let other_over_grpc = place(&used.order_id, "customer-2").with_key(&used.request_id);
    agree(
        "IDEMPOTENCY_KEY_REUSED",
        caller.send(other_over_grpc).await,
        &other,
    )?;

    caller.cancel(&id).await?;
    let closed = both.confirm(&id, json!({})).await?;
    let refused = agree("ORDER_CLOSED", caller.send(command::confirm(&id)).await, &closed)?;
    assert_eq!(refused.values["order_status"], "CANCELLED");
    Ok(())
}

/// Calls `ConfirmOrder` with a message that is these bytes.
async fn call(
    backend: &Backend,
    authorization: Option<&str>,
    message: &'static [u8],
) -> Result<Bytes, Status> {
    let channel = channel(&backend.commands[0].url()).expect("an address");
    let path = "/daybook.orders.v1.OrderService/ConfirmOrder";
    raw::call(&channel, path, authorization, Bytes::from_static(message)).await
}

#[tokio::test]
async fn what_the_server_refuses_is_the_same_on_both_transports() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let (both, confirm) = (
        Both::new(&backend)?,
        format!("/v1/orders/{}/confirm", new_order_id()),
    );
    let grpc = channel(&backend.commands[0].url())?;
    let post = async |rest: &Rest, headers: &[(&str, &str)], body: &'static str| {
        rest.send(Method::POST, &confirm, headers, body).await
    };
    let stranger = post(&both.rest.with_key(""), &[], "{}").await?;
    agree("UNAUTHENTICATED", call(&backend, None, b"").await, &stranger)?;
    let reader = &backend.tenant.frontend_key;
    let bearer = format!("Bearer {reader}");
    let forbidden = post(&both.rest.with_key(reader), &[], "{}").await?;
    let refused = agree(
        "PERMISSION_DENIED",
        call(&backend, Some(&bearer), b"").await,
        &forbidden,
    )?;
    assert_eq!(refused.values["missing_scope"], "orders:write");

    let bearer = format!("Bearer {}", backend.tenant.service_key);
    let key = [("idempotency-key", "a")];
    let broken = post(&both.rest, &key, "{").await?;
    let status = call(&backend, Some(&bearer), &[0xff])
        .await
        .expect_err("it is broken");
    both_say("MALFORMED_REQUEST", &status, &broken)?;

    let get = both.rest.send(Method::GET, &confirm, &key, "").await?;
    let unknown = raw::call(&grpc, "/nothing", Some(&bearer), Bytes::new());
    both_say(
        "METHOD_NOT_ALLOWED",
        &unknown.await.expect_err("there is none"),
        &get,
    )?;

    let text = post(&both.rest, &[key[0], ("content-type", "text/plain")], "hello").await?;
    let gzip = begun(
        &backend.commands[0],
        &backend.tenant,
        &[("grpc-encoding", "gzip")],
        b"",
    )
    .await?;
    both_say("UNSUPPORTED_MEDIA_TYPE", &gzip, &text)?;
    Ok(())
}

#[tokio::test]
async fn what_is_too_large_is_the_same_on_both_transports() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let (both, key) = (Both::new(&backend)?, [("idempotency-key", "a")]);
    let confirm = format!("/v1/orders/{}/confirm", new_order_id());
    let large = both
        .rest
        .send(Method::POST, &confirm, &key, vec![b' '; 600_000])
        .await?;
    let announced = begun(&backend.commands[0], &backend.tenant, &[], &[0, 0, 0x20, 0, 0]).await?;
    both_say("PAYLOAD_TOO_LARGE", &announced, &large)?;

    let header = "x".repeat(20_000);
    let with_header = [key[0], ("x-large", header.as_str())];
    let headers = both.rest.send(Method::POST, &confirm, &with_header, "{}").await?;
    let over_grpc = begun(
        &backend.commands[0],
        &backend.tenant,
        &[("x-large", &header)],
        b"",
    )
    .await?;
    let refused = agree("HEADERS_TOO_LARGE", Err::<(), _>(over_grpc), &headers)?;
    assert_eq!(refused.values["limit_bytes"], "16384");

    let path = format!("/{}", "x".repeat(9_000));
    let uri = both.rest.send(Method::POST, &path, &key, "{}").await?;
    let grpc = channel(&backend.commands[0].url())?;
    let bearer = format!("Bearer {}", backend.tenant.service_key);
    let over_grpc = raw::call(&grpc, &path, Some(&bearer), Bytes::new());
    let refused = agree("URI_TOO_LONG", over_grpc.await, &uri)?;
    assert_eq!(refused.values["limit_bytes"], "8192");
    Ok(())
}

/// Begins a call whose message goes no further than this, and gives how it is refused.
async fn begun(
    service: &Running,
    tenant: &Tenant,
    headers: &[(&str, &str)],
    begun: &'static [u8],
) -> anyhow::Result<Status> {
    let key = &tenant.service_key;
    let answer = begin(
        service,
        key,
        PLACE_ORDER,
        "application/grpc",
        headers,
        endless(begun),
    )
    .await?;
    Status::from_header_map(answer.headers()).context("it is refused")
}

/// A body, all of it or the beginning.
type Body = UnsyncBoxBody<Bytes, Infallible>;

fn whole(bytes: Bytes) -> Body {
    UnsyncBoxBody::new(Full::new(bytes))
}

fn endless(begun: &'static [u8]) -> Body {
    let begun = stream::iter([Ok(Frame::data(Bytes::from_static(begun)))]);
    UnsyncBoxBody::new(StreamBody::new(begun.chain(stream::pending())))
}

/// A message as it is framed: a flag, four bytes of length, and itself.
fn framed(message: &impl prost::Message) -> Bytes {
    let length = u32::try_from(message.encoded_len()).expect("it is small");
    [&[0], &length.to_be_bytes()[..], &message.encode_to_vec()]
        .concat()
        .into()
}

/// Sends a request over HTTP/2.
async fn begin(
    service: &Running,
    key: &str,
    path: &str,
    content_type: &str,
    headers: &[(&str, &str)],
    body: Body,
) -> anyhow::Result<http::Response<Incoming>> {
    let stream = TcpStream::connect(service.address).await?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = http::Request::post(format!("{}{path}", service.url()))
        .header("content-type", content_type)
        .header("authorization", format!("Bearer {key}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Ok(sender.send_request(request.body(body)?).await?)
}

async fn answer_of(response: http::Response<Incoming>) -> anyhow::Result<Answer> {
    let (parts, body) = response.into_parts();
    Ok(Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: body.collect().await?.to_bytes(),
    })
}

#[tokio::test]
async fn a_time_that_is_up_is_the_same_on_both_transports() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let both = Both::new(&backend)?;
    let (service, key) = (&backend.commands[0], &backend.tenant.service_key);
    // The log is held, and so nobody is fast enough.
    let mut holder = backend.superuser.acquire().await?;
    sqlx::raw_sql("BEGIN; SELECT FROM event_store.log FOR UPDATE")
        .execute(&mut *holder)
        .await?;
    let late = [("idempotency-key", "late"), ("grpc-timeout", "200m")];
    let problem = both.rest.command_with("/v1/orders", &late, &an_order("")).await?;
    let message = whole(framed(&place("", "customer-1")));
    let answer = begin(service, key, PLACE_ORDER, "application/grpc", &late, message).await?;
    let status = Status::from_header_map(answer.headers()).context("it is refused")?;
    agree("DEADLINE_EXCEEDED", Err::<(), _>(status), &problem)?;
    sqlx::raw_sql("ROLLBACK").execute(&mut *holder).await?;

    let soon = [("grpc-timeout", "100m"), ("idempotency-key", "a")];
    let status = begun(service, &backend.tenant, &soon, &[0]).await?;
    let answer = begin(
        service,
        key,
        "/v1/orders",
        "application/json",
        &soon,
        endless(b"{"),
    )
    .await?;
    agree("REQUEST_TIMEOUT", Err::<(), _>(status), &answer_of(answer).await?)?;
    Ok(())
}

/// Requests that hold bytes: each announces a body that never comes.
async fn hold(service: &Running, key: &str, count: usize) -> anyhow::Result<JoinSet<()>> {
    let head = |bytes: usize| {
        format!(
            "POST /v1/orders HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nIdempotency-Key: a\r\n\
             Content-Type: application/json\r\nContent-Length: {bytes}\r\n\r\n"
        )
    };
    // A key that is not known yet is looked up first, and what waits for that counts elsewhere.
    let mut first = TcpStream::connect(service.address).await?;
    first.write_all(head(0).as_bytes()).await?;
    ensure!(first.read_u8().await? == b'H', "it is no answer");
    let mut held = JoinSet::new();
    for _ in 0..count {
        let stream = TcpStream::connect(service.address).await?;
        let head = head(520_000);
        held.spawn(async move {
            let mut stream = stream;
            let sent = stream.write_all(head.as_bytes()).await;
            sent.expect("the server reads");
            std::future::pending::<()>().await;
        });
    }
    Ok(held)
}

/// Sends as much as a command may have, over both transports.
async fn send_large(both: &Both) -> anyhow::Result<(Result<Receipt, Status>, Answer)> {
    let body = vec![b' '; BODY_BYTES_MAX];
    let key = [("idempotency-key", "large")];
    let answer = both.rest.send(Method::POST, "/v1/orders", &key, body).await?;
    let large = place("", &"x".repeat(BODY_BYTES_MAX - 1_024));
    Ok((both.caller.send(large).await, answer))
}

#[tokio::test]
async fn a_tenants_full_share_and_a_full_queue_are_told_apart_on_both_transports() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?;
    let (service, both) = (&backend.commands[0], Both::new(&backend)?);
    // All that a tenant may hold is 32 MiB. Of a crowd some are refused while others are still on their way in, so it takes more.
    let mut held = Vec::new();
    let (status, answer) = wait::value("the tenant has its share", async || {
        held.push(hold(service, &backend.tenant.service_key, 20).await?);
        let (status, answer) = send_large(&both).await?;
        Ok((answer.status == 429 && status.is_err()).then_some((status, answer)))
    })
    .await?;
    let refused = agree("RATE_LIMITED", status, &answer)?;
    assert_eq!(refused.values["quota"], "request bytes in flight");
    assert_eq!(refused.retry_after_ms, Some(1_000));

    // All hold 64 MiB at the most, and each who comes may have half of what is left.
    let newcomer = Both::of(service, &Tenant::create(&backend.superuser).await?)?;
    let (status, answer) = wait::value("nothing is left", async || {
        let other = Tenant::create(&backend.superuser).await?;
        held.push(hold(service, &other.service_key, 20).await?);
        let (status, answer) = send_large(&newcomer).await?;
        let is_full = status
            .as_ref()
            .is_err_and(|status| refusal::code(status) == "OVERLOADED");
        Ok((answer.status == 503 && is_full).then_some((status, answer)))
    })
    .await?;
    agree("OVERLOADED", status, &answer)?;
    Ok(())
}

#[tokio::test]
async fn a_fault_of_ours_tells_nothing_on_either_transport() -> anyhow::Result<()> {
    let mut backend = Backend::start(1).await?;
    let id = new_order_id();
    Both::new(&backend)?.caller.place(&id, "customer-1").await?;
    rewrite(
        &backend.superuser,
        "UPDATE event_store.event SET payload = '{\"secret\": 7}'",
    )
    .await?;
    // It remembers the order no more.
    backend.commands[0].service.kill().await?;
    backend.commands[0].service.restart().await?;
    let both = Both::new(&backend)?;
    let answer = both.confirm(&id, json!({})).await?;
    let refused = agree("INTERNAL", both.caller.send(command::confirm(&id)).await, &answer)?;
    assert_eq!(refused.values, BTreeMap::new());
    let said = String::from_utf8_lossy(&answer.body).to_lowercase();
    for internal in ["secret", "payload", "serde", "postgres", "sql"] {
        assert!(!said.contains(internal), "{said}");
    }
    Ok(())
}

/// Does to the log what nobody may: as superuser, with its triggers off.
async fn rewrite(superuser: &PgPool, statement: &'static str) -> anyhow::Result<()> {
    let mut connection = superuser.acquire().await?;
    sqlx::query("SET session_replication_role = replica")
        .execute(&mut *connection)
        .await?;
    sqlx::query(statement).execute(&mut *connection).await?;
    sqlx::query("RESET session_replication_role")
        .execute(&mut *connection)
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_database_that_is_away_is_the_same_on_both_transports() -> anyhow::Result<()> {
    let mut backend = Backend::on(Servers::start_own(PostgresOptions::for_tests).await?, 1).await?;
    let both = Both::new(&backend)?;
    let id = new_order_id();
    both.caller.place(&id, "customer-1").await?;
    backend
        .servers
        .own_postgres
        .as_mut()
        .context("it is our own")?
        .kill()
        .await?;
    let answer = both.confirm(&id, json!({})).await?;
    let refused = agree(
        "DEPENDENCY_UNAVAILABLE",
        both.caller.send(command::confirm(&id)).await,
        &answer,
    )?;
    assert_eq!(refused.values["dependency"], "database");
    Ok(())
}

/// A command service and a query service without a projector: read models stay as they are.
struct Unprojected {
    tenant: Tenant,
    superuser: PgPool,
    command: Running,
    query: Running,
    _servers: Servers,
}

impl Unprojected {
    async fn start() -> anyhow::Result<Self> {
        let servers = Servers::start().await?;
        let superuser = servers.database.superuser().await?;
        Ok(Self {
            tenant: Tenant::create(&superuser).await?,
            command: servers.run(Role::Command, &[]).await?,
            query: servers.run(Role::Query, &[]).await?,
            superuser,
            _servers: servers,
        })
    }

    fn caller(&self) -> anyhow::Result<Caller> {
        let (command, query) = (self.command.url(), self.query.url());
        Caller::new(&command, &query, &query, self.tenant.clone())
    }
}

/// Reads an order as it is after a command, over both transports, for as long as the caller waits.
async fn read_after(
    caller: &Caller,
    receipt: &Receipt,
    seconds: u64,
) -> anyhow::Result<(Result<Response<GetOrderResponse>, Status>, Answer)> {
    let mut request = Request::new(GetOrderRequest {
        order_id: receipt.stream_id.clone(),
        freshness: Some(Freshness {
            consistency_token: receipt.consistency_token.clone(),
        }),
        ..GetOrderRequest::default()
    });
    request.set_timeout(Duration::from_secs(seconds));
    let path = format!("/v1/orders/{}", receipt.stream_id);
    let prefer = format!("wait={seconds}");
    let headers = [
        ("daybook-consistency", receipt.consistency_token.as_str()),
        ("prefer", prefer.as_str()),
    ];
    let mut queries = caller.queries();
    let (status, answer) = tokio::join!(
        queries.get_order(request),
        caller.get_as(&caller.tenant.auditor_key, &path, &headers)
    );
    Ok((status, answer?))
}

#[tokio::test]
async fn what_reads_are_refused_for_is_the_same_on_both_transports() -> anyhow::Result<()> {
    let services = Unprojected::start().await?;
    let caller = services.caller()?;
    let receipt = caller.place(&new_order_id(), "customer-1").await?;

    let (status, answer) = read_after(&caller, &receipt, 1).await?;
    let refused = agree("READ_MODEL_BEHIND", status, &answer)?;
    let opened = |sealed| sealing::token(caller.tenant.tenant_id, sealed);
    assert_eq!(
        opened(&refused.values["wanted_position"])?,
        opened(&receipt.consistency_token)?
    );

    let list = ListOrdersRequest {
        page_token: "nonsense".to_owned(),
        ..ListOrdersRequest::default()
    };
    let problem = caller.get("/v1/orders?cursor=nonsense").await?;
    agree(
        "INVALID_CURSOR",
        caller.queries().list_orders(list).await,
        &problem,
    )?;

    // The newest event is gone, and the token stands for it still.
    rewrite(&services.superuser, "DELETE FROM event_store.event").await?;
    assert_eq!(log::head(&services.superuser).await?, 0);
    let (status, answer) = read_after(&caller, &receipt, 1).await?;
    agree("POSITION_UNKNOWN", status, &answer)?;
    Ok(())
}

/// Over gRPC a refusal is headers, and clients take few.
#[tokio::test]
async fn what_a_caller_sent_is_quoted_no_further_than_clients_take_headers() -> anyhow::Result<()> {
    let services = Unprojected::start().await?;
    let caller = services.caller()?;
    let long = "é".repeat(3_000);
    let list = ListOrdersRequest {
        order_by: "é".repeat(25_000),
        read_mask: Some(FieldMask {
            paths: vec![long.clone()],
        }),
        ..ListOrdersRequest::default()
    };
    let refused = caller.queries().list_orders(list).await;
    let refused = over_grpc(&refused.expect_err("there is no such column"));
    ensure!(
        refused.violations == ["/order_by UNKNOWN_VALUE", "/read_mask UNKNOWN_VALUE"],
        "{refused:?}"
    );
    let sort: String = long.chars().take(300).collect();
    let problem = caller.get(&format!("/v1/orders?sort={}", encoded(&sort))).await?;
    let list = ListOrdersRequest {
        order_by: sort,
        ..ListOrdersRequest::default()
    };
    let answer = caller.queries().list_orders(list).await;
    // What is wrong has another name in a query string.
    let status = answer.expect_err("there is no such column");
    let (_, said) = both_say("VALIDATION_FAILED", &status, &problem)?;
    ensure!(said.message.len() < 1_024, "{said:?}");
    Ok(())
}

/// Text as a part of an address.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn a_cursor_whose_event_is_gone_stands_for_nothing() -> anyhow::Result<()> {
    let services = Unprojected::start().await?;
    let (caller, id) = (services.caller()?, new_order_id());
    caller.place(&id, "customer-1").await?;
    caller.send(command::confirm(&id)).await?;
    let page = caller.get(&format!("/v1/orders/{id}/events?limit=1")).await?;
    let cursor = page.json()["pagination"]["next_cursor"].clone();
    let cursor = cursor.as_str().context("there is a second page")?;
    let statement = "UPDATE event_store.event SET event_id = gen_random_uuid() WHERE stream_version = 1";
    rewrite(&services.superuser, statement).await?;
    let next = caller
        .get(&format!("/v1/orders/{id}/events?limit=1&cursor={cursor}"))
        .await?;
    assert_eq!(
        (next.status, &next.json()["code"]),
        (400, &json!("POSITION_UNKNOWN"))
    );
    Ok(())
}

#[tokio::test]
async fn a_request_that_a_stop_leaves_no_time_is_told_so_on_both_transports() -> anyhow::Result<()> {
    let services = Unprojected::start().await?;
    let caller = services.caller()?;
    let receipt = caller.place(&new_order_id(), "customer-1").await?;
    let stop = async {
        wait::until("both wait", async || {
            let open = metrics::sum(services.query.admin, "daybook_requests_in_flight").await?;
            Ok(open >= 2.0)
        })
        .await?;
        let process = services.query.service.process_id().context("it runs")?;
        process.signal(Signal::TERM);
        anyhow::Ok(())
    };
    let (refused, stopped) = tokio::join!(read_after(&caller, &receipt, 10), stop);
    stopped?;
    let (status, answer) = refused?;
    agree("SHUTTING_DOWN", status, &answer)?;
    Ok(())
}

#[tokio::test]
async fn of_rebuilds_that_are_asked_for_at_once_one_runs_and_the_others_are_told() -> anyhow::Result<()> {
    let backend = Backend::start(1).await?.with_projector().await?;
    let caller = backend.caller()?;
    let rebuild = || async {
        let request = RebuildProjectionRequest {
            name: "order_list".to_owned(),
            reason: "all at once".to_owned(),
        };
        caller.projections().rebuild_projection(request).await
    };
    let answers = join_all((0..8).map(|_| rebuild())).await;
    let refused: Vec<Refused> = answers
        .iter()
        .filter_map(|it| it.as_ref().err())
        .map(over_grpc)
        .collect();
    assert!(!refused.is_empty(), "all of them ran");
    for refused in refused {
        assert_eq!(refused.code, "OPERATION_RUNNING");
        let operation = ("operation".to_owned(), "rebuild/order_list".to_owned());
        assert_eq!(refused.resource, Some(operation));
    }
    Ok(())
}
