//! How this service reads from Postgres: never cut in the middle, tried again where that helps, and with errors that are
//! in the catalogue.
//!
//! A caller who goes away takes only the waiting with it. What Postgres was asked is finished in a task of its own (a
//! future that is dropped inside sqlx can leave a broken connection in the pool), and the pool's `statement_timeout`
//! bounds how long that takes.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;

use daybook_service::ApiError;
use daybook_service::database::is_outage;
use sqlx::{Connection as _, PgPool};
use thiserror::Error;

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
            Some(error) if is_outage(error) => Self::dependency_unavailable("database", failure),
            _ => Self::internal(failure),
        }
    }
}

/// Reads in a task of its own. A read that failed because a view was swapped is tried once more, on fresh statements.
///
/// # Errors
/// Whatever the read failed with, or a panic inside it.
pub async fn read<T, E, F>(
    pool: &PgPool,
    mut statement: impl FnMut(PgPool) -> F + Send + 'static,
) -> Result<T, ReadFailure>
where
    T: Send + 'static,
    E: Error + Send + Sync + 'static,
    F: Future<Output = Result<T, E>> + Send,
{
    let pool = pool.clone();
    let reading = tokio::spawn(async move {
        match statement(pool.clone()).await {
            Err(error) if is_stale_plan(&error) => {
                forget_statements(&pool).await;
                statement(pool).await
            }
            outcome => outcome,
        }
    });
    match reading.await {
        Ok(outcome) => outcome.map_err(ReadFailure::new),
        Err(panicked) => Err(ReadFailure::new(panicked)),
    }
}

/// Makes every idle connection prepare its statements anew. One that is busy finds out by itself.
async fn forget_statements(pool: &PgPool) {
    let mut idle = Vec::new();
    while let Some(connection) = pool.try_acquire() {
        idle.push(connection);
    }
    for connection in &mut idle {
        if let Err(error) = connection.clear_cached_statements().await {
            tracing::debug!(%error, "cannot clear the statements of a connection");
        }
    }
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

fn is_stale_plan(error: &(dyn Error + 'static)) -> bool {
    sqlx_error(error).is_some_and(|error| has_code(error, FEATURE_NOT_SUPPORTED))
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
