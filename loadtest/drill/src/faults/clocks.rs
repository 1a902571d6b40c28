//! The wall clock of an instance jumps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hotshelf::proto::{ProductServiceClient, StreamHotKeysRequest};
use tonic::transport::Endpoint;

use crate::Error;
use crate::fault::Fault;
use crate::stage::Stage;

/// Less than the hour that it jumps by.
const FAR: u64 = 50 * 60;

pub(super) fn all() -> Vec<Fault> {
    let fault = |fault| Fault { sets_clocks: true, hold: Duration::from_secs(6), ..fault };
    vec![
        fault(Fault::new("clock-forward", "an instance's clock is an hour ahead", |stage| {
            Box::pin(jump(stage, "+1h"))
        })),
        fault(Fault::new("clock-back", "an instance's clock is an hour behind", |stage| {
            Box::pin(jump(stage, "-1h"))
        })),
    ]
}

async fn jump(stage: &Stage<'_>, offset: &str) -> Result<(), Error> {
    let victim = stage.victim();
    victim.set_clock(offset)?;
    stage
        .prove_soon(format!("its clock is off by {offset}"), async || {
            clock_of(victim.port).await.is_some_and(|seconds| seconds.abs_diff(now()) > FAR)
        })
        .await?;
    stage.hold().await;
    victim.set_clock("+0")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The time that an instance puts into its snapshots of hot keys.
async fn clock_of(port: u16) -> Option<u64> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).ok()?;
    let mut client = ProductServiceClient::new(endpoint.connect().await.ok()?);
    let stream = client.stream_hot_keys(StreamHotKeysRequest::default()).await.ok()?;
    let snapshot = stream.into_inner().message().await.ok()??;
    snapshot.observe_time?.seconds.try_into().ok()
}
