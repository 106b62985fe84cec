//! The command service: load → decide → append → publish → reply.
//!
//! | module | what it is for |
//! |---|---|
//! | [`orders`] | the gRPC methods, from request to receipt |
//! | [`request`] | what every command request goes through before it is decided |
//! | [`mailbox`] | decides the commands of one aggregate one after another, on a guess that the append makes true |
//! | [`aggregate`] | what the mailboxes need to know of an aggregate |
//! | [`partitions`] | the partitions of the log that this process appends to |
//!
//! It never sees a read model. A command is acknowledged when its events are committed in Postgres; it never fails
//! because NATS is down, and never because another process wrote to its aggregate.

pub mod aggregate;
mod aggregates;
mod config;
pub mod mailbox;
mod metrics;
pub mod orders;
pub mod partitions;
pub mod request;

use daybook_event_bus::Bus;
use daybook_event_bus::publish::{Publisher, PublisherOptions};
use daybook_event_store::{Appender, AppenderOptions, EventStore};
use daybook_proto::FILE_DESCRIPTOR_SET;
use daybook_service::admin::{self, Readiness};
use daybook_service::database;
use daybook_service::identity::Authenticator;
use daybook_service::metrics::{EventMoments, Registry, ServerMetrics};
use daybook_service::problems;
use daybook_service::server::{self, Limits};
use daybook_service::shutdown::Supervisor;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use config::Config;

use crate::aggregates::{Aggregates, Core};
use crate::partitions::{Partition, Partitions};

/// The largest command, in bytes. An order with every line that it may have takes a tenth of it.
pub const COMMAND_BYTES_MAX: usize = 512 * 1_024;

/// Committed batches that may wait for the publisher before it has to read them from the log.
const COMMITTED_BATCHES_MAX: usize = 256;

/// Connections of the publishing task: one to read events, one to look at the head.
const PUBLISHER_CONNECTIONS: u32 = 2;

/// Connections that the appenders keep for themselves.
const APPENDER_CONNECTIONS: u32 = 2;

/// Serves on `listener` until `shutdown`, or until a task ends that should not.
///
/// # Errors
/// When the database cannot be used or has an older schema, and when a task has ended.
pub async fn run(
    config: Config,
    listener: TcpListener,
    admin_listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let pool = database::connect(
        &config.common.database_url,
        "daybook-command-svc",
        config.database_connections,
    )
    .await?;
    database::check_schema(&pool, "event_store", daybook_event_store::schema_version()).await?;

    let registry = Registry::new();
    let readiness = Readiness::new(shutdown.clone());
    let mut tasks = Supervisor::new(shutdown.clone());
    watch_dependencies(&mut tasks, &readiness, &pool);

    let moments = EventMoments::new(&registry);
    let partitions = start_partitions(&config, &mut tasks, &registry, &moments).await?;
    let core = Core::new(Authenticator::new(pool), partitions, &registry, &moments);
    let Aggregates { services, rules } = aggregates::all(&core);

    let (admin_readiness, admin_registry) = (readiness, registry.clone());
    tasks.spawn_companion("admin", async move {
        admin::serve(admin_listener, admin_readiness, admin_registry).await;
        Ok(())
    });
    let grpc = services
        .into_router(
            config.common.reflected(FILE_DESCRIPTOR_SET),
            &mut tasks,
            &shutdown,
        )
        .await?;
    let metrics = ServerMetrics::new(&registry);
    tasks.spawn("server", async move {
        server::serve(
            listener,
            problems::router(&rules),
            grpc,
            Limits::default(),
            metrics,
            shutdown,
        )
        .await;
        Ok(())
    });
    tracing::info!("ready");
    tasks.run().await?;
    Ok(())
}

/// NATS is not among them: commands do not need it.
fn watch_dependencies(tasks: &mut Supervisor, readiness: &Readiness, pool: &PgPool) {
    let log = EventStore::new(pool.clone());
    tasks.spawn(
        "postgres check",
        readiness.watch("postgres", move || {
            let log = log.clone();
            async move { log.check_append().await }
        }),
    );
}

/// Starts an appender and a publisher for each partition of the log.
async fn start_partitions(
    config: &Config,
    tasks: &mut Supervisor,
    registry: &Registry,
    moments: &EventMoments,
) -> anyhow::Result<Partitions> {
    let publisher_url = &config.publisher_database_url;
    let log =
        EventStore::new(database::connect(publisher_url, "daybook-publisher", PUBLISHER_CONNECTIONS).await?);
    let bus = Bus::connect_as(config.common.nats_url.expose(), "daybook-command-svc").await?;
    let (mut partitions, mut publishers) = (Vec::new(), Vec::new());
    for partition in log.partitions().await? {
        // A pool of its own, so that no crowd of readers ever keeps the appender from its connection.
        let url = &config.common.database_url;
        let pool = database::connect(url, "daybook-appender", APPENDER_CONNECTIONS).await?;
        let store = EventStore::new(pool.clone());
        let (committed, to_publish) = mpsc::channel(COMMITTED_BATCHES_MAX);
        let (appender, appending) =
            Appender::new(pool, partition, AppenderOptions::default(), Some(committed));
        let options = PublisherOptions {
            replicas: config.stream_replicas,
            observer: Some(metrics::publish_observer(moments)),
            ..PublisherOptions::default()
        };
        let (publisher, publishing) =
            Publisher::new(bus.clone(), log.clone(), partition, to_publish, options);
        // Requests that may finish after the stop signal still need both.
        tasks.spawn_companion("appender", async move {
            appending.await;
            Ok(())
        });
        tasks.spawn_companion("publisher", async move { Ok(publishing.await?) });
        partitions.push(Partition { store, appender });
        publishers.push(publisher);
    }
    let partitions: Partitions = partitions.into_iter().collect();
    metrics::register_appenders(registry, partitions.appenders().cloned().collect());
    metrics::register_publishers(registry, &publishers);
    Ok(partitions)
}
