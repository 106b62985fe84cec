//! Keys in Postgres, looked up in batches on connections of their own.
//!
//! While one look-up is with Postgres the next ones wait together and go as one statement. So a flood of invented keys
//! costs one connection and a few index probes each, a real key that is used for the first time in the middle of it waits
//! for a round trip or two, and nothing else in the process waits at all. Keys that were found before have a queue and a
//! connection of their own, which no anonymous caller can fill: while they are in use they are refreshed in the background, and
//! after a pause their first request waits there. What an error of Postgres leaves unanswered stays as it was.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use daybook_postgres::bounded;
use futures::FutureExt as _;
use hashlink::LinkedHashMap;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use sqlx::{PgConnection, PgPool};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{Identity, KeyHash, Operator, Principal, ScopeSet};
use crate::config::Secret;
use crate::database::{self, DatabaseError};
use crate::error::{ApiError, DATABASE};

/// After which time a key that is in use is read again.
pub const KEY_REFRESH_INTERVAL: Duration = Duration::from_secs(15);

/// For how long a key is believed after it was read.
pub const KEY_TRUST_MAX: Duration = Duration::from_secs(45);

/// How long a look-up may take, a connection included.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// How many requests may wait for their key to be looked up.
pub const LOOKUPS_WAITING_MAX: usize = 2_048;

/// How long Postgres may work on a look-up: shorter than [`LOOKUP_TIMEOUT`], so that it is Postgres that gives up first.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(1);

/// One connection for unknown keys, one for those that were found before.
const CONNECTIONS: u32 = 2;

/// How many keys that exist are kept.
const KNOWN_KEYS_MAX: u64 = 50_000;

/// How many prefixes that do not exist are remembered, and for how long.
const MISSING_PREFIXES_MAX: u64 = 10_000;
const MISSING_PREFIX_TTL: Duration = Duration::from_secs(10);

/// How many prefixes one statement asks for.
const BATCH_MAX: usize = 1_024;

/// For how long refreshes that nobody waits for gather, so that thousands of keys in use cost a few statements a second.
const REFRESHES_GATHER_FOR: Duration = Duration::from_millis(100);

/// The pause before a key whose refresh failed is asked for again.
const REFRESH_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How old what is known of a key may become.
#[derive(Clone, Copy, Debug)]
pub struct KeyAges {
    /// After which time a key that is in use is read again.
    pub refresh_interval: Duration,
    /// For how long a key is believed after it was read.
    pub trust_max: Duration,
}

impl Default for KeyAges {
    fn default() -> Self {
        Self {
            refresh_interval: KEY_REFRESH_INTERVAL,
            trust_max: KEY_TRUST_MAX,
        }
    }
}

/// A key that exists, is not revoked and has not expired.
#[derive(Debug)]
pub(super) struct KnownKey {
    pub(super) hash: KeyHash,
    pub(super) identity: Identity,
    read_at: Instant,
    /// When it is to be refreshed, in milliseconds since the process began to look keys up.
    refresh_at_ms: AtomicU64,
}

type Answer = Result<Option<Arc<KnownKey>>, ApiError>;

/// Prefixes with the requests that wait for their keys, in the order in which they came.
type Batch = LinkedHashMap<String, Vec<oneshot::Sender<Answer>>>;

/// The prefixes to be looked up next.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    notify: Notify,
    /// A request waits.
    request: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    prefixes: Batch,
    requests: usize,
}

impl Waiting {
    /// The waiters for a prefix, which keeps its place in the queue.
    fn for_prefix(&mut self, prefix: &str) -> &mut Vec<oneshot::Sender<Answer>> {
        if !self.prefixes.contains_key(prefix) {
            self.prefixes.insert(prefix.to_owned(), Vec::new());
        }
        self.prefixes.get_mut(prefix).expect("it has just been put there")
    }
}

impl Queue {
    /// Nothing panics while the lock is held, so what a poisoned one holds is whole.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request that waits.
    fn wait_for(&self, prefix: &str) -> Result<oneshot::Receiver<Answer>, ApiError> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if waiting.requests >= LOOKUPS_WAITING_MAX {
                return Err(ApiError::overloaded("too many unknown keys are being looked up"));
            }
            waiting.requests += 1;
            waiting.for_prefix(prefix).push(sender);
        }
        self.notify.notify_one();
        self.request.notify_one();
        Ok(receiver)
    }

    /// Adds a prefix that nobody waits for.
    fn ask_for(&self, prefix: &str) {
        self.waiting().for_prefix(prefix);
        self.notify.notify_one();
    }

    /// Waits for more prefixes, until a request waits.
    async fn gather(&self) {
        // Left over from a request that was taken already.
        let _ = self.request.notified().now_or_never();
        if self.waiting().requests == 0 {
            let _ = timeout(REFRESHES_GATHER_FOR, self.request.notified()).await;
        }
    }

    fn take_batch(&self) -> Batch {
        let mut waiting = self.waiting();
        let first = std::iter::from_fn(|| waiting.prefixes.pop_front());
        let batch: Batch = first.take(BATCH_MAX).collect();
        waiting.requests -= batch.values().map(Vec::len).sum::<usize>();
        batch
    }
}

/// The known keys, and the look-ups under way.
#[derive(Debug)]
pub(super) struct Lookups {
    ages: KeyAges,
    started: Instant,
    /// Keys that were found. One that was read too long ago is not believed, but has its place among those to refresh.
    known: Cache<String, Arc<KnownKey>>,
    missing: Cache<String, ()>,
    unknown_keys: Queue,
    refreshes: Queue,
}

/// Connects, with the shorter limits of look-ups.
pub(super) async fn connect(database_url: &Secret) -> Result<PgPool, DatabaseError> {
    database::connect_with_timeout(database_url, "daybook-identity", CONNECTIONS, STATEMENT_TIMEOUT).await
}

impl Lookups {
    pub(super) fn new(ages: KeyAges) -> Self {
        let known = Cache::builder()
            .max_capacity(KNOWN_KEYS_MAX)
            .eviction_policy(EvictionPolicy::lru());
        let missing = Cache::builder()
            .max_capacity(MISSING_PREFIXES_MAX)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(MISSING_PREFIX_TTL);
        Self {
            ages,
            started: Instant::now(),
            known: known.build(),
            missing: missing.build(),
            unknown_keys: Queue::default(),
            refreshes: Queue::default(),
        }
    }

    /// The key of a prefix; `None` when there is none that is good.
    pub(super) async fn find(&self, prefix: &str) -> Answer {
        let known = self.known.get(prefix);
        let answer = match known {
            Some(known) if known.read_at.elapsed() < self.ages.trust_max => {
                if self.is_refresh_due(&known) {
                    self.refreshes.ask_for(prefix);
                }
                return Ok(Some(known));
            }
            Some(_) => self.refreshes.wait_for(prefix)?,
            None if self.missing.contains_key(prefix) => return Ok(None),
            None => self.unknown_keys.wait_for(prefix)?,
        };
        answer.await.map_err(|_stopped| ApiError::shutting_down())?
    }

    /// The key of a prefix that was found before, as it was at most `age` ago.
    pub(super) async fn find_as_of(&self, prefix: &str, age: Duration) -> Answer {
        match self.known.get(prefix) {
            Some(known) if known.read_at.elapsed() < age => Ok(Some(known)),
            _ => {
                let answer = self.refreshes.wait_for(prefix)?;
                answer.await.map_err(|_stopped| ApiError::shutting_down())?
            }
        }
    }

    /// Whether this request is the one that has the key refreshed: one for each interval, and one for each pause after a
    /// failure.
    fn is_refresh_due(&self, known: &KnownKey) -> bool {
        let due = known.refresh_at_ms.load(Ordering::Relaxed);
        let now = self.now_ms();
        let next = now + millis(REFRESH_RETRY_PAUSE.min(self.ages.refresh_interval));
        now >= due
            && known
                .refresh_at_ms
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    fn now_ms(&self) -> u64 {
        millis(self.started.elapsed())
    }

    /// Looks up what is asked for, for ever.
    pub(super) async fn run(self: Arc<Self>, pool: PgPool) -> anyhow::Result<()> {
        tokio::join!(
            self.run_queue(&self.unknown_keys, &pool),
            self.run_queue(&self.refreshes, &pool)
        );
        Ok(())
    }

    async fn run_queue(&self, queue: &Queue, pool: &PgPool) {
        loop {
            let batch = queue.take_batch();
            if batch.is_empty() {
                queue.notify.notified().await;
                queue.gather().await;
            } else {
                self.look_up(batch, pool).await;
            }
        }
    }

    async fn look_up(&self, batch: Batch, pool: &PgPool) {
        let (asked_at, prefixes) = (Instant::now(), batch.keys().cloned().collect());
        let found = query_in_time(pool.clone(), prefixes).await;
        let mut rows: HashMap<String, KeyRow> = match found {
            Ok(rows) => rows.into_iter().map(|row| (row.prefix.clone(), row)).collect(),
            Err(error) => {
                let waiters = batch.into_iter().flat_map(|(_, waiters)| waiters);
                return waiters.for_each(|waiter| answer(waiter, Err(error.clone())));
            }
        };
        for (prefix, waiters) in batch {
            let key = rows.remove(&prefix).and_then(|row| self.known_key(row, asked_at));
            match &key {
                Some(key) => self.known.insert(prefix, Arc::clone(key)),
                None => {
                    self.known.invalidate(&prefix);
                    self.missing.insert(prefix, ());
                }
            }
            let waiters = waiters.into_iter();
            waiters.for_each(|waiter| answer(waiter, Ok(key.clone())));
        }
    }

    fn known_key(&self, row: KeyRow, read_at: Instant) -> Option<Arc<KnownKey>> {
        let hash = KeyHash::try_from(row.secret_sha256.as_slice()).ok()?;
        let refresh_at = self.now_ms() + millis(self.ages.refresh_interval);
        Some(Arc::new(KnownKey {
            hash,
            identity: row.into_identity()?,
            read_at,
            refresh_at_ms: AtomicU64::new(refresh_at),
        }))
    }
}

fn answer(waiter: oneshot::Sender<Answer>, answer: Answer) {
    // Who has gone away needs no answer.
    let _ = waiter.send(answer);
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[derive(sqlx::FromRow)]
struct KeyRow {
    prefix: String,
    tenant_id: Option<Uuid>,
    partition: Option<i32>,
    name: String,
    secret_sha256: Vec<u8>,
    scopes: Vec<String>,
}

impl KeyRow {
    /// `None` for a tenant without a partition, which the schema rules out.
    fn into_identity(self) -> Option<Identity> {
        let scopes = ScopeSet::from_names(self.scopes.iter().map(String::as_str));
        Some(match self.tenant_id {
            Some(tenant_id) => Identity::Tenant(Arc::new(Principal {
                tenant_id,
                tenant_partition: self.partition?,
                key_prefix: self.prefix,
                name: self.name,
                scopes,
            })),
            None => Identity::Deployment(Arc::new(Operator {
                key_prefix: self.prefix,
                name: self.name,
                scopes,
            })),
        })
    }
}

/// Asks the database, with a deadline on this side. A connection that did not answer is closed: nobody else gets it.
async fn query_in_time(pool: PgPool, prefixes: Vec<String>) -> Result<Vec<KeyRow>, ApiError> {
    let found = bounded(&pool, LOOKUP_TIMEOUT, |connection| {
        Box::pin(query(connection, prefixes))
    });
    match timeout(LOOKUP_TIMEOUT, found).await {
        Ok(found) => found.map_err(database_error),
        Err(elapsed) => Err(ApiError::dependency_unavailable(DATABASE, elapsed)),
    }
}

async fn query(connection: &mut PgConnection, prefixes: Vec<String>) -> Result<Vec<KeyRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT prefix, tenant_id, partition, name, secret_sha256, scopes
           FROM event_store.authenticate_api_keys($1)",
    )
    .bind(prefixes)
    .fetch_all(connection)
    .await
}

/// Any error of the database is an outage here: the caller's key may be perfectly good.
fn database_error(error: sqlx::Error) -> ApiError {
    if database::is_outage(&error) {
        ApiError::dependency_unavailable(DATABASE, error)
    } else {
        ApiError::internal(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asked_first_is_looked_up_first() {
        let queue = Queue::default();
        let prefixes: Vec<String> = (0..2 * BATCH_MAX).map(|number| format!("{number:08}")).collect();
        prefixes.iter().for_each(|prefix| queue.ask_for(prefix));
        // To ask again changes nothing.
        queue.ask_for(&prefixes[0]);
        for asked in prefixes.chunks(BATCH_MAX) {
            assert!(queue.take_batch().keys().eq(asked));
        }
        assert!(queue.take_batch().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn refreshes_gather_until_a_request_waits() {
        let queue = Queue::default();
        let gathers_for = async || {
            let began = Instant::now();
            queue.gather().await;
            began.elapsed()
        };
        queue.ask_for("00000000");
        assert!(gathers_for().await >= REFRESHES_GATHER_FOR);
        let waits = queue.wait_for("00000001");
        assert_eq!(gathers_for().await, Duration::ZERO);
        queue.take_batch();
        assert!(
            gathers_for().await >= REFRESHES_GATHER_FOR,
            "what was taken is no reason to hurry"
        );
        let (gathered_for, _waits) = tokio::join!(gathers_for(), async { queue.wait_for("00000002") });
        assert_eq!(gathered_for, Duration::ZERO);
        drop(waits);
    }

    #[tokio::test]
    async fn a_key_that_was_found_before_has_its_place_however_many_unknown_ones_wait() {
        let ages = KeyAges {
            trust_max: Duration::ZERO,
            ..KeyAges::default()
        };
        let lookups = Lookups::new(ages);
        let row = KeyRow {
            prefix: "ab345678".to_owned(),
            tenant_id: None,
            partition: None,
            name: "test".to_owned(),
            secret_sha256: vec![0; 32],
            scopes: Vec::new(),
        };
        let known = lookups.known_key(row, Instant::now()).expect("a whole row");
        lookups.known.insert("ab345678".to_owned(), known);
        let crowd: Vec<_> = (0..LOOKUPS_WAITING_MAX)
            .map(|number| lookups.unknown_keys.wait_for(&format!("{number:08}")))
            .collect();
        assert!(crowd.iter().all(Result::is_ok));
        let invented = lookups.find("zz999999").now_or_never();
        assert!(matches!(invented, Some(Err(_))), "the queue is full");
        let found_before = lookups.find("ab345678").now_or_never();
        assert!(found_before.is_none(), "it waits, and is not turned away");
        assert!(lookups.refreshes.take_batch().contains_key("ab345678"));
    }
}
