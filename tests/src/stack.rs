//! Servers and services: a Postgres, a NATS and the three services as processes of their own, on free ports.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use daybook_devstack::process::Signal;
use daybook_devstack::testing::temporary_directory;
use daybook_devstack::{
    Lifetime, Nats, NatsOptions, NatsUser, Postgres, PostgresOptions, Service, ServiceOptions, port,
};
use sqlx::PgPool;
use tempfile::TempDir;

use crate::client::Caller;
use crate::database::Database;
use crate::sealing;
use crate::tenant::Tenant;

/// One of the three services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes commands.
    Command,
    /// Builds read models.
    Projector,
    /// Answers queries.
    Query,
}

impl Role {
    fn binary(self) -> &'static str {
        match self {
            Self::Command => "daybook-command-svc",
            Self::Projector => "daybook-projector",
            Self::Query => "daybook-query-svc",
        }
    }

    pub(crate) fn database_role(self) -> &'static str {
        match self {
            Self::Command => "daybook_command",
            Self::Projector => "daybook_projector",
            Self::Query => "daybook_query",
        }
    }

    pub(crate) fn nats_user(self) -> NatsUser {
        match self {
            Self::Command => NatsUser::Command,
            Self::Projector => NatsUser::Projector,
            Self::Query => NatsUser::Query,
        }
    }
}

/// A running service and where it listens.
#[derive(Debug)]
pub struct Running {
    /// The process: it can be stopped, killed, paused and restarted.
    pub service: Service,
    /// Where callers reach it.
    pub address: SocketAddr,
    /// Where its metrics are.
    pub admin: SocketAddr,
}

impl Drop for Running {
    /// A test that is over does not wait for the drain: the callers that the service would wait for are on this thread.
    fn drop(&mut self) {
        if let Some(process) = self.service.process_id() {
            process.signal(Signal::KILL);
        }
    }
}

impl Running {
    /// The address as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The most memory that the process has ever had, in KiB.
    ///
    /// # Errors
    /// When it does not run, or the kernel is not one that tells.
    pub fn memory_kib_max(&self) -> anyhow::Result<u64> {
        let process = self.service.process_id().context("it runs")?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.context("the kernel tells the high-water mark")?.parse()?)
    }
}

/// The servers of one test. Fields drop in order: first the servers stop, then their directory goes.
#[derive(Debug)]
pub struct Servers {
    /// A Postgres of its own, where the test does something to it.
    pub own_postgres: Option<Postgres>,
    /// The bus.
    pub nats: Nats,
    /// The database.
    pub database: Database,
    directory: TempDir,
}

impl Servers {
    /// A NATS of its own, and a database on the Postgres that the tests share.
    ///
    /// # Errors
    /// When a server does not start.
    pub async fn start() -> anyhow::Result<Self> {
        let directory = temporary_directory()?;
        let database = Database::create().await?;
        let nats = Nats::start(NatsOptions::new(directory.path().join("nats"))).await?;
        Ok(Self {
            own_postgres: None,
            nats,
            database,
            directory,
        })
    }

    /// Both servers of its own, for a test that kills them or measures them.
    ///
    /// # Errors
    /// When a server does not start.
    pub async fn start_own(options: impl FnOnce(PathBuf) -> PostgresOptions) -> anyhow::Result<Self> {
        let directory = temporary_directory()?;
        let postgres = Postgres::start(options(directory.path().join("postgres"))).await?;
        let database = Database::create_on(postgres.cluster().clone()).await?;
        let nats = Nats::start(NatsOptions::new(directory.path().join("nats"))).await?;
        Ok(Self {
            own_postgres: Some(postgres),
            nats,
            database,
            directory,
        })
    }

    /// Starts a service on these servers.
    ///
    /// # Errors
    /// When it does not become ready; the message has the last line of its log.
    pub async fn run(&self, role: Role, environment: &[(&str, &str)]) -> anyhow::Result<Running> {
        let address = SocketAddr::from(([127, 0, 0, 1], port::free().context("there is no free port")?));
        let admin = SocketAddr::from(([127, 0, 0, 1], port::free().context("there is no free port")?));
        let mut settings = vec![
            ("DAYBOOK_LISTEN".to_owned(), address.to_string()),
            ("DAYBOOK_ADMIN_LISTEN".to_owned(), admin.to_string()),
            ("DATABASE_URL".to_owned(), self.database.url(role.database_role())),
            (
                "DAYBOOK_PUBLISHER_DATABASE_URL".to_owned(),
                self.database.url("daybook_publisher"),
            ),
            ("NATS_URL".to_owned(), self.nats.url_of(role.nats_user())),
            ("DAYBOOK_ENV".to_owned(), "development".to_owned()),
            ("DAYBOOK_SEALING_KEYS".to_owned(), sealing::key()),
        ];
        settings.extend(
            environment
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        let service = Service::start(ServiceOptions {
            name: role.binary().to_owned(),
            binary: program(role.binary())?,
            environment: settings,
            log: self
                .directory
                .path()
                .join(format!("{}-{}.log", role.binary(), address.port())),
            admin,
            lifetime: Lifetime::Owner,
        })
        .await?;
        Ok(Running {
            service,
            address,
            admin,
        })
    }

    /// Where the servers and services keep their files and logs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// Where one of our programs is: they are built beside the tests.
///
/// # Errors
/// When this program's own place cannot be found out.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    let beside = this.parent().context("a program is in a directory")?;
    let directory = if beside.ends_with("deps") {
        beside.parent().context("deps is in a directory")?
    } else {
        beside
    };
    Ok(directory.join(name))
}

/// The whole system with one tenant.
#[derive(Debug)]
pub struct Stack {
    /// The command service.
    pub command: Running,
    /// The projector.
    pub projector: Running,
    /// The query service.
    pub query: Running,
    /// A tenant with its keys.
    pub tenant: Tenant,
    /// Everything, as superuser.
    pub superuser: PgPool,
    /// The servers underneath.
    pub servers: Servers,
}

impl Stack {
    /// The three services on a database of their own.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start() -> anyhow::Result<Self> {
        Self::on(Servers::start().await?).await
    }

    /// The three services on these servers.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn on(servers: Servers) -> anyhow::Result<Self> {
        let superuser = servers.database.superuser().await?;
        let tenant = Tenant::create(&superuser).await?;
        let (command, projector, query) = tokio::try_join!(
            servers.run(Role::Command, &[]),
            servers.run(Role::Projector, &[]),
            servers.run(Role::Query, &[]),
        )?;
        Ok(Self {
            command,
            projector,
            query,
            tenant,
            superuser,
            servers,
        })
    }

    /// A caller with the tenant's keys.
    ///
    /// # Errors
    /// When the addresses cannot be used.
    pub fn caller(&self) -> anyhow::Result<Caller> {
        self.caller_of(self.tenant.clone())
    }

    /// A caller of another tenant, which is made for it.
    ///
    /// # Errors
    /// When the addresses or the database cannot be used.
    pub async fn other_caller(&self) -> anyhow::Result<Caller> {
        self.caller_of(Tenant::create(&self.superuser).await?)
    }

    fn caller_of(&self, tenant: Tenant) -> anyhow::Result<Caller> {
        let (command, query, projector) = (&self.command, &self.query, &self.projector);
        Caller::new(&command.url(), &query.url(), &projector.url(), tenant)
    }
}

/// What writes, without the query service: one or several command services, and a projector where one is asked for.
#[derive(Debug)]
pub struct Backend {
    /// The command services.
    pub commands: Vec<Running>,
    /// The projector.
    pub projector: Option<Running>,
    /// A tenant with its keys.
    pub tenant: Tenant,
    /// Everything, as superuser.
    pub superuser: PgPool,
    /// The servers underneath.
    pub servers: Servers,
}

impl Backend {
    /// This many command services on a database of their own.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(replicas: usize) -> anyhow::Result<Self> {
        Self::on(Servers::start().await?, replicas).await
    }

    /// This many command services on these servers.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn on(servers: Servers, replicas: usize) -> anyhow::Result<Self> {
        let superuser = servers.database.superuser().await?;
        let tenant = Tenant::create(&superuser).await?;
        let mut commands = Vec::new();
        for _ in 0..replicas {
            commands.push(servers.run(Role::Command, &[]).await?);
        }
        Ok(Self {
            commands,
            projector: None,
            tenant,
            superuser,
            servers,
        })
    }

    /// Adds a projector.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn with_projector(mut self) -> anyhow::Result<Self> {
        self.projector = Some(self.servers.run(Role::Projector, &[]).await?);
        Ok(self)
    }

    /// A caller for each command service. Where there is no other service, its calls go to a command service, too.
    ///
    /// # Errors
    /// When the addresses cannot be used.
    pub fn callers(&self) -> anyhow::Result<Vec<Caller>> {
        let commands = self.commands.iter().map(Running::url);
        let caller = |command: String| {
            let projector = self.projector.as_ref().map_or(command.clone(), Running::url);
            Caller::new(&command, &command, &projector, self.tenant.clone())
        };
        commands.map(caller).collect()
    }

    /// A caller of the first command service.
    ///
    /// # Errors
    /// When the addresses cannot be used.
    pub fn caller(&self) -> anyhow::Result<Caller> {
        self.callers()?
            .into_iter()
            .next()
            .context("there is a command service")
    }
}
