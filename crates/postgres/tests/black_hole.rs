//! What becomes of calls and of a pool when the network to a real Postgres goes silent.

use std::sync::Arc;
use std::time::Duration;

use daybook_devstack::Proxy;
use daybook_devstack::proxy::Direction;
use daybook_devstack::testing::{TestCluster, test_cluster};
use daybook_postgres::{ACQUIRE_TIMEOUT, bounded, with_session_timeouts, within};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgPool, Row as _};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Connections of the pool.
const CONNECTIONS: u32 = 4;

/// The limit of the calls of these tests.
const LIMIT: Duration = Duration::from_millis(500);

/// What a loaded machine may add.
const SLACK: Duration = Duration::from_secs(2);

/// How long after the network is back calls are answered, at the most.
const BACK_WITHIN: Duration = Duration::from_secs(5);

struct Database {
    proxy: Arc<Proxy>,
    options: PgConnectOptions,
    pool: PgPool,
    _cluster: TestCluster,
}

impl Database {
    async fn start() -> Self {
        let cluster = test_cluster().await.expect("a server for tests");
        let (proxy, url) = Proxy::in_front_of(&cluster.superuser_url("postgres"))
            .await
            .expect("a proxy");
        let options: PgConnectOptions = url.parse().expect("a URL");
        let options = with_session_timeouts(options, Duration::from_secs(4));
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .connect_lazy_with(options.clone());
        Self {
            proxy: Arc::new(proxy),
            options,
            pool,
            _cluster: cluster,
        }
    }

    async fn call(&self) -> Result<i32, sqlx::Error> {
        call(self.pool.clone()).await
    }

    /// As many calls at once as the pool has connections, with one more that has to wait.
    fn crowd(&self) -> JoinSet<Result<i32, sqlx::Error>> {
        let mut calls = JoinSet::new();
        for _ in 0..=CONNECTIONS {
            calls.spawn(call(self.pool.clone()));
        }
        calls
    }
}

async fn call(pool: PgPool) -> Result<i32, sqlx::Error> {
    bounded(&pool, LIMIT, |connection| {
        Box::pin(async move { connection.fetch_one("SELECT 1").await?.try_get(0) })
    })
    .await
}

#[tokio::test]
async fn calls_into_a_black_hole_end_in_time_and_the_pool_is_whole_when_it_heals() {
    let database = Database::start().await;
    let mut calls = database.crowd();
    while let Some(answer) = calls.join_next().await {
        answer.expect("no panic").expect("the network is fine");
    }
    for direction in [Direction::Both, Direction::ToServer, Direction::ToClient] {
        database.proxy.black_hole(direction);
        // The first crowd loses its connections, the second one finds none.
        for _ in 0..2 {
            let asked = Instant::now();
            let mut calls = database.crowd();
            while let Some(answer) = calls.join_next().await {
                let error = answer.expect("no panic").expect_err("nothing comes through");
                let waited = asked.elapsed();
                assert!(
                    waited < ACQUIRE_TIMEOUT + LIMIT + SLACK,
                    "{waited:?} until {error}"
                );
            }
        }
        database.proxy.heal();
        let healed = Instant::now();
        while database.call().await.is_err() {
            assert!(healed.elapsed() < BACK_WITHIN, "no call was answered");
        }
        let mut calls = database.crowd();
        while let Some(answer) = calls.join_next().await {
            answer
                .expect("no panic")
                .expect("every place of the pool works again");
        }
        assert!(healed.elapsed() < BACK_WITHIN);
        assert!(database.pool.size() <= CONNECTIONS);
    }
    assert!(database.proxy.swallowed() > 0);
}

#[tokio::test]
async fn a_connection_whose_return_is_swallowed_gives_its_place_back() {
    let database = Database::start().await;
    for _ in 0..CONNECTIONS {
        let (proxy, swallowed) = (Arc::clone(&database.proxy), database.proxy.swallowed());
        let work = bounded(&database.pool, LIMIT, move |connection| {
            Box::pin(async move {
                connection.execute("SELECT 1").await?;
                // The pool's own question on the way back is lost.
                proxy.black_hole(Direction::Both);
                Ok::<_, sqlx::Error>(())
            })
        });
        work.await.expect("what was asked is answered");
        while database.proxy.swallowed() == swallowed {
            tokio::task::yield_now().await;
        }
        database.proxy.heal();
    }
    let mut calls = database.crowd();
    while let Some(answer) = calls.join_next().await {
        answer
            .expect("no panic")
            .expect("every place of the pool works again");
    }
}

#[tokio::test]
async fn a_caller_who_goes_away_cuts_nothing_in_the_middle() {
    let database = Database::start().await;
    let mut calls = database.crowd();
    while calls.join_next().await.is_some() {}
    for _ in 0..20 {
        let pool = database.pool.clone();
        let calling = tokio::spawn(async move {
            bounded(&pool, LIMIT, |connection| {
                Box::pin(async move { connection.begin().await?.commit().await })
            })
            .await
        });
        tokio::task::yield_now().await;
        calling.abort();
    }
    // An open transaction has the time of its beginning, a statement outside of one its own.
    for _ in 0..CONNECTIONS {
        let outside = bounded(&database.pool, LIMIT, |connection| {
            Box::pin(async move {
                let row = connection.fetch_one("SELECT pg_sleep(0.001), now() = statement_timestamp()");
                row.await?.try_get::<bool, _>(1)
            })
        });
        assert!(outside.await.expect("a connection that works"));
    }
}

#[tokio::test]
async fn a_wait_on_a_connection_of_ones_own_ends_in_time_and_the_server_forgets_it() {
    let database = Database::start().await;
    let named = database.options.clone().application_name("daybook-forgotten");
    let mut connection = named.connect().await.expect("the network is fine");
    let asked = Instant::now();
    let slow = within(LIMIT, connection.execute("SELECT pg_sleep(600)"));
    let error = slow.await.expect_err("it takes longer");
    assert!(asked.elapsed() < LIMIT + SLACK, "{:?}", asked.elapsed());
    assert!(
        error.to_string().contains("did not answer within 500ms"),
        "{error}"
    );
    drop(connection);
    let still_there = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'daybook-forgotten'";
    while sqlx::query_scalar::<_, i64>(still_there)
        .fetch_one(&database.pool)
        .await
        .expect("a count")
        > 0
    {
        assert!(asked.elapsed() < BACK_WITHIN, "the server works on for nobody");
    }
}
