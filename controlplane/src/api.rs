//! The gRPC services. Protobuf stops in this folder: `convert` turns messages into the core's types and back.
//!
//! Both listeners serve them behind one guard. The TCP port serves `control.v1` and health to anybody, and `admin.v1` and
//! reflection to whoever has an API key; the unix socket serves `admin.v1`, health and reflection, to operators of the machine.

mod admin;
pub(crate) mod challenge;
mod control;
pub mod convert;
mod events;
mod granted;
mod guard;
pub(crate) mod json;
mod keys;
mod policy;
mod refusals;
mod relay;
mod request;
mod sync;

use ringmesh_proto::{
    DESCRIPTORS,
    admin::{
        api_key_service_server::ApiKeyServiceServer, event_service_server::EventServiceServer,
        network_service_server::NetworkServiceServer, node_service_server::NodeServiceServer,
        policy_service_server::PolicyServiceServer, relay_service_server::RelayServiceServer,
        token_service_server::TokenServiceServer,
    },
    control::control_service_server::ControlServiceServer,
};
use tonic::service::{Routes, RoutesBuilder};
use tonic_health::server::HealthReporter;

pub use self::control::Control;
pub(crate) use self::guard::limit;
use self::{admin::Admin, guard::Guard};
use crate::{
    coordinator::Coordinator,
    metrics::Counting,
    server::{MAX_MESSAGE, MAX_NODE_MESSAGE},
};

/// What the TCP port serves, with the guard in front: the whole service, to which any way of speaking it leads.
///
/// # Panics
/// Never: the descriptors are part of this program.
#[must_use]
pub async fn node_routes(coordinator: &Coordinator) -> Routes {
    let control = ControlServiceServer::new(Control::new(coordinator.clone()))
        .max_decoding_message_size(MAX_NODE_MESSAGE);
    let mut routes = RoutesBuilder::default();
    let reporter = add_operators_services(&mut routes, coordinator).await;
    reporter.set_serving::<ControlServiceServer<Control>>().await;
    routes.add_service(control);
    Counting::before(Guard::before(routes.routes(), coordinator), &coordinator.counters().requests)
}

/// What the unix socket serves, with the guard in front.
///
/// # Panics
/// Never: the descriptors are part of this program.
#[must_use]
pub async fn operator_routes(coordinator: &Coordinator) -> Routes {
    let mut routes = RoutesBuilder::default();
    add_operators_services(&mut routes, coordinator).await;
    Counting::before(Guard::before(routes.routes(), coordinator), &coordinator.counters().requests)
}

/// `admin.v1`, health and reflection. What a stranger may send is bounded as a node's messages are.
async fn add_operators_services(routes: &mut RoutesBuilder, coordinator: &Coordinator) -> HealthReporter {
    let admin = || Admin::new(coordinator.clone());
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<NetworkServiceServer<Admin>>().await;
    reporter.set_serving::<NodeServiceServer<Admin>>().await;
    reporter.set_serving::<TokenServiceServer<Admin>>().await;
    reporter.set_serving::<PolicyServiceServer<Admin>>().await;
    reporter.set_serving::<RelayServiceServer<Admin>>().await;
    reporter.set_serving::<ApiKeyServiceServer<Admin>>().await;
    reporter.set_serving::<EventServiceServer<Admin>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let reflection_v1 = reflection().build_v1().expect("invariant: our own descriptors");
    let reflection_v1alpha = reflection().build_v1alpha().expect("invariant: our own descriptors");
    routes
        .add_service(NetworkServiceServer::new(admin()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(NodeServiceServer::new(admin()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(TokenServiceServer::new(admin()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(PolicyServiceServer::new(admin()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(RelayServiceServer::new(admin()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(ApiKeyServiceServer::new(admin()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(EventServiceServer::new(admin()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(health.max_decoding_message_size(MAX_NODE_MESSAGE))
        .add_service(reflection_v1.max_decoding_message_size(MAX_NODE_MESSAGE))
        .add_service(reflection_v1alpha.max_decoding_message_size(MAX_NODE_MESSAGE));
    reporter
}
