//! The command service: load → decide → append → publish → reply.
//!
//! | module | what it is for |
//! |---|---|
//! | `handler` | the path of every command, from request to receipt |
//! | `orders`, `stock` | what an aggregate adds to it: the scope, the wording of refusals, the list of methods |
//! | `request` | what every command request goes through before it is decided |
//! | `home` | forwards commands for contended aggregates to the one replica that decides them |
//! | [`mailbox`] | decides the commands of one aggregate one after another, on a state in memory that the append judges |
//! | [`partitions`] | the partitions of the log that this process appends to |
//!
//! It never sees a read model. A command is acknowledged when its events are committed in Postgres; it never fails
//! because NATS is down.

mod aggregates;
mod config;
mod fingerprint;
mod handler;
mod home;
pub mod mailbox;
mod metrics;
mod orders;
pub mod partitions;
mod request;
mod stock;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use daybook_event_bus::Bus;
use daybook_event_bus::publish::{Publisher, PublisherOptions};
use daybook_event_store::keys::{self, KeyTurn};
use daybook_event_store::{Appender, AppenderOptions, EventStore, PostgresLog};
use daybook_proto::FILE_DESCRIPTOR_SET;
use daybook_service::admin::{self, Readiness};
use daybook_service::database;
use daybook_service::identity::Authenticator;
use daybook_service::key::SecretKey;
use daybook_service::metrics::{EventMoments, Registry, ServerMetrics};
use daybook_service::problems;
use daybook_service::server::{self, Access, Limits, Routes};
use daybook_service::shutdown::Supervisor;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use config::Config;

use crate::aggregates::Core;
use crate::fingerprint::Fingerprints;
use crate::home::Homes;
use crate::mailbox::{ReadStream, load_shares};
use crate::partitions::{Partition, Partitions};

/// The largest command, in bytes. An order with every line that it may have takes a tenth of it.
pub const COMMAND_BYTES_MAX: usize = 512 * 1_024;

/// Committed batches that may wait for the publisher before it has to read them from the log.
const COMMITTED_BATCHES_MAX: usize = 32;

/// Connections of the publishing task: one to read events, one to look at the head.
const PUBLISHER_CONNECTIONS: u32 = 2;

/// How often the tables of idempotency keys are looked at. Time counts for them only while somebody looks at least every
/// two hours.
const TEND_KEYS_EVERY: Duration = Duration::from_secs(10 * 60);

/// When a turn that is due is tried again while somebody holds the table: each try may hold up appends for 50 ms, and at
/// moments of its own does not meet the same running statements again.
const TURN_AGAIN_AFTER: Range<Duration> = Duration::from_secs(20)..Duration::from_secs(60);

/// Connections that read the receipts of commands that were sent before.
const RECEIPT_CONNECTIONS: u32 = 2;

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

    let fingerprints = Fingerprints::new(&SecretKey::given(
        &config.fingerprint_keys,
        "DAYBOOK_FINGERPRINT_KEY",
        config.common.is_development(),
    )?);
    let replica_keys = SecretKey::given(
        &config.replica_keys,
        "DAYBOOK_REPLICA_KEY",
        config.common.is_development(),
    )?;
    let registry = Registry::new();
    let readiness = Readiness::new(shutdown.clone());
    let mut tasks = Supervisor::new(shutdown.clone());
    let readiness_pool = database::connect(&config.common.database_url, "daybook-readiness", 1).await?;
    watch_dependencies(&mut tasks, &readiness, readiness_pool);

    let moments = EventMoments::new(&registry);
    let (nats, deployment) = (config.common.nats_url.expose(), &config.deployment);
    let bus = Bus::connect_as(nats, deployment, "daybook-command-svc").await?;
    let partitions = start_partitions(&config, pool, &bus, &mut tasks, &registry, &moments).await?;
    // A connection of its own: behind a full queue of events, commands would be too late.
    let replicas = Bus::connect_as(nats, deployment, "daybook-command-svc-replicas").await?;
    let homes = Homes::new(replicas, &replica_keys, metrics::register_homes(&registry));
    let (authenticator, lookups) = Authenticator::connect(&config.common.database_url).await?;
    tasks.spawn_companion("key lookups", lookups);
    let core = Core::new(partitions, fingerprints, Arc::new(homes), &registry, &moments);

    let (admin_readiness, admin_registry) = (readiness, registry.clone());
    tasks.spawn_companion("admin", async move {
        admin::serve(admin_listener, admin_readiness, admin_registry).await;
        Ok(())
    });
    let grpc = aggregates::all(&core)
        .into_router(
            FILE_DESCRIPTOR_SET,
            config.common.reflection(),
            &mut tasks,
            &shutdown,
        )
        .await?;
    let handling = Arc::clone(&core.homes).run(core.handlers(), shutdown.clone());
    tasks.spawn("homes", async move {
        handling.await;
        Ok(())
    });
    let metrics = ServerMetrics::new(&registry);
    let routes = Routes {
        http: problems::router(&aggregates::rules()),
        grpc,
        access: Access::Identified(authenticator),
    };
    tasks.spawn("server", async move {
        server::serve(listener, routes, Limits::default(), metrics, shutdown).await;
        Ok(())
    });
    tracing::info!("ready");
    tasks.run().await?;
    Ok(())
}

/// NATS is not among them: commands do not need it.
/// The check has a connection of its own, so that it never waits behind loads.
fn watch_dependencies(tasks: &mut Supervisor, readiness: &Readiness, pool: PgPool) {
    let log = EventStore::new(pool);
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
    loads: PgPool,
    bus: &Bus,
    tasks: &mut Supervisor,
    registry: &Registry,
    moments: &EventMoments,
) -> anyhow::Result<Partitions> {
    let publisher_url = &config.publisher_database_url;
    let log =
        EventStore::new(database::connect(publisher_url, "daybook-publisher", PUBLISHER_CONNECTIONS).await?);
    let url = &config.common.database_url;
    // Pools of their own, so that no crowd of one kind keeps another from its connections.
    let receipts = database::connect(url, "daybook-receipts", RECEIPT_CONNECTIONS).await?;
    tasks.spawn_companion(
        "idempotency keys",
        tend_keys(receipts.clone(), config.idempotency_retention_days),
    );
    let streams = Arc::new(EventStore::new(loads));
    let loads = load_shares(config.database_connections);
    let (mut partitions, mut publishers) = (Vec::new(), Vec::new());
    for partition in log.partitions().await? {
        let (committed, to_publish) = mpsc::channel(COMMITTED_BATCHES_MAX);
        let connecting = database::connect_options(url, "daybook-appender", database::STATEMENT_TIMEOUT)?;
        let (appender, appending) = Appender::new(
            PostgresLog::new(connecting, receipts.clone()),
            partition,
            AppenderOptions::default(),
            Some(committed),
        );
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
        let streams: Arc<dyn ReadStream> = Arc::clone(&streams) as _;
        partitions.push(Partition {
            streams,
            loads: loads.clone(),
            appender,
        });
        publishers.push(publisher);
    }
    let partitions: Partitions = partitions.into_iter().collect();
    metrics::register_appenders(registry, partitions.appenders().cloned().collect());
    metrics::register_publishers(registry, &publishers);
    Ok(partitions)
}

/// Has the tables of idempotency keys take turns when it is time.
async fn tend_keys(pool: PgPool, retention_days: u16) -> anyhow::Result<()> {
    loop {
        let mut pause = TEND_KEYS_EVERY;
        match keys::tend(&pool, retention_days).await {
            Ok(KeyTurn::Turned) => tracing::info!("the tables of idempotency keys took turns"),
            Ok(KeyTurn::Early) => {}
            Ok(KeyTurn::InUse) => {
                tracing::warn!(
                    "the older table of idempotency keys is due to be emptied, but somebody holds it: the other one grows"
                );
                pause = rand::random_range(TURN_AGAIN_AFTER);
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot tend the tables of idempotency keys"
            ),
        }
        tokio::time::sleep(pause).await;
    }
}
