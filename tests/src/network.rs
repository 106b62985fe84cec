//! The network between one service and its servers: proxies that can be made to fail.

use daybook_devstack::Proxy;

use crate::stack::{Role, Servers};

/// Proxies in front of Postgres and NATS for one service. Keep it as long as the service runs.
#[derive(Debug)]
pub struct Network {
    /// What the service says to Postgres, and hears from it.
    pub postgres: Proxy,
    /// What it says to NATS, and hears from it.
    pub nats: Proxy,
    settings: Vec<(&'static str, String)>,
}

impl Network {
    /// The network of a service of this role that is yet to be started.
    ///
    /// # Errors
    /// When a proxy cannot be started.
    pub async fn between(servers: &Servers, role: Role) -> anyhow::Result<Self> {
        let url = servers.database.url(role.database_role());
        let (postgres, database_url) = Proxy::in_front_of(&url).await?;
        let (nats, nats_url) = Proxy::in_front_of(&servers.nats.url_of(role.nats_user())).await?;
        let publisher_url = postgres.in_place_of_server(&servers.database.url("daybook_publisher"));
        Ok(Self {
            postgres,
            nats,
            settings: vec![
                ("DATABASE_URL", database_url),
                ("DAYBOOK_PUBLISHER_DATABASE_URL", publisher_url),
                ("NATS_URL", nats_url),
            ],
        })
    }

    /// The settings with which a service uses this network.
    #[must_use]
    pub fn environment(&self) -> Vec<(&str, &str)> {
        let settings = self.settings.iter();
        settings.map(|(name, value)| (*name, value.as_str())).collect()
    }
}
