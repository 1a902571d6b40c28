//! The gRPC server: requests become domain types, results become responses and statuses. Only this module and `app` use
//! tonic.

mod admin_service;
mod allowance;
mod auth;
mod call;
mod callers;
pub mod codec;
mod connection;
mod convert;
mod edge;
mod hot_keys;
mod identity;
mod protocol;
mod reads;
mod reloaded;
mod reply;
mod service;
mod shed;
mod status;
mod unary;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceBuilder;

use crate::caller::Caller;
use crate::catalog::Catalog;
use crate::drain::Drain;
use crate::metrics::{BackgroundTask, Metrics};
use crate::proto::DESCRIPTORS;
use crate::proto::admin::AdminServiceServer;
use crate::proto::server::ProductServiceServer;
use crate::refusals::Refusals;
use admin_service::Admin;
pub use auth::{Scopes, TokenOptions};
use call::CallLayer;
use callers::{Callers, Limits};
use connection::ClientConnection;
use edge::{Edge, Peer};
pub use edge::{EdgeOptions, TlsOptions};
use hot_keys::Watchers;
pub use identity::{Identity, IdentityOptions};
use reads::{Headers, Reads, Shared};
use service::Products;

#[derive(Clone, Copy, Debug)]
pub struct RpcOptions {
    pub edge: EdgeOptions,
    pub limits: LimitOptions,
    /// Size of the largest request message.
    pub max_request_bytes: usize,
    pub switches: Switches,
}

/// What all callers together may hold; more is refused.
#[derive(Clone, Copy, Debug)]
pub struct LimitOptions {
    /// Unary calls in flight.
    pub calls: usize,
    /// Bytes of batch responses that are not sent yet.
    pub unsent_bytes: usize,
    /// Bytes of requests that are not received completely.
    pub incomplete_request_bytes: usize,
    /// Open streams of all services.
    pub streams: usize,
    /// Open streams of hot keys.
    pub watchers: usize,
}

/// Optional parts of the API.
#[derive(Clone, Copy, Debug)]
pub struct Switches {
    /// Refuses create, update and delete.
    pub read_only: bool,
    /// Serves `hotshelf.v1.AdminService`.
    pub admin_service: bool,
    /// Serves gRPC server reflection.
    pub reflection: bool,
}

/// A part that all connections share, behind a reference count for each connection. Every call clones and drops it; with one
/// count for all connections the cores would contend for its cache line.
type PerConnection<T> = Arc<Arc<T>>;

fn per_connection<T>(part: &Arc<T>) -> PerConnection<T> {
    Arc::new(Arc::clone(part))
}

/// The status that the health service reports.
#[derive(Clone)]
pub struct Health(HealthReporter);

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Health").finish()
    }
}

impl Health {
    const SERVICES: [&str; 2] = ["", "hotshelf.v1.ProductService"];

    pub async fn set(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in Self::SERVICES {
            self.0.set_service_status(service, status).await;
        }
    }

    /// Ends all Watch streams, which would otherwise last as long as their clients and delay the drain.
    pub async fn end_watches(&mut self) {
        for service in Self::SERVICES {
            self.0.clear_service_status(service).await;
        }
    }
}

/// Serves `catalog` on `listener` until the drain begins. Health is NOT_SERVING until [`Health::set`].
pub async fn serve(
    listener: TcpListener,
    catalog: Arc<Catalog>,
    options: RpcOptions,
    identity: Arc<Identity>,
    drain: &Drain,
    metrics: &Arc<Metrics>,
    refusals: &Arc<Refusals>,
) -> Health {
    let reporter = HealthReporter::new();
    let health = Health(reporter.clone());
    health.set(false).await;
    let routes = routes(Arc::clone(&catalog), reporter, &options, drain);
    let max_request_bytes = options.max_request_bytes;
    let max_call_time = options.edge.max_call_time;
    let (headers, caller_metadata) = (Headers::new(), identity.caller_metadata());
    let callers = Callers::new(Limits::new(&options.limits, metrics), metrics);
    let known = Arc::clone(&callers);
    let shared =
        Shared { catalog, routes, callers: known, max_call_time, headers, caller_metadata };
    let shared = Arc::new(shared);
    identity.keep_reloading(drain);
    let (call_metrics, call_refusals) = (Arc::clone(metrics), Arc::clone(refusals));
    let (call_identity, connections) = (Arc::clone(&identity), AtomicU64::new(0));
    let service = move |peer: Peer| {
        let caller = Caller::of_connection(connections.fetch_add(1, Ordering::Relaxed) + 1);
        let auth = call_identity.of_connection(&peer, &callers);
        let (limits, refusals) = (callers.of_connection(), Arc::clone(&call_refusals));
        let connection = ClientConnection::new(peer.address, caller, limits, refusals);
        let shared = Arc::clone(&shared);
        let reads = Arc::new(Reads { shared, auth, max_request_bytes, connection });
        ServiceBuilder::new()
            .layer(CallLayer { metrics: per_connection(&call_metrics), max_call_time })
            .service_fn(move |call| Reads::call(Arc::clone(&reads), call))
    };
    let edge = Arc::new(Edge::new(
        options.edge,
        identity,
        drain.clone(),
        Arc::clone(metrics),
        Arc::clone(refusals),
    ));
    let (listener, service) = (Arc::new(listener), Arc::new(service));
    drain.spawn_accept_loop(BackgroundTask::GrpcPort, move || {
        Arc::clone(&edge).accept(Arc::clone(&listener), Arc::clone(&service))
    });
    health
}

fn routes(
    catalog: Arc<Catalog>,
    reporter: HealthReporter,
    options: &RpcOptions,
    drain: &Drain,
) -> Routes {
    let watchers = Watchers::new(&catalog, drain.clone());
    let Switches { read_only, admin_service, reflection } = options.switches;
    let admin = AdminServiceServer::new(Admin { catalog: Arc::clone(&catalog) })
        .max_decoding_message_size(options.max_request_bytes);
    let products = ProductServiceServer::new(Products { catalog, watchers, read_only })
        .max_decoding_message_size(options.max_request_bytes);
    let health = tonic_health::pb::health_server::HealthServer::new(
        tonic_health::server::HealthService::from_health_reporter(reporter),
    );
    let mut routes = Routes::new(products).add_service(health);
    if admin_service {
        routes = routes.add_service(admin);
    }
    if reflection {
        // A request holds one symbol's name. The limit is small because tonic buffers incomplete messages of a stream
        // outside of the allowance for requests.
        const MAX_REFLECTION_BYTES: usize = 4_096;
        const VALID: &str = "build.rs generates valid descriptors";
        let [v1, v1alpha] = ["v1", "v1alpha"].map(|version| described(admin_service, version));
        let (v1, v1alpha) = (v1.build_v1().expect(VALID), v1alpha.build_v1alpha().expect(VALID));
        routes = routes
            .add_service(v1.max_decoding_message_size(MAX_REFLECTION_BYTES))
            .add_service(v1alpha.max_decoding_message_size(MAX_REFLECTION_BYTES));
    }
    routes.prepare()
}

/// Reflection lists only the services that are served.
fn described(admin_service: bool, version: &str) -> tonic_reflection::server::Builder<'static> {
    let mut builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    if !admin_service {
        let reflection = format!("grpc.reflection.{version}.ServerReflection");
        for service in ["hotshelf.v1.ProductService", "grpc.health.v1.Health", &reflection] {
            builder = builder.with_service_name(service);
        }
    }
    builder
}
