//! How long each part of a drill takes, and under which load.

use std::path::PathBuf;
use std::time::Duration;

use checker::Load;
use checker::load::Mix;

/// How drills are done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program.
    pub program: PathBuf,
    /// Where the instances write down everything that they do; nothing but warnings is kept otherwise.
    pub logs: Option<PathBuf>,
    /// How many instances.
    pub instances: usize,
    /// Options of all of them.
    pub options: &'static [&'static str],
    /// What they bear, all the time.
    pub load: Load,
    /// Before anything is measured.
    pub warm_up: Duration,
    /// Before the fault.
    pub baseline: Duration,
    /// The longest that a fault is held.
    pub longest_hold: Duration,
    /// After the fault.
    pub aftermath: Duration,
    /// The longest that recovery may take.
    pub patience: Duration,
    /// Whether demands about speed count: not where others share the machine.
    pub timed: bool,
}

impl Plan {
    /// As long as a fault has to be held to be felt: past every TTL that it concerns.
    #[must_use]
    pub fn full(program: PathBuf) -> Self {
        let load = Load {
            read_rate: 600.0,
            write_rate: 15.0,
            in_flight: 20_000,
            // P3 under a fault: max_staleness, and the time that a read itself takes.
            bound: Duration::from_millis(6_000),
            mix: Mix { api: 50, update: 30, bulk: 10, replace: 10 },
            ..Load::default()
        };
        Self {
            program,
            logs: None,
            instances: 3,
            options: &[],
            load,
            warm_up: Duration::from_secs(2),
            baseline: Duration::from_secs(3),
            longest_hold: Duration::from_secs(10),
            aftermath: Duration::from_secs(3),
            patience: Duration::from_secs(20),
            timed: true,
        }
    }

    /// A few seconds each.
    #[must_use]
    pub fn short(program: PathBuf) -> Self {
        let full = Self::full(program);
        Self {
            warm_up: Duration::from_secs(1),
            baseline: Duration::from_secs(1),
            longest_hold: Duration::from_secs(3),
            aftermath: Duration::from_secs(1),
            timed: false,
            ..full
        }
    }

    /// For a test on any machine: a load that a tenth of two cores bears, and bounds that only a fault of ours passes.
    #[must_use]
    pub fn test(program: PathBuf) -> Self {
        let short = Self::short(program);
        let load = Load {
            read_rate: 60.0,
            write_rate: 4.0,
            hot: 40,
            cold: 100,
            bound: Duration::from_secs(10),
            ..short.load
        };
        Self {
            load,
            instances: 2,
            // A busy machine is not a broken server.
            options: &["--database-acquire-timeout", "5s", "--redis-timeout", "500ms"],
            warm_up: Duration::from_millis(500),
            baseline: Duration::from_millis(500),
            longest_hold: Duration::from_millis(1_500),
            aftermath: Duration::from_millis(500),
            patience: Duration::from_secs(120),
            ..short
        }
    }
}
