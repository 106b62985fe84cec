//! A primary with a streaming standby, and every service behind a network that can be led from one to the other.

use std::net::SocketAddr;

use anyhow::Context as _;
use daybook_devstack::proxy::Proxy;
use daybook_devstack::{Postgres, PostgresOptions};
use sqlx::PgPool;

use crate::client::Caller;
use crate::database::Database;
use crate::ledger::Ledger;
use crate::network::Network;
use crate::orders::{new_order_id, place};
use crate::stack::{Backend, Role, Running, Servers};
use crate::tenant::Tenant;
use crate::{log, wait};

/// Two command services, two projectors and a query service, each behind a network of its own, on a primary with a standby.
#[derive(Debug)]
pub struct Pair {
    /// What writes, on the primary.
    pub backend: Backend,
    /// Answers queries.
    pub query: Running,
    /// Between the standby and its primary.
    pub replication: Proxy,
    /// The other projector.
    pub other_projector: Running,
    networks: Vec<Network>,
    standby: Postgres,
}

/// All services of a [`Pair`], as [`Pair::promote`] counts them.
pub const EVERYTHING: [usize; 5] = [0, 1, 2, 3, 4];

impl Pair {
    /// Starts all of it.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start() -> anyhow::Result<Self> {
        Self::on(Servers::start_own(PostgresOptions::for_tests).await?).await
    }

    /// Starts the rest on these servers, of which Postgres is its own.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn on(servers: Servers) -> anyhow::Result<Self> {
        let primary = servers.own_postgres.as_ref().context("it has its own")?;
        let replication = Proxy::start(address(primary)).await?;
        let standby = PostgresOptions::for_tests(servers.directory().join("standby"));
        let standby = primary.start_standby(standby, replication.address()).await?;

        let superuser = servers.database.superuser().await?;
        let tenant = Tenant::create(&superuser).await?;
        let roles = [
            Role::Command,
            Role::Command,
            Role::Projector,
            Role::Projector,
            Role::Query,
        ];
        let (mut networks, mut running) = (Vec::new(), Vec::new());
        for role in roles {
            let network = Network::between(&servers, role).await?;
            running.push(servers.run(role, &network.environment()).await?);
            networks.push(network);
        }
        let query = running.pop().context("the query service")?;
        let projector = running.pop();
        let other_projector = running.pop().context("the other projector")?;
        Ok(Self {
            standby,
            replication,
            networks,
            query,
            other_projector,
            backend: Backend {
                commands: running,
                projector,
                tenant,
                superuser,
                servers,
            },
        })
    }

    /// The primary.
    ///
    /// # Errors
    /// When the servers have none of their own.
    pub fn primary(&mut self) -> anyhow::Result<&mut Postgres> {
        self.backend
            .servers
            .own_postgres
            .as_mut()
            .context("it has its own")
    }

    /// From now on nothing is acknowledged before the standby has it.
    ///
    /// # Errors
    /// When the standby does not follow.
    pub async fn wait_for_standby_at_commit(&self) -> anyhow::Result<()> {
        let superuser = &self.backend.superuser;
        sqlx::query("ALTER SYSTEM SET synchronous_standby_names = '*'")
            .execute(superuser)
            .await?;
        sqlx::query("SELECT pg_reload_conf()").execute(superuser).await?;
        wait::until("the standby is a synchronous one", async || {
            let state = "SELECT sync_state = 'sync' FROM pg_stat_replication";
            let is_sync: Option<bool> = sqlx::query_scalar(state).fetch_optional(superuser).await?;
            Ok(is_sync == Some(true))
        })
        .await
    }

    /// Waits until the standby has everything that is recorded now, and gives the head of the log.
    ///
    /// # Errors
    /// When the standby does not follow.
    pub async fn standby_has_all(&self) -> anyhow::Result<u64> {
        let head = log::head(&self.backend.superuser).await?;
        let standby = self.on_standby().superuser().await?;
        wait::until("the standby has everything", async || {
            Ok(log::head(&standby).await? >= head)
        })
        .await?;
        standby.close().await;
        Ok(head)
    }

    fn on_standby(&self) -> Database {
        self.backend.servers.database.on(self.standby.cluster())
    }

    /// Promotes the standby and leads these services to it: the command services are 0 and 1, the projectors 2 and 3, the query
    /// service is 4. Gives the new primary's superuser.
    ///
    /// # Errors
    /// When it is not promoted.
    pub async fn promote(&mut self, networks: &[usize]) -> anyhow::Result<PgPool> {
        self.standby.promote().await?;
        for network in networks {
            self.networks[*network].postgres.redirect(address(&self.standby));
        }
        self.on_standby().superuser().await
    }

    /// Leads the new connections of these services to the standby. Those that are open stay with the old primary.
    pub fn lead_new_connections(&self, networks: &[usize]) {
        for network in networks {
            self.networks[*network]
                .postgres
                .redirect_new(address(&self.standby));
        }
    }

    /// A caller of one of the command services, and of the query service.
    ///
    /// # Errors
    /// When the addresses cannot be used.
    pub fn caller(&self, command: usize) -> anyhow::Result<Caller> {
        let command = self.backend.commands[command].url();
        Caller::new(&command, &self.query.url(), &command, self.backend.tenant.clone())
    }

    /// Places orders until one is accepted and can be read with the consistency token of its receipt.
    ///
    /// # Errors
    /// When that does not happen.
    pub async fn fresh_read(&self, command: usize, ledger: &Ledger) -> anyhow::Result<()> {
        let caller = self.caller(command)?;
        wait::until("a fresh read", async || {
            let order_id = new_order_id();
            let Ok(receipt) = ledger.send(&caller, place(&order_id, "customer")).await else {
                return Ok(false);
            };
            let path = format!("/v1/orders/{order_id}");
            let answer = caller.get_after(&receipt.consistency_token, &path).await?;
            Ok(answer.status == 200)
        })
        .await
    }
}

fn address(postgres: &Postgres) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], postgres.port()))
}
