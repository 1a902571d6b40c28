//! Measures for a second how many reads the instances answer: a closed loop, in which each caller waits for its response.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hotshelf::proto::GetProductRequest;
use tokio::task::JoinSet;

use crate::load::{Load, Run};
use crate::{readers, writers};

const CALLERS: usize = 8;
const DURATION: Duration = Duration::from_secs(1);

/// The load, lowered to at most `share` of the reads a second that the instances answer now.
pub(crate) async fn scaled_down(run: &Arc<Run>, load: &Load, share: f64) -> Load {
    let affordable = share * reads_per_second(run).await;
    #[expect(clippy::cast_precision_loss, reason = "a few instances")]
    let probes =
        writers::changes(&load.mix) * (readers::PROBE_DELAYS_MS.len() * run.clients.len()) as f64;
    let planned = load.read_rate + load.write_rate * probes;
    let factor = (affordable / planned).min(1.0);
    Load {
        read_rate: load.read_rate * factor,
        write_rate: load.write_rate * factor,
        ..load.clone()
    }
}

/// Of all products in turn, through all instances.
async fn reads_per_second(run: &Arc<Run>) -> f64 {
    let (mut callers, began) = (JoinSet::new(), Instant::now());
    for caller in 0..CALLERS {
        let run = Arc::clone(run);
        callers.spawn(async move {
            let mut answered = 0_u32;
            let mut client = run.clients[caller % run.clients.len()].clone();
            for id in run.products.iter().copied().cycle() {
                let read = client.get_product(GetProductRequest { id, freshness: None }).await;
                answered += u32::from(read.is_ok());
                if began.elapsed() > DURATION {
                    break;
                }
            }
            answered
        });
    }
    let answered: u32 = callers.join_all().await.iter().sum();
    f64::from(answered) / began.elapsed().as_secs_f64()
}
