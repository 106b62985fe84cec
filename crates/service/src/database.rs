//! A pool of Postgres connections that cannot wait for ever, and the check of the schema's version.
//!
//! Every statement goes through [`daybook_postgres::bounded`], which waits for so long and no longer and never drops
//! database work half-way. A connection that comes back is cleared by `BEGIN; ROLLBACK`, in case anybody left a
//! transaction open: one round trip (17 µs measured) after the caller has its answer, where `before_acquire` would be one
//! before. A bare `ROLLBACK` would have the server log a warning each time that there is nothing to roll back.

use std::str::FromStr as _;
use std::time::Duration;

use daybook_postgres::{
    ACQUIRE_TIMEOUT, LOOKUP_TIMEOUT, bounded, current_connections, with_session_timeouts,
};
use futures::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Executor as _, PgConnection, PgPool};

use crate::config::Secret;
use crate::error::{ApiError, DATABASE};
use crate::request;

/// How long the server lets one statement run. Shorter than [`daybook_postgres::QUERY_TIMEOUT`], so that it is the server
/// that ends a slow list, and the connection stays good.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(4);

/// How long a connection is kept. A restart of a database behind a name is noticed by then.
const LIFETIME_MAX: Duration = Duration::from_secs(30 * 60);

/// SQLSTATE `query_canceled`: the statement ran for longer than [`STATEMENT_TIMEOUT`].
const QUERY_CANCELED: &str = "57014";

/// SQLSTATE classes of a server that is starting, stopping, full or out of something.
const UNAVAILABLE_CLASSES: [&str; 3] = ["08", "53", "57"];

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// `DATABASE_URL` is not a Postgres URL. The reason is left out, for it may hold the password.
    #[error("DATABASE_URL is not a Postgres URL")]
    Url,
    /// It does not answer, or refuses the role.
    #[error("cannot connect to the database")]
    Connect(#[source] sqlx::Error),
    /// The schema's version cannot be read.
    #[error("cannot read the version of the schema {schema}; was `daybook migrate` run?")]
    Version {
        /// The schema.
        schema: &'static str,
        /// The database's error.
        source: sqlx::Error,
    },
    /// The schema has another version than this binary was built for.
    #[error(
        "the schema {schema} has version {actual}, but this binary needs {expected}; run `daybook migrate`"
    )]
    Outdated {
        /// The schema.
        schema: &'static str,
        /// The version that this binary needs at least.
        expected: i64,
        /// The version that is there.
        actual: i64,
    },
}

/// Connects, once, to find out now whether it can; the other connections are made when they are needed.
///
/// # Errors
/// When the URL is wrong or the database does not let this role in.
pub async fn connect(
    url: &Secret,
    application_name: &str,
    max_connections: u32,
) -> Result<PgPool, DatabaseError> {
    connect_with_timeout(url, application_name, max_connections, STATEMENT_TIMEOUT).await
}

/// As [`connect`], with a limit of its own on how long one statement may run.
///
/// # Errors
/// As there.
pub async fn connect_with_timeout(
    url: &Secret,
    application_name: &str,
    max_connections: u32,
    statement_timeout: Duration,
) -> Result<PgPool, DatabaseError> {
    let options = connect_options(url, application_name, statement_timeout)?;
    pool_options(max_connections)
        .connect_with(options)
        .await
        .map_err(DatabaseError::Connect)
}

/// How a connection is made: the URL, its name among the server's sessions, and the server's limits on it.
///
/// # Errors
/// When the URL is wrong.
pub fn connect_options(
    url: &Secret,
    application_name: &str,
    statement_timeout: Duration,
) -> Result<PgConnectOptions, DatabaseError> {
    let options = PgConnectOptions::from_str(url.expose()).map_err(|_| DatabaseError::Url)?;
    // What callers wait for takes milliseconds, and to compile a plan takes more. The server compiles where it expects many
    // rows, and of a function it expects a thousand.
    let options = options
        .application_name(application_name)
        .options([("jit", "off")]);
    Ok(with_session_timeouts(options, statement_timeout))
}

fn pool_options(max_connections: u32) -> PgPoolOptions {
    current_connections(PgPoolOptions::new())
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .max_lifetime(LIFETIME_MAX)
        // sqlx asks a connection for a sign of life when it comes back; once is enough.
        .test_before_acquire(false)
        .after_release(|connection, _| {
            Box::pin(async move {
                connection.execute("BEGIN; ROLLBACK").await?;
                Ok(true)
            })
        })
}

/// Checks that a schema is there and at least as new as this binary needs. Migrations are additive until every binary
/// has gone along, so a newer schema is fine.
///
/// `schema` is `event_store` or `read_model`; in each the table `migration` says what was applied.
///
/// # Errors
/// When the schema is missing or older.
pub async fn check_schema(pool: &PgPool, schema: &'static str, expected: i64) -> Result<(), DatabaseError> {
    let statement = match schema {
        "read_model" => "SELECT max(version) FROM read_model.migration WHERE success",
        _ => "SELECT max(version) FROM event_store.migration WHERE success",
    };
    let version: Result<i64, sqlx::Error> = bounded(pool, LOOKUP_TIMEOUT, move |connection| {
        Box::pin(sqlx::query_scalar(statement).fetch_one(connection))
    })
    .await;
    match version {
        Ok(actual) if actual >= expected => Ok(()),
        Ok(actual) => Err(DatabaseError::Outdated {
            schema,
            expected,
            actual,
        }),
        Err(source) => Err(DatabaseError::Version { schema, source }),
    }
}

/// As [`daybook_postgres::bounded`], for the request that is being answered: it counts until the work has ended, also when
/// its caller goes away.
///
/// # Errors
/// As there.
pub async fn bounded_for_request<T, E, W>(pool: &PgPool, limit: Duration, work: W) -> Result<T, E>
where
    T: Send + 'static,
    E: From<sqlx::Error> + Send + 'static,
    W: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
{
    let hold = request::hold();
    let counted = bounded(pool, limit, move |connection| {
        let working = work(connection);
        Box::pin(async move {
            let _hold = hold;
            working.await
        })
    });
    counted.await
}

/// Whether the database answers, for readiness.
///
/// # Errors
/// When it does not.
pub async fn ping(pool: PgPool) -> Result<(), sqlx::Error> {
    bounded(&pool, LOOKUP_TIMEOUT, |connection| {
        Box::pin(async move { connection.execute("SELECT 1").await.map(drop) })
    })
    .await
}

/// An outage is `DEPENDENCY_UNAVAILABLE`, a statement that ran too long `DEADLINE_EXCEEDED`, and anything else a fault
/// of ours: constraints that guard rules are to be mapped by name before.
impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        if is_timeout(&error) {
            Self::deadline_exceeded().with_source(error)
        } else if is_outage(&error) {
            Self::dependency_unavailable(DATABASE, error)
        } else {
            Self::internal(error)
        }
    }
}

fn is_timeout(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|error| error.code())
        .is_some_and(|code| code == QUERY_CANCELED)
}

/// Whether the database is away, as opposed to having refused a statement.
#[must_use]
pub fn is_outage(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            UNAVAILABLE_CLASSES.iter().any(|class| code.starts_with(class))
        }
        _ => false,
    }
}
