//! Connections to the services, by the settings of this program.

use std::fmt;

pub(crate) use daybook_client::Authorized;
use daybook_client::{Connection, Credential, Queries};
use serde::de::DeserializeOwned;

use crate::failure::Failure;
use crate::settings::{Role, Settings};

/// A service of Daybook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// Takes commands.
    Command,
    /// Answers reads.
    Query,
    /// Builds the read models.
    Projector,
}

impl Service {
    /// The setting that holds its address.
    pub(crate) fn setting(self) -> &'static str {
        match self {
            Self::Command => "DAYBOOK_COMMAND_URL",
            Self::Query => "DAYBOOK_QUERY_URL",
            Self::Projector => "DAYBOOK_PROJECTOR_URL",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Command => "command",
            Self::Query => "query",
            Self::Projector => "projector",
        })
    }
}

/// Connects to a service with the key that suits the role.
pub(crate) async fn connect(
    settings: &Settings,
    service: Service,
    role: Role,
) -> Result<Authorized, Failure> {
    let credential = credential(settings, role)?;
    let connection = open(settings, service).await?;
    Ok(connection.with(credential))
}

/// Connects to a service.
pub(crate) async fn open(settings: &Settings, service: Service) -> Result<Connection, Failure> {
    let url = settings.url(service)?;
    Connection::connect(url).await.map_err(|failure| match failure {
        daybook_client::Failure::Unreachable(source) => Failure::Unreachable {
            service,
            url: url.to_owned(),
            source,
        },
        other => Failure::Usage(format!("{}: {other}", service.setting())),
    })
}

/// The key that suits the role, with the deadline of every call.
pub(crate) fn credential(settings: &Settings, role: Role) -> Result<Credential, Failure> {
    Ok(Credential::new(settings.key(role)?, settings.timeout())?)
}

/// Reads a resource of the REST interface; the path may have a query string.
pub(crate) async fn get<T: DeserializeOwned>(connection: Authorized, path: &str) -> Result<T, Failure> {
    Ok(Queries::new(connection).read(path).await?)
}
