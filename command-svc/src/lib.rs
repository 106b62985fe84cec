//! The command service: load → decide → append → publish → reply.
//!
//! | module | what it is for |
//! |---|---|
//! | `handler` | the path of every command, from request to receipt |
//! | `orders`, `stock` | what an aggregate adds to it: the scope, the wording of refusals, the list of methods |
//! | [`http`] | the same commands over HTTP, and the OpenAPI description that they are |
//! | `batch` | many commands in one request, all or nothing or each by itself |
//! | `request` | what every command request goes through before it is decided |
//! | `home` | forwards commands for contended aggregates to the one replica that decides them |
//! | `operations` | imports: what takes longer than a request, and how it stands |
//! | [`mailbox`] | decides the commands of one aggregate one after another, on a state in memory that the append judges |
//! | [`partitions`] | the partitions of the log that this process appends to |
//!
//! It never sees a read model. A command is acknowledged when its events are committed in Postgres; it never fails
//! because NATS is down.

mod aggregates;
mod batch;
mod config;
mod fingerprint;
mod handler;
mod home;
pub mod http;
pub mod mailbox;
mod operations;
mod orders;
pub mod partitions;
mod request;
mod stock;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use daybook_event_bus::Bus;
use daybook_event_bus::publish::{Publisher, PublisherMetrics, PublisherOptions};
use daybook_event_store::keys::{self, KeyTurn};
use daybook_event_store::{
    Appender, AppenderMetrics, AppenderOptions, EventStore, NotAppendable, PostgresLog, SeenEpoch,
};
use daybook_service::metrics::{EventMoments, Moment, Registry};
use daybook_service::problems;
use daybook_service::start::Start;
use daybook_service::{database, openapi};
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use config::{Config, PublicUrl};
pub use operations::STATEMENTS;

use crate::aggregates::Core;
use crate::fingerprint::Fingerprints;
use crate::home::{HomeMetrics, Homes};
use crate::mailbox::{ReadStream, load_shares};
use crate::partitions::{Partition, Partitions};

/// The largest command, in bytes. An order with every line that it may have takes a tenth of it.
pub(crate) const COMMAND_BYTES_MAX: usize = 512 * 1_024;

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
    let fingerprints = Fingerprints::new(&config.fingerprint_keys()?);
    let (replica_keys, sealing) = (config.replica_keys()?, config.key_ring()?);
    let schemas = [("event_store", daybook_event_store::schema_version())];
    let mut start = Start::new(&config.common, &schemas, shutdown).await?;

    let moments = EventMoments::new(&start.registry);
    let (nats, deployment) = (config.common.nats_url.expose(), &config.deployment);
    let bus = Bus::connect(nats, deployment, "daybook-command-svc").await?;
    let (partitions, seen) = start_partitions(&config, &bus, &mut start, &moments).await?;
    // NATS is not watched: commands do not need it.
    start.watch_postgres(move |pool| check_append(EventStore::new(pool), seen.clone()));
    // A connection of its own: behind a full queue of events, commands would be too late.
    let replicas = Bus::connect(nats, deployment, "daybook-command-svc-replicas").await?;
    let homes = Homes::new(replicas, &replica_keys, HomeMetrics::new(&start.registry));
    let core = Core::new(
        partitions,
        fingerprints,
        sealing,
        Arc::new(homes),
        &config,
        &start.registry,
        &moments,
    );
    let (commands, grpc) = aggregates::all(&core);
    let operations = operations::start(&config, core.importers(), core.sealing.clone(), &mut start).await?;
    let handling = Arc::clone(&core.homes).run(core.handlers(), start.shutdown.clone());
    start.tasks.spawn("homes", async move {
        handling.await;
        Ok(())
    });
    let http = commands
        .merge(operations)
        .merge(openapi::router(http::description()))
        .merge(problems::router(&aggregates::rules()));
    start.serve(listener, admin_listener, http, grpc).await
}

/// Whether every partition could take an append.
async fn check_append(log: EventStore, seen: Vec<(i32, SeenEpoch)>) -> Result<(), NotAppendable> {
    log.check_append().await?;
    for (partition, seen) in seen {
        log.check_epoch(partition, &seen).await?;
    }
    Ok(())
}

fn publisher_options(config: &Config, registry: &Registry, moments: &EventMoments) -> PublisherOptions {
    PublisherOptions {
        replicas: config.stream_replicas,
        retained_events_max: config.stream_events_max,
        metrics: registry.with(PublisherMetrics::new),
        latency: Some(moments.latency(Moment::Committed, Moment::Published)),
        ..PublisherOptions::default()
    }
}

/// Starts an appender and a publisher for each partition of the log.
async fn start_partitions(
    config: &Config,
    bus: &Bus,
    start: &mut Start,
    moments: &EventMoments,
) -> anyhow::Result<(Partitions, Vec<(i32, SeenEpoch)>)> {
    let (url, connections) = (&config.publisher_database_url, PUBLISHER_CONNECTIONS);
    let log = EventStore::new(database::connect(url, "daybook-publisher", connections).await?);
    let url = &config.common.database_url;
    // Pools of their own, so that no crowd of one kind keeps another from its connections.
    let loads = database::connect(url, "daybook-command-svc", config.database_connections).await?;
    let receipts = database::connect(url, "daybook-receipts", RECEIPT_CONNECTIONS).await?;
    start.tasks.spawn_companion(
        "idempotency keys",
        tend_keys(receipts.clone(), config.idempotency_retention_days),
    );
    let attaching = EventStore::new(receipts.clone());
    let streams = Arc::new(EventStore::new(loads));
    let loads = load_shares(config.database_connections);
    let appender_options = AppenderOptions {
        metrics: start.registry.with(AppenderMetrics::new),
        ..AppenderOptions::default()
    };
    let publisher_options = publisher_options(config, &start.registry, moments);
    let (mut partitions, mut epochs) = (Vec::new(), Vec::new());
    for partition in log.partitions().await? {
        let (committed, to_publish) = mpsc::channel(COMMITTED_BATCHES_MAX);
        let seen = SeenEpoch::with_publisher();
        epochs.push((partition, seen.clone()));
        let connecting = database::connect_options(url, "daybook-appender", database::STATEMENT_TIMEOUT)?;
        let (appender, appending) = Appender::new(
            PostgresLog::new(connecting, partition, receipts.clone(), seen.clone()),
            partition,
            appender_options.clone(),
            Some(committed),
        );
        let (_, publishing) = Publisher::new(
            bus.clone(),
            log.clone(),
            attaching.clone(),
            partition,
            to_publish,
            seen,
            publisher_options.clone(),
        );
        // Requests that may finish after the stop signal still need both. When there are none left the appender is
        // dropped, and what it has handed on is published.
        let finish = start.tasks.finish();
        start.tasks.spawn_last("appender", async move {
            finish.run_until_cancelled_owned(appending).await;
            Ok(())
        });
        start
            .tasks
            .spawn_last("publisher", async move { Ok(publishing.await?) });
        let streams: Arc<dyn ReadStream> = Arc::clone(&streams) as _;
        partitions.push(Partition {
            streams,
            loads: loads.clone(),
            appender,
        });
    }
    Ok((partitions.into_iter().collect(), epochs))
}

/// Has the tables of idempotency keys take turns when it is time.
async fn tend_keys(pool: PgPool, retention_days: u16) -> anyhow::Result<()> {
    loop {
        let mut pause = TEND_KEYS_EVERY;
        match keys::tend(&pool, retention_days).await {
            Ok(KeyTurn::Turned) => tracing::info!("the tables of idempotency keys rotated"),
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
