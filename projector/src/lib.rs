//! The projector: events of the log are folded into read models.
//!
//! | module | what it is for |
//! |---|---|
//! | `projections` | the list of projections: every read model that `daybook_read_model` lists |
//! | [`worker`] | keeps the live tables of one projection up to date, in one partition |
//! | [`runner`] | one batch into one generation of tables: load, fold, store, advance |
//! | `fold` | the rows of a batch in memory |
//! | [`feed`] | the newest events of a partition, read and decoded once for all workers |
//! | [`batch`], `batch_size` | consecutive events, decoded, and how many are applied at a time |
//! | [`epoch`] | leaving a server whose log was superseded |
//! | [`rebuild`], `fill` | new tables beside the live ones, filled from the log and swapped in |
//! | [`checkpoint`] | how far a generation of tables is, and who may take it further: leases and fencing |
//! | [`replica`], `sharing` | this process among the replicas: who lives, and who works on what |
//! | [`registry`] | which generation is live, and what is being rebuilt |
//! | [`memory`] | how much memory events and rows may take, in shares |
//! | `service` | what operators see and ask for |
//!
//! Each event takes effect exactly once in each read model, whatever is delivered twice, late or not at all, and whoever
//! else believes to be in charge: rows and checkpoint change in one transaction, the checkpoint by compare-and-set. No
//! event is ever skipped; one that cannot be applied stops its projection, in the sight of operators, and no other one.

mod backoff;
pub mod batch;
mod batch_size;
pub mod checkpoint;
mod config;
pub mod database;
pub mod epoch;
pub mod feed;
mod fill;
mod fold;
pub mod memory;
pub mod metrics;
mod projections;
pub mod rebuild;
pub mod registry;
pub mod replica;
pub mod runner;
mod service;
mod sharing;
mod trace;
pub mod worker;

use std::time::Duration;

use daybook_event_bus::{Bus, signal};
use daybook_event_store::EventStore;
use daybook_postgres::within;
use daybook_proto::FILE_DESCRIPTOR_SET;
use daybook_proto::projections::v1::projection_service_server::ProjectionServiceServer;
use daybook_service::grpc::GrpcServices;
use daybook_service::identity::Scope;
use daybook_service::server::Needs;
use daybook_service::start::Start;
use daybook_service::{database as shared_database, problems};
use sqlx::Connection as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use config::Config;

use crate::database::Connector;
use crate::feed::Feed;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::replica::Duties;
use crate::service::Projections;
use crate::worker::Context;

/// The largest request of an operator, in bytes.
const REQUEST_BYTES_MAX: usize = 16 * 1_024;

/// The largest answer, in bytes: the list of all projections.
const RESPONSE_BYTES_MAX: usize = 1_024 * 1_024;

/// How long opening the checkpoints may take when the process starts; it makes tables for new projections.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Works and serves on `listener` until `shutdown`, or until a task ends that should not. A partition that is added to
/// the log later is projected after a restart.
///
/// # Errors
/// When the database cannot be used or has an older schema, and when a task has ended.
pub async fn run(
    config: Config,
    listener: TcpListener,
    admin_listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let schemas = [
        ("event_store", daybook_event_store::schema_version()),
        ("read_model", daybook_read_model::schema_version()),
    ];
    let mut start = Start::new(&config.common, &schemas, shutdown).await?;
    // NATS is not watched: without it the workers read the log.
    start.watch_postgres(shared_database::ping);

    let connector = Connector::new(config.common.database_url.expose())?;
    within(OPEN_TIMEOUT, open_checkpoints(&connector)).await?;
    let store = EventStore::new(connector.pool(config.database_connections));
    let partitions = store.partitions().await?;
    let (duties, assigned) = watch::channel(Duties::default());
    let nats = config.common.nats_url.expose();
    let context = Context {
        store,
        connector: connector.clone(),
        bus: Bus::connect(nats, &config.deployment, "daybook-projector").await?,
        memory: Memory::divide(config.memory_bytes(), partitions.len(), projections::ALL.len()),
        metrics: Metrics::new(&start.registry),
        duties: assigned,
        reconnected_at: watch::Sender::default(),
    };
    start_projections(&context, &partitions, &mut start);
    let freed = signal::subscribe_freed(&context.bus).await?;
    let replica = replica::run(
        connector.clone(),
        context.bus.clone(),
        partitions,
        duties,
        freed,
        context.reconnected_at.subscribe(),
        start.shutdown.clone(),
    );
    start.tasks.spawn("replica", replica);
    let reconnects = context.reconnected_at.subscribe();
    let lag = context
        .metrics
        .watch(connector, reconnects, start.shutdown.clone());
    start.tasks.spawn("metrics", lag);

    let url = &config.common.database_url;
    let pool = shared_database::connect(url, "daybook-projector", config.database_connections).await?;
    let operators = ProjectionServiceServer::new(Projections::new(pool, context.bus))
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .max_encoding_message_size(RESPONSE_BYTES_MAX);
    let needs = Needs::scope(Scope::ProjectionsOperate).with_message(REQUEST_BYTES_MAX);
    let grpc = GrpcServices::described_by(FILE_DESCRIPTOR_SET).with(operators, needs);
    start
        .serve(listener, admin_listener, problems::router(&[]), grpc)
        .await
}

/// Starts a feed for each partition, a worker for each projection and partition, and a rebuilder for each projection.
fn start_projections(context: &Context, partitions: &[i32], start: &mut Start) {
    let Start { tasks, shutdown, .. } = start;
    for &partition in partitions {
        let feed = Feed::within(context.memory.window_bytes);
        for projection in projections::ALL {
            tasks.spawn(
                projection.name,
                projection.work(context.clone(), partition, &feed, shutdown.clone()),
            );
        }
        tasks.spawn(
            "epoch",
            epoch::watch(context.clone(), partition, feed.clone(), shutdown.clone()),
        );
        tasks.spawn("feed", feed.run(context.clone(), partition, shutdown.clone()));
    }
    for projection in projections::ALL {
        tasks.spawn("rebuilder", projection.rebuild(context.clone(), shutdown.clone()));
    }
}

/// Every projection has a checkpoint in every partition before anyone looks for it.
async fn open_checkpoints(connector: &Connector) -> Result<(), sqlx::Error> {
    let mut connection = connector.connect("start").await?;
    for projection in projections::ALL {
        registry::introduce(&mut connection, projection.name).await?;
    }
    checkpoint::open_all(&mut connection).await?;
    connection.close().await
}
