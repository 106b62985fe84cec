//! The gRPC services of a process, and what each of them has without saying so: a route, its health by name, and, in
//! development, its place in reflection, so that a client that knows an address and a key needs nothing else.

use std::convert::Infallible;

use axum::Router;
use axum::response::IntoResponse;
use http::Request;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server;
use tonic_reflection::server::Builder;
use tower::Service;

use crate::shutdown::Supervisor;

/// Services that are served on one port.
#[derive(Debug, Default)]
pub struct GrpcServices {
    routes: Routes,
    names: Vec<&'static str>,
}

impl GrpcServices {
    /// Adds a service.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        self.routes = self.routes.add_service(service);
        self.names.push(S::NAME);
        self
    }

    /// The services and their health, which ends with `shutdown`; and reflection, when a descriptor set is given. It may
    /// describe more than is served here.
    ///
    /// # Errors
    /// When the descriptor set cannot be read.
    pub async fn into_router(
        self,
        descriptor_set: Option<&'static [u8]>,
        tasks: &mut Supervisor,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Router> {
        let Self { mut routes, names } = self;
        if let Some(set) = descriptor_set {
            routes = add_reflection(routes, set, &names)?;
        }
        let (reporter, health) = tonic_health::server::health_reporter();
        for name in &names {
            reporter.set_service_status(name, ServingStatus::Serving).await;
        }
        let stopping = shutdown.clone();
        tasks.spawn("health", async move {
            stopping.cancelled().await;
            for name in &names {
                reporter.set_service_status(name, ServingStatus::NotServing).await;
            }
            Ok(())
        });
        Ok(routes.add_service(health).into_axum_router())
    }
}

/// Both versions of the protocol: grpcio's own client still speaks the older one alone.
fn add_reflection(
    routes: Routes,
    descriptor_set: &'static [u8],
    names: &[&'static str],
) -> anyhow::Result<Routes> {
    let builder = || {
        let described = Builder::configure()
            .register_encoded_file_descriptor_set(descriptor_set)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(health_server::SERVICE_NAME);
        names
            .iter()
            .fold(described, |builder, name| builder.with_service_name(*name))
    };
    let routes = routes.add_service(builder().build_v1()?);
    Ok(routes.add_service(builder().build_v1alpha()?))
}
