//! The query service: orders, totals, stock levels and histories over REST and gRPC.
//!
//! Read models answer what is asked about now; the log itself answers histories and what was. Every answer says how
//! fresh it is, and waits to be fresher when the caller demands it with a consistency token. Nothing here writes.
//!
//! | module | promise |
//! |---|---|
//! | `reads` | what can be read, the same for every transport |
//! | [`http`] | REST, and the OpenAPI description that it is |
//! | `grpc` | `OrderQueryService`, `StockQueryService` and `HistoryService` |
//! | `freshness` | how far the read models have come, and waiting for them |
//! | `loader` | reads of single orders, gathered into few round trips |
//! | `cursor` | cursors that nobody can read, forge or carry elsewhere |
//! | `streams` | events and rows as they come, resumed without gap or repetition |
//! | `database` | reads that are never cut in the middle |
//! | `violations` | all that is wrong with a request, said at once, the same over both transports |

mod config;
mod cursor;
mod database;
mod freshness;
mod grpc;
pub mod http;
mod loader;
mod reads;
mod sparse;
mod streams;
mod violations;

use daybook_event_bus::{Bus, signal};
use daybook_service::database as connections;
use daybook_service::start::Start;
use daybook_service::tickets::Tickets;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::config::Config;
use self::database::{STATEMENT_TIMEOUT, SharedReads};
use self::freshness::{Freshness, Watcher};
use self::loader::{OrderLoader, WORKERS};
use self::reads::Reads;
use self::streams::{Foundations, Streams};

/// The name of the service, in logs and to its servers.
pub const SERVICE_NAME: &str = "daybook-query-svc";

/// Serves on `listener` until `shutdown`, or until a task ends that should not.
///
/// # Errors
/// When a sealing key is missing or known to everybody, the database cannot be used or has an older schema, and when a
/// task has ended.
pub async fn run(
    config: Config,
    listener: TcpListener,
    admin_listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let ring = config.key_ring()?;
    let schemas = [
        ("event_store", daybook_event_store::schema_version()),
        ("read_model", daybook_read_model::schema_version()),
    ];
    let mut start = Start::new(&config.common, &schemas, shutdown).await?;
    let database_url = &config.common.database_url;
    let (name, size) = (SERVICE_NAME, config.database_connections);
    let shared = connections::connect_with_timeout(database_url, name, size, STATEMENT_TIMEOUT).await?;
    let shared = SharedReads::new(shared);
    let nats = config.common.nats_url.expose();
    let bus = Bus::connect(nats, &config.deployment, SERVICE_NAME).await?;
    let marks = connections::connect(database_url, "daybook-freshness", 1).await?;
    let (freshness, watcher) = freshness::watch(marks).await?;
    // NATS is not watched: without its signals freshness is polled, and everything is answered as before.
    let watched = freshness.clone();
    start.watch_postgres(move |pool| check(pool, watched.clone()));
    let orders = connections::connect(database_url, "daybook-orders", WORKERS).await?;
    let loader = start_reading(&mut start, &bus, watcher, &orders).await?;
    let reads = Reads::new(shared, loader, freshness.clone(), ring.clone());
    let tickets = Tickets::new(ring.clone());
    start.take_tickets(tickets.clone());
    let foundations = Foundations {
        pool: connections::connect(database_url, "daybook-streams", streams::CONNECTIONS).await?,
        freshness,
        authenticator: start.authenticator(),
        ring,
        tickets,
        shutdown: start.shutdown.clone(),
    };
    let streams = Streams::new(reads.clone(), foundations, &config.streams, &start.registry);
    let order_history = config.order_history();
    let http = http::router(reads.clone(), streams.clone(), order_history);
    let grpc = grpc::services(reads, streams, order_history);
    start.serve(listener, admin_listener, http, grpc).await
}

/// Whether the database answers, and has the newest log that anybody tells of.
async fn check(pool: PgPool, freshness: Freshness) -> anyhow::Result<()> {
    freshness.check_epoch()?;
    Ok(connections::ping(pool).await?)
}

/// Starts what reads are made with: the watch over freshness, and the workers of the loader.
async fn start_reading(
    start: &mut Start,
    bus: &Bus,
    watcher: Watcher,
    pool: &PgPool,
) -> anyhow::Result<OrderLoader> {
    let signals = signal::subscribe(bus).await?;
    let drained = &start.drained;
    start
        .tasks
        .spawn("freshness", watcher.run(signals, drained.clone()));
    let loader = OrderLoader::default();
    for _ in 0..WORKERS {
        start.tasks.spawn(
            "order loader",
            loader.clone().run_worker(pool.clone(), drained.clone()),
        );
    }
    Ok(loader)
}
