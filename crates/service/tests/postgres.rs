//! API keys and the pool, on a real Postgres with the real schema.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use daybook_devstack::testing::{TestCluster, test_cluster};
use daybook_service::config::Secret;
use daybook_service::database::{DatabaseError, check_schema, connect};
use daybook_service::identity::{
    Authenticator, Identity, KeyAges, LOOKUP_TIMEOUT, LOOKUPS_WAITING_MAX, NewApiKey, Scope,
    generate_api_key, principal_with,
};
use daybook_service::metrics::{Registry, ServerMetrics};
use daybook_service::server::{Access, Declared, Limits, Needs, Routes, serve};
use daybook_service::{ApiError, Code};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::{Extensions, HeaderMap, HeaderValue};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection as _, Executor as _, PgConnection, PgPool, Row as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A migrated database with one tenant in partition 3. The server goes when this goes.
struct Database {
    pool: PgPool,
    superuser: PgPool,
    tenant: Uuid,
    url: String,
    cluster: TestCluster,
}

/// No test waits longer than this for something that should happen.
const PATIENCE: Duration = Duration::from_secs(20);

impl Database {
    async fn create() -> Self {
        let cluster = test_cluster().await.expect("a server for tests");
        let template = "daybook_service_template";
        cluster
            .ensure_template(template, migrate)
            .await
            .expect("a migrated template");
        let roles = ["daybook_query"];
        cluster.enable_login(&roles).await.expect("the role may log in");
        let name = format!("service_{}", Uuid::now_v7().simple());
        cluster
            .create_database(&name, Some(template))
            .await
            .expect("a database");
        let open = async |url: String| {
            connect(&Secret::from(url), "daybook-test", 1)
                .await
                .expect("it lets us in")
        };
        let database = Self {
            pool: open(cluster.url("daybook_query", &name)).await,
            superuser: open(cluster.superuser_url(&name)).await,
            tenant: Uuid::now_v7(),
            url: cluster.url("daybook_query", &name),
            cluster,
        };
        sqlx::query("INSERT INTO event_store.tenant (tenant_id, name, partition) VALUES ($1, 'acme', 3)")
            .bind(database.tenant)
            .execute(&database.superuser)
            .await
            .expect("a tenant");
        database
    }

    async fn store(&self, key: &NewApiKey, expires_in_seconds: f64) {
        sqlx::query(
            "INSERT INTO event_store.api_key (prefix, secret_sha256, tenant_id, name, scopes, expires_at)
             VALUES ($1, $2, $3, 'till', '{orders:read}', now() + make_interval(secs => $4))",
        )
        .bind(&key.prefix)
        .bind(&key.sha256[..])
        .bind(self.tenant)
        .bind(expires_in_seconds)
        .execute(&self.superuser)
        .await
        .expect("a key");
    }

    /// A key of the tenant's, or of the deployment's, with scopes as they are written in SQL.
    async fn store_with(
        &self,
        key: &NewApiKey,
        tenant: Option<Uuid>,
        scopes: &str,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO event_store.api_key (prefix, secret_sha256, tenant_id, name, scopes)
             VALUES ($1, $2, $3, 'till', $4::text::text[])",
        )
        .bind(&key.prefix)
        .bind(&key.sha256[..])
        .bind(tenant)
        .bind(scopes)
        .execute(&self.superuser)
        .await
        .map(drop)
    }

    async fn revoke(&self, key: &NewApiKey) {
        sqlx::query("UPDATE event_store.api_key SET revoked_at = now() WHERE prefix = $1")
            .bind(&key.prefix)
            .execute(&self.superuser)
            .await
            .expect("it is revoked");
    }

    /// An authenticator on the connections that it makes for itself.
    async fn authenticator(&self) -> Authenticator {
        let url = Secret::from(self.url.as_str());
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

async fn migrate(url: String) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(&url).await?;
    daybook_event_store::migrator().run(&mut connection).await?;
    Ok(connection.close().await?)
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
    let database = Database::create().await;
    let key = generate_api_key();
    database.store(&key, 60.0).await;
    let authenticator = database.authenticator().await;
    let identity = authenticator.authenticate(&bearer(&key.plain)).await;
    let mut request = Extensions::new();
    request.insert(identity.expect("it is good"));
    let principal = principal_with(&request, Scope::OrdersRead).expect("it has the scope");
    assert_eq!(
        (principal.tenant_id, principal.tenant_partition),
        (database.tenant, 3)
    );
    assert_eq!(principal.credential(), format!("key:{}", key.prefix));
    principal_with(&request, Scope::OrdersWrite).expect_err("it has not the scope");
}

#[tokio::test]
async fn an_operators_key_is_the_deployments_and_belongs_to_no_tenant() {
    let database = Database::create().await;
    let key = generate_api_key();
    let stored = database
        .store_with(&key, None, "{projections:operate,tenants:admin}")
        .await;
    stored.expect("an operator may have both");
    let identity = database
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
    let database = Database::create().await;
    let tenant = Some(database.tenant);
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
        let refused = database.store_with(&generate_api_key(), tenant, scopes).await;
        let error = refused.expect_err(scopes);
        let broken = error.as_database_error().and_then(|error| error.constraint());
        assert_eq!(broken, Some(constraint), "{scopes}");
    }
}

#[tokio::test]
async fn every_key_that_is_not_good_is_refused_in_the_same_words() {
    let database = Database::create().await;
    let (good, expired, revoked, unknown) = (
        generate_api_key(),
        generate_api_key(),
        generate_api_key(),
        generate_api_key(),
    );
    database.store(&good, 60.0).await;
    database.store(&expired, -1.0).await;
    database.store(&revoked, 60.0).await;
    database.revoke(&revoked).await;
    let authenticator = database.authenticator().await;
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
    let database = Database::create().await;
    let key = generate_api_key();
    database.store(&key, 60.0).await;
    database.pool.close().await;
    let authenticator = authenticator(database.pool.clone(), KeyAges::default());
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
    let database = Database::create().await;
    let key = generate_api_key();
    database.store(&key, 60.0).await;
    let authenticator = authenticator(database.pool.clone(), KeyAges::default());
    authenticator
        .authenticate(&bearer(&key.plain))
        .await
        .expect("it is good");
    database.pool.close().await;
    authenticator
        .authenticate(&bearer(&key.plain))
        .await
        .expect("it is known");
}

#[tokio::test]
async fn guessing_pushes_no_real_key_out() {
    let database = Database::create().await;
    let key = generate_api_key();
    database.store(&key, 60.0).await;
    let authenticator = authenticator(database.pool.clone(), KeyAges::default());
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
    database.pool.close().await;
    authenticator
        .authenticate(&bearer(&key.plain))
        .await
        .expect("it is still known");
}

#[tokio::test]
async fn a_key_in_use_is_read_again_in_the_background_and_its_revocation_seen() {
    let database = Database::create().await;
    let key = generate_api_key();
    database.store(&key, 60.0).await;
    let ages = KeyAges {
        refresh_interval: Duration::ZERO,
        trust_max: Duration::from_secs(3_600),
    };
    let authenticator = authenticator(database.pool.clone(), ages);
    let headers = bearer(&key.plain);
    authenticator.authenticate(&headers).await.expect("it is good");
    database.revoke(&key).await;
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
    let database = Database::create().await;
    let key = generate_api_key();
    database.store(&key, 60.0).await;
    let authenticator = database.authenticator().await;
    let headers = bearer(&key.plain);
    authenticator.authenticate(&headers).await.expect("it is good");

    let mut connection = database.superuser.acquire().await.expect("a connection");
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
    let database = Database::create().await;
    let reader = generate_api_key();
    database.store(&reader, 60.0).await;
    let limits = Limits {
        connections_max: 2,
        ..Limits::default()
    };
    let server = start_server(database.authenticator().await, limits).await;
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
    let database = Database::create().await;
    let (greedy, other) = (generate_api_key(), generate_api_key());
    database.store(&greedy, 60.0).await;
    let tenant = Uuid::now_v7();
    sqlx::query("INSERT INTO event_store.tenant (tenant_id, name, partition) VALUES ($1, 'other', 4)")
        .bind(tenant)
        .execute(&database.superuser)
        .await
        .expect("a tenant");
    let stored = database.store_with(&other, Some(tenant), "{orders:read}").await;
    stored.expect("a tenant's key may have it");
    let limits = Limits {
        connections_max: 4,
        ..Limits::default()
    };
    let ages = KeyAges {
        refresh_interval: Duration::ZERO,
        ..KeyAges::default()
    };
    let authenticator = authenticator(database.pool.clone(), ages);
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

    database.revoke(&greedy).await;
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
    let database = Database::create().await;
    let (reader, operator) = (generate_api_key(), generate_api_key());
    database.store(&reader, 60.0).await;
    let stored = database
        .store_with(&operator, None, "{projections:operate}")
        .await;
    stored.expect("an operator may have it");
    let server = start_server(database.authenticator().await, Limits::default()).await;
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

#[tokio::test]
async fn a_transaction_that_was_left_open_does_not_reach_the_next_borrower() {
    let database = Database::create().await;
    let mut connection = database.pool.acquire().await.expect("a connection");
    // What a dropped `pool.begin()` leaves behind: a transaction that sqlx knows nothing of.
    let left_open = "BEGIN; SET LOCAL daybook.tenant_id = 'somebody else'";
    connection.execute(left_open).await.expect("it begins");
    drop(connection);
    let tenant: String = sqlx::query_scalar("SELECT current_setting('daybook.tenant_id', true)")
        .fetch_one(&database.pool)
        .await
        .expect("the same connection, for there is but one");
    assert_eq!(tenant, "");
}

#[tokio::test]
async fn the_schema_has_to_be_there_and_new_enough() {
    let database = Database::create().await;
    let version = daybook_event_store::schema_version();
    check_schema(&database.pool, "event_store", version)
        .await
        .expect("it is the version of this build");
    check_schema(&database.pool, "event_store", version - 1)
        .await
        .expect("a newer one is fine");
    let older = check_schema(&database.pool, "event_store", version + 1).await;
    assert!(matches!(older, Err(DatabaseError::Outdated { .. })), "{older:?}");
    let missing = check_schema(&database.pool, "read_model", 1).await;
    assert!(
        matches!(missing, Err(DatabaseError::Version { .. })),
        "{missing:?}"
    );
}

#[tokio::test]
async fn a_statement_cannot_run_for_ever() {
    let database = Database::create().await;
    let timeouts =
        "SELECT current_setting('statement_timeout'), current_setting('idle_in_transaction_session_timeout')";
    let row = database.pool.fetch_one(timeouts).await.expect("settings");
    assert_eq!((row.get::<&str, _>(0), row.get::<&str, _>(1)), ("4s", "5s"));
    let mut connection = database.pool.acquire().await.expect("a connection");
    connection
        .execute("SET statement_timeout = 10")
        .await
        .expect("a shorter one, for the test");
    let error = connection
        .execute("SELECT pg_sleep(5)")
        .await
        .expect_err("it takes too long");
    assert_eq!(ApiError::from(error).code(), &Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_role_that_is_not_let_in_is_an_error_that_hides_the_password() {
    let database = Database::create().await;
    let url = database.cluster.url("daybook_nobody", "postgres");
    let error = connect(&Secret::from(url), "daybook-test", 1)
        .await
        .expect_err("there is no such role");
    assert_eq!(error.to_string(), "cannot connect to the database");
    let error = connect(&Secret::from("mysql://root:hunter2@db"), "daybook-test", 1)
        .await
        .expect_err("not Postgres");
    assert!(!format!("{error:?} {error}").contains("hunter2"));
}
