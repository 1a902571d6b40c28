//! The wall clock of an instance jumps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hotshelf::proto::{ProductServiceClient, StreamHotKeysRequest};
use tonic::transport::Endpoint;

use crate::Error;
use crate::fault::Fault;
use crate::scenario::Scenario;

/// In seconds: less than the hour by which the clock jumps.
const JUMPED: u64 = 50 * 60;

pub(super) fn all() -> Vec<Fault> {
    let fault = |fault| Fault { sets_clocks: true, hold: Duration::from_secs(6), ..fault };
    vec![
        fault(Fault::new("clock-forward", "an instance's clock is an hour ahead", |scenario| {
            Box::pin(jump(scenario, "+1h"))
        })),
        fault(Fault::new("clock-back", "an instance's clock is an hour behind", |scenario| {
            Box::pin(jump(scenario, "-1h"))
        })),
    ]
}

async fn jump(scenario: &Scenario<'_>, offset: &str) -> Result<(), Error> {
    let victim = scenario.victim();
    victim.set_clock(offset)?;
    scenario
        .prove_soon(format!("its clock is off by {offset}"), async || {
            clock_of(victim.port).await.is_some_and(|seconds| seconds.abs_diff(now()) > JUMPED)
        })
        .await?;
    scenario.hold().await;
    victim.set_clock("+0")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Seconds since 1970, as the instance puts them into its snapshots of hot keys.
async fn clock_of(port: u16) -> Option<u64> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).ok()?;
    let mut client = ProductServiceClient::new(endpoint.connect().await.ok()?);
    let stream = client.stream_hot_keys(StreamHotKeysRequest::default()).await.ok()?;
    let snapshot = stream.into_inner().message().await.ok()??;
    snapshot.observe_time?.seconds.try_into().ok()
}
