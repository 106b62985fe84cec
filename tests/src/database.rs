//! A database for each test, copied from a template that is migrated once in a run.

use std::path::Path;

use anyhow::{Context as _, ensure};
use daybook_devstack::testing::{TestCluster, test_cluster};
use daybook_devstack::{Cluster, find};
use daybook_event_store::{PostgresLog, SeenEpoch};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use tokio::process::Command;
use uuid::Uuid;

/// The login roles of the services.
pub const ROLES: [&str; 4] = [
    "daybook_command",
    "daybook_publisher",
    "daybook_projector",
    "daybook_query",
];

/// A database of its own, dropped by nobody: it goes with its server.
#[derive(Debug, Clone)]
pub struct Database {
    cluster: TestCluster,
    name: String,
}

impl Database {
    /// Makes a migrated database on the server that the tests share.
    ///
    /// # Errors
    /// When the server does not answer or a migration fails.
    pub async fn create() -> anyhow::Result<Self> {
        Self::create_on(test_cluster().await?).await
    }

    /// Makes a migrated database on a server.
    ///
    /// # Errors
    /// When the server does not answer or a migration fails.
    pub async fn create_on(cluster: impl Into<TestCluster>) -> anyhow::Result<Self> {
        let database = Self::copy(cluster.into()).await?;
        // A copy goes on in an epoch of its own. Whoever begins with it does not want to see that.
        let mut connection = PgConnection::connect(&database.superuser_url()).await?;
        sqlx::query("SELECT event_store.attach(0, NULL, '{}', '{}', 0)")
            .execute(&mut connection)
            .await?;
        connection.close().await?;
        Ok(database)
    }

    /// Makes a migrated database whose log has the same first epoch as all that are made so.
    ///
    /// # Errors
    /// When the server does not answer or a migration fails.
    pub async fn create_alike() -> anyhow::Result<Self> {
        Self::copy(test_cluster().await?).await
    }

    /// Makes a copy of the template.
    async fn copy(cluster: TestCluster) -> anyhow::Result<Self> {
        let template = format!(
            "daybook_template_{}_{}",
            daybook_event_store::schema_version(),
            daybook_read_model::schema_version()
        );
        cluster
            .ensure_template(&template, async |url: String| -> anyhow::Result<()> {
                let mut connection = PgConnection::connect(&url).await?;
                daybook_event_store::migrator().run(&mut connection).await?;
                daybook_read_model::migrator().run(&mut connection).await?;
                connection.close().await?;
                cluster.enable_login(&ROLES).await?;
                Ok(())
            })
            .await
            .context("cannot make the template database")?;
        let database = Self::named(cluster);
        database
            .cluster
            .create_database(&database.name, Some(&template))
            .await?;
        Ok(database)
    }

    /// A name for a database that is yet to be made.
    fn named(cluster: TestCluster) -> Self {
        let name = format!("daybook_{}", Uuid::now_v7().simple());
        Self { cluster, name }
    }

    /// Makes a database that nobody has migrated.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn create_empty() -> anyhow::Result<Self> {
        Self::create_empty_on(test_cluster().await?).await
    }

    async fn create_empty_on(cluster: TestCluster) -> anyhow::Result<Self> {
        let database = Self::named(cluster);
        database.cluster.create_database(&database.name, None).await?;
        Ok(database)
    }

    /// Makes a database that sorts texts as a language does, without the template; `None` where the server was built
    /// without ICU.
    ///
    /// # Errors
    /// When the server does not answer or a migration fails.
    pub async fn create_sorted(locale: &str) -> anyhow::Result<Option<Self>> {
        let database = Self::named(test_cluster().await?);
        let mut administrator = PgConnection::connect(&database.cluster.superuser_url("postgres")).await?;
        let create = format!(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE '{locale}'",
            database.name
        );
        let created = sqlx::raw_sql(AssertSqlSafe(create))
            .execute(&mut administrator)
            .await;
        if created.is_err_and(|error| error.to_string().contains("ICU is not supported")) {
            return Ok(None);
        }
        let mut connection = PgConnection::connect(&database.superuser_url()).await?;
        daybook_event_store::migrator().run(&mut connection).await?;
        database.cluster.enable_login(&ROLES).await?;
        Ok(Some(database))
    }

    /// The server.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The same database on another server, which has a copy of it.
    #[must_use]
    pub fn on(&self, cluster: &Cluster) -> Self {
        Self {
            cluster: cluster.clone().into(),
            name: self.name.clone(),
        }
    }

    /// Writes a dump of it into a file.
    ///
    /// # Errors
    /// When `pg_dump` fails.
    pub async fn dump(&self, file: &Path) -> anyhow::Result<()> {
        run(
            "pg_dump",
            &["--format=custom", "--file"],
            file,
            &self.superuser_url(),
        )
        .await
    }

    /// Puts what was dumped in its place, as an administrator does: beside it first, and then under its name.
    ///
    /// # Errors
    /// When `pg_restore` or the server fails.
    pub async fn restore(&self, file: &Path) -> anyhow::Result<()> {
        let name = &self.name;
        let beside = Self::create_empty_on(self.cluster.clone()).await?;
        run("pg_restore", &["--exit-on-error"], file, &beside.superuser_url()).await?;
        let mut administrator = PgConnection::connect(&self.cluster.superuser_url("postgres")).await?;
        let exchange = [
            format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"),
            format!(
                "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE datname = '{name}'"
            ),
            format!("ALTER DATABASE {name} RENAME TO {name}_before"),
            format!("ALTER DATABASE {} RENAME TO {name}", beside.name),
        ];
        for statement in exchange {
            sqlx::raw_sql(AssertSqlSafe(statement))
                .execute(&mut administrator)
                .await?;
        }
        Ok(administrator.close().await?)
    }

    /// The address for a login role.
    #[must_use]
    pub fn url(&self, role: &str) -> String {
        self.cluster.url(role, &self.name)
    }

    /// The superuser's address.
    #[must_use]
    pub fn superuser_url(&self) -> String {
        self.cluster.superuser_url(&self.name)
    }

    /// Makes tenants of the first partition, named after their ids, without keys: for tests that use the log itself.
    ///
    /// # Errors
    /// When one is there already.
    pub async fn add_tenants(&self, ids: &[Uuid]) -> anyhow::Result<()> {
        let add = "INSERT INTO event_store.tenant (tenant_id, name, partition) SELECT id, id::text, 0 FROM unnest($1) AS id";
        let mut connection = PgConnection::connect(&self.superuser_url()).await?;
        sqlx::query(add).bind(ids).execute(&mut connection).await?;
        Ok(())
    }

    /// The log, for an appender.
    ///
    /// # Errors
    /// When the server does not let the role in.
    pub async fn log(&self) -> anyhow::Result<PostgresLog> {
        self.log_with(SeenEpoch::default()).await
    }

    /// The log, for an appender of a process that notes the epochs that it meets in `seen`.
    ///
    /// # Errors
    /// When the server does not let the role in.
    pub async fn log_with(&self, seen: SeenEpoch) -> anyhow::Result<PostgresLog> {
        let role = "daybook_command";
        Ok(PostgresLog::new(
            self.url(role).parse()?,
            0,
            self.pool(role).await?,
            seen,
        ))
    }

    /// A pool with a login role.
    ///
    /// # Errors
    /// When the server does not let the role in.
    pub async fn pool(&self, role: &str) -> anyhow::Result<PgPool> {
        Ok(PgPoolOptions::new()
            .max_connections(4)
            .connect(&self.url(role))
            .await?)
    }

    /// A pool as superuser, to look at everything.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn superuser(&self) -> anyhow::Result<PgPool> {
        Ok(PgPoolOptions::new()
            .max_connections(2)
            .connect(&self.superuser_url())
            .await?)
    }
}

/// Runs one of Postgres's programs on a file and a database.
async fn run(program: &str, options: &[&str], file: &Path, url: &str) -> anyhow::Result<()> {
    let output = Command::new(find::postgres()?.directory.join(program))
        .args(options)
        .arg(file)
        .arg(format!("--dbname={url}"))
        .output()
        .await
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
