//! API keys and the pool, on a real Postgres with the real schema.

use daybook_devstack::testing::{TestCluster, test_cluster};
use daybook_service::config::Secret;
use daybook_service::database::{DatabaseError, check_schema, connect};
use daybook_service::identity::{Authenticator, NewApiKey, Scope, generate_api_key};
use daybook_service::{ApiError, Code};
use sqlx::{Connection as _, Executor as _, PgConnection, PgPool, Row as _};
use uuid::Uuid;

/// A migrated database with one tenant in partition 3. The server goes when this goes.
struct Database {
    pool: PgPool,
    superuser: PgPool,
    tenant: Uuid,
    cluster: TestCluster,
}

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
}

async fn migrate(url: String) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(&url).await?;
    daybook_event_store::migrator().run(&mut connection).await?;
    Ok(connection.close().await?)
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

async fn refused(authenticator: &Authenticator, header: Option<&str>) -> ApiError {
    authenticator
        .authenticate(header)
        .await
        .expect_err("it is refused")
}

#[tokio::test]
async fn a_good_key_is_its_tenant_and_its_scopes() {
    let database = Database::create().await;
    let key = generate_api_key();
    database.store(&key, 60.0).await;
    let authenticator = Authenticator::new(database.pool.clone());
    let principal = authenticator
        .authenticate(Some(&bearer(&key.plain)))
        .await
        .expect("it is good");
    assert_eq!(
        (principal.tenant_id, principal.tenant_partition),
        (database.tenant, 3)
    );
    assert_eq!(principal.credential(), format!("key:{}", key.prefix));
    principal.require(Scope::OrdersRead).expect("it has the scope");
    principal
        .require(Scope::OrdersWrite)
        .expect_err("it has not the scope");
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
    sqlx::query("UPDATE event_store.api_key SET revoked_at = now() WHERE prefix = $1")
        .bind(&revoked.prefix)
        .execute(&database.superuser)
        .await
        .expect("it is revoked");
    let authenticator = Authenticator::new(database.pool.clone());
    let forged = good.plain[..18].to_owned() + &unknown.plain[18..];
    let wrong = [
        &expired.plain,
        &revoked.plain,
        &unknown.plain,
        &forged,
        "nonsense",
    ];
    for key in wrong {
        let error = refused(&authenticator, Some(&bearer(key))).await;
        assert_eq!(
            error.to_string(),
            refused(&authenticator, None).await.to_string(),
            "{key}"
        );
        assert_eq!(error.code(), &Code::Unauthenticated);
    }
    authenticator
        .authenticate(Some(&bearer(&good.plain)))
        .await
        .expect("a forgery does no harm to the real one");
}

#[tokio::test]
async fn a_database_that_is_away_is_never_unauthenticated() {
    let database = Database::create().await;
    let key = generate_api_key();
    database.store(&key, 60.0).await;
    database.pool.close().await;
    let authenticator = Authenticator::new(database.pool.clone());
    let error = refused(&authenticator, Some(&bearer(&key.plain))).await;
    assert_eq!(error.code(), &Code::DependencyUnavailable);
}

#[tokio::test]
async fn a_key_that_is_known_needs_no_database() {
    let database = Database::create().await;
    let key = generate_api_key();
    database.store(&key, 60.0).await;
    let authenticator = Authenticator::new(database.pool.clone());
    authenticator
        .authenticate(Some(&bearer(&key.plain)))
        .await
        .expect("it is good");
    database.pool.close().await;
    authenticator
        .authenticate(Some(&bearer(&key.plain)))
        .await
        .expect("it is known");
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
