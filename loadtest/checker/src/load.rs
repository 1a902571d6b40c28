//! A run: open-loop readers and writers. Requests are sent when their time has come, whatever became of those
//! before them, so that a stall is not hidden by the silence that it causes.

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

/// What the instances are made to bear.
#[derive(Clone, Debug)]
pub struct Load {
    /// Reads a second, by plan; looks at what was just written come on top.
    pub read_rate: f64,
    /// Writes a second, by plan; some change several products.
    pub write_rate: f64,
    /// The share of what the instances can answer, measured for a second before the run, that the reads may be at most:
    /// both rates are lowered to that. `None`: the rates as they are.
    pub share: Option<f64>,
    /// How long.
    pub duration: Duration,
    /// Products that nine of ten requests go to, by Zipf's law.
    pub hot: usize,
    /// Products that the rest goes to, evenly.
    pub cold: usize,
    /// Requests in flight at which the generator gives up sending more.
    pub in_flight: usize,
    /// The same seed plans the same load.
    pub seed: u64,
    /// How soon every change must be what every instance serves.
    pub bound: Duration,
    /// How writers write.
    pub mix: Mix,
    /// Whether a server of Redis may come back with an older state. Then it may hold in the end what is old, if no instance would serve it.
    pub redis_goes_back: bool,
}

/// Shares of the kinds of write; only their ratios count.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// UpdateProduct.
    pub api: u32,
    /// UPDATE of one row.
    pub update: u32,
    /// UPDATE of several rows, in one statement or in a transaction that stays open for a while.
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

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// What was recorded.
    pub history: History,
    /// What the tiers held when the writes had stopped.
    pub convergence: Convergence,
    /// Requests that failed.
    pub failures: Vec<Failure>,
    /// Requests that were not sent, because too many were in flight: the load was not what was asked for.
    pub not_sent: u64,
}

impl Outcome {
    /// Why nothing but a broken promise can be judged by this run: the load was not sent as planned, or calls ended by
    /// the deadline of the client.
    #[must_use]
    pub fn too_busy(&self) -> Option<String> {
        let late = |failure: &&Failure| {
            failure.what.contains("DeadlineExceeded") || failure.what.contains("Cancelled")
        };
        let (not_sent, late) = (self.not_sent, self.failures.iter().filter(late).count());
        (not_sent > 0 || late > 0)
            .then(|| format!("{not_sent} requests were not sent, {late} ended by their deadline"))
    }

    /// The longest that a read was sent after it was due: what the machine took from the checker, and so from what it checks.
    #[must_use]
    pub fn longest_delay(&self) -> Duration {
        let longest = self.history.reads.iter().map(|read| read.late).max().unwrap_or(0);
        Duration::from_micros(longest.into())
    }

    /// How often requests failed, by what went wrong.
    #[must_use]
    pub fn reasons(&self) -> BTreeMap<&str, u64> {
        let mut reasons = BTreeMap::new();
        for failure in &self.failures {
            *reasons.entry(&*failure.what).or_default() += 1;
        }
        reasons
    }
}

/// What readers and writers share.
pub(crate) struct World {
    pub(crate) products: Vec<i64>,
    pub(crate) clients: Vec<ProductServiceClient<Channel>>,
    pub(crate) admins: Vec<AdminServiceClient<Channel>>,
    pub(crate) sql: sqlx::PgPool,
    pub(crate) clock: Clock,
    pub(crate) tasks: TaskTracker,
    /// Those of them that write.
    pub(crate) writers: TaskTracker,
    pub(crate) stopped: watch::Receiver<bool>,
    /// The newest version of each product that a writer was told of.
    newest: HashMap<i64, AtomicI64>,
    next_write: AtomicU32,
    in_flight: Arc<Semaphore>,
    not_sent: AtomicU64,
    reads: Mutex<Vec<Read>>,
    acks: Mutex<Vec<Ack>>,
    failures: Mutex<Vec<Failure>>,
}

/// Drives the load to its end, and looks at the tiers afterwards.
///
/// # Errors
/// When Postgres does not do what the checker itself needs.
pub async fn run(target: &Target, load: &Load) -> Result<Outcome, Error> {
    let (outcome, ()) =
        run_beside(target, load, async |_| tokio::time::sleep(load.duration).await).await?;
    Ok(outcome)
}

/// Drives the load while `beside` runs, whatever the planned duration, and returns what came of both.
/// `beside` is given the products, the hottest first, and the clock of the run.
///
/// # Errors
/// When Postgres does not do what the checker itself needs.
pub async fn run_beside<T>(
    target: &Target,
    load: &Load,
    beside: impl AsyncFnOnce(RunInfo) -> T,
) -> Result<(Outcome, T), Error> {
    let products = truth::prepare(&target.sql, load.hot + load.cold).await?;
    let (stop, stopped) = watch::channel(false);
    let world = Arc::new(World::new(target, load, products, stopped));
    let load = &match load.share {
        Some(share) => calibrate::fitted(&world, load, share).await,
        None => load.clone(),
    };
    let beside = async {
        let done = beside(RunInfo { products: world.products.clone(), clock: world.clock }).await;
        // Writers that had planned more leave it.
        stop.send_replace(true);
        done
    };
    // Tasks of their own: what is done beside may block, and the load goes on.
    let [reading, writing] = [Arc::clone(&world), Arc::clone(&world)];
    let [reads, writes] = [load.clone(), load.clone()];
    let reading = tokio::spawn(async move { readers::drive(&reading, &reads).await });
    let writing = tokio::spawn(async move { writers::drive(&writing, &writes).await });
    let (reading, writing) = (AbortOnDropHandle::new(reading), AbortOnDropHandle::new(writing));
    let done = beside.await;
    reading.await?;
    writing.await?;
    world.writers.close();
    world.writers.wait().await;
    let convergence = converge::wait(&world, load).await?;
    world.tasks.close();
    world.tasks.wait().await;
    Ok((world.outcome(convergence).await?, done))
}

/// What is known to whoever does something beside the load.
#[derive(Clone, Debug)]
pub struct RunInfo {
    /// The products, the hottest first.
    pub products: Vec<i64>,
    /// The clock of the run.
    pub clock: Clock,
}

impl World {
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

    /// Does this beside everything else, unless too much is in flight already.
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

    /// The newest version that somebody was told of.
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

    pub(crate) fn each_ack(&self, look: impl FnMut(&Ack)) {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(look);
    }

    pub(crate) fn record_reads(&self, reads: impl IntoIterator<Item = Read>) {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).extend(reads);
    }

    pub(crate) fn record_failure(&self, what: String, request: Request, due: Micros) {
        let failure = Failure { what, request, due, end: self.clock.now() };
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
    }

    /// Moments until the load is stopped.
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
        truth::tidy(&self.sql, &self.products).await?;
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = std::mem::take(&mut *failures);
        let not_sent = self.not_sent.load(Ordering::Relaxed);
        Ok(Outcome { history, convergence, failures, not_sent })
    }
}
