//! What this machine can bear: callers that each wait for their answer, for a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hotshelf::proto::GetProductRequest;
use tokio::task::JoinSet;

use crate::load::{Load, World};
use crate::{readers, writers};

const CALLERS: usize = 8;
const TIME: Duration = Duration::from_secs(1);

/// The load, lowered to `share` of the reads a second that the instances answer now where the plan asks for more.
pub(crate) async fn fitted(world: &Arc<World>, load: &Load, share: f64) -> Load {
    let bearable = share * answered(world).await;
    #[expect(clippy::cast_precision_loss, reason = "a few instances")]
    let looks = writers::changes(&load.mix) * (readers::LOOKS.len() * world.clients.len()) as f64;
    let planned = load.read_rate + load.write_rate * looks;
    let factor = (bearable / planned).min(1.0);
    Load {
        read_rate: load.read_rate * factor,
        write_rate: load.write_rate * factor,
        ..load.clone()
    }
}

/// Reads a second, of hot products, through all instances.
async fn answered(world: &Arc<World>) -> f64 {
    let (mut callers, began) = (JoinSet::new(), Instant::now());
    for caller in 0..CALLERS {
        let world = Arc::clone(world);
        callers.spawn(async move {
            let mut answered = 0_u32;
            let mut client = world.clients[caller % world.clients.len()].clone();
            for id in world.products.iter().copied().cycle() {
                let read = client.get_product(GetProductRequest { id, freshness: None }).await;
                answered += u32::from(read.is_ok());
                if began.elapsed() > TIME {
                    break;
                }
            }
            answered
        });
    }
    let answered: u32 = callers.join_all().await.iter().sum();
    f64::from(answered) / began.elapsed().as_secs_f64()
}
