//! Connections to the services, by the settings of this program.

use std::fmt;
use std::io;

use bytes::Bytes;
pub(crate) use daybook_client::Authorized;
use daybook_client::{Connection, Credential, Queries};
use futures::{Stream, TryStreamExt as _};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tower::ServiceExt as _;

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

/// The body of an answer of any length, for as long as it comes.
pub(crate) async fn download(
    connection: &Connection,
    credential: &Credential,
    path: &str,
) -> Result<impl Stream<Item = Result<Bytes, Status>> + Unpin + use<>, Failure> {
    let request = http::Request::get(path)
        .header(AUTHORIZATION, credential.authorization())
        .body(Body::empty());
    let request = request.map_err(|error| Failure::Usage(format!("{path} is not an address: {error}")))?;
    let response = connection.channel().oneshot(request).await;
    let response = response.map_err(|error| Status::from_error(error.into()))?;
    if !response.status().is_success() {
        let refused = daybook_client::read_json::<IgnoredAny, _>(path, response).await;
        return Err(refused.expect_err("what is no success is a refusal").into());
    }
    Ok(response.into_body().into_data_stream())
}

/// Something of any length for a resource that takes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Upload<'a> {
    /// Where it goes; the path may have a query string.
    pub(crate) path: &'a str,
    /// What it is.
    pub(crate) media_type: &'static str,
    /// Its idempotency key.
    pub(crate) key: &'a str,
}

/// Hands a body over, piece by piece, for as long as that takes.
pub(crate) async fn upload<T: DeserializeOwned>(
    connection: &Connection,
    credential: &Credential,
    upload: Upload<'_>,
    pieces: mpsc::Receiver<io::Result<Bytes>>,
) -> Result<T, Failure> {
    let frames = ReceiverStream::new(pieces).map_ok(Frame::data);
    let request = http::Request::post(upload.path)
        .header(AUTHORIZATION, credential.authorization())
        .header(CONTENT_TYPE, upload.media_type)
        .header("idempotency-key", upload.key)
        .body(Body::new(StreamBody::new(frames)));
    let path = upload.path;
    let request = request.map_err(|error| Failure::Usage(format!("{path} is not an address: {error}")))?;
    let response = connection.channel().oneshot(request).await;
    let response = response.map_err(|error| Status::from_error(error.into()))?;
    Ok(daybook_client::read_json(path, response).await?)
}
