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

/// Which bytes a fault is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
    /// Both of them.
    Both,
}

/// A proxy in front of one server. Faults apply at once, to the connections that exist and to new
/// ones; each direction has one fault at a time, and the newest counts. Dropping the proxy closes
/// everything.
///
/// It has a thread of its own, so that it works the same in synchronous code and in a test of any
/// runtime, paused clocks included.
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

    /// Where clients connect to.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// Resets all connections now, and each new one at once, until [`heal`](Self::heal).
    pub fn cut(&self) {
        self.plan.send_modify(|plan| plan.cut = true);
    }

    /// Swallows bytes from now on: connections open and stay open, and nothing arrives. A
    /// connection that lost bytes is reset when the black hole ends, because what follows would
    /// make no sense to the other side.
    pub fn black_hole(&self, direction: Direction) {
        self.set(direction, Fault::BlackHole);
    }

    /// Swallows the bytes of the connections that exist, for good: they are never reset, as when a firewall
    /// forgot them or a host vanished. New ones work.
    pub fn forget_connections(&self) {
        self.plan.send_modify(|plan| plan.forgotten += 1);
    }

    /// Delivers bytes this much later, in order and at full speed. Beyond 256 KiB under way, a
    /// sender has to wait.
    pub fn delay(&self, direction: Direction, by: Duration) {
        self.set(direction, Fault::Delay(by));
    }

    /// Ends all faults, but does not remember [connections that were forgotten](Self::forget_connections). Delayed
    /// bytes are delivered now.
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
            // Not the runtime's own drop, which waits, and so panics in asynchronous code.
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
        // Out of file descriptors, for one: connections that end meanwhile make room.
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

/// Returns when connections are to be cut.
async fn cut(mut plan: watch::Receiver<Plan>) {
    if plan.wait_for(|plan| plan.cut).await.is_err() {
        // The proxy is being dropped, and this task with it.
        std::future::pending::<()>().await;
    }
}

/// Makes the coming close a RST instead of an orderly end.
fn reset(stream: &TcpStream) {
    // A socket that cannot be told is closed already.
    let _ = stream.set_zero_linger();
}
