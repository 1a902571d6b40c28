//! Every contender is measured once in each round, in a rotating order, so that other work of the machine affects all of
//! them.

use anyhow::{Context, Result};

use crate::cpu::Cpu;
use crate::load::Load;
use crate::stats::median;

/// Runs before the rounds. The fastest counts: the first one is mostly spent on connecting.
const CALIBRATIONS: usize = 4;
/// In seconds. A shorter run was not measured, because some tools count milliseconds.
const SHORTEST: f64 = 1e-3;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    /// About how long each contender is loaded in a round.
    pub(crate) seconds: f64,
}

/// A server under a load.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    pub(crate) label: String,
    /// The processes whose CPU time counts.
    pub(crate) pids: Vec<u32>,
    pub(crate) load: Load,
}

/// The figures of one round. CPU time is for each request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) user_us: f64,
    pub(crate) system_us: f64,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl Sample {
    pub(crate) fn cpu_us(&self) -> f64 {
        self.user_us + self.system_us
    }

    /// For work that only uses the CPU.
    pub(crate) fn of_nanos(nanos: f64) -> Self {
        Self { user_us: nanos / 1e3, ..Self::default() }
    }

    pub(crate) fn nanos(&self) -> f64 {
        self.cpu_us() * 1e3
    }
}

/// One contender, with one sample for each round.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) label: String,
    pub(crate) samples: Vec<Sample>,
}

impl Row {
    pub(crate) fn all(&self, of: impl Fn(&Sample) -> f64) -> Vec<f64> {
        self.samples.iter().map(of).collect()
    }

    pub(crate) fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(&self.all(of))
    }

    /// For each round, this value divided by the other's of the same round.
    pub(crate) fn ratios(&self, to: &Self, of: impl Fn(&Sample) -> f64) -> Vec<f64> {
        let pairs = self.samples.iter().zip(&to.samples);
        pairs.map(|(this, other)| of(this) / of(other)).collect()
    }
}

/// Measures all contenders, `effort.rounds` times.
pub(crate) async fn interleaved(effort: Effort, contenders: &[Contender]) -> Result<Vec<Row>> {
    let mut requests = Vec::new();
    for contender in contenders {
        requests.push(contender.calibrate(effort.seconds).await?);
    }
    let mut rows: Vec<Row> = contenders
        .iter()
        .map(|contender| Row { label: contender.label.clone(), samples: Vec::new() })
        .collect();
    for round in 0..effort.rounds {
        for turn in 0..contenders.len() {
            let at = (round + turn) % contenders.len();
            rows[at].samples.push(contenders[at].run(requests[at]).await?);
        }
    }
    Ok(rows)
}

impl Contender {
    /// The number of requests that takes about this long on an idle machine. Also warms the server up.
    async fn calibrate(&self, seconds: f64) -> Result<u64> {
        let mut best: f64 = 0.0;
        let mut requests = self.load.whole(200);
        for _ in 0..CALIBRATIONS {
            let outcome = self.load.run(requests).await.context(self.label.clone())?;
            best = best.max(requests as f64 / outcome.seconds.max(SHORTEST));
            requests = self.load.whole((best * seconds / 4.0) as u64 + 1);
        }
        Ok(self.load.whole((best * seconds) as u64 + 1))
    }

    async fn run(&self, requests: u64) -> Result<Sample> {
        let before = Cpu::of(&self.pids)?;
        let outcome = self.load.run(requests).await.context(self.label.clone())?;
        let used = Cpu::of(&self.pids)?.since(before);
        let each = requests as f64;
        // Without a process there is no CPU time.
        let counted = if self.pids.is_empty() { f64::NAN } else { each };
        Ok(Sample {
            user_us: used.user / counted,
            system_us: used.system / counted,
            per_second: each / outcome.seconds,
            p50_us: outcome.p50_us,
            p99_us: outcome.p99_us,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(user: &[f64]) -> Row {
        let sample = |user: &f64| Sample { user_us: *user, ..Sample::default() };
        Row { label: String::new(), samples: user.iter().map(sample).collect() }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The machine was twice as slow in the second round, for both.
        let (fast, slow) = (row(&[2.0, 4.0, 2.0]), row(&[8.0, 16.0, 8.0]));
        assert_eq!(fast.ratios(&slow, Sample::cpu_us), [0.25, 0.25, 0.25]);
    }
}
