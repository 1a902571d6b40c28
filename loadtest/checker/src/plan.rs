//! The moments at which requests are sent, and the products that they are for.

use std::time::{Duration, Instant};

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;

use crate::load::Load;

/// Moments of a Poisson process: independent of each other, and of the responses.
pub(crate) struct Pace {
    next: Instant,
    rate: f64,
    stopped: watch::Receiver<bool>,
}

impl Pace {
    pub(crate) fn new(rate: f64, stopped: watch::Receiver<bool>) -> Self {
        Self { next: Instant::now(), rate, stopped }
    }

    /// Waits for the next moment, if it has not passed already. `None` when the load is stopped.
    pub(crate) async fn next(&mut self, random: &mut ChaCha8Rng) -> Option<Instant> {
        let uniform: f64 = random.random_range(f64::MIN_POSITIVE..1.0);
        self.next += Duration::from_secs_f64(-uniform.ln() / self.rate);
        tokio::select! {
            biased;
            _ = self.stopped.wait_for(|stopped| *stopped) => None,
            () = tokio::time::sleep_until(self.next.into()) => Some(self.next),
        }
    }
}

/// The product of each request: nine of ten by Zipf's law among the hot products, one evenly among the others.
pub(crate) struct Keys {
    random: ChaCha8Rng,
    cumulated: Vec<f64>,
    cold: usize,
}

impl Keys {
    pub(crate) fn new(load: &Load, stream: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(load.seed);
        random.set_stream(stream);
        let mut sum = 0.0;
        let weights = (1..=load.hot).map(|rank| {
            #[expect(clippy::cast_precision_loss, reason = "a rank is small")]
            let rank = rank as f64;
            sum += 1.0 / rank;
            sum
        });
        Self { cumulated: weights.collect(), random, cold: load.cold }
    }

    pub(crate) fn random(&mut self) -> &mut ChaCha8Rng {
        &mut self.random
    }

    /// An index into the products of the run.
    pub(crate) fn next(&mut self) -> usize {
        let hot = self.cumulated.len();
        if self.cold > 0 && (hot == 0 || self.random.random_ratio(1, 10)) {
            return hot + self.random.random_range(0..self.cold);
        }
        let total = self.cumulated.last().copied().unwrap_or(1.0);
        let point = self.random.random_range(0.0..total);
        self.cumulated.partition_point(|sum| *sum < point).min(hot.saturating_sub(1))
    }
}
