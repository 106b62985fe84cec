//! Connections: HTTP/2 over TCP or TLS, with the API key and a deadline on every call. One connection carries gRPC and REST.

use std::time::Duration;

use http::HeaderValue;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tonic::body::Body;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};
use tower::ServiceExt as _;

use crate::{Failure, Refusal};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may be silent before the other end is asked whether it is there, and how long it may take to say so.
/// Otherwise each call goes into a dead connection until the kernel gives it up, after a quarter of an hour.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How much one connection may have on its way to us. All calls of a program share it, and their answers may be small and many.
const CONNECTION_WINDOW_BYTES: u32 = 1_024 * 1_024;

/// A connection to a service, which does not say yet who is calling.
#[derive(Debug, Clone)]
pub struct Connection(Channel);

/// A connection that shows who is calling, and bounds each call.
pub type Authorized = InterceptedService<Channel, Credential>;

impl Connection {
    /// Connects when it is first used, and anew whenever the connection has broken.
    ///
    /// # Errors
    /// When the address is not one.
    pub fn open(url: &str) -> Result<Self, Failure> {
        Ok(Self(endpoint(url)?.connect_lazy()))
    }

    /// Connects now, and anew whenever the connection has broken.
    ///
    /// # Errors
    /// When the address is not one, or nobody answers there.
    pub async fn connect(url: &str) -> Result<Self, Failure> {
        let channel = endpoint(url)?.connect().await.map_err(Failure::Unreachable)?;
        Ok(Self(channel))
    }

    /// The same connection, on which every call shows the credential. Calls with different ones may share a connection.
    #[must_use]
    pub fn with(&self, credential: Credential) -> Authorized {
        InterceptedService::new(self.0.clone(), credential)
    }

    /// The channel, for calls that need no credential: health, reflection.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.0.clone()
    }
}

fn endpoint(url: &str) -> Result<Endpoint, Failure> {
    let wrong = |problem: String| Failure::Address {
        url: url.to_owned(),
        problem,
    };
    let because = |error: tonic::transport::Error| wrong(error.to_string());
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(because)?;
    let endpoint = match endpoint.uri().scheme_str() {
        Some("http") => endpoint,
        Some("https") => {
            let roots = ClientTlsConfig::new().with_enabled_roots();
            endpoint.tls_config(roots).map_err(because)?
        }
        _ => return Err(wrong("it has to begin with http:// or https://".to_owned())),
    };
    Ok(endpoint
        .user_agent(concat!("daybook/", env!("CARGO_PKG_VERSION")))
        .map_err(because)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .tcp_nodelay(true))
}

/// Puts the API key and the deadline on every call.
#[derive(Clone, Debug)]
pub struct Credential {
    authorization: MetadataValue<Ascii>,
    timeout: Duration,
}

impl Credential {
    /// An API key, and how long a call with it may take. A call that has a deadline of its own keeps it.
    ///
    /// # Errors
    /// When the key has characters that no key has.
    pub fn new(key: &str, timeout: Duration) -> Result<Self, Failure> {
        let authorization = MetadataValue::try_from(format!("Bearer {key}"));
        let mut authorization = authorization.map_err(|_| Failure::Key)?;
        authorization.set_sensitive(true);
        Ok(Self {
            authorization,
            timeout,
        })
    }
}

impl Credential {
    /// The key as the header `Authorization` has it.
    #[must_use]
    pub fn authorization(&self) -> HeaderValue {
        let text = self.authorization.to_str().unwrap_or_default();
        let mut value = HeaderValue::from_str(text).expect("metadata are headers");
        value.set_sensitive(true);
        value
    }
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if !request.metadata().contains_key("grpc-timeout") {
            request.set_timeout(self.timeout);
        }
        request
            .metadata_mut()
            .insert("authorization", self.authorization.clone());
        Ok(request)
    }
}

/// Reads a resource of the REST interface. The path may have a query string.
///
/// # Errors
/// When the path is none, the service refuses, or its answer is not such a `T`.
pub(crate) async fn get<T: DeserializeOwned>(
    connection: Authorized,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Result<T, Failure> {
    let mut request = http::Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).map_err(|error| Failure::Path {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    let response = connection.oneshot(request).await;
    read_json(path, response.map_err(|error| Status::from_error(error.into()))?).await
}

/// Reads an answer of the REST interface.
///
/// # Errors
/// The refusal that it is, or when it is not such a `T`.
pub async fn read_json<T, B>(path: &str, response: http::Response<B>) -> Result<T, Failure>
where
    T: DeserializeOwned,
    B: BodyExt<Error = Status>,
{
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        return Err(Failure::Refused(Box::new(Refusal::from_problem(status, &body))));
    }
    serde_json::from_slice(&body).map_err(|source| Failure::Answer {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_of_http() {
        for url in ["ftp://a", "localhost:7101", "", "http://"] {
            assert!(
                matches!(endpoint(url), Err(Failure::Address { .. })),
                "{url:?} was taken"
            );
        }
        for url in ["http://localhost:7101", "https://daybook.example"] {
            assert!(endpoint(url).is_ok(), "{url} was not taken");
        }
    }

    #[test]
    fn a_key_is_not_shown_and_a_deadline_of_the_call_stays() {
        let mut credential = Credential::new("dbk_dev_secret", Duration::from_secs(3)).expect("it is ASCII");
        assert!(!format!("{credential:?}").contains("secret"), "{credential:?}");
        let mut request = Request::new(());
        request.set_timeout(Duration::from_secs(1));
        let own = request.metadata().get("grpc-timeout").cloned();
        let request = credential.call(request).expect("nothing is refused");
        assert_eq!(request.metadata().get("grpc-timeout"), own.as_ref());
        assert!(Credential::new("with\nbreak", Duration::from_secs(3)).is_err());
    }
}
