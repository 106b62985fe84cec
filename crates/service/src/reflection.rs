//! gRPC reflection, so that a client that knows an address and a key needs nothing else. For development only.
//!
//! Both versions of the protocol are served: grpcio's own client still speaks the older one alone.

use tonic::service::Routes;
use tonic_reflection::server::Builder;

/// Adds reflection to a service's routes. `descriptors` may describe more than is served here; `served` names what is.
///
/// # Errors
/// When a descriptor set cannot be read.
pub fn add(routes: Routes, descriptors: &[&'static [u8]], served: &[&'static str]) -> anyhow::Result<Routes> {
    let builder = || {
        let described = descriptors.iter().fold(Builder::configure(), |builder, set| {
            builder.register_encoded_file_descriptor_set(set)
        });
        served
            .iter()
            .fold(described, |builder, name| builder.with_service_name(*name))
    };
    let routes = routes.add_service(builder().build_v1()?);
    Ok(routes.add_service(builder().build_v1alpha()?))
}
