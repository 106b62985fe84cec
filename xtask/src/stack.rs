//! The running system: two servers, three services, one demo tenant.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use daybook_devstack::process::ProcessId;
use daybook_devstack::{
    Cluster, DevstackError, Lifetime, Nats, NatsOptions, NatsUser, Postgres, PostgresOptions, Service,
    ServiceOptions, install, port,
};

use crate::command::daybook;
use crate::project::{root, say};
use crate::secrets::{Keys, Secrets};
use crate::state::Member;

/// What the two servers are called in messages and in the written state.
pub(crate) const POSTGRES: &str = "Postgres";
pub(crate) const NATS: &str = "NATS";

/// The address of a Postgres of the user's own, as a superuser.
const OWN_DATABASE_VARIABLE: &str = "DAYBOOK_DATABASE_URL";

/// The address of a NATS of the user's own.
const OWN_NATS_VARIABLE: &str = "DAYBOOK_NATS_URL";

/// Where the private servers listen, unless somebody else does.
const POSTGRES_PORT: u16 = 7132;
const NATS_PORT: u16 = 7142;

/// The private server's database.
const DATABASE: &str = "daybook";

/// Every role that signs in. The migrations make them, without passwords.
const LOGIN_ROLES: [&str; 4] = [
    "daybook_command",
    "daybook_publisher",
    "daybook_projector",
    "daybook_query",
];

/// Which of the stacks that can run on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The one that people work with: on the usual ports, and on the user's own servers where there are such.
    Usual,
    /// One beside it: on free ports and private servers.
    Beside,
}

impl Place {
    /// Finds the programs of the private servers, or installs them.
    pub(crate) fn ensure_programs(self) -> Result<()> {
        if self.has_private(OWN_DATABASE_VARIABLE) {
            install::ensure_postgres(&say)?;
        }
        if self.has_private(OWN_NATS_VARIABLE) {
            install::ensure_nats_server(&say)?;
        }
        Ok(())
    }

    fn has_private(self, own_variable: &str) -> bool {
        self == Self::Beside || own(own_variable).is_none()
    }

    /// The port for a server: the usual one unless somebody has it; 0 is any.
    fn port(self, usual: u16) -> u16 {
        match self {
            Self::Usual if port::is_free(usual) => usual,
            Self::Usual | Self::Beside => 0,
        }
    }

    fn plans(self) -> Result<[ServicePlan; 3]> {
        let mut plans = [COMMAND, QUERY, PROJECTOR];
        if self == Self::Beside {
            for address in plans
                .iter_mut()
                .flat_map(|plan| [&mut plan.listen, &mut plan.admin])
            {
                address.set_port(port::free().context("there is no free port")?);
            }
        }
        Ok(plans)
    }
}

/// One of the three services and where it listens.
#[derive(Debug)]
struct ServicePlan {
    name: &'static str,
    binary: &'static str,
    role: &'static str,
    nats_user: NatsUser,
    listen: SocketAddr,
    admin: SocketAddr,
}

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}

const COMMAND: ServicePlan = ServicePlan {
    name: "command service",
    binary: "daybook-command-svc",
    role: "daybook_command",
    nats_user: NatsUser::Command,
    listen: local(7101),
    admin: local(7201),
};

const QUERY: ServicePlan = ServicePlan {
    name: "query service",
    binary: "daybook-query-svc",
    role: "daybook_query",
    nats_user: NatsUser::Query,
    listen: local(7102),
    admin: local(7202),
};

const PROJECTOR: ServicePlan = ServicePlan {
    name: "projector",
    binary: "daybook-projector",
    role: "daybook_projector",
    nats_user: NatsUser::Projector,
    listen: local(7103),
    admin: local(7203),
};

/// The database that the stack works on, private or the user's own.
#[derive(Debug)]
struct Database {
    cluster: Cluster,
    name: String,
    /// Under which its tenant and keys are remembered.
    label: String,
}

/// All that was started. Dropped, its services stop before its servers: fields drop in order.
#[derive(Debug)]
pub(crate) struct Stack {
    services: Vec<Service>,
    nats: Option<Nats>,
    postgres: Option<Postgres>,
    database: Database,
    /// Command service, query service, projector.
    plans: [ServicePlan; 3],
}

/// Refuses before anything is started when somebody listens where a service should.
pub(crate) fn require_free_ports() -> Result<()> {
    for plan in [COMMAND, QUERY, PROJECTOR] {
        for address in [plan.listen, plan.admin] {
            if !port::is_free(address.port()) {
                let server = format!("the {}", plan.name);
                return Err(DevstackError::PortTaken {
                    server,
                    port: address.port(),
                }
                .into());
            }
        }
    }
    Ok(())
}

fn own(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|value| !value.is_empty())
}

impl Stack {
    /// Starts the two servers, or takes the user's own.
    pub(crate) async fn start_servers(
        place: Place,
        directory: &Path,
        secrets: &mut Secrets,
        lifetime: Lifetime,
    ) -> Result<Self> {
        let (postgres, nats) = tokio::try_join!(
            start_postgres(place, directory, lifetime),
            start_nats(place, directory, lifetime)
        )?;
        let database = match &postgres {
            Some(postgres) => private_database(postgres, secrets).await?,
            None => own_database(secrets)?,
        };
        Ok(Self {
            services: Vec::new(),
            nats,
            postgres,
            database,
            plans: place.plans()?,
        })
    }

    /// Brings the schema up to date, lets the services' roles sign in, and makes the demo tenant the first time.
    pub(crate) async fn prepare(&self, binaries: &Path, secrets: &mut Secrets) -> Result<Keys> {
        let environment = [("DATABASE_URL".to_owned(), self.superuser_url())];
        daybook(binaries, &["migrate"], &environment).await?;
        self.database.cluster.enable_login(&LOGIN_ROLES).await?;
        if let Some(keys) = secrets.keys(&self.database.label) {
            return Ok(keys.clone());
        }
        say("making the tenant `demo` with its keys, and the operators' key");
        let made = daybook(
            binaries,
            &["bootstrap", "--tenant", "demo", "--operator", "--output", "json"],
            &environment,
        )
        .await?;
        let keys: Keys =
            serde_json::from_str(&made).context("`daybook bootstrap` printed something else than keys")?;
        secrets.remember_keys(&self.database.label, keys.clone())?;
        Ok(keys)
    }

    /// Starts the three services and waits until all are ready. Web pages of `origin` may call them.
    pub(crate) async fn start_services(
        &mut self,
        binaries: &Path,
        directory: &Path,
        secrets: &Secrets,
        lifetime: Lifetime,
        origin: Option<&str>,
    ) -> Result<()> {
        let publisher = (
            "DAYBOOK_PUBLISHER_DATABASE_URL",
            self.role_url("daybook_publisher"),
        );
        let [command, query, projector] = &self.plans;
        let public_url = ("DAYBOOK_PUBLIC_URL", format!("http://{}", query.listen));
        let sealing_keys = ("DAYBOOK_SEALING_KEYS", secrets.sealing_key().to_owned());
        let origins = origin.map(|origin| ("DAYBOOK_CORS_ORIGINS", origin.to_owned()));
        let start = |plan: &ServicePlan, extra: &[(&str, String)]| {
            Service::start(ServiceOptions {
                name: plan.name.to_owned(),
                binary: binaries.join(plan.binary),
                environment: self.service_environment(plan, &[extra, origins.as_slice()].concat()),
                log: directory.join(format!("{}.log", plan.binary)),
                admin: plan.admin,
                lifetime,
            })
        };
        let started = tokio::try_join!(
            start(command, &[publisher, public_url, sealing_keys.clone()]),
            start(projector, &[]),
            start(query, &[sealing_keys]),
        );
        let (command, projector, query) = started?;
        self.services = vec![query, projector, command];
        Ok(())
    }

    fn service_environment(&self, plan: &ServicePlan, extra: &[(&str, String)]) -> Vec<(String, String)> {
        let common = [
            ("DAYBOOK_LISTEN", plan.listen.to_string()),
            ("DAYBOOK_ADMIN_LISTEN", plan.admin.to_string()),
            ("DATABASE_URL", self.role_url(plan.role)),
            ("NATS_URL", self.nats_url(plan.nats_user)),
            ("DAYBOOK_ENV", "development".to_owned()),
            ("DAYBOOK_LOG", "info".to_owned()),
        ];
        common
            .into_iter()
            .chain(extra.iter().cloned())
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// Sends the demo's orders through the public API, once per database.
    pub(crate) async fn load_demo(&self, binaries: &Path, keys: &Keys, secrets: &mut Secrets) -> Result<()> {
        let label = &self.database.label;
        if secrets.is_demo_loaded(label) {
            return Ok(());
        }
        say("loading the demo orders");
        let orders = root().join("deploy/demo/orders.ndjson");
        let orders = orders.to_str().context("the path of the checkout is not UTF-8")?;
        daybook(binaries, &["import", orders], &self.environment(keys)).await?;
        secrets.remember_demo(label)
    }

    /// What a client needs to know, as `.daybook/dev.env` says it.
    pub(crate) fn environment(&self, keys: &Keys) -> Vec<(String, String)> {
        let [command, query, projector] = &self.plans;
        let variables = [
            ("DAYBOOK_COMMAND_URL", format!("http://{}", command.listen)),
            ("DAYBOOK_QUERY_URL", format!("http://{}", query.listen)),
            ("DAYBOOK_PROJECTOR_URL", format!("http://{}", projector.listen)),
            ("DAYBOOK_SERVICE_KEY", keys.service_key.clone()),
            ("DAYBOOK_FRONTEND_KEY", keys.frontend_key.clone()),
            ("DAYBOOK_AUDITOR_KEY", keys.auditor_key.clone()),
            ("DAYBOOK_OPERATOR_KEY", keys.operator_key.clone()),
            ("DATABASE_URL", self.superuser_url()),
            ("NATS_URL", self.nats_url(NatsUser::Admin)),
        ];
        variables.map(|(name, value)| (name.to_owned(), value)).into()
    }

    fn superuser_url(&self) -> String {
        self.database.cluster.superuser_url(&self.database.name)
    }

    fn role_url(&self, role: &str) -> String {
        self.database.cluster.url(role, &self.database.name)
    }

    /// A server of the user's own has one address for all.
    fn nats_url(&self, user: NatsUser) -> String {
        let url = self.nats.as_ref().map(|nats| nats.url_of(user));
        let url = url.or_else(|| own(OWN_NATS_VARIABLE));
        url.expect("a server is private or the user's own")
    }

    /// The processes that run now, in the order of their start.
    pub(crate) fn members(&self) -> Vec<Member> {
        let member = |name: &str, address: String, process: Option<&ProcessId>| {
            Some(Member {
                name: name.to_owned(),
                address,
                process: process?.clone(),
            })
        };
        let postgres = self.postgres.as_ref().and_then(|postgres| {
            member(
                POSTGRES,
                format!("127.0.0.1:{}", postgres.port()),
                postgres.process_id(),
            )
        });
        let nats = self
            .nats
            .as_ref()
            .and_then(|nats| member(NATS, format!("127.0.0.1:{}", nats.port()), nats.process_id()));
        let services = self.services.iter().rev().filter_map(|service| {
            let plan = self.plans.iter().find(|plan| plan.name == service.name())?;
            member(plan.name, plan.listen.to_string(), service.process_id())
        });
        postgres.into_iter().chain(nats).chain(services).collect()
    }

    /// The first process that ended without being told to, and why.
    pub(crate) fn failure(&mut self) -> Option<String> {
        let services = self.services.iter_mut();
        let service = services
            .filter_map(|service| Some((service.name().to_owned(), service.failure()?)))
            .next();
        let nats = || Some((NATS.to_owned(), self.nats.as_mut()?.failure()?));
        let failed = service.or_else(nats);
        let postgres = || Some((POSTGRES.to_owned(), self.postgres.as_mut()?.failure()?));
        let (name, reason) = failed.or_else(postgres)?;
        Some(format!("{name} ended: {reason}"))
    }

    /// Stops everything: callers first, then what they call. Goes on after a failure, and reports the first.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let mut first = Ok(());
        for service in &mut self.services {
            first = first.and(service.stop().await);
        }
        if let Some(nats) = &mut self.nats {
            first = first.and(nats.stop().await);
        }
        if let Some(postgres) = &mut self.postgres {
            first = first.and(postgres.stop().await);
        }
        Ok(first?)
    }

    /// Leaves everything running.
    pub(crate) fn detach(self) {
        // The processes are written down in the state: their numbers are not needed here.
        for service in self.services {
            let _ = service.detach();
        }
        let _ = self.nats.map(Nats::detach);
        let _ = self.postgres.map(Postgres::detach);
    }
}

async fn start_postgres(place: Place, directory: &Path, lifetime: Lifetime) -> Result<Option<Postgres>> {
    if !place.has_private(OWN_DATABASE_VARIABLE) {
        return Ok(None);
    }
    let wanted = directory.join("postgres");
    let port = place.port(POSTGRES_PORT);
    let postgres = Postgres::start(PostgresOptions {
        port,
        lifetime,
        ..PostgresOptions::new(&wanted)
    })
    .await?;
    say_where(POSTGRES, &wanted, postgres.directory());
    Ok(Some(postgres))
}

async fn start_nats(place: Place, directory: &Path, lifetime: Lifetime) -> Result<Option<Nats>> {
    if !place.has_private(OWN_NATS_VARIABLE) {
        return Ok(None);
    }
    let wanted = directory.join("nats");
    let port = place.port(NATS_PORT);
    let nats = Nats::start(NatsOptions {
        port,
        lifetime,
        ..NatsOptions::new(&wanted)
    })
    .await?;
    say_where(NATS, &wanted, nats.directory());
    Ok(Some(nats))
}

fn say_where(server: &str, wanted: &Path, actual: &Path) {
    if wanted != actual {
        let (wanted, actual) = (wanted.display(), actual.display());
        say(&format!(
            "{server} keeps its data in {actual}: its unprivileged user cannot enter {wanted}"
        ));
    }
}

async fn private_database(postgres: &Postgres, secrets: &mut Secrets) -> Result<Database> {
    let cluster = postgres.cluster().clone().with_role_secret(secrets.role_secret());
    let database = Database {
        cluster,
        name: DATABASE.to_owned(),
        label: "private".to_owned(),
    };
    if database.cluster.ensure_database(DATABASE).await? {
        // Keys of a database that is no more.
        secrets.forget(&database.label);
    }
    Ok(database)
}

fn own_database(secrets: &Secrets) -> Result<Database> {
    let url = own(OWN_DATABASE_VARIABLE).expect("a server is private or the user's own");
    let cluster = Cluster::from_url(&url).with_context(|| format!("{OWN_DATABASE_VARIABLE} is no good"))?;
    let address = url.split('?').next().unwrap_or_default();
    let label = address
        .rsplit_once('@')
        .map_or(address, |(_, place)| place)
        .to_owned();
    let name = label
        .split_once('/')
        .map_or(DATABASE, |(_, name)| name)
        .to_owned();
    Ok(Database {
        cluster: cluster.with_role_secret(secrets.role_secret()),
        name,
        label,
    })
}

/// Where a service's output goes, for the message at the end of `up`.
pub(crate) fn logs(directory: &Path) -> PathBuf {
    directory.join("*.log")
}
