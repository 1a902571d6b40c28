//! What a fault has at hand.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use checker::history::{Clock, Micros};
use devstack::{ChaosProxy, Redis, RedisCluster};

use crate::instance::Instance;
use crate::world::{RedisSide, World};
use crate::{Error, Plan};

/// Longer than anything takes that a fault waits for.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
/// P3 without a fault.
const SOON: Duration = Duration::from_secs(1);

/// The world, under load.
pub struct Stage<'a> {
    /// The servers and the instances.
    pub world: &'a World,
    /// The products, the hottest first.
    pub products: Vec<i64>,
    pub(crate) clock: Clock,
    pub(crate) hold: Duration,
    /// Whether demands about speed count.
    pub(crate) timed: bool,
    /// How soon every instance serves a change, under a fault.
    pub(crate) bound: Duration,
    proofs: Mutex<Vec<String>>,
    breaches: Mutex<Vec<String>>,
    excuses: Mutex<Vec<Excuse>>,
}

/// An instance that was itself the victim, and when.
#[derive(Clone, Copy, Debug)]
pub struct Excuse {
    /// Which.
    pub instance: u8,
    /// Since when.
    pub from: Micros,
    /// Until when.
    pub to: Micros,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(
        world: &'a World,
        plan: &Plan,
        stage: checker::load::Stage,
        hold: Duration,
    ) -> Self {
        Self {
            world,
            products: stage.products,
            clock: stage.clock,
            hold,
            timed: plan.timed,
            bound: plan.load.bound,
            proofs: Mutex::default(),
            breaches: Mutex::default(),
            excuses: Mutex::default(),
        }
    }

    /// Lets the fault last.
    pub async fn hold(&self) {
        tokio::time::sleep(self.hold).await;
    }

    /// Takes note that the fault took place.
    ///
    /// # Errors
    /// That it did not.
    pub fn prove(&self, what: impl Into<String>, holds: bool) -> Result<(), Error> {
        let what = what.into();
        if !holds {
            return Err(Error::NotProven(what));
        }
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner).push(what);
        Ok(())
    }

    /// Waits until this can be taken note of.
    ///
    /// # Errors
    /// That it did not come to pass.
    pub async fn prove_soon(
        &self,
        what: impl Into<String>,
        mut holds: impl AsyncFnMut() -> bool,
    ) -> Result<(), Error> {
        let began = Instant::now();
        let mut held = holds().await;
        while !held && began.elapsed() < PATIENCE {
            tokio::time::sleep(POLL).await;
            held = holds().await;
        }
        self.prove(what, held)
    }

    /// A promise that only this fault asks for.
    pub fn demand(&self, what: impl Into<String>, holds: bool) {
        if !holds {
            let mut breaches = self.breaches.lock().unwrap_or_else(PoisonError::into_inner);
            breaches.push(what.into());
        }
    }

    /// How soon every instance serves a change that the fault does not concern: P3, or with other work on the machine
    /// the bound of the plan.
    #[must_use]
    pub fn soon(&self) -> Duration {
        if self.timed { SOON } else { self.bound }
    }

    /// Excuses requests to this instance from now on, until the fault is over or it is said to be well.
    pub fn excuse(&self, instance: usize) {
        let excuse = Excuse {
            instance: u8::try_from(instance).unwrap_or(u8::MAX),
            from: self.clock.now(),
            to: Micros::MAX,
        };
        self.excuses.lock().unwrap_or_else(PoisonError::into_inner).push(excuse);
    }

    /// Ends all excuses.
    pub fn well(&self) {
        let now = self.clock.now();
        for excuse in &mut *self.excuses.lock().unwrap_or_else(PoisonError::into_inner) {
            excuse.to = excuse.to.min(now);
        }
    }

    /// The one Redis of this world.
    ///
    /// # Errors
    /// When it is a cluster.
    pub fn redis(&self) -> Result<(&'a Redis, &'a ChaosProxy), Error> {
        match &self.world.redis {
            RedisSide::Single(redis, proxy) => Ok((redis, proxy)),
            RedisSide::Cluster(_) => Err(Error::Instance("this world has a cluster".to_owned())),
        }
    }

    /// The cluster of this world.
    ///
    /// # Errors
    /// When it is one Redis.
    pub fn cluster(&self) -> Result<&'a RedisCluster, Error> {
        match &self.world.redis {
            RedisSide::Cluster(cluster) => Ok(cluster),
            RedisSide::Single(..) => Err(Error::Instance("this world has no cluster".to_owned())),
        }
    }

    /// The instance that faults of a single one happen to.
    #[must_use]
    pub fn victim(&self) -> &'a Instance {
        &self.world.instances[0]
    }

    /// Proofs, broken promises, and excuses.
    pub(crate) fn done(self) -> (Vec<String>, Vec<String>, Vec<Excuse>) {
        let proofs = self.proofs.into_inner().unwrap_or_else(PoisonError::into_inner);
        let breaches = self.breaches.into_inner().unwrap_or_else(PoisonError::into_inner);
        (proofs, breaches, self.excuses.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// For what blocks: the servers' API.
pub(crate) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
