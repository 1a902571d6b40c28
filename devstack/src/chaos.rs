//! A TCP proxy that breaks connections on demand, between a client and a real server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::Error;

mod lane;
mod plan;
mod tally;

use lane::Lane;
use plan::{Fault, Plan, Way};
use tally::Tally;

pub use tally::{Counts, LaneCounts};

/// The bytes that a fault applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
    Both,
}

/// A proxy in front of one server. Faults apply at once, to existing and to new connections; each
/// direction has one fault at a time, and a new one replaces it. Dropping the proxy closes all
/// connections.
///
/// The proxy has a thread of its own: it works the same in synchronous code and under any test
/// runtime, also one with a paused clock.
pub struct ChaosProxy {
    addr: SocketAddr,
    plan: watch::Sender<Plan>,
    tally: Arc<Tally>,
    /// `None` only while dropping.
    runtime: Option<Runtime>,
}

impl ChaosProxy {
    /// Listens on a free port of 127.0.0.1 and passes everything to `upstream`.
    pub fn start(upstream: SocketAddr) -> Result<Self, Error> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("chaos-proxy")
            .enable_all()
            .build();
        let runtime = runtime.map_err(Error::io("start the proxy's thread"))?;
        let (listener, addr) = listen(&runtime).map_err(Error::io("listen on 127.0.0.1"))?;
        let (plan, follow) = watch::channel(Plan::default());
        let tally = Arc::new(Tally::default());
        runtime.spawn(accept(listener, upstream, follow, Arc::clone(&tally)));
        Ok(Self { addr, plan, tally, runtime: Some(runtime) })
    }

    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The counts since the start of the proxy.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// Resets all connections now, and each new one at once, until [`heal`](Self::heal).
    pub fn cut(&self) {
        self.plan.send_modify(|plan| plan.cut = true);
    }

    /// Discards all bytes: connections open and stay open, and nothing arrives. A connection that
    /// lost bytes is reset when the black hole ends, because the stream has a gap.
    pub fn black_hole(&self, direction: Direction) {
        self.set(direction, Fault::BlackHole);
    }

    /// Discards the bytes of the existing connections until they end, and never resets them, as a firewall that
    /// dropped their state or a lost host does. New connections work.
    pub fn forget_connections(&self) {
        self.plan.send_modify(|plan| plan.forgotten += 1);
    }

    /// Delivers bytes this much later, in order and at full speed. With 256 KiB in flight, the
    /// proxy stops reading, and the sender has to wait.
    pub fn delay(&self, direction: Direction, by: Duration) {
        self.set(direction, Fault::Delay(by));
    }

    /// Ends all faults except that of [`forget_connections`](Self::forget_connections). Delayed bytes are
    /// delivered at once.
    pub fn heal(&self) {
        self.plan.send_modify(|plan| *plan = plan.healed());
    }

    fn set(&self, direction: Direction, fault: Fault) {
        self.plan.send_modify(|plan| plan.set(direction, fault));
    }
}

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The runtime's own drop blocks, and so panics in asynchronous code.
            runtime.shutdown_background();
        }
    }
}

fn listen(runtime: &Runtime) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let addr = listener.local_addr()?;
    let _inside = runtime.enter();
    Ok((TcpListener::from_std(listener)?, addr))
}

async fn accept(
    listener: TcpListener,
    upstream: SocketAddr,
    plan: watch::Receiver<Plan>,
    tally: Arc<Tally>,
) {
    loop {
        // Out of file descriptors, for example: connections that end meanwhile free some.
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        Tally::add(&tally.accepted, 1);
        tokio::spawn(carry(client, upstream, plan.clone(), Arc::clone(&tally)));
    }
}

async fn carry(
    mut client: TcpStream,
    upstream: SocketAddr,
    plan: watch::Receiver<Plan>,
    tally: Arc<Tally>,
) {
    if plan.borrow().cut {
        Tally::add(&tally.refused, 1);
        return reset(&client);
    }
    let Ok(mut server) = TcpStream::connect(upstream).await else { return reset(&client) };
    let outcome = tokio::select! {
        outcome = relay(&mut client, &mut server, &plan, &tally) => outcome,
        () = cut(plan.clone()) => {
            Tally::add(&tally.cut, 1);
            Err(io::ErrorKind::ConnectionAborted.into())
        }
    };
    if outcome.is_err() {
        reset(&client);
        reset(&server);
    }
}

async fn relay(
    client: &mut TcpStream,
    server: &mut TcpStream,
    plan: &watch::Receiver<Plan>,
    tally: &Tally,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let there = Lane::new(Way::ToServer, plan.clone(), tally).carry(from_client, to_server);
    let back = Lane::new(Way::ToClient, plan.clone(), tally).carry(from_server, to_client);
    tokio::try_join!(there, back).map(|_| ())
}

/// Returns at the next [`ChaosProxy::cut`].
async fn cut(mut plan: watch::Receiver<Plan>) {
    if plan.wait_for(|plan| plan.cut).await.is_err() {
        // The proxy is being dropped, and this task with it.
        std::future::pending::<()>().await;
    }
}

/// Makes the coming close a RST instead of an orderly end.
fn reset(stream: &TcpStream) {
    // An error means that the socket is closed already.
    let _ = stream.set_zero_linger();
}
