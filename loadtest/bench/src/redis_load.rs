//! Reads from Redis without a server in front of it.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use baselines::{ordinary_redis, redis};
use bytes::Bytes;
use fred::clients::Pool;
use fred::interfaces::KeysInterface;
use tokio::task::JoinSet;

use crate::cores::Cores;
use crate::load::Outcome;
use crate::stats::{percentile, sorted};

/// GETs of one value, by redis-benchmark.
#[derive(Clone, Debug)]
pub(crate) struct RedisBenchmark {
    pub(crate) port: u16,
    pub(crate) connections: u32,
    pub(crate) pipeline: u32,
    pub(crate) key: String,
    /// Of the load generator.
    pub(crate) cores: Cores,
}

impl RedisBenchmark {
    pub(crate) async fn run(&self, requests: u64) -> Result<Outcome> {
        let output = self
            .cores
            .command(Path::new("redis-benchmark"))
            .args(["--csv", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(["-c", &self.connections.to_string(), "-P", &self.pipeline.to_string()])
            .args(["-n", &requests.to_string(), "GET", &self.key])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("redis-benchmark cannot be started")?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let (rate, p50_ms, p99_ms) =
            parse_csv(&printed).with_context(|| format!("redis-benchmark printed: {printed}"))?;
        Ok(Outcome { seconds: requests as f64 / rate, p50_us: p50_ms * 1e3, p99_us: p99_ms * 1e3 })
    }
}

/// Requests per second, then p50 and p99 in milliseconds, from the last line.
fn parse_csv(text: &str) -> Option<(f64, f64, f64)> {
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    // The first field is the command, which has no comma.
    let fields: Vec<&str> = line.split(',').map(|field| field.trim_matches('"')).collect();
    let field = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((field(1)?, field(4)?, field(6)?))
}

/// GETs by the client library that hotshelf uses, with the same options.
#[derive(Clone, Debug)]
pub(crate) struct RedisGets {
    pool: Pool,
    keys: Arc<Vec<String>>,
    in_flight: u32,
}

impl RedisGets {
    /// Reads the entries that [`ordinary_redis`] has stored.
    pub(crate) async fn connect(url: &str, ids: &[i64], in_flight: u32) -> Result<Self> {
        let pool = redis::connect(url).await.map_err(anyhow::Error::from_boxed)?;
        let keys = Arc::new(ids.iter().map(|id| ordinary_redis::key(*id)).collect());
        Ok(Self { pool, keys, in_flight })
    }

    pub(crate) async fn run(&self, requests: u64) -> Result<Outcome> {
        let left = Arc::new(AtomicU64::new(requests));
        let mut readers = JoinSet::new();
        let began = Instant::now();
        for _ in 0..self.in_flight {
            readers.spawn(self.clone().read(Arc::clone(&left)));
        }
        let mut times = Vec::new();
        while let Some(read) = readers.join_next().await {
            times.extend(read??);
        }
        let (seconds, times) = (began.elapsed().as_secs_f64(), sorted(&times));
        Ok(Outcome { seconds, p50_us: percentile(&times, 0.5), p99_us: percentile(&times, 0.99) })
    }

    async fn read(self, left: Arc<AtomicU64>) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        let one_less = |left: u64| left.checked_sub(1);
        while let Ok(number) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less) {
            let key = &self.keys[number as usize % self.keys.len()];
            let began = Instant::now();
            let value: Option<Bytes> = self.pool.get(key.as_str()).await?;
            times.push(began.elapsed().as_secs_f64() * 1e6);
            ensure!(value.is_some(), "Redis has no {key}");
        }
        Ok(times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_redis_benchmark_is_parsed() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
                    \"GET ordinary:1\",\"250000.00\",\"0.1\",\"0.05\",\"0.111\",\"0.2\",\"0.311\",\"0.5\"\n";
        assert_eq!(parse_csv(text), Some((250_000.0, 0.111, 0.311)));
    }
}
