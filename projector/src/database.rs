//! Connections of the projector's own: each worker keeps one for itself, and throws it away after an error.
//!
//! They set `synchronous_commit = off`: rows and checkpoint commit together, so a crash of the server loses the tail of
//! both, and it is folded again (`migrations/read-model/0001_schema.sql` has the whole argument).

use std::str::FromStr as _;
use std::time::Duration;

use daybook_postgres::{
    ACQUIRE_TIMEOUT, CONNECT_TIMEOUT, current_connections, with_session_timeouts, within,
};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, PgConnection, PgPool};

/// How long a statement of a worker may run. A batch takes milliseconds; what takes longer than this hangs.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a transaction may wait for its client. Whoever takes over from a worker that was stopped in the middle of one
/// waits for that long.
const IDLE_IN_TRANSACTION_TIMEOUT: &str = "1s";

/// The same for the switch to new tables, which waits while they reach the live ones: whoever takes over from a replica that
/// was stopped in the middle of one waits for that long.
const IDLE_IN_SWITCH_TIMEOUT: &str = "2s";

/// How long a worker waits for a row that another one holds.
const LOCK_TIMEOUT: &str = "10s";

/// Makes connections.
#[derive(Debug, Clone)]
pub struct Connector {
    options: PgConnectOptions,
}

impl Connector {
    /// Connections to the database at `url`, as its role.
    pub fn new(url: &str) -> Result<Self, sqlx::Error> {
        let options = daybook_read_model::connect_options(PgConnectOptions::from_str(url)?);
        let options = with_session_timeouts(options, STATEMENT_TIMEOUT)
            .options([("synchronous_commit", "off"), ("lock_timeout", LOCK_TIMEOUT)]);
        Ok(Self { options })
    }

    /// A connection that shows its purpose in `pg_stat_activity`.
    pub async fn connect(&self, purpose: &str) -> Result<PgConnection, sqlx::Error> {
        let options = self
            .named(purpose)
            .options([("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT)]);
        within(CONNECT_TIMEOUT, options.connect()).await
    }

    /// A connection for work that may take as long as it takes, like making indexes; and for the switch.
    pub async fn connect_for_long(&self, purpose: &str) -> Result<PgConnection, sqlx::Error> {
        let options = self.named(purpose).options([
            ("statement_timeout", "0"),
            ("idle_in_transaction_session_timeout", IDLE_IN_SWITCH_TIMEOUT),
        ]);
        within(CONNECT_TIMEOUT, options.connect()).await
    }

    /// The session that shows that a replica lives. The server ends it when it has been silent for so long.
    pub async fn connect_as_replica(&self, silence_max: Duration) -> Result<PgConnection, sqlx::Error> {
        let silence_max = silence_max.as_millis().to_string();
        let options = self
            .named("replica")
            .options([("idle_session_timeout", silence_max)]);
        within(CONNECT_TIMEOUT, options.connect()).await
    }

    /// A few connections to read the log with.
    pub fn pool(&self, connections_max: u32) -> PgPool {
        current_connections(PgPoolOptions::new())
            .max_connections(connections_max)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .connect_lazy_with(self.named("log"))
    }

    fn named(&self, purpose: &str) -> PgConnectOptions {
        self.options
            .clone()
            .application_name(&format!("daybook-projector {purpose}"))
    }
}
