//! The loads of a server.

use anyhow::Result;
use baselines::proto::StreamHotKeysRequest;
use tokio::task::JoinSet;

use crate::backends;
use crate::h2load::H2load;
use crate::keys::Keys;
use crate::redis_load::{RedisBenchmark, RedisGets};

#[derive(Clone, Debug)]
pub(crate) enum Load {
    /// One body, by h2load.
    H2load(H2load),
    /// Many bodies, by the generator in `keys`.
    Keys(Keys),
    /// Redis by itself, by redis-benchmark.
    RedisBenchmark(RedisBenchmark),
    /// Redis by itself, by hotshelf's client.
    RedisGets(RedisGets),
    /// One load on each of several servers, at the same time.
    Together(Vec<H2load>),
    /// The load, while this many clients read StreamHotKeys.
    Watched(usize, H2load),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) seconds: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl Load {
    /// Sends `requests`, and fails if one of them does not get the expected response.
    pub(crate) async fn run(&self, requests: u64) -> Result<Outcome> {
        match self {
            Self::H2load(load) => load.run(requests).await,
            Self::Keys(load) => load.run(requests).await,
            Self::RedisBenchmark(load) => load.run(requests).await,
            Self::RedisGets(load) => load.run(requests).await,
            Self::Together(loads) => together(loads, requests).await,
            Self::Watched(watchers, load) => watched(*watchers, load, requests).await,
        }
    }

    /// The number of requests that `run` really sends: a multiple of the number of servers.
    pub(crate) fn whole(&self, requests: u64) -> u64 {
        match self {
            Self::Together(loads) => requests.div_ceil(loads.len() as u64) * loads.len() as u64,
            _ => requests,
        }
    }
}

/// An equal share for each server. The figures are those of the slowest.
async fn together(loads: &[H2load], requests: u64) -> Result<Outcome> {
    let share = requests.div_ceil(loads.len() as u64);
    let mut running = JoinSet::new();
    for load in loads {
        let load = load.clone();
        running.spawn(async move { load.run(share).await });
    }
    let mut slowest = Outcome { seconds: 0.0, p50_us: 0.0, p99_us: 0.0 };
    while let Some(outcome) = running.join_next().await {
        let outcome = outcome??;
        slowest = Outcome {
            seconds: slowest.seconds.max(outcome.seconds),
            p50_us: slowest.p50_us.max(outcome.p50_us),
            p99_us: slowest.p99_us.max(outcome.p99_us),
        };
    }
    Ok(slowest)
}

async fn watched(watchers: usize, load: &H2load, requests: u64) -> Result<Outcome> {
    let mut watching = JoinSet::new();
    for _ in 0..watchers {
        let mut client = backends::client(load.port).await?;
        let mut snapshots =
            client.stream_hot_keys(StreamHotKeysRequest::default()).await?.into_inner();
        watching.spawn(async move { while let Ok(Some(_)) = snapshots.message().await {} });
    }
    let outcome = load.run(requests).await;
    watching.shutdown().await;
    outcome
}
