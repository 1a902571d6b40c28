//! The gRPC services, and the port that each is served on.

use std::sync::Arc;

use tonic::service::{Routes, RoutesBuilder};
use tonic_health::server::{HealthReporter, HealthService};
use tonic_reflection::server::Builder;

use super::RpcOptions;
use super::admin_service::Admin;
use super::hot_keys::Watchers;
use super::service::Products;
use crate::catalog::Catalog;
use crate::drain::Drain;
use crate::proto::DESCRIPTORS;
use crate::proto::admin::AdminServiceServer;
use crate::proto::server::ProductServiceServer;

/// Optional parts of the API.
#[derive(Clone, Copy, Debug)]
pub struct Switches {
    /// Refuses create, update and delete.
    pub read_only: bool,
    /// `hotshelf.v1.AdminService`.
    pub admin_service: ServedOn,
    /// gRPC server reflection. On the gRPC port it is on the admin port, too, if AdminService is there.
    pub reflection: ServedOn,
}

/// Where a service is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServedOn {
    GrpcPort,
    AdminPort,
    Nowhere,
}

pub(super) fn on_grpc_port(
    catalog: &Arc<Catalog>,
    reporter: HealthReporter,
    options: &RpcOptions,
    drain: &Drain,
) -> Routes {
    let Switches { read_only, admin_service, reflection } = options.switches;
    let (catalog, watchers) = (Arc::clone(catalog), Watchers::new(catalog, drain.clone()));
    let has_admin = admin_service == ServedOn::GrpcPort;
    let mut routes = Routes::builder();
    if has_admin {
        add_admin(&mut routes, &catalog, options);
    }
    if reflection == ServedOn::GrpcPort {
        add_reflection(&mut routes, has_admin);
    }
    let products = ProductServiceServer::new(Products { catalog, watchers, read_only });
    let health = HealthService::from_health_reporter(reporter);
    routes
        .add_service(products.max_decoding_message_size(options.max_request_bytes))
        .add_service(tonic_health::pb::health_server::HealthServer::new(health));
    routes.routes().prepare()
}

/// `None` when no service is placed there.
pub(super) fn on_admin_port(catalog: &Arc<Catalog>, options: &RpcOptions) -> Option<Routes> {
    let Switches { admin_service, reflection, .. } = options.switches;
    let has_admin = admin_service == ServedOn::AdminPort;
    if !has_admin && reflection != ServedOn::AdminPort {
        return None;
    }
    let mut routes = Routes::builder();
    if has_admin {
        add_admin(&mut routes, catalog, options);
    }
    // It describes the services of both ports.
    if reflection != ServedOn::Nowhere {
        add_reflection(&mut routes, admin_service != ServedOn::Nowhere);
    }
    Some(routes.routes().prepare())
}

fn add_admin(routes: &mut RoutesBuilder, catalog: &Arc<Catalog>, options: &RpcOptions) {
    let admin = AdminServiceServer::new(Admin { catalog: Arc::clone(catalog) });
    routes.add_service(admin.max_decoding_message_size(options.max_request_bytes));
}

fn add_reflection(routes: &mut RoutesBuilder, with_admin: bool) {
    // A request holds one symbol's name. The limit is small because tonic buffers incomplete messages of a stream outside of the
    // allowance for requests.
    const MAX_REFLECTION_BYTES: usize = 4_096;
    const VALID: &str = "build.rs generates valid descriptors";
    let [v1, v1alpha] = ["v1", "v1alpha"].map(|version| described(with_admin, version));
    let (v1, v1alpha) = (v1.build_v1().expect(VALID), v1alpha.build_v1alpha().expect(VALID));
    routes
        .add_service(v1.max_decoding_message_size(MAX_REFLECTION_BYTES))
        .add_service(v1alpha.max_decoding_message_size(MAX_REFLECTION_BYTES));
}

/// Reflection does not list a service that is not served.
fn described(with_admin: bool, version: &str) -> Builder<'static> {
    let mut builder = Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    if !with_admin {
        let reflection = format!("grpc.reflection.{version}.ServerReflection");
        for service in ["hotshelf.v1.ProductService", "grpc.health.v1.Health", &reflection] {
            builder = builder.with_service_name(service);
        }
    }
    builder
}
