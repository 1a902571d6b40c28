//! The servers under load, as the steps of a fault use them.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use checker::history::{Clock, Micros};
use checker::load::RunInfo;
use devstack::{ChaosProxy, Redis, RedisCluster};

use crate::instance::Instance;
use crate::servers::{RedisEndpoint, Servers};
use crate::{Error, Plan};

/// Of `prove_soon`.
const PROOF_TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
/// P3, without a fault: how soon every instance serves a change.
const SOON: Duration = Duration::from_secs(1);

pub struct Scenario<'a> {
    pub servers: &'a Servers,
    /// The products of the load, the hottest first.
    pub products: Vec<i64>,
    pub(crate) clock: Clock,
    /// How long the fault lasts.
    pub(crate) hold: Duration,
    /// Whether demands about speed count.
    pub(crate) timed: bool,
    /// How soon every instance serves a change during a fault.
    pub(crate) bound: Duration,
    proofs: Mutex<Vec<String>>,
    breaches: Mutex<Vec<String>>,
    allowances: Mutex<Vec<Allowance>>,
}

/// Requests to this instance may fail in this time, because the fault hits the instance itself.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    pub instance: u8,
    pub from: Micros,
    pub to: Micros,
}

impl<'a> Scenario<'a> {
    pub(crate) fn new(servers: &'a Servers, plan: &Plan, run: RunInfo, hold: Duration) -> Self {
        Self {
            servers,
            products: run.products,
            clock: run.clock,
            hold,
            timed: plan.timed,
            bound: plan.load.bound,
            proofs: Mutex::default(),
            breaches: Mutex::default(),
            allowances: Mutex::default(),
        }
    }

    /// Waits as long as the fault is to last.
    pub async fn hold(&self) {
        tokio::time::sleep(self.hold).await;
    }

    /// Records that the fault took place.
    ///
    /// # Errors
    /// [`Error::NotProven`] unless `holds`.
    pub fn prove(&self, what: impl Into<String>, holds: bool) -> Result<(), Error> {
        let what = what.into();
        if !holds {
            return Err(Error::NotProven(what));
        }
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner).push(what);
        Ok(())
    }

    /// Waits until `holds` is true, and records that.
    ///
    /// # Errors
    /// [`Error::NotProven`] if it is not true within `PROOF_TIMEOUT`.
    pub async fn prove_soon(
        &self,
        what: impl Into<String>,
        mut holds: impl AsyncFnMut() -> bool,
    ) -> Result<(), Error> {
        let began = Instant::now();
        let mut held = holds().await;
        while !held && began.elapsed() < PROOF_TIMEOUT {
            tokio::time::sleep(POLL).await;
            held = holds().await;
        }
        self.prove(what, held)
    }

    /// Records a broken promise unless `holds`: one that only this fault demands.
    pub fn demand(&self, what: impl Into<String>, holds: bool) {
        if !holds {
            let mut breaches = self.breaches.lock().unwrap_or_else(PoisonError::into_inner);
            breaches.push(what.into());
        }
    }

    /// How soon every instance serves a change that the fault does not concern: P3, or the bound of the plan if other work
    /// shares the machine.
    #[must_use]
    pub fn soon(&self) -> Duration {
        if self.timed { SOON } else { self.bound }
    }

    /// Requests to this instance may fail from now on, until the fault is over or the allowances end.
    pub fn allow_failures(&self, instance: usize) {
        let allowance = Allowance {
            instance: u8::try_from(instance).unwrap_or(u8::MAX),
            from: self.clock.now(),
            to: Micros::MAX,
        };
        self.allowances.lock().unwrap_or_else(PoisonError::into_inner).push(allowance);
    }

    pub fn end_allowances(&self) {
        let now = self.clock.now();
        for allowance in &mut *self.allowances.lock().unwrap_or_else(PoisonError::into_inner) {
            allowance.to = allowance.to.min(now);
        }
    }

    /// # Errors
    /// If the fault has a Redis Cluster.
    pub fn redis(&self) -> Result<(&'a Redis, &'a ChaosProxy), Error> {
        match &self.servers.redis {
            RedisEndpoint::Single(redis, proxy) => Ok((redis, proxy)),
            RedisEndpoint::Cluster(_) => {
                Err(Error::Instance("this drill has a Redis Cluster".to_owned()))
            }
        }
    }

    /// # Errors
    /// If the fault has a single Redis.
    pub fn cluster(&self) -> Result<&'a RedisCluster, Error> {
        match &self.servers.redis {
            RedisEndpoint::Cluster(cluster) => Ok(cluster),
            RedisEndpoint::Single(..) => {
                Err(Error::Instance("this drill has no Redis Cluster".to_owned()))
            }
        }
    }

    /// The instance that a fault of one instance hits.
    #[must_use]
    pub fn victim(&self) -> &'a Instance {
        &self.servers.instances[0]
    }

    /// Proofs, breaches and allowances.
    pub(crate) fn finish(self) -> (Vec<String>, Vec<String>, Vec<Allowance>) {
        let proofs = self.proofs.into_inner().unwrap_or_else(PoisonError::into_inner);
        let breaches = self.breaches.into_inner().unwrap_or_else(PoisonError::into_inner);
        let allowances = self.allowances.into_inner().unwrap_or_else(PoisonError::into_inner);
        (proofs, breaches, allowances)
    }
}

/// For the API of the private servers, which blocks.
pub(crate) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
