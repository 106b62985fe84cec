//! Connections to the services: HTTP/2 over TCP or TLS, with the API key and a deadline on every call. One connection
//! carries gRPC and REST.

use std::fmt;
use std::time::Duration;

use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use tonic::body::Body;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};
use tower::ServiceExt as _;

use crate::failure::Failure;
use crate::refusal::Refusal;
use crate::settings::{Role, Settings};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How much one connection may have on its way to us. It is shared by every call of an import, whose answers are small
/// and many.
const CONNECTION_WINDOW_BYTES: u32 = 1_024 * 1_024;

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

/// A connection that shows who is calling.
pub(crate) type Authorized = InterceptedService<Channel, Credential>;

/// Connects to a service with the key that suits the role.
pub(crate) async fn connect(
    settings: &Settings,
    service: Service,
    role: Role,
) -> Result<Authorized, Failure> {
    let credential = Credential::new(settings, role)?;
    let channel = open(settings, service).await?;
    Ok(InterceptedService::new(channel, credential))
}

/// Connects to a service.
pub(crate) async fn open(settings: &Settings, service: Service) -> Result<Channel, Failure> {
    let url = settings.url(service)?;
    let endpoint = endpoint(service, url)?;
    endpoint.connect().await.map_err(|source| Failure::Unreachable {
        service,
        url: url.to_owned(),
        source,
    })
}

/// Reads a resource of the REST interface; the path may have a query string.
pub(crate) async fn get<T: DeserializeOwned>(connection: Authorized, path: &str) -> Result<T, Failure> {
    let request = http::Request::get(path).body(Body::empty());
    let request = request.map_err(|error| Failure::Usage(format!("{path} is not an address: {error}")))?;
    let response = connection.oneshot(request).await;
    let response = response.map_err(|error| Status::from_error(error.into()))?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        return Err(Failure::Refused(Box::new(Refusal::from_problem(status, &body))));
    }
    serde_json::from_slice(&body)
        .map_err(|error| Failure::Failed(format!("the answer to {path} is not as expected: {error}")))
}

fn endpoint(service: Service, url: &str) -> Result<Endpoint, Failure> {
    let wrong = |error| {
        Failure::Usage(format!(
            "{} ({url}) is not an address: {error}",
            service.setting()
        ))
    };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(wrong)?;
    let endpoint = match endpoint.uri().scheme_str() {
        Some("http") => endpoint,
        Some("https") => {
            let roots = ClientTlsConfig::new().with_enabled_roots();
            endpoint.tls_config(roots).map_err(wrong)?
        }
        _ => {
            let setting = service.setting();
            return Err(Failure::Usage(format!(
                "{setting} ({url}) has to begin with http:// or https://"
            )));
        }
    };
    Ok(endpoint
        .user_agent(concat!("daybook/", env!("CARGO_PKG_VERSION")))
        .map_err(wrong)?
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .tcp_nodelay(true))
}

/// Puts the API key and the deadline on every call.
#[derive(Clone)]
pub(crate) struct Credential {
    authorization: MetadataValue<Ascii>,
    timeout: Duration,
}

impl Credential {
    /// The key that suits the role.
    pub(crate) fn new(settings: &Settings, role: Role) -> Result<Self, Failure> {
        let key = settings.key(role)?;
        let authorization = MetadataValue::try_from(format!("Bearer {key}"));
        let mut authorization = authorization
            .map_err(|_| Failure::Usage("the API key has characters that no key has".to_owned()))?;
        authorization.set_sensitive(true);
        Ok(Self {
            authorization,
            timeout: settings.timeout(),
        })
    }
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.set_timeout(self.timeout);
        request
            .metadata_mut()
            .insert("authorization", self.authorization.clone());
        Ok(request)
    }
}
