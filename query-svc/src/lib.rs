//! The query service: orders, totals, stock levels and histories over REST and gRPC.
//!
//! Read models answer what is asked about now; the log itself answers histories and what was. Every answer says how
//! fresh it is, and waits to be fresher when the caller demands it with a consistency token. Nothing here writes.
//!
//! | module | promise |
//! |---|---|
//! | [`reads`] | what can be read, the same for every transport |
//! | [`http`] | REST, and the OpenAPI description that it is |
//! | [`grpc`] | `OrderQueryService`, `StockQueryService` and `HistoryService` |
//! | [`freshness`] | how far the read models have come, and waiting for them |
//! | [`loader`] | reads of single orders, gathered into few round trips |
//! | [`cursor`] | cursors that nobody can forge or carry elsewhere |
//! | [`database`] | reads that are never cut in the middle |

mod config;
pub mod cursor;
pub mod database;
pub mod freshness;
pub mod grpc;
pub mod http;
pub mod loader;
pub mod reads;

use daybook_event_bus::{Bus, signal};
use daybook_proto::FILE_DESCRIPTOR_SET;
use daybook_proto::history::v1::history_service_server::HistoryServiceServer;
use daybook_proto::orders::v1::order_query_service_server::OrderQueryServiceServer;
use daybook_proto::stock::v1::stock_query_service_server::StockQueryServiceServer;
use daybook_service::admin::{self, Readiness};
use daybook_service::database::{self as connections, DatabaseError};
use daybook_service::grpc::GrpcServices;
use daybook_service::identity::{Authenticator, Scope};
use daybook_service::metrics::{Registry, ServerMetrics};
use daybook_service::server::{self, Access, Limits, Needs, Routes};
use daybook_service::shutdown::Supervisor;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::config::Config;
use self::database::SharedReads;
use self::freshness::Watcher;
use self::grpc::{Queries, REQUEST_BYTES_MAX};
use self::loader::{LANES, OrderLoader};
use self::reads::Reads;

/// The name of the service, in logs and to its servers.
pub const SERVICE_NAME: &str = "daybook-query-svc";

/// Serves on `listener` until `shutdown`, or until a task ends that should not.
///
/// # Errors
/// When a cursor key is missing or known to everybody, the database cannot be used or has an older schema, and when a
/// task has ended.
pub async fn run(
    config: Config,
    listener: TcpListener,
    admin_listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let cursors = config.cursors()?;
    let database_url = &config.common.database_url;
    let shared = connections::connect(database_url, SERVICE_NAME, config.database_connections).await?;
    check_schemas(&shared).await?;
    let shared = SharedReads::new(shared);
    let nats = config.common.nats_url.expose();
    let bus = Bus::connect_as(nats, &config.deployment, SERVICE_NAME).await?;
    let marks = connections::connect(database_url, "daybook-freshness", 1).await?;
    let (freshness, watcher) = freshness::watch(marks, shared.clone()).await?;

    let registry = Registry::new();
    let readiness = Readiness::new(shutdown.clone());
    let mut tasks = Supervisor::new(shutdown.clone());
    let readiness_pool = connections::connect(database_url, "daybook-readiness", 1).await?;
    watch_dependencies(&mut tasks, &readiness, readiness_pool);
    tasks.spawn_companion("admin", serve_admin(admin_listener, readiness, registry.clone()));

    // What requests need goes on until the last of them is answered.
    let drained = CancellationToken::new();
    let orders = connections::connect(database_url, "daybook-orders", LANES).await?;
    let loader = start_reading(&mut tasks, &bus, watcher, &orders, &drained).await?;
    let reads = Reads::new(shared, loader, freshness, cursors);
    let (authenticator, lookups) = Authenticator::connect(database_url).await?;
    tasks.spawn_companion("key lookups", lookups);

    let http = http::router(reads.clone());
    let queries = Queries::new(reads);
    let orders = OrderQueryServiceServer::new(queries.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let stock = StockQueryServiceServer::new(queries.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let history = HistoryServiceServer::new(queries).max_decoding_message_size(REQUEST_BYTES_MAX);
    let needs = |scope| Needs::scope(scope).with_message(REQUEST_BYTES_MAX);
    let grpc = GrpcServices::default()
        .with(orders, needs(Scope::OrdersRead))
        .with(stock, needs(Scope::StockRead))
        .with(history, needs(Scope::EventsRead))
        .into_router(
            FILE_DESCRIPTOR_SET,
            config.common.reflection(),
            &mut tasks,
            &shutdown,
        )
        .await?;
    let metrics = ServerMetrics::new(&registry);
    let routes = Routes {
        http,
        grpc,
        access: Access::Identified(authenticator),
    };
    tasks.spawn("server", async move {
        let _drained = drained.drop_guard();
        server::serve(listener, routes, Limits::default(), metrics, shutdown).await;
        Ok(())
    });
    tracing::info!("ready");
    tasks.run().await?;
    Ok(())
}

async fn check_schemas(pool: &PgPool) -> Result<(), DatabaseError> {
    connections::check_schema(pool, "event_store", daybook_event_store::schema_version()).await?;
    connections::check_schema(pool, "read_model", daybook_read_model::schema_version()).await
}

/// NATS is not among them: without its signals freshness is polled, and everything is answered as before.
/// The check has a connection of its own, so that it never waits behind reads.
fn watch_dependencies(tasks: &mut Supervisor, readiness: &Readiness, pool: PgPool) {
    let ping = move || {
        let pool = pool.clone();
        async move { connections::ping(&pool).await }
    };
    tasks.spawn("postgres check", readiness.watch("postgres", ping));
}

async fn serve_admin(listener: TcpListener, readiness: Readiness, registry: Registry) -> anyhow::Result<()> {
    admin::serve(listener, readiness, registry).await;
    Ok(())
}

/// Starts what reads are made with: the watch over freshness, and the lanes of the loader.
async fn start_reading(
    tasks: &mut Supervisor,
    bus: &Bus,
    watcher: Watcher,
    pool: &PgPool,
    drained: &CancellationToken,
) -> anyhow::Result<OrderLoader> {
    let signals = signal::subscribe(bus).await?;
    tasks.spawn("freshness", watcher.run(signals, drained.clone()));
    let loader = OrderLoader::default();
    for _ in 0..LANES {
        tasks.spawn(
            "order loader",
            loader.clone().run_lane(pool.clone(), drained.clone()),
        );
    }
    Ok(loader)
}
