//! The gRPC services of a process: what their methods need of a caller, and what each has without saying so: a route, its
//! health by name, the names of its methods in metrics, and, in development, its place in reflection, so that a client that
//! knows an address and a key needs nothing else.

use std::convert::Infallible;
use std::sync::Arc;

use axum::response::IntoResponse;
use http::Request;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server;
use tonic_reflection::pb::{v1, v1alpha};
use tonic_reflection::server::Builder;
use tower::Service;

use crate::server::{Declared, Needs};
use crate::shutdown::{Stop, Supervisor};

/// The largest message of health and of reflection, in bytes: a name.
const NAME_MESSAGE_BYTES_MAX: usize = 4 * 1_024;

/// Whether callers are told what a service offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reflection {
    /// Yes, everybody.
    On,
    /// No.
    Off,
}

/// Services that are served on one port.
#[derive(Debug)]
pub struct GrpcServices {
    descriptor_set: &'static [u8],
    routes: Routes,
    services: Vec<(&'static str, Needs)>,
}

impl GrpcServices {
    /// No service yet. The descriptor set may describe more than is served here.
    #[must_use]
    pub fn described_by(descriptor_set: &'static [u8]) -> Self {
        Self {
            descriptor_set,
            routes: Routes::default(),
            services: Vec::new(),
        }
    }

    /// Adds a service, all of whose methods need the same.
    #[must_use]
    pub fn with<S>(mut self, service: S, needs: Needs) -> Self
    where
        S: Service<Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        self.routes = self.routes.add_service(service);
        self.services.push((S::NAME, needs));
        self
    }

    /// The services and their health, which ends when the process is asked to stop; and reflection, where it is on.
    ///
    /// # Errors
    /// When the descriptor set cannot be read.
    pub(crate) async fn into_router(
        self,
        reflection: Reflection,
        tasks: &mut Supervisor,
        stop: &Stop,
    ) -> anyhow::Result<Declared> {
        let Self {
            descriptor_set,
            mut routes,
            services,
        } = self;
        let names: Vec<&'static str> = services.iter().map(|(name, _)| *name).collect();
        let mut methods = methods(descriptor_set, &services)?;
        for (descriptor_set, name, needs) in for_everybody(reflection) {
            methods.extend(self::methods(descriptor_set, &[(name, needs)])?);
        }
        if reflection == Reflection::On {
            routes = add_reflection(routes, descriptor_set, &names)?;
        }
        let (reporter, health) = tonic_health::server::health_reporter();
        let health = health.max_decoding_message_size(NAME_MESSAGE_BYTES_MAX);
        for name in &names {
            reporter.set_service_status(name, ServingStatus::Serving).await;
        }
        let Stop { asked, drains } = stop.clone();
        tasks.spawn("health", async move {
            asked.cancelled().await;
            // The empty name is that of the whole process.
            for name in names.iter().chain(&[""]) {
                reporter.set_service_status(name, ServingStatus::NotServing).await;
            }
            drains.cancelled().await;
            Ok(())
        });
        Ok(Declared::new(
            routes.add_service(health).into_axum_router(),
            methods,
        ))
    }
}

/// The services that need no key, with what describes them.
fn for_everybody(reflection: Reflection) -> Vec<(&'static [u8], &'static str, Needs)> {
    let health = (
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        health_server::SERVICE_NAME,
        Needs::probe(),
    );
    let reflections = [
        (
            v1::FILE_DESCRIPTOR_SET,
            v1::server_reflection_server::SERVICE_NAME,
            Needs::nothing(),
        ),
        (
            v1alpha::FILE_DESCRIPTOR_SET,
            v1alpha::server_reflection_server::SERVICE_NAME,
            Needs::nothing(),
        ),
    ];
    match reflection {
        Reflection::On => [&[health][..], &reflections[..]].concat(),
        Reflection::Off => vec![health],
    }
}

/// The paths of all methods of the named services, with what they need.
fn methods(
    descriptor_set: &[u8],
    services: &[(&str, Needs)],
) -> Result<Vec<(Arc<str>, Needs)>, prost::DecodeError> {
    let mut methods = Vec::new();
    for file in FileDescriptorSet::decode(descriptor_set)?.file {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            if let Some((_, needs)) = services.iter().find(|(served, _)| *served == name) {
                methods.extend(service.method.iter().map(|method| {
                    let needs = match method.client_streaming() || method.server_streaming() {
                        true => needs.streaming(),
                        false => *needs,
                    };
                    (Arc::from(format!("/{name}/{}", method.name())), needs)
                }));
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
    let (v1, v1alpha) = (builder().build_v1()?, builder().build_v1alpha()?);
    Ok(routes
        .add_service(v1.max_decoding_message_size(NAME_MESSAGE_BYTES_MAX))
        .add_service(v1alpha.max_decoding_message_size(NAME_MESSAGE_BYTES_MAX)))
}
