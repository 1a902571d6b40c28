//! A fault, and what its drill demands while it lasts.

use std::pin::Pin;
use std::time::Duration;

use crate::Error;
use crate::scenario::Scenario;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// One Redis behind a proxy.
    Single,
    /// A Redis Cluster of three masters, each with a replica.
    Cluster,
}

/// Break, prove that it is broken, hold, mend.
pub type Steps = for<'a> fn(&'a Scenario<'a>) -> StepsFuture<'a>;
pub type StepsFuture<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + 'a>>;

#[derive(Clone, Debug)]
pub struct Fault {
    pub name: &'static str,
    /// One line for `--list` and the table.
    pub what: &'static str,
    pub topology: Topology,
    /// Added to the options of the instances.
    pub options: &'static [&'static str],
    /// Added to the settings of Redis.
    pub redis: &'static [(&'static str, &'static str)],
    /// Reads of hot products that are changed meanwhile may be refused: each change costs a load, and the copy from before
    /// the change is not served.
    pub changed_may_fail: bool,
    /// A Redis server may come back with an older state.
    pub redis_goes_back: bool,
    /// The instances run under libfaketime, so that their wall clock can be set.
    pub sets_clocks: bool,
    /// How long the fault lasts. `Plan::longest_hold` may shorten it, down to `shortest`.
    pub hold: Duration,
    /// A shorter fault would have no effect that can be measured.
    pub shortest: Duration,
    /// How old a plain read may be, where the options promise more than the plan.
    pub bound: Option<Duration>,
    pub demands: Demands,
    pub steps: Steps,
}

/// What must hold while a fault lasts. Every drill demands besides: no violation, no lost update, no more loads than the
/// budget of Postgres, and recovery without an operator. Requests to the instance that the fault hits do not count.
#[derive(Clone, Copy, Debug)]
pub struct Demands {
    /// No plain read of a hot product fails.
    pub cached_reads: bool,
    /// No read fails.
    pub reads: bool,
    /// No UpdateProduct fails.
    pub updates: bool,
    /// Every instance trusts its memory all the time.
    pub trusted: bool,
    /// The p99 of plain reads of hot products is at most this many times the p99 before the fault.
    pub p99_ratio: Option<f64>,
    /// No older state is served for longer than this after a commit.
    pub stalest: Option<Duration>,
    /// No read takes longer than this.
    pub slowest: Option<Duration>,
    /// Two seconds after the fault began, plain reads of hot products are as fast as before.
    pub soon_fast: bool,
    /// 95 % of the refusals take at most this.
    pub refused_within: Option<Duration>,
}

impl Demands {
    /// The fault costs callers latency, and no errors.
    pub const NOTHING_FAILS: Self = Self {
        cached_reads: true,
        reads: true,
        updates: true,
        trusted: false,
        p99_ratio: None,
        stalest: None,
        slowest: None,
        soon_fast: false,
        refused_within: None,
    };
    /// Only cached products are served.
    pub const CACHED_IS_SERVED: Self = Self { reads: false, updates: false, ..Self::NOTHING_FAILS };
    /// Every instance is down for a while.
    pub const ALL_COMES_BACK: Self = Self { cached_reads: false, ..Self::CACHED_IS_SERVED };
}

impl Fault {
    /// A fault with one Redis, under which no request fails.
    #[must_use]
    pub fn new(name: &'static str, what: &'static str, steps: Steps) -> Self {
        Self {
            name,
            what,
            topology: Topology::Single,
            options: &[],
            redis: &[],
            changed_may_fail: false,
            redis_goes_back: false,
            sets_clocks: false,
            hold: Duration::from_secs(8),
            shortest: Duration::ZERO,
            bound: None,
            demands: Demands::NOTHING_FAILS,
            steps,
        }
    }

    /// The same with a Redis Cluster.
    #[must_use]
    pub fn of_cluster(name: &'static str, what: &'static str, steps: Steps) -> Self {
        Self { topology: Topology::Cluster, ..Self::new(name, what, steps) }
    }

    /// Why the drill cannot run on this machine.
    #[must_use]
    pub fn missing(&self) -> Option<&'static str> {
        (self.sets_clocks && crate::instance::faketime().is_none())
            .then_some("libfaketime is not installed (Debian: apt-get install faketime)")
    }
}
