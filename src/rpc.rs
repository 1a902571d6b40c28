//! The edge: gRPC in, domain types onward, statuses out. With `app` the only place that knows tonic.

mod admin_service;
mod allowance;
mod auth;
mod call;
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
use crate::metrics::{BackgroundTask, Metrics, Shed};
use crate::proto::DESCRIPTORS;
use crate::proto::admin::AdminServiceServer;
use crate::proto::server::ProductServiceServer;
use crate::refusals::Refusals;
use admin_service::Admin;
use allowance::Allowance;
pub use auth::{Scopes, TokenOptions};
use call::CallLayer;
use connection::ClientConnection;
use edge::{Edge, Peer};
pub use edge::{EdgeOptions, TlsOptions};
use hot_keys::Watchers;
pub use identity::{Identity, IdentityOptions};
use reads::{Headers, Reads, Shared};
use service::Products;
use shed::{CallAdmission, CallPlaces};
use unary::Receiver;

/// Limits of calls.
#[derive(Clone, Copy, Debug)]
pub struct RpcOptions {
    /// Limits of connections.
    pub edge: EdgeOptions,
    /// Unary calls at once; more are refused.
    pub max_calls: usize,
    /// Bytes of batches that wait to be sent; more are refused.
    pub max_unsent_bytes: usize,
    /// Bytes of requests that are not complete; more are refused.
    pub max_incomplete_request_bytes: usize,
    /// Streams of all services at once; more are refused.
    pub max_streams: usize,
    /// Largest request.
    pub max_request_bytes: usize,
    /// Streams of hot keys at once; more are refused.
    pub max_watchers: usize,
    /// What is offered at all.
    pub switches: Switches,
}

/// What is offered at all.
#[derive(Clone, Copy, Debug)]
pub struct Switches {
    /// Products are not written.
    pub read_only: bool,
    /// `hotshelf.v1.AdminService` is served.
    pub admin_service: bool,
    /// Reflection is served.
    pub reflection: bool,
}

/// A part that all connections share, counted for one of them. Every call counts references up and down, and cores that
/// do that to the same number wait for each other.
type Local<T> = Arc<Arc<T>>;

fn local<T>(part: &Arc<T>) -> Local<T> {
    Arc::new(Arc::clone(part))
}

/// What the health service says.
#[derive(Clone)]
pub struct Health(HealthReporter);

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Health").finish()
    }
}

impl Health {
    const SERVICES: [&str; 2] = ["", "hotshelf.v1.ProductService"];

    /// Tells health checks whether this instance wants calls.
    pub async fn set(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in Self::SERVICES {
            self.0.set_service_status(service, status).await;
        }
    }

    /// Ends the streams of those who watch, who would hold up the drain.
    pub async fn end_watches(&mut self) {
        for service in Self::SERVICES {
            self.0.clear_service_status(service).await;
        }
    }
}

/// Serves `catalog` on `listener` until the drain begins. Health says NOT_SERVING until it is told otherwise.
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
    let others = routes(Arc::clone(&catalog), reporter, &options, drain, metrics);
    let max_request_bytes = options.max_request_bytes;
    let longest = options.edge.max_call_time;
    let (headers, caller_metadata) = (Headers::new(), identity.caller_metadata());
    let shared = Arc::new(Shared { catalog, others, longest, headers, caller_metadata });
    let places = CallPlaces::new(options.max_calls, metrics);
    let [unsent, incomplete, streams] = allowances(&options, metrics);
    identity.keep_reloading(drain);
    let (observed, noted) = (Arc::clone(metrics), Arc::clone(refusals));
    let (proofs, connections) = (Arc::clone(&identity), AtomicU64::new(0));
    let service = move |peer: Peer| {
        let caller = Caller::of_connection(connections.fetch_add(1, Ordering::Relaxed) + 1);
        let auth = proofs.of_connection(&peer);
        let connection = ClientConnection::new(peer.address, caller, Arc::clone(&noted));
        let calls = Arc::new(Reads {
            shared: Arc::clone(&shared),
            auth,
            admission: CallAdmission::new(&places, &connection),
            unsent: unsent.share(&connection),
            receiver: Receiver { limit: max_request_bytes, share: incomplete.share(&connection) },
            streams: streams.share(&connection),
            connection,
        });
        ServiceBuilder::new()
            .layer(CallLayer { metrics: local(&observed), longest })
            .service_fn(move |call| Reads::call(Arc::clone(&calls), call))
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
    metrics: &Arc<Metrics>,
) -> Routes {
    let watchers = Watchers::new(options.max_watchers, &catalog, drain.clone(), metrics);
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
        // A symbol's name. A stream keeps what it has of a message until that is complete.
        const MAX_REFLECTION_BYTES: usize = 4_096;
        const VALID: &str = "build.rs made the descriptors";
        let [v1, v1alpha] = ["v1", "v1alpha"].map(|version| described(admin_service, version));
        let (v1, v1alpha) = (v1.build_v1().expect(VALID), v1alpha.build_v1alpha().expect(VALID));
        routes = routes
            .add_service(v1.max_decoding_message_size(MAX_REFLECTION_BYTES))
            .add_service(v1alpha.max_decoding_message_size(MAX_REFLECTION_BYTES));
    }
    routes.prepare()
}

/// What connections may hold, of each kind: unsent bytes, bytes of requests that are not complete, streams.
fn allowances(options: &RpcOptions, metrics: &Metrics) -> [Arc<Allowance>; 3] {
    let new = |limit, kind, gauge, help| Allowance::new(limit, kind, (gauge, help), metrics);
    [
        new(
            options.max_unsent_bytes,
            Shed::UnsentBytes,
            "hotshelf.unsent.bytes",
            "Bytes of batches that were answered and are not sent.",
        ),
        new(
            options.max_incomplete_request_bytes,
            Shed::RequestBytes,
            "hotshelf.incomplete.request.bytes",
            "Bytes of requests that are not complete, and what keeping them takes.",
        ),
        new(
            options.max_streams,
            Shed::Streams,
            "hotshelf.streams",
            "Open streams of all services.",
        ),
    ]
}

/// What reflection lists: the services that are served.
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
