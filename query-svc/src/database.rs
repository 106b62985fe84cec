//! How this service reads from Postgres: never cut in the middle, never longer than its limit, tried again where that
//! helps, and with errors that are in the catalogue.
//!
//! A caller who goes away takes only the waiting with it: what Postgres was asked is finished or given up by
//! [`daybook_postgres::bounded`]. When a caller stops waiting is known before, though, and the server ends the statement then.
//!
//! What one caller asks for alone goes through [`SharedReads`], whose connections the tenants share: a tenant whose reads are
//! slow still leaves room for the others.

use std::error::Error;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use daybook_event_store::{EventStore, ReadError};
use daybook_postgres::{ACQUIRE_TIMEOUT, bounded, until};
use daybook_service::database::is_outage;
use daybook_service::error::DATABASE;
use daybook_service::shares::{Shares, SharesOptions};
use daybook_service::{ApiError, request};
use futures::future::BoxFuture;
use sqlx::{Connection as _, PgConnection, PgPool};
use thiserror::Error;
use tokio::time::Instant;
use uuid::Uuid;

/// How long the server lets one statement of tenants' reads run. Shorter than any of their limits here, so that it is the server
/// that ends a slow read: the caller is told that it takes too long, and the connection stays good.
pub(crate) const STATEMENT_TIMEOUT: Duration = Duration::from_millis(1_900);

/// How many reads may wait for a connection; of one tenant at most half of what the others leave.
const WAITING_MAX: usize = 1_024;

/// "cached plan must not change result type": a view was swapped to tables with other columns.
const FEATURE_NOT_SUPPORTED: &str = "0A000";

/// The server's `statement_timeout` ended the statement.
const QUERY_CANCELED: &str = "57014";

/// Why nothing could be read. Cheap to clone: all who share a read share its failure.
#[derive(Clone, Debug, Error)]
#[error("cannot read from the database")]
pub struct ReadFailure(#[source] Arc<dyn Error + Send + Sync>);

impl ReadFailure {
    fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Arc::new(error))
    }
}

impl From<ReadFailure> for ApiError {
    fn from(failure: ReadFailure) -> Self {
        match sqlx_error(failure.0.as_ref()) {
            Some(error) if has_code(error, QUERY_CANCELED) => Self::deadline_exceeded().with_source(failure),
            Some(error) if is_outage(error) => Self::dependency_unavailable(DATABASE, failure),
            _ => Self::internal(failure),
        }
    }
}

impl From<ReadError> for ReadFailure {
    fn from(error: ReadError) -> Self {
        Self::new(error)
    }
}

/// Connections that tenants share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SharedReads {
    pool: PgPool,
    shares: Shares,
}

impl SharedReads {
    /// Shares the connections of a pool.
    pub fn new(pool: PgPool) -> Self {
        let connections = pool.options().get_max_connections();
        let shares = Shares::new(SharesOptions {
            quota: "reads under way",
            places: connections as usize,
            waiting_max: WAITING_MAX,
            wait_max: ACQUIRE_TIMEOUT,
        });
        Self { pool, shares }
    }

    /// As [`read`], for a tenant.
    ///
    /// # Errors
    /// What the read failed with, and what [`Shares::place`] refuses.
    pub async fn read<T, R>(&self, tenant_id: Uuid, limit: Duration, statement: R) -> Result<T, ApiError>
    where
        T: Send + 'static,
        R: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send + Sync + 'static,
    {
        self.in_turn(tenant_id, |pool, until| async move {
            read_until(&pool, limit, until, statement).await
        })
        .await
    }

    /// Reads the log for a tenant.
    ///
    /// # Errors
    /// What the read failed with, and what [`Shares::place`] refuses.
    pub async fn read_log<T, F>(
        &self,
        tenant_id: Uuid,
        reading: impl FnOnce(EventStore) -> F,
    ) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ReadError>> + Send + 'static,
    {
        self.in_turn(tenant_id, |pool, until| {
            let reading = reading(EventStore::new(pool).until(until));
            async move { Ok(reading.await?) }
        })
        .await
    }

    /// Reads when it is the tenant's turn. The place is taken, and the request counts, until the read has ended, also when
    /// its caller goes away.
    async fn in_turn<T, F>(
        &self,
        tenant_id: Uuid,
        reading: impl FnOnce(PgPool, Option<Instant>) -> F,
    ) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ReadFailure>> + Send + 'static,
    {
        let place = self.shares.place(tenant_id).await?;
        let until = caller_stops_waiting();
        let (reading, hold) = (reading(self.pool.clone(), until), request::hold());
        let read = tokio::spawn(async move {
            let _held = (place, hold);
            reading.await
        });
        match read.await {
            Ok(read) => Ok(read?),
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(_stopped) => Err(ApiError::shutting_down()),
            },
        }
    }
}

/// When the caller of the current request stops waiting, where that is before [`STATEMENT_TIMEOUT`] ends a statement.
pub(crate) fn caller_stops_waiting() -> Option<Instant> {
    request::answer_by().filter(|moment| moment.duration_since(Instant::now()) < STATEMENT_TIMEOUT)
}

/// Reads within `limit`. A read that failed because a view was swapped is tried once more, on fresh statements; each
/// connection finds that out for itself.
///
/// # Errors
/// Whatever the read failed with.
pub(crate) async fn read<T, R>(pool: &PgPool, limit: Duration, statement: R) -> Result<T, ReadFailure>
where
    T: Send + 'static,
    R: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send + Sync + 'static,
{
    read_until(pool, limit, None, statement).await
}

/// As [`read`], for those who stop waiting at a moment: the server ends the statement then.
///
/// # Errors
/// As there.
pub(crate) async fn read_until<T, R>(
    pool: &PgPool,
    limit: Duration,
    moment: Option<Instant>,
    statement: R,
) -> Result<T, ReadFailure>
where
    T: Send + 'static,
    R: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send + Sync + 'static,
{
    let reading = bounded(pool, limit, move |connection| {
        Box::pin(async move {
            match until(connection, moment, &statement).await {
                Err(error) if has_code(&error, FEATURE_NOT_SUPPORTED) => {
                    connection.clear_cached_statements().await?;
                    until(connection, moment, &statement).await
                }
                outcome => outcome,
            }
        })
    });
    reading.await.map_err(ReadFailure::new)
}

/// The error of sqlx among an error and its causes.
fn sqlx_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a sqlx::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

fn has_code(error: &sqlx::Error, code: &str) -> bool {
    let database_error = error.as_database_error();
    database_error
        .and_then(|error| error.code())
        .is_some_and(|found| found == code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use daybook_service::Code;

    #[derive(Debug, Error)]
    #[error("cannot read a stream")]
    struct Wrapped(#[source] sqlx::Error);

    fn code_for(error: sqlx::Error) -> Code {
        ApiError::from(ReadFailure::new(Wrapped(error))).code().clone()
    }

    #[test]
    fn a_database_that_does_not_answer_is_no_fault_of_ours() {
        assert_eq!(code_for(sqlx::Error::PoolTimedOut), Code::DependencyUnavailable);
        assert_eq!(
            code_for(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()),
            Code::DependencyUnavailable
        );
    }

    #[test]
    fn what_only_a_programmer_can_mend_is_internal() {
        assert_eq!(
            code_for(sqlx::Error::ColumnNotFound("version".to_owned())),
            Code::Internal
        );
        assert_eq!(
            ApiError::from(ReadFailure::new(std::fmt::Error)).code(),
            &Code::Internal
        );
    }
}
