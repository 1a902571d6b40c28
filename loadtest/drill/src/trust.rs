//! Whether the instances trusted their memory, by their metric `hotshelf_hot_lease_valid`.

use std::convert::Infallible;
use std::time::Duration;

use crate::instance::Instance;

const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, Default)]
pub struct Trust {
    /// Samples that an instance answered.
    pub samples: usize,
    /// Samples in which memory was not trusted.
    pub lapses: usize,
}

impl Trust {
    /// Samples every instance until it is dropped. Without an answer of its admin port there is no sample.
    pub(crate) async fn sample(&mut self, instances: &[Instance]) -> Infallible {
        loop {
            for instance in instances {
                let Some(valid) = instance.metric("hotshelf_hot_lease_valid").await else {
                    continue;
                };
                self.samples += 1;
                self.lapses += usize::from(valid < 1.0);
            }
            tokio::time::sleep(SAMPLE_INTERVAL).await;
        }
    }
}
