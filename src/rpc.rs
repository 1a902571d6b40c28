//! The gRPC server: requests become domain types, results become responses and statuses. Only this module and `app` use
//! tonic.

mod admin_port;
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
mod services;
mod shed;
mod status;
mod traced;
mod unary;
mod web;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use tokio::net::{TcpListener, TcpStream};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceBuilder;

use crate::caller::Caller;
use crate::catalog::Catalog;
use crate::drain::Drain;
use crate::metrics::{BackgroundTask, Metrics};
use crate::refusals::Refusals;
pub use auth::{Scopes, TokenOptions};
use call::CallLayer;
use callers::{Callers, Limits};
use connection::ClientConnection;
use edge::{Edge, Peer};
pub use edge::{EdgeOptions, TlsOptions};
pub use identity::{Identity, IdentityOptions};
use reads::{Headers, Reads, Shared};
pub use services::{ServedOn, Switches};
use web::Web;
pub use web::WebOptions;

#[derive(Clone, Debug)]
pub struct RpcOptions {
    pub edge: EdgeOptions,
    pub limits: LimitOptions,
    /// Size of the largest request message.
    pub max_request_bytes: usize,
    pub switches: Switches,
    pub web: WebOptions,
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

/// Makes the services of the connections to one port.
struct ConnectionServices {
    shared: Arc<Shared>,
    /// `None`: callers are not authenticated.
    identity: Option<Arc<Identity>>,
    numbers: Arc<AtomicU64>,
    max_request_bytes: usize,
    metrics: Arc<Metrics>,
    refusals: Arc<Refusals>,
}

impl ConnectionServices {
    fn reads(&self, peer: &Peer) -> Arc<Reads> {
        let (shared, max_request_bytes) = (Arc::clone(&self.shared), self.max_request_bytes);
        let caller = Caller::of_connection(self.numbers.fetch_add(1, Ordering::Relaxed) + 1);
        let callers = &shared.callers;
        let auth =
            self.identity.as_ref().and_then(|identity| identity.of_connection(peer, callers));
        let (limits, refusals) = (callers.of_connection(), Arc::clone(&self.refusals));
        let connection = ClientConnection::new(peer.address, caller, limits, refusals);
        Arc::new(Reads { shared, auth, max_request_bytes, connection })
    }

    fn layer(&self) -> CallLayer {
        let max_call_time = self.shared.max_call_time;
        CallLayer { metrics: per_connection(&self.metrics), max_call_time }
    }
}

/// Serves one connection to its end.
pub type ServeConnection =
    Box<dyn Fn(TcpStream, SocketAddr) -> BoxFuture<'static, ()> + Send + Sync>;

/// Serves `catalog` on `listener` until the drain begins. Health is NOT_SERVING until [`Health::set`]. Also returns what serves
/// connections to the admin port, if any service is placed there.
pub async fn serve(
    listener: TcpListener,
    catalog: Arc<Catalog>,
    options: RpcOptions,
    identity: Arc<Identity>,
    drain: &Drain,
    metrics: &Arc<Metrics>,
    refusals: &Arc<Refusals>,
) -> (Health, Option<ServeConnection>) {
    let reporter = HealthReporter::new();
    let health = Health(reporter.clone());
    health.set(false).await;
    let callers = Callers::new(Limits::new(&options.limits, metrics), metrics);
    let numbers = Arc::default();
    let web = Web::new(&options.web, metrics);
    let connections = |routes, identity: Option<Arc<Identity>>| ConnectionServices {
        shared: Arc::new(Shared {
            catalog: Arc::clone(&catalog),
            routes,
            callers: Arc::clone(&callers),
            max_call_time: options.edge.max_call_time,
            headers: Headers::new(),
            web: web.clone(),
            caller_metadata: identity.as_ref().and_then(|identity| identity.caller_metadata()),
        }),
        identity,
        numbers: Arc::clone(&numbers),
        max_request_bytes: options.max_request_bytes,
        metrics: Arc::clone(metrics),
        refusals: Arc::clone(refusals),
    };
    identity.keep_reloading(drain);
    let on_admin_port = services::on_admin_port(&catalog, &options).map(|routes| {
        let connections = connections(routes, None);
        admin_port::serving(connections, options.edge, drain.clone(), Arc::clone(metrics))
    });
    let routes = services::on_grpc_port(&catalog, reporter, &options, drain);
    let connections = connections(routes, Some(Arc::clone(&identity)));
    let service = move |peer: Peer| {
        let reads = connections.reads(&peer);
        ServiceBuilder::new()
            .layer(connections.layer())
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
    (health, on_admin_port)
}
