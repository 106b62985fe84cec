//! How every process starts and stops: what comes before a service's own parts, and what comes after them.
//!
//! Early failures come first: the database, the schemas. Then the service adds its parts. The listeners are served last, so
//! whoever is answered is answered by a whole service; and the private one is served until the last task has ended.

use std::fmt;
use std::future::Future;

use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Readiness};
use crate::config::CommonConfig;
use crate::database;
use crate::grpc::{GrpcServices, Reflection};
use crate::identity::Authenticator;
use crate::metrics::{DroppedLines, Registry, ServerMetrics};
use crate::server::{self, Access, Cors, Declared, Limits, Routes};
use crate::shutdown::{Stop, Supervisor};
use crate::tickets::Tickets;

/// A process that starts.
#[derive(Debug)]
pub struct Start {
    /// The tasks of the process.
    pub tasks: Supervisor,
    /// The metrics of the process.
    pub registry: Registry,
    /// Cancelled when nothing is accepted any more: after the stop signal and the drain delay.
    pub shutdown: CancellationToken,
    /// Cancelled when no request is open any more: what requests need goes on until then.
    pub drained: CancellationToken,
    stop: Stop,
    limits: Limits,
    admin_connections_max: u32,
    readiness: Readiness,
    readiness_pool: PgPool,
    authenticator: Authenticator,
    reflection: Reflection,
    cors: Cors,
}

impl Start {
    /// Connects to the database and checks that these schemas are there, in these versions at least.
    ///
    /// # Errors
    /// When the database cannot be used or has an older schema.
    pub async fn new(
        config: &CommonConfig,
        schemas: &[(&'static str, i64)],
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let readiness_pool = database::connect(&config.database_url, "daybook-readiness", 1).await?;
        for (schema, version) in schemas {
            database::check_schema(&readiness_pool, schema, *version).await?;
        }
        let (authenticator, lookups) = Authenticator::connect(&config.database_url).await?;
        let stop = Stop::after(shutdown, config.drain_delay);
        let mut tasks = Supervisor::new(stop.drains.clone(), config.limits.grace_period);
        tasks.spawn_companion("key lookups", lookups);
        let registry = Registry::new();
        registry.with(|registry| registry.register_collector(Box::new(DroppedLines)));
        Ok(Self {
            tasks,
            registry,
            drained: CancellationToken::new(),
            readiness: Readiness::new(stop.clone()),
            shutdown: stop.drains.clone(),
            stop,
            limits: config.limits.clone(),
            admin_connections_max: config.admin_connections_max,
            readiness_pool,
            authenticator,
            reflection: config.reflection(),
            cors: Cors::of(&config.cors_origins),
        })
    }

    /// The authenticator.
    #[must_use]
    pub fn authenticator(&self) -> Authenticator {
        self.authenticator.clone()
    }

    /// Takes these tickets on the routes that do.
    pub fn take_tickets(&mut self, tickets: Tickets) {
        self.authenticator = self.authenticator.clone().with_tickets(tickets);
    }

    /// Has readiness depend on Postgres. The check has a connection of its own, so that it never waits behind requests.
    pub fn watch_postgres<F, E>(&mut self, check: impl Fn(PgPool) -> F + Send + 'static)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        let pool = self.readiness_pool.clone();
        let watching = self.readiness.watch("postgres", move || check(pool.clone()));
        self.tasks.spawn("postgres check", watching);
    }

    /// Serves callers and operators until the stop signal and the end of all tasks, or until a task ends that should not.
    ///
    /// # Errors
    /// When a task has ended before the stop signal, or failed after it.
    pub async fn serve(
        mut self,
        listener: TcpListener,
        admin_listener: TcpListener,
        http: Declared,
        grpc: GrpcServices,
    ) -> anyhow::Result<()> {
        let metrics = ServerMetrics::new(&self.registry);
        let routes = Routes {
            http,
            grpc: grpc
                .into_router(self.reflection, &mut self.tasks, &self.stop)
                .await?,
            access: Access::Identified(self.authenticator),
            cors: self.cors,
        };
        routes.http.check_anonymous()?;
        routes.grpc.check_anonymous()?;
        let admin_limits = Limits {
            connections_max: self.admin_connections_max,
            ..self.limits.clone()
        };
        let (drained, shutdown, limits) = (self.drained, self.shutdown, self.limits);
        self.tasks.spawn("server", async move {
            let _drained = drained.drop_guard();
            server::serve(listener, routes, limits, metrics, shutdown).await;
            Ok(())
        });
        // A companion, so that a process that drains says "not ready" instead of nothing.
        self.tasks.spawn_companion("admin", async move {
            admin::serve(admin_listener, admin_limits, self.readiness, self.registry).await;
            Ok(())
        });
        tracing::info!("ready");
        Ok(self.tasks.run().await?)
    }
}
