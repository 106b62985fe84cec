//! API keys, and a server that asks for them, on a real Postgres with the real schema.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use daybook_service::config::Secret;
use daybook_service::identity::{
    Authenticator, Identity, KeyAges, LOOKUP_TIMEOUT, LOOKUPS_WAITING_MAX, NewApiKey, Scope,
    generate_api_key, principal_with,
};
use daybook_service::metrics::{Registry, ServerMetrics};
use daybook_service::server::{Access, Cors, Declared, Limits, Needs, Routes, serve};
use daybook_service::{ApiError, Code};
use daybook_tests::database::Database;
use daybook_tests::tenant::store_key;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::{Extensions, HeaderMap, HeaderValue};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgPool};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::pool_of;

/// No test waits longer than this for something that should happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A database with a tenant in partition 3.
struct Setup {
    pool: PgPool,
    superuser: PgPool,
    tenant: Uuid,
    database: Database,
}

impl Setup {
    async fn new() -> Self {
        let database = Database::create().await.expect("a database");
        let superuser = database.superuser().await.expect("a superuser");
        let tenant = Uuid::now_v7();
        sqlx::query("INSERT INTO event_store.tenant (tenant_id, name, partition) VALUES ($1, 'acme', 3)")
            .bind(tenant)
            .execute(&superuser)
            .await
            .expect("a tenant");
        Self {
            pool: pool_of(&database).await,
            superuser,
            tenant,
            database,
        }
    }

    /// A key of the tenant's that may read orders.
    async fn key(&self) -> NewApiKey {
        let key = generate_api_key();
        let stored = self.store(&key, Some(self.tenant), "{orders:read}").await;
        stored.expect("a tenant's key may have it");
        key
    }

    /// Stores a key of the tenant's, or of the deployment's, with scopes as they are written in SQL.
    async fn store(&self, key: &NewApiKey, tenant: Option<Uuid>, scopes: &str) -> Result<(), sqlx::Error> {
        store_key(&self.superuser, key, tenant, scopes).await
    }

    async fn set(&self, key: &NewApiKey, change: &str) {
        let update = format!("UPDATE event_store.api_key SET {change} WHERE prefix = $1");
        sqlx::query(AssertSqlSafe(update))
            .bind(&key.prefix)
            .execute(&self.superuser)
            .await
            .expect("it is changed");
    }

    async fn revoke(&self, key: &NewApiKey) {
        self.set(key, "revoked_at = now()").await;
    }

    /// An authenticator on the connections that it makes for itself.
    async fn authenticator(&self) -> Authenticator {
        let url = Secret::from(self.database.url("daybook_query"));
        let (authenticator, lookups) = Authenticator::connect(&url).await.expect("it lets us in");
        tokio::spawn(lookups);
        authenticator
    }
}

/// An authenticator that asks through this pool.
fn authenticator(pool: PgPool, ages: KeyAges) -> Authenticator {
    let (authenticator, lookups) = Authenticator::new(pool, ages);
    tokio::spawn(lookups);
    authenticator
}

fn bearer(key: &str) -> HeaderMap {
    let value = HeaderValue::from_str(&format!("Bearer {key}")).expect("keys are ASCII");
    HeaderMap::from_iter([(http::header::AUTHORIZATION, value)])
}

async fn refused(authenticator: &Authenticator, headers: &HeaderMap) -> ApiError {
    authenticator
        .authenticate(headers)
        .await
        .expect_err("it is refused")
}

#[tokio::test]
async fn a_good_key_is_its_tenant_and_its_scopes() {
    let setup = Setup::new().await;
    let key = setup.key().await;
    setup.set(&key, "expires_at = now() + interval '1 min'").await;
    let authenticator = setup.authenticator().await;
    let identity = authenticator.authenticate(&bearer(&key.plain)).await;
    let mut request = Extensions::new();
    request.insert(identity.expect("it is good"));
    let principal = principal_with(&request, Scope::OrdersRead).expect("it has the scope");
    assert_eq!(
        (principal.tenant_id, principal.tenant_partition),
        (setup.tenant, 3)
    );
    assert_eq!(principal.credential(), format!("key:{}", key.prefix));
    principal_with(&request, Scope::OrdersWrite).expect_err("it has not the scope");
}

#[tokio::test]
async fn an_operators_key_is_the_deployments_and_belongs_to_no_tenant() {
    let setup = Setup::new().await;
    let key = generate_api_key();
    let stored = setup
        .store(&key, None, "{projections:operate,tenants:admin}")
        .await;
    stored.expect("an operator may have both");
    let identity = setup
        .authenticator()
        .await
        .authenticate(&bearer(&key.plain))
        .await;
    let Ok(Identity::Deployment(operator)) = identity else {
        panic!("{identity:?} is not the deployment's");
    };
    assert!(
        operator.scopes.contains(Scope::ProjectionsOperate) && operator.scopes.contains(Scope::TenantsAdmin)
    );
    assert_eq!(operator.credential(), format!("key:{}", key.prefix));
}

#[tokio::test]
async fn the_database_refuses_scopes_of_the_other_kind_of_key() {
    let setup = Setup::new().await;
    let tenant = Some(setup.tenant);
    let wrong = [
        (tenant, "{projections:operate}", "api_key_scopes_of_its_kind"),
        (
            tenant,
            "{orders:read,tenants:admin}",
            "api_key_scopes_of_its_kind",
        ),
        (None, "{orders:read}", "api_key_scopes_of_its_kind"),
        (
            None,
            "{projections:operate,events:read}",
            "api_key_scopes_of_its_kind",
        ),
        (tenant, "{orders:read,NULL}", "api_key_scopes_check"),
    ];
    for (tenant, scopes, constraint) in wrong {
        let refused = setup.store(&generate_api_key(), tenant, scopes).await;
        let error = refused.expect_err(scopes);
        let broken = error.as_database_error().and_then(|error| error.constraint());
        assert_eq!(broken, Some(constraint), "{scopes}");
    }
}

#[tokio::test]
async fn every_key_that_is_not_good_is_refused_in_the_same_words() {
    let setup = Setup::new().await;
    let (good, expired, revoked) = (setup.key().await, setup.key().await, setup.key().await);
    let unknown = generate_api_key();
    setup.set(&expired, "expires_at = now() - interval '1 s'").await;
    setup.revoke(&revoked).await;
    let authenticator = setup.authenticator().await;
    let forged = good.plain[..18].to_owned() + &unknown.plain[18..];
    let wrong = [
        &expired.plain,
        &revoked.plain,
        &unknown.plain,
        &forged,
        "nonsense",
    ];
    for key in wrong {
        let error = refused(&authenticator, &bearer(key)).await;
        let without_key = refused(&authenticator, &HeaderMap::new()).await;
        assert_eq!(error.to_string(), without_key.to_string(), "{key}");
        assert_eq!(error.code(), &Code::Unauthenticated);
    }
    authenticator
        .authenticate(&bearer(&good.plain))
        .await
        .expect("a forgery does no harm to the real one");
}

#[tokio::test]
async fn a_database_that_is_away_is_never_unauthenticated() {
    let setup = Setup::new().await;
    let key = setup.key().await;
    setup.pool.close().await;
    let authenticator = authenticator(setup.pool.clone(), KeyAges::default());
    let error = refused(&authenticator, &bearer(&key.plain)).await;
    assert_eq!(error.code(), &Code::DependencyUnavailable);
}

#[tokio::test]
async fn a_database_that_never_answers_is_given_up_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = silent.local_addr().expect("it is bound");
    let pool = PgPoolOptions::new()
        .connect_lazy(&format!("postgres://nobody@{address}/nothing"))
        .expect("a valid URL");
    let authenticator = authenticator(pool, KeyAges::default());
    let started = Instant::now();
    let error = refused(&authenticator, &bearer(&generate_api_key().plain)).await;
    assert_eq!(error.code(), &Code::DependencyUnavailable);
    assert!(started.elapsed() < LOOKUP_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test]
async fn a_key_that_is_known_needs_no_database() {
    let setup = Setup::new().await;
    let key = setup.key().await;
    let authenticator = authenticator(setup.pool.clone(), KeyAges::default());
    authenticator
        .authenticate(&bearer(&key.plain))
        .await
        .expect("it is good");
    setup.pool.close().await;
    authenticator
        .authenticate(&bearer(&key.plain))
        .await
        .expect("it is known");
}

#[tokio::test]
async fn guessing_pushes_no_real_key_out() {
    let setup = Setup::new().await;
    let key = setup.key().await;
    let authenticator = authenticator(setup.pool.clone(), KeyAges::default());
    authenticator
        .authenticate(&bearer(&key.plain))
        .await
        .expect("it is good");
    for _ in 0..60 {
        let guesses: FuturesUnordered<_> = (0..1_000)
            .map(|_| async { refused(&authenticator, &bearer(&generate_api_key().plain)).await })
            .collect();
        let codes: Vec<Code> = guesses.map(|error| error.code().clone()).collect().await;
        assert!(codes.iter().all(|code| *code == Code::Unauthenticated));
    }
    setup.pool.close().await;
    authenticator
        .authenticate(&bearer(&key.plain))
        .await
        .expect("it is still known");
}

#[tokio::test]
async fn a_key_in_use_is_read_again_in_the_background_and_its_revocation_seen() {
    let setup = Setup::new().await;
    let key = setup.key().await;
    let ages = KeyAges {
        refresh_interval: Duration::ZERO,
        trust_max: Duration::from_secs(3_600),
    };
    let authenticator = authenticator(setup.pool.clone(), ages);
    let headers = bearer(&key.plain);
    authenticator.authenticate(&headers).await.expect("it is good");
    setup.revoke(&key).await;
    let deadline = Instant::now() + PATIENCE;
    let refusal = loop {
        match authenticator.authenticate(&headers).await {
            Err(error) => break error,
            Ok(_) => tokio::task::yield_now().await,
        }
        assert!(Instant::now() < deadline, "the revocation was not seen");
    };
    assert_eq!(refusal.code(), &Code::Unauthenticated);
}

#[tokio::test]
async fn while_unknown_keys_cannot_be_looked_up_known_ones_work_and_the_crowd_is_bounded() {
    let setup = Setup::new().await;
    let key = setup.key().await;
    let authenticator = setup.authenticator().await;
    let headers = bearer(&key.plain);
    authenticator.authenticate(&headers).await.expect("it is good");

    let mut connection = setup.superuser.acquire().await.expect("a connection");
    let mut locking = connection.begin().await.expect("a transaction");
    locking
        .execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        .await
        .expect("the crowd may take its time");
    locking
        .execute("LOCK TABLE event_store.api_key IN ACCESS EXCLUSIVE MODE")
        .await
        .expect("nobody else has it");
    // More than can be in a batch that is under way and in the queue behind it.
    let crowd: FuturesUnordered<_> = (0..3 * LOOKUPS_WAITING_MAX)
        .map(|_| {
            let authenticator = authenticator.clone();
            tokio::spawn(async move { refused(&authenticator, &bearer(&generate_api_key().plain)).await })
        })
        .collect();
    let mut codes = Vec::new();
    let mut refusals = crowd.map(|refusal| refusal.expect("no panic").code().clone());
    while let Some(code) = refusals.next().await {
        authenticator.authenticate(&headers).await.expect("it is known");
        codes.push(code);
    }
    let count = |code: &Code| codes.iter().filter(|other| *other == code).count();
    let (away, overloaded) = (count(&Code::DependencyUnavailable), count(&Code::Overloaded));
    assert_eq!(
        away + overloaded,
        codes.len(),
        "nobody is told that a key is wrong: {codes:?}"
    );
    assert!(
        away > 0 && overloaded > 0,
        "{away} waited in vain, {overloaded} were turned away"
    );

    locking.rollback().await.expect("the lock is given back");
    let error = refused(&authenticator, &bearer(&generate_api_key().plain)).await;
    assert_eq!(error.code(), &Code::Unauthenticated);
}

/// A server with a route for each scope that the test has, and one that declares nothing, over both transports. Every handler
/// reads its whole body.
async fn start_server(authenticator: Authenticator, limits: Limits) -> SocketAddr {
    let needs = [
        ("/read", Needs::scope(Scope::OrdersRead).with_message(1_000)),
        ("/write", Needs::scope(Scope::OrdersWrite)),
        ("/operate", Needs::scope(Scope::ProjectionsOperate)),
    ];
    let router = || {
        ["/read", "/write", "/operate", "/undeclared"]
            .into_iter()
            .fold(Router::new(), |router, route| {
                router.route(route, post(async |body: Bytes| body))
            })
    };
    let routes = Routes {
        http: Declared::new(router(), needs),
        grpc: Declared::new(router(), needs),
        access: Access::Identified(authenticator),
        cors: Cors::default(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let metrics = ServerMetrics::new(&Registry::new());
    let never = CancellationToken::new();
    tokio::spawn(serve(listener, routes, limits, metrics, never));
    address
}

/// Sends the head of a request, and of its body only what is given; the head of the answer.
async fn answer_to(server: SocketAddr, head: String, body: &str) -> String {
    let mut stream = TcpStream::connect(server).await.expect("it listens");
    answer_on(&mut stream, &head, body).await
}

/// The same on a connection that is open.
async fn answer_on(stream: &mut TcpStream, head: &str, body: &str) -> String {
    let sent = format!("{head}\r\nHost: a\r\n\r\n{body}");
    stream.write_all(sent.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    while !answer.contains("\r\n\r\n") {
        let mut bytes = [0; 4_096];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut bytes)).await;
        let count = read.expect("an answer in time").expect("the connection holds");
        assert!(count > 0, "the connection ended after {answer}");
        answer.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    answer
}

#[tokio::test]
async fn a_connection_that_has_shown_a_key_is_not_closed_for_one_that_has_not() {
    let setup = Setup::new().await;
    let reader = setup.key().await;
    let limits = Limits {
        connections_max: 2,
        ..Limits::default()
    };
    let server = start_server(setup.authenticator().await, limits).await;
    let good = format!(
        "POST /read HTTP/1.1\r\nAuthorization: Bearer {}\r\nContent-Length: 0",
        reader.plain
    );
    let mut known = TcpStream::connect(server).await.expect("it listens");
    assert!(
        answer_on(&mut known, &good, "")
            .await
            .starts_with("HTTP/1.1 200 ")
    );
    let bad = format!("POST /read HTTP/1.1\r\nAuthorization: Bearer {}", "x".repeat(40));
    let mut strangers = Vec::new();
    for (head, status) in [("GET /healthz HTTP/1.1", "200"), (&bad, "401"), (&bad, "401")] {
        let mut stranger = TcpStream::connect(server).await.expect("it listens");
        let answer = answer_on(&mut stranger, head, "").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        strangers.push(stranger);
        assert!(
            answer_on(&mut known, &good, "")
                .await
                .starts_with("HTTP/1.1 200 ")
        );
    }
}

/// Waits until the server has closed a connection.
async fn is_closed(mut stream: TcpStream) {
    let mut bytes = [0; 16];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut bytes)).await;
    let read = read.expect("it is closed in time");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn one_tenants_connections_keep_no_other_out_and_are_strangers_when_its_key_is_revoked() {
    let setup = Setup::new().await;
    let (greedy, other) = (setup.key().await, generate_api_key());
    let tenant = Uuid::now_v7();
    let added = setup.database.add_tenants(&[tenant]).await;
    added.expect("a tenant");
    let stored = setup.store(&other, Some(tenant), "{orders:read}").await;
    stored.expect("a tenant's key may have it");
    let limits = Limits {
        connections_max: 4,
        ..Limits::default()
    };
    let ages = KeyAges {
        refresh_interval: Duration::ZERO,
        ..KeyAges::default()
    };
    let authenticator = authenticator(setup.pool.clone(), ages);
    let server = start_server(authenticator.clone(), limits).await;
    let ask = async |stream: &mut TcpStream, key: &NewApiKey, status: u16| {
        let head = format!(
            "POST /read HTTP/1.1\r\nAuthorization: Bearer {}\r\nContent-Length: 0",
            key.plain
        );
        let answer = answer_on(stream, &head, "").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    };
    let open = async || TcpStream::connect(server).await.expect("it listens");
    let mut of_greedy = Vec::new();
    for _ in 0..4 {
        let mut stream = open().await;
        ask(&mut stream, &greedy, 200).await;
        of_greedy.push(stream);
    }
    let mut of_other = open().await;
    ask(&mut of_other, &other, 200).await;
    is_closed(of_greedy.remove(0)).await;

    setup.revoke(&greedy).await;
    let deadline = Instant::now() + PATIENCE;
    while authenticator.authenticate(&bearer(&greedy.plain)).await.is_ok() {
        assert!(Instant::now() < deadline, "the revocation is not seen");
        tokio::task::yield_now().await;
    }
    for stream in &mut of_greedy {
        ask(stream, &greedy, 401).await;
    }
    let mut strangers = Vec::new();
    for _ in 0..3 {
        strangers.push(open().await);
        is_closed(of_greedy.remove(0)).await;
    }
    ask(&mut of_other, &other, 200).await;
    for stranger in &mut strangers {
        let answer = answer_on(stranger, "GET /healthz HTTP/1.1", "").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[tokio::test]
async fn a_request_is_judged_by_what_its_route_declares_before_a_byte_of_its_body_is_there() {
    let setup = Setup::new().await;
    let (reader, operator) = (setup.key().await, generate_api_key());
    let stored = setup.store(&operator, None, "{projections:operate}").await;
    stored.expect("an operator may have it");
    let server = start_server(setup.authenticator().await, Limits::default()).await;
    // What the path declares, the length that the request declares, and the status of both transports.
    let cases = [
        (&reader, "/write", 100, "403", "7"),
        (&reader, "/operate", 100, "403", "7"),
        (&operator, "/read", 100, "403", "7"),
        (&reader, "/undeclared", 100, "404", "12"),
        (&operator, "/undeclared", 100, "404", "12"),
        (&reader, "/nothing", 100, "404", "12"),
        (&reader, "/read", 1_006, "413", "8"),
        (&operator, "/operate", 64 * 1_024 + 1, "413", "8"),
    ];
    for (key, path, length, http, grpc) in cases {
        let head = |content_type: &str| {
            format!(
                "POST {path} HTTP/1.1\r\nAuthorization: Bearer {}\r\nContent-Type: {content_type}\r\n\
                 Content-Length: {length}",
                key.plain
            )
        };
        let answer = answer_to(server, head("text/plain"), "").await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {http} ")),
            "{path}: {answer}"
        );
        let answer = answer_to(server, head("application/grpc"), "").await;
        assert!(
            answer.contains(&format!("grpc-status: {grpc}\r\n")),
            "{path}: {answer}"
        );
    }
    let head = format!(
        "POST /read HTTP/1.1\r\nAuthorization: Bearer {}\r\nContent-Length: 1005",
        reader.plain
    );
    let answer = answer_to(server, head, &"x".repeat(1_005)).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
