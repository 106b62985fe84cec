//! The gRPC services of a process, and what each of them has without saying so: a route, its health by name, the names of
//! its methods in metrics, and, in development, its place in reflection, so that a client that knows an address and a key
//! needs nothing else.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::response::IntoResponse;
use http::Request;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server;
use tonic_reflection::server::Builder;
use tower::Service;

use crate::shutdown::Supervisor;

/// Whether callers are told what a service offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reflection {
    /// Yes, everybody.
    On,
    /// No.
    Off,
}

/// The routes of gRPC services, and which methods there are.
#[derive(Clone, Debug, Default)]
pub struct GrpcRouter {
    router: Router,
    /// The methods as they are called: `/daybook.orders.v1.OrderService/PlaceOrder`.
    methods: Arc<HashSet<Arc<str>>>,
}

impl GrpcRouter {
    /// Routes with these methods; calls of others are counted together.
    pub fn new(router: Router, methods: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self {
            router,
            methods: Arc::new(methods.into_iter().collect()),
        }
    }

    /// The method at this path, if there is one.
    pub(crate) fn method(&self, path: &str) -> Option<Arc<str>> {
        self.methods.get(path).cloned()
    }

    pub(crate) fn router(&self) -> &Router {
        &self.router
    }

    pub(crate) fn map_router(self, change: impl FnOnce(Router) -> Router) -> Self {
        Self {
            router: change(self.router),
            methods: self.methods,
        }
    }
}

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

    /// The services and their health, which ends with `shutdown`; and reflection, where it is on. The descriptor set may
    /// describe more than is served here.
    ///
    /// # Errors
    /// When the descriptor set cannot be read.
    pub async fn into_router(
        self,
        descriptor_set: &'static [u8],
        reflection: Reflection,
        tasks: &mut Supervisor,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<GrpcRouter> {
        let Self { mut routes, names } = self;
        let mut methods = paths_of_methods(descriptor_set, &names)?;
        let health = [health_server::SERVICE_NAME];
        methods.extend(paths_of_methods(tonic_health::pb::FILE_DESCRIPTOR_SET, &health)?);
        if reflection == Reflection::On {
            routes = add_reflection(routes, descriptor_set, &names)?;
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
        Ok(GrpcRouter::new(
            routes.add_service(health).into_axum_router(),
            methods,
        ))
    }
}

/// The paths of all methods of the named services.
fn paths_of_methods(descriptor_set: &[u8], services: &[&str]) -> Result<Vec<Arc<str>>, prost::DecodeError> {
    let mut methods = Vec::new();
    for file in FileDescriptorSet::decode(descriptor_set)?.file {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            if services.contains(&name.as_str()) {
                let paths = service.method.iter();
                methods.extend(paths.map(|method| Arc::from(format!("/{name}/{}", method.name()))));
            }
        }
    }
    Ok(methods)
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
