//! Calls to Postgres that have a deadline in this process.
//!
//! A server's timeout does not end a wait on a network that has gone silent: sqlx sets neither TCP keepalive nor a user
//! timeout, so a call would last until the kernel gives up, minutes later, and its connection would be missing from the
//! pool for as long. So each call is bounded here as well:
//!
//! - [`bounded`] is for a pool. The work runs in a task of its own, so that a caller who goes away cuts nothing in the
//!   middle (a future that is dropped inside sqlx can leave an open transaction behind, transact-rs/sqlx#4393).
//! - [`within`] is for a connection that its user owns, and drops after a timeout.
//! - [`until`] is for a caller who stops waiting earlier: the server ends the statement then, and the connection stays good.
//!
//! In the first two cases a connection that did not answer in time is closed and never used again. Once the network is back the
//! pool is whole again after [`ACQUIRE_TIMEOUT`] or the longest limit in use, whichever is longer.
//!
//! [`with_session_timeouts`] sets the server's side: it ends what nobody waits for any more, and lets go of its locks.
//!
//! An address may lead to another server than it did: a standby was promoted, and the old primary lives on, cut off, with the
//! connections that it has. Whoever finds that out calls [`reconnect`], and every pool with [`current_connections`] makes its
//! connections anew.

use std::future::Future;
use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io};

use futures::future::BoxFuture;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, PgConnection, PgPool, Postgres};
use tokio::time::timeout;

/// How long a caller waits for a connection of a pool, and a pool for a new connection.
pub const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long making a connection may take outside of a pool.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a statement may take that finds a few rows by a key. The server needs milliseconds.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a statement may take that reads a page of a list.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may take to show that it can be used again.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a transaction may wait for its client before the server ends its session.
pub const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the server looks whether the client of a running statement is still there.
const CLIENT_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long the server waits for a client's TCP to acknowledge what it sent, and for a sign of life of a silent client.
const CLIENT_SILENCE_MAX: Duration = Duration::from_secs(10);

/// Has the server end what takes longer, in this transaction: so many milliseconds.
pub const LIMIT_STATEMENTS: &str = "SELECT set_config('statement_timeout', $1, TRUE)";

/// Does work on a connection of the pool, and waits for at most `limit` once there is a connection. A caller who stops
/// waiting earlier leaves the work to end by itself; a caller's own deadline never closes a connection that works.
///
/// # Errors
/// What the work fails with, `PoolTimedOut` after [`ACQUIRE_TIMEOUT`], and `Io` with `TimedOut` when the limit has passed:
/// the connection is then closed, and whether the statement took effect is not known.
///
/// # Panics
/// When the work does.
pub async fn bounded<T, E, W>(pool: &PgPool, limit: Duration, work: W) -> Result<T, E>
where
    T: Send + 'static,
    E: From<sqlx::Error> + Send + 'static,
    W: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
{
    let pool = pool.clone();
    let working = tokio::spawn(async move {
        let mut connection = pool.acquire().await?;
        let done = timeout(limit, work(&mut connection)).await;
        match done {
            Ok(done) => {
                tokio::spawn(release(connection));
                done
            }
            Err(_elapsed) => {
                // Not returned to the pool: its answer may still come, or never.
                drop(connection.detach());
                Err(timed_out(limit).into())
            }
        }
    });
    match working.await {
        Ok(done) => done,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_stopped) => Err(sqlx::Error::WorkerCrashed.into()),
        },
    }
}

/// Gives a connection back once it has answered. Left to itself, sqlx waits for that answer without a limit, and the
/// place in the pool is taken for as long; dropped half-way, it closes the connection.
async fn release(mut connection: PoolConnection<Postgres>) {
    let _ = timeout(RELEASE_TIMEOUT, connection.return_to_pool()).await;
}

/// When the connections of this process were last to be made anew.
static RECONNECTED_AT: Mutex<Option<Instant>> = Mutex::new(None);

/// Has all connections of this process made anew that are in a pool with [`current_connections`], each when it is next taken
/// from there: their address may lead to another server by now. What is under way on one ends there.
pub fn reconnect() {
    let mut reconnected_at = RECONNECTED_AT.lock().unwrap_or_else(PoisonError::into_inner);
    *reconnected_at = Some(Instant::now());
}

/// Whether a connection of this age was made after the last [`reconnect`]. Whoever keeps one outside of a pool asks before each use.
#[must_use]
pub fn is_current(age: Duration) -> bool {
    let reconnected_at = *RECONNECTED_AT.lock().unwrap_or_else(PoisonError::into_inner);
    reconnected_at.is_none_or(|at| is_made_since(age, at.elapsed()))
}

/// Has a pool give out no connection that was made before the last [`reconnect`].
#[must_use]
pub fn current_connections(options: PgPoolOptions) -> PgPoolOptions {
    options.before_acquire(|_, connection| Box::pin(std::future::ready(Ok(is_current(connection.age)))))
}

/// Whether a connection of this age leads where the address led when connections were last to be made anew, so long ago. One that
/// was being made in that moment is counted from when it was ready: it may have begun before, so once none of that time can be
/// under way any more they are all made again.
fn is_made_since(age: Duration, reconnected: Duration) -> bool {
    let was_ready_after = reconnected.saturating_sub(age);
    let is_over = reconnected > ACQUIRE_TIMEOUT;
    age < reconnected && !(is_over && was_ready_after < ACQUIRE_TIMEOUT)
}

/// Waits for an answer on a connection of one's own for at most `limit`.
///
/// # Errors
/// What the work fails with, and `Io` with `TimedOut` when the limit has passed: then drop the connection, which closes
/// it. Whether the statement took effect is not known.
pub async fn within<T, E: From<sqlx::Error>>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match timeout(limit, work).await {
        Ok(done) => done,
        Err(_elapsed) => Err(timed_out(limit).into()),
    }
}

/// Does work in a transaction whose statements the server ends at a moment; without one the limit of the session holds. Give it
/// only a moment that comes sooner than that: the limit is set with three more round trips.
///
/// # Errors
/// What the work fails with: SQLSTATE 57014 (`query_canceled`) when the moment has come.
pub async fn until<T, E, W>(
    connection: &mut PgConnection,
    moment: Option<tokio::time::Instant>,
    work: W,
) -> Result<T, E>
where
    E: From<sqlx::Error>,
    W: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, E>>,
{
    let Some(moment) = moment else {
        return work(connection).await;
    };
    let mut transaction = connection.begin().await?;
    // Zero is no limit.
    let left = moment
        .duration_since(tokio::time::Instant::now())
        .as_millis()
        .max(1);
    let limited = sqlx::query(LIMIT_STATEMENTS).bind(left.to_string());
    limited.execute(&mut *transaction).await?;
    let done = work(&mut transaction).await;
    match done {
        Ok(done) => {
            transaction.commit().await?;
            Ok(done)
        }
        Err(error) => {
            // A connection that cannot is found when it is given back.
            let _rolled_back = transaction.rollback().await;
            Err(error)
        }
    }
}

fn timed_out(limit: Duration) -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, Silence(limit)))
}

/// What the log says of a call that was given up.
#[derive(Debug)]
struct Silence(Duration);

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the database did not answer within {:?}", self.0)
    }
}

impl std::error::Error for Silence {}

/// Has the server end what runs for longer than `statement_timeout`, transactions that wait for their client, and
/// sessions whose client is gone. On a Unix socket there is no TCP, and its settings are ignored.
#[must_use]
pub fn with_session_timeouts(options: PgConnectOptions, statement_timeout: Duration) -> PgConnectOptions {
    let millis = |timeout: Duration| timeout.as_millis().to_string();
    let seconds = |timeout: Duration| timeout.as_secs().to_string();
    options.options([
        ("statement_timeout", millis(statement_timeout)),
        (
            "idle_in_transaction_session_timeout",
            millis(IDLE_IN_TRANSACTION_TIMEOUT),
        ),
        ("client_connection_check_interval", millis(CLIENT_CHECK_INTERVAL)),
        ("tcp_user_timeout", millis(CLIENT_SILENCE_MAX)),
        ("tcp_keepalives_idle", seconds(CLIENT_SILENCE_MAX)),
        ("tcp_keepalives_interval", seconds(CLIENT_SILENCE_MAX / 4)),
        ("tcp_keepalives_count", "4".to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_may_have_been_under_way_when_all_were_to_be_made_anew_is_made_once_more() {
        let second = Duration::from_secs(1);
        assert!(!is_made_since(5 * second, second), "older than that");
        assert!(
            is_made_since(second / 2, second),
            "there may be no better one yet"
        );
        assert!(!is_made_since(9 * second, 10 * second), "ready a second later");
        assert!(is_made_since(6 * second, 10 * second), "begun later");
        assert!(is_made_since(Duration::ZERO, 10 * second));
    }
}
