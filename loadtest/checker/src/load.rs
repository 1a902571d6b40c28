//! A run: open-loop readers and writers. Each request is sent when it is due, whether or not earlier ones have been
//! answered, so that a stall shows in every request that was due during it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hotshelf::proto::{AdminServiceClient, ProductServiceClient};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::transport::Channel;

use crate::converge::{self, Convergence};
use crate::history::{Ack, Clock, Failure, History, Micros, Read, Request, WriteId};
use crate::plan::Pace;
use crate::{Error, Target, calibrate, readers, truth, writers};

#[derive(Clone, Debug)]
pub struct Load {
    /// Planned reads a second. Probes after writes are added to them.
    pub read_rate: f64,
    /// Planned writes a second. Some change several products.
    pub write_rate: f64,
    /// Before the run the reads that the instances answer are measured for a second. Both rates are lowered so that reads
    /// and probes are at most this share of that. `None`: the rates as they are.
    pub share: Option<f64>,
    pub duration: Duration,
    /// Nine of ten requests go to these products, by Zipf's law.
    pub hot: usize,
    /// The other requests go to these, evenly.
    pub cold: usize,
    /// The most requests in flight. A request above that is not sent, and counted.
    pub in_flight: usize,
    /// The same seed plans the same load.
    pub seed: u64,
    /// How soon every instance must serve a change.
    pub bound: Duration,
    pub mix: Mix,
    /// A Redis server may come back with an older state. Then it may hold old entries in the end, if no instance would serve
    /// them.
    pub redis_goes_back: bool,
}

/// Relative shares of the kinds of write.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// UpdateProduct.
    pub api: u32,
    /// UPDATE of one row.
    pub update: u32,
    /// UPDATE of several rows, in one statement; half of them in a transaction that stays open for a while.
    pub bulk: u32,
    /// DELETE, and INSERT of the same id a while later.
    pub replace: u32,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            read_rate: 1_500.0,
            write_rate: 30.0,
            share: None,
            duration: Duration::from_secs(120),
            hot: 200,
            cold: 2_000,
            in_flight: 2_000,
            seed: 1,
            bound: Duration::from_secs(1),
            mix: Mix { api: 50, update: 25, bulk: 15, replace: 10 },
            redis_goes_back: false,
        }
    }
}

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    pub history: History,
    pub convergence: Convergence,
    pub failures: Vec<Failure>,
    /// Requests that were not sent, because too many were in flight: the load was not the planned one.
    pub not_sent: u64,
}

impl Outcome {
    /// Why this run proves nothing but broken promises: the load was not sent as planned, or calls ended by the deadline of
    /// the client.
    #[must_use]
    pub fn too_busy(&self) -> Option<String> {
        let late = |failure: &&Failure| {
            failure.what.contains("DeadlineExceeded") || failure.what.contains("Cancelled")
        };
        let (not_sent, late) = (self.not_sent, self.failures.iter().filter(late).count());
        (not_sent > 0 || late > 0)
            .then(|| format!("{not_sent} requests were not sent, {late} ended by their deadline"))
    }

    /// The longest time that a read was sent after it was due. The machine may have stalled the instances as long.
    #[must_use]
    pub fn longest_delay(&self) -> Duration {
        let longest = self.history.reads.iter().map(|read| read.late).max().unwrap_or(0);
        Duration::from_micros(longest.into())
    }

    /// Failures by method, code and message.
    #[must_use]
    pub fn reasons(&self) -> BTreeMap<&str, u64> {
        let mut reasons = BTreeMap::new();
        for failure in &self.failures {
            *reasons.entry(&*failure.what).or_default() += 1;
        }
        reasons
    }
}

/// Shared by readers and writers.
pub(crate) struct Run {
    pub(crate) products: Vec<i64>,
    pub(crate) clients: Vec<ProductServiceClient<Channel>>,
    pub(crate) admins: Vec<AdminServiceClient<Channel>>,
    pub(crate) sql: sqlx::PgPool,
    pub(crate) clock: Clock,
    pub(crate) tasks: TaskTracker,
    /// The tasks that write.
    pub(crate) writers: TaskTracker,
    pub(crate) stopped: watch::Receiver<bool>,
    /// The newest confirmed version of each product; 0 before the first write.
    newest: HashMap<i64, AtomicI64>,
    next_write: AtomicU32,
    in_flight: Arc<Semaphore>,
    not_sent: AtomicU64,
    reads: Mutex<Vec<Read>>,
    acks: Mutex<Vec<Ack>>,
    failures: Mutex<Vec<Failure>>,
}

/// Drives the load for its duration, and waits until the tiers have converged.
///
/// # Errors
/// If a statement of the checker itself fails.
pub async fn run(target: &Target, load: &Load) -> Result<Outcome, Error> {
    let (outcome, ()) =
        run_beside(target, load, async |_| tokio::time::sleep(load.duration).await).await?;
    Ok(outcome)
}

/// Drives the load while `beside` runs, regardless of `load.duration`. Returns the results of both.
///
/// # Errors
/// If a statement of the checker itself fails.
pub async fn run_beside<T>(
    target: &Target,
    load: &Load,
    beside: impl AsyncFnOnce(RunInfo) -> T,
) -> Result<(Outcome, T), Error> {
    let products = truth::prepare(&target.sql, load.hot + load.cold).await?;
    let (stop, stopped) = watch::channel(false);
    let run = Arc::new(Run::new(target, load, products, stopped));
    let load = &match load.share {
        Some(share) => calibrate::scaled_down(&run, load, share).await,
        None => load.clone(),
    };
    let beside = async {
        let done = beside(RunInfo { products: run.products.clone(), clock: run.clock }).await;
        // Readers and writers send nothing more.
        stop.send_replace(true);
        done
    };
    // In tasks of their own, so that the load goes on when `beside` blocks its thread.
    let [reading, writing] = [Arc::clone(&run), Arc::clone(&run)];
    let [reads, writes] = [load.clone(), load.clone()];
    let reading = tokio::spawn(async move { readers::drive(&reading, &reads).await });
    let writing = tokio::spawn(async move { writers::drive(&writing, &writes).await });
    let (reading, writing) = (AbortOnDropHandle::new(reading), AbortOnDropHandle::new(writing));
    let done = beside.await;
    reading.await?;
    writing.await?;
    run.writers.close();
    run.writers.wait().await;
    let convergence = converge::wait(&run, load).await?;
    run.tasks.close();
    run.tasks.wait().await;
    Ok((run.outcome(convergence).await?, done))
}

/// What [`run_beside`] passes to its closure.
#[derive(Clone, Debug)]
pub struct RunInfo {
    /// The hottest first.
    pub products: Vec<i64>,
    pub clock: Clock,
}

impl Run {
    fn new(
        target: &Target,
        load: &Load,
        products: Vec<i64>,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        Self {
            clients: target.instances.iter().cloned().map(ProductServiceClient::new).collect(),
            admins: target.instances.iter().cloned().map(AdminServiceClient::new).collect(),
            sql: target.sql.clone(),
            clock: Clock::start(),
            tasks: TaskTracker::new(),
            writers: TaskTracker::new(),
            stopped,
            newest: products.iter().map(|id| (*id, AtomicI64::new(0))).collect(),
            next_write: AtomicU32::new(1),
            in_flight: Arc::new(Semaphore::new(load.in_flight)),
            products,
            not_sent: AtomicU64::new(0),
            reads: Mutex::default(),
            acks: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// Spawns the request, unless too many are in flight.
    pub(crate) fn send(&self, request: impl Future<Output = ()> + Send + 'static) {
        let Ok(slot) = Arc::clone(&self.in_flight).try_acquire_owned() else {
            self.not_sent.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.tasks.spawn(async move {
            request.await;
            drop(slot);
        });
    }

    pub(crate) fn next_write(&self) -> WriteId {
        self.next_write.fetch_add(1, Ordering::Relaxed)
    }

    /// The newest confirmed version, if the product was written.
    pub(crate) fn newest(&self, product: i64) -> Option<i64> {
        let version = self.newest.get(&product)?.load(Ordering::Acquire);
        (version > 0).then_some(version)
    }

    pub(crate) fn record_ack(&self, ack: Ack) {
        if let Some(newest) = self.newest.get(&ack.product) {
            newest.fetch_max(ack.state.version, Ordering::Release);
        }
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).push(ack);
    }

    pub(crate) fn each_ack(&self, visit: impl FnMut(&Ack)) {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(visit);
    }

    pub(crate) fn record_reads(&self, reads: impl IntoIterator<Item = Read>) {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).extend(reads);
    }

    pub(crate) fn record_failure(&self, what: String, request: Request, due: Micros) {
        let failure = Failure { what, request, due, end: self.clock.now() };
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
    }

    /// Moments to send requests at, until the load is stopped.
    pub(crate) fn pace(&self, rate: f64) -> Pace {
        Pace::new(rate, self.stopped.clone())
    }

    async fn outcome(&self, convergence: Convergence) -> Result<Outcome, Error> {
        let committed = truth::committed(&self.sql, &self.clock).await?;
        let history = History {
            instances: u8::try_from(self.clients.len()).unwrap_or(u8::MAX),
            committed,
            acks: std::mem::take(&mut *self.acks.lock().unwrap_or_else(PoisonError::into_inner)),
            reads: std::mem::take(&mut *self.reads.lock().unwrap_or_else(PoisonError::into_inner)),
        };
        truth::remove(&self.sql, &self.products).await?;
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = std::mem::take(&mut *failures);
        let not_sent = self.not_sent.load(Ordering::Relaxed);
        Ok(Outcome { history, convergence, failures, not_sent })
    }
}
