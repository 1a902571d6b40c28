//! gRPC connections to the admin port. They are not authenticated, as nothing is on that port, and have the limits of calls, bytes
//! and streams that connections to the gRPC port have.

use std::sync::Arc;
use std::time::Duration;

use tower::ServiceBuilder;

use super::edge::{EdgeOptions, Peer, serve};
use super::reads::Reads;
use super::{ConnectionServices, ServeConnection};
use crate::drain::Drain;
use crate::metrics::Metrics;

/// Calls at once on one connection.
const MAX_STREAMS: u32 = 16;
/// The admin port cuts a connection off after 30 s. It ends gracefully before that.
const MAX_AGE: Duration = Duration::from_secs(18);
const AGE_GRACE: Duration = Duration::from_secs(10);

pub(super) fn serving(
    connections: ConnectionServices,
    options: EdgeOptions,
    drain: Drain,
    metrics: Arc<Metrics>,
) -> ServeConnection {
    let (max_age, age_grace) = (Some(MAX_AGE), AGE_GRACE);
    let options = EdgeOptions { max_streams: MAX_STREAMS, max_age, age_grace, ..options };
    Box::new(move |socket, address| {
        let reads = connections.reads(&Peer { address, certificate: None });
        let service = ServiceBuilder::new()
            .layer(connections.layer())
            .service_fn(move |call| Reads::call_on_admin_port(Arc::clone(&reads), call));
        let (drain, metrics) = (drain.clone(), Arc::clone(&metrics));
        Box::pin(async move { serve(socket, options, service, drain, &metrics).await })
    })
}
