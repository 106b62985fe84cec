//! A running Postgres cluster as its superuser sees it: databases, role passwords, addresses.
//!
//! It needs no more than an address, so it stands for a private server as well as for one that another process runs
//! (`cargo xtask test` starts one for all tests).

use std::net::SocketAddr;

use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, postgres::PgConnectOptions};

use crate::error::DevstackError;
use crate::password;

/// Where a cluster listens and how its superuser signs in.
#[derive(Debug, Clone)]
pub struct Cluster {
    authority: String,
    superuser: String,
    password: String,
    /// The part of an address behind the database: empty, or `?sslmode=…`.
    parameters: String,
    role_secret: String,
}

impl Cluster {
    pub(crate) fn private(port: u16, password: &str) -> Self {
        Self {
            authority: format!("127.0.0.1:{port}"),
            superuser: crate::postgres::SUPERUSER.to_owned(),
            password: password.to_owned(),
            parameters: String::new(),
            role_secret: password.to_owned(),
        }
    }

    pub(crate) fn set_port(&mut self, port: u16) {
        self.authority = format!("127.0.0.1:{port}");
    }

    /// The cluster behind a superuser's address, `postgres://user:password@host:port/database`. The password may not
    /// hold characters that would need escaping in an address.
    ///
    /// # Errors
    /// [`DevstackError::Address`] when it is none.
    pub fn from_url(url: &str) -> Result<Self, DevstackError> {
        let invalid = |reason: &str| DevstackError::Address {
            reason: reason.to_owned(),
        };
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"));
        let rest = rest.ok_or_else(|| invalid("it starts with neither postgres:// nor postgresql://"))?;
        let (rest, parameters) = rest.split_at(rest.find('?').unwrap_or(rest.len()));
        let authority = rest.split('/').next().unwrap_or_default();
        let (user, host) = authority
            .rsplit_once('@')
            .ok_or_else(|| invalid("it names no user"))?;
        let (superuser, password) = user.split_once(':').unwrap_or((user, ""));
        Ok(Self {
            authority: host.to_owned(),
            superuser: superuser.to_owned(),
            password: password.to_owned(),
            parameters: parameters.to_owned(),
            role_secret: password.to_owned(),
        })
    }

    /// Derives the roles' passwords from this secret instead of the superuser's password, which on a server that is
    /// not private may be known or empty.
    #[must_use]
    pub fn with_role_secret(mut self, secret: &str) -> Self {
        secret.clone_into(&mut self.role_secret);
        self
    }

    /// The superuser's address of a database.
    #[must_use]
    pub fn superuser_url(&self, database: &str) -> String {
        self.address(&self.superuser, &self.password, database)
    }

    /// The superuser's address of a database, by way of a proxy.
    pub(crate) fn superuser_url_through(&self, through: SocketAddr, database: &str) -> String {
        let mut proxied = self.clone();
        proxied.authority = through.to_string();
        proxied.superuser_url(database)
    }

    /// Makes a standby a primary of its own, on a timeline of its own.
    ///
    /// # Errors
    /// [`DevstackError::Sql`].
    pub async fn promote(&self) -> Result<(), DevstackError> {
        let promote = "SELECT pg_promote(true, 60)".to_owned();
        self.run(promote, "promote the standby".to_owned()).await
    }

    /// A role's address of a database, with the password that [`Self::enable_login`] gives it.
    #[must_use]
    pub fn url(&self, role: &str, database: &str) -> String {
        self.address(role, &self.role_password(role), database)
    }

    fn address(&self, user: &str, password: &str, database: &str) -> String {
        format!(
            "postgres://{user}:{password}@{}/{database}{}",
            self.authority, self.parameters
        )
    }

    fn role_password(&self, role: &str) -> String {
        password::derived(&self.role_secret, role)
    }

    /// Gives each role (which exists) the password that [`Self::url`] uses.
    ///
    /// # Errors
    /// [`DevstackError::Sql`].
    pub async fn enable_login(&self, roles: &[&str]) -> Result<(), DevstackError> {
        let mut connection = self.connect("postgres").await?;
        // Two sessions that change the same role at once fail, even when they change nothing. The lock goes with the session.
        let lock = "SELECT pg_advisory_lock(hashtext('daybook-roles'))".to_owned();
        execute(&mut connection, lock, "lock the roles".to_owned()).await?;
        for role in roles {
            let statement = format!(
                "ALTER ROLE {} PASSWORD '{}'",
                quote(role),
                self.role_password(role)
            );
            execute(
                &mut connection,
                statement,
                format!("set the password of role {role}"),
            )
            .await?;
        }
        close(connection).await
    }

    /// Makes a database, as a copy of `template` when one is given (to which nobody may be connected).
    ///
    /// # Errors
    /// [`DevstackError::Sql`], for instance when there is one already.
    pub async fn create_database(&self, name: &str, template: Option<&str>) -> Result<(), DevstackError> {
        let from = template
            .map(|template| format!(" TEMPLATE {}", quote(template)))
            .unwrap_or_default();
        self.run(
            format!("CREATE DATABASE {}{from}", quote(name)),
            format!("create the database {name}"),
        )
        .await
    }

    /// Drops a database, and ends the sessions that use it. One that is not there is not an error.
    ///
    /// # Errors
    /// [`DevstackError::Sql`].
    pub async fn drop_database(&self, name: &str) -> Result<(), DevstackError> {
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote(name));
        self.run(statement, format!("drop the database {name}")).await
    }

    /// Makes a database unless it is there. Returns whether it was made.
    ///
    /// # Errors
    /// [`DevstackError::Sql`].
    pub async fn ensure_database(&self, name: &str) -> Result<bool, DevstackError> {
        let mut connection = self.connect("postgres").await?;
        let missing = !database_exists(&mut connection, name).await?;
        if missing {
            let statement = format!("CREATE DATABASE {}", quote(name));
            execute(&mut connection, statement, format!("create the database {name}")).await?;
        }
        close(connection).await?;
        Ok(missing)
    }

    /// Makes the database `template` with `build` unless it is there: once per cluster, however many processes ask at
    /// the same time. `build` gets the superuser's address of the new, empty database and must close its connections.
    ///
    /// A build that fails leaves no template, so the next caller tries again.
    ///
    /// # Errors
    /// [`DevstackError::Sql`], or what `build` returns.
    pub async fn ensure_template<E, F>(&self, template: &str, build: F) -> Result<(), E>
    where
        E: From<DevstackError>,
        F: AsyncFnOnce(String) -> Result<(), E>,
    {
        let mut connection = self.connect("postgres").await?;
        // The lock belongs to the session: it goes when the connection closes, also when this process is killed.
        let lock = "SELECT pg_advisory_lock(hashtext('daybook-template'))".to_owned();
        execute(&mut connection, lock, "lock the templates".to_owned()).await?;
        if !database_exists(&mut connection, template).await? {
            let building = format!("{template}_building");
            self.drop_database(&building).await?;
            self.create_database(&building, None).await?;
            build(self.superuser_url(&building)).await?;
            let rename = format!(
                "ALTER DATABASE {} RENAME TO {}",
                quote(&building),
                quote(template)
            );
            execute(&mut connection, rename, format!("name the template {template}")).await?;
        }
        close(connection).await?;
        Ok(())
    }

    async fn run(&self, statement: String, action: String) -> Result<(), DevstackError> {
        let mut connection = self.connect("postgres").await?;
        execute(&mut connection, statement, action).await?;
        close(connection).await
    }

    /// A connection as the superuser.
    ///
    /// # Errors
    /// [`DevstackError::Sql`].
    pub async fn connect(&self, database: &str) -> Result<PgConnection, DevstackError> {
        self.try_connect(database)
            .await
            .map_err(DevstackError::sql(format!("connect to the database {database}")))
    }

    pub(crate) async fn try_connect(&self, database: &str) -> Result<PgConnection, sqlx::Error> {
        let options: PgConnectOptions = self.superuser_url(database).parse()?;
        options.disable_statement_logging().connect().await
    }
}

/// An identifier as SQL wants it. Names come from code, not from callers, but a quote costs nothing.
fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

async fn execute(
    connection: &mut PgConnection,
    statement: String,
    action: String,
) -> Result<(), DevstackError> {
    let done = sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await;
    done.map(drop).map_err(DevstackError::sql(action))
}

async fn database_exists(connection: &mut PgConnection, name: &str) -> Result<bool, DevstackError> {
    let statement = "SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = $1)";
    let found = sqlx::query_scalar(statement)
        .bind(name)
        .fetch_one(connection)
        .await;
    found.map_err(DevstackError::sql(format!("look for the database {name}")))
}

async fn close(connection: PgConnection) -> Result<(), DevstackError> {
    connection
        .close()
        .await
        .map_err(DevstackError::sql("close a connection"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_comes_back_as_it_was_given() {
        let cluster =
            Cluster::from_url("postgres://postgres:secret@db:5432/postgres?x=y").expect("an address");
        assert_eq!(
            cluster.superuser_url("orders"),
            "postgres://postgres:secret@db:5432/orders?x=y"
        );
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for url in ["", "http://localhost", "postgres://localhost:5432/postgres"] {
            assert!(
                matches!(Cluster::from_url(url), Err(DevstackError::Address { .. })),
                "{url}"
            );
        }
    }

    #[test]
    fn every_role_has_a_password_of_its_own_that_every_process_knows() {
        let one = Cluster::private(1, "secret");
        let other = Cluster::from_url(&one.superuser_url("postgres")).expect("an address");
        assert_eq!(
            one.url("daybook_command", "db"),
            other.url("daybook_command", "db")
        );
        assert_ne!(
            one.role_password("daybook_command"),
            one.role_password("daybook_query")
        );
    }
}
