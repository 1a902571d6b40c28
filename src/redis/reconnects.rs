//! Noticing that a connection to Redis came back, or that a cluster changed.

use fred::interfaces::EventInterface;
use fred::types::ClusterStateChange;
use fred::types::config::Server;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, select_all};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::Redis;

/// Connections that come back, and changes of a cluster, from now on.
#[derive(Debug)]
pub(crate) struct Reconnects {
    connections: Vec<Receiver<Server>>,
    clusters: Vec<Receiver<Vec<ClusterStateChange>>>,
}

impl Redis {
    /// Listens from now on.
    pub(crate) fn reconnects(&self) -> Reconnects {
        let clients = self.pool.clients();
        Reconnects {
            connections: clients.iter().map(EventInterface::reconnect_rx).collect(),
            clusters: clients.iter().map(EventInterface::cluster_change_rx).collect(),
        }
    }
}

impl Reconnects {
    /// Waits for the next one; `false` when the pool was closed for good.
    pub(crate) async fn next(&mut self) -> bool {
        let connections = self.connections.iter_mut().map(heard);
        let clusters = self.clusters.iter_mut().map(heard);
        let mut waits: Vec<BoxFuture<'_, bool>> = connections.collect();
        waits.extend(clusters);
        select_all(waits).await.0
    }

    /// Forgets those that came meanwhile.
    pub(crate) fn forget_pending(&mut self) {
        self.connections.iter_mut().for_each(|events| *events = events.resubscribe());
        self.clusters.iter_mut().for_each(|events| *events = events.resubscribe());
    }
}

/// To have missed some is to have heard of some.
fn heard<T: Clone + Send + 'static>(events: &mut Receiver<T>) -> BoxFuture<'_, bool> {
    async { !matches!(events.recv().await, Err(RecvError::Closed)) }.boxed()
}
