//! The gRPC services. Protobuf stops in this folder: `convert` turns messages into the core's types and back.
//!
//! The TCP port serves [`Control`] and health, and nothing else; the unix socket serves `admin.v1`, health and reflection,
//! to operators alone.

mod admin;
pub(crate) mod challenge;
mod control;
pub mod convert;
mod guard;
mod policy;
mod relay;
mod sync;

use ringmesh_proto::{
    DESCRIPTORS,
    admin::{
        network_service_server::NetworkServiceServer, node_service_server::NodeServiceServer,
        policy_service_server::PolicyServiceServer, relay_service_server::RelayServiceServer,
        token_service_server::TokenServiceServer,
    },
    control::control_service_server::ControlServiceServer,
};
use tonic::service::{Routes, RoutesBuilder};

pub use self::control::Control;
use crate::{
    coordinator::Coordinator,
    server::{MAX_MESSAGE, MAX_NODE_MESSAGE},
};

/// What the TCP port serves.
#[must_use]
pub async fn node_routes(coordinator: &Coordinator) -> Routes {
    let control = ControlServiceServer::new(Control::new(coordinator.clone()))
        .max_decoding_message_size(MAX_NODE_MESSAGE);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<ControlServiceServer<Control>>().await;
    let mut routes = RoutesBuilder::default();
    routes.add_service(control).add_service(health);
    routes.routes()
}

/// What the unix socket serves.
///
/// # Panics
/// Never: the descriptors are part of this program.
#[must_use]
pub async fn operator_routes(coordinator: &Coordinator) -> Routes {
    let admin = || admin::Admin::new(coordinator.clone());
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<NetworkServiceServer<admin::Admin>>().await;
    reporter.set_serving::<NodeServiceServer<admin::Admin>>().await;
    reporter.set_serving::<TokenServiceServer<admin::Admin>>().await;
    reporter.set_serving::<PolicyServiceServer<admin::Admin>>().await;
    reporter.set_serving::<RelayServiceServer<admin::Admin>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let reflection_v1 = reflection().build_v1().expect("invariant: our own descriptors");
    let reflection_v1alpha = reflection().build_v1alpha().expect("invariant: our own descriptors");
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(NetworkServiceServer::new(admin()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(NodeServiceServer::new(admin()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(TokenServiceServer::new(admin()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(PolicyServiceServer::new(admin()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(RelayServiceServer::new(admin()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(health)
        .add_service(reflection_v1)
        .add_service(reflection_v1alpha);
    guard::Guard::before(routes.routes())
}
